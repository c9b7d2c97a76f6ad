"""Tasks that LSF's ``jsrun`` started."""

from __future__ import annotations

from typing import final

from treadle.environments.base import Variables, World
from treadle.environments.numbers import (
    agreeing,
    in_blocks,
    number,
    port_of,
    require_order,
)


@final
class LSF:
    """``jsrun -n 4 -a 1 python -m my_project fit ...`` in a job of LSF; the first host of the job has rank 0."""

    name = "lsf"

    def detect(self, variables: Variables) -> bool:
        return "LSB_JOBID" in variables and "JSM_NAMESPACE_RANK" in variables

    def world(self, variables: Variables) -> World:
        rank, size = number(variables, "JSM_NAMESPACE_RANK"), number(variables, "JSM_NAMESPACE_SIZE")
        require_order(rank, size, "JSM_NAMESPACE_RANK and JSM_NAMESPACE_SIZE")
        local_rank = number(variables, "JSM_NAMESPACE_LOCAL_RANK")
        local_size = number(variables, "JSM_NAMESPACE_LOCAL_SIZE")
        require_order(
            local_rank,
            local_size,
            "JSM_NAMESPACE_LOCAL_RANK and JSM_NAMESPACE_LOCAL_SIZE",
        )
        job, index = number(variables, "LSB_JOBID"), number(variables, "LSB_JOBINDEX", 0)
        world = World(
            environment=self.name,
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            node_rank=rank // local_size,
            nodes=-(-size // local_size),
            address=variables.get("MASTER_ADDR") or _first_host(variables),
            port=port_of(variables, 10_000 + (job * 97 + index) % 20_000),
            started=True,
            job=(f"lsf-{job}-{index}" if index else f"lsf-{job}"),  # all of an array have one number
            restarts=int(variables.get("LSB_RESTART") == "Y"),
        )
        return agreeing(in_blocks(world, fix="jsrun --launch_distribution packed ..."), variables)

    def requeue(self, variables: Variables) -> bool:
        return False  # bsub -r, and the queue's own rules


def _first_host(variables: Variables) -> str:
    """LSB_MCPU_HOSTS is ``host slots host slots ...``, with the machine that launches first where it has one slot."""
    words = variables.get("LSB_MCPU_HOSTS", "").split()
    hosts = list(zip(words[::2], words[1::2], strict=False))
    computing = [host for host, slots in hosts if slots != "1"] or [host for host, _ in hosts]
    return computing[0] if computing else "127.0.0.1"
