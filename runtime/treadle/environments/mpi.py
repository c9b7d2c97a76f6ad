"""Processes that ``mpirun`` started."""

from __future__ import annotations

from typing import final

from treadle.environments import slurm
from treadle.environments.base import Variables, World
from treadle.environments.numbers import (
    agreeing,
    in_blocks,
    number,
    port_of,
    require_order,
)
from treadle.errors import ConfigError

_NAMES = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Of Open MPI; of MPICH and Intel MPI."""
_PORT = 29_400


@final
class MPI:
    """``mpirun -np 2 python -m my_project fit ...``. MPI says who each process is; torch's collectives do the rest."""

    name = "mpi"

    def detect(self, variables: Variables) -> bool:
        return any(
            {rank, local} <= variables.keys() for rank, _, local, _ in _NAMES
        )  # srun --mpi=pmi2 sets PMI_RANK too

    def world(self, variables: Variables) -> World:
        of_rank, of_size, of_local, of_local_size = next(
            (names for names in _NAMES if names[0] in variables), _NAMES[0]
        )
        rank, size = number(variables, of_rank), number(variables, of_size)
        require_order(rank, size, f"{of_rank} and {of_size}")
        local_rank, local_size = number(variables, of_local), number(variables, of_local_size)
        require_order(local_rank, local_size, f"{of_local} and {of_local_size}")
        if local_size < size and "MASTER_ADDR" not in variables:
            raise ConfigError(
                f"mpirun started {size} processes, {local_size} of them on this machine, and MASTER_ADDR is not set.",
                why="ranks meet at the machine of rank 0, and MPI's variables don't name it.",
                fix="mpirun -x MASTER_ADDR=first-host ..., or torchrun or srun, which find it by themselves.",
            )
        world = World(
            environment=self.name,
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            node_rank=rank // local_size,
            nodes=-(-size // local_size),
            address=variables.get("MASTER_ADDR", "127.0.0.1"),
            port=port_of(variables, _port(variables)),
            started=True,
            job=slurm.job_of(variables),
            restarts=slurm.restarts_of(variables),
        )
        return agreeing(
            in_blocks(world, fix="mpirun --map-by slot ... (-ppn N in MPICH)."),
            variables,
        )

    def requeue(self, variables: Variables) -> bool:
        return slurm.requeue(variables)


def _port(variables: Variables) -> int:
    """Two jobs on a machine: Open MPI's have different namespaces."""
    space = variables.get("PMIX_NAMESPACE", "")
    return _PORT + int(space) % 2000 if space.isdecimal() else _PORT
