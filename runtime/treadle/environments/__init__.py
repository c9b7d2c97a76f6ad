"""Environments: who started this process, and where it stands among the ranks of its job.

What to type, for a project ``my_project`` with a config ``train.yaml``; its code is the same everywhere::

    python -m my_project fit --config train.yaml --trainer.devices 2      one machine: treadle starts the ranks
    torchrun --nproc-per-node 2 -m my_project fit --config train.yaml     one machine, under torch's elastic agent
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id JOB --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m my_project ...
    srun python -m my_project fit --config train.yaml                     in an sbatch script: #SBATCH --ntasks-per-node=8,
                                                                          --requeue, --signal=USR1@120
    mpirun -np 2 python -m my_project fit --config train.yaml
    jsrun -n 4 -a 1 python -m my_project fit --config train.yaml          in a job of LSF
    command: [torchrun, -m, my_project, fit, --config, train.yaml]        in a TrainJob of Kubeflow
    TorchTrainer(lambda: treadle.cli.main(Model, Data, [...]), ...)       a function for the workers of Ray Train

A package brings another by the entry-point group ``treadle.environments``: a class with the methods of ``Environment``,
asked before those that are built in. ``TREADLE_ENVIRONMENT=name`` settles it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from treadle import plugins
from treadle.environments.alone import Alone
from treadle.environments.base import Environment, Variables, World
from treadle.environments.by_hand import ByHand
from treadle.environments.kubeflow import Kubeflow
from treadle.environments.lsf import LSF
from treadle.environments.mpi import MPI
from treadle.environments.ours import Ours
from treadle.environments.ray import Ray
from treadle.environments.slurm import Slurm
from treadle.environments.torchrun import Torchrun
from treadle.errors import ConfigError, nearest

__all__ = ["Environment", "Variables", "World", "environment_for"]

VARIABLE = "TREADLE_ENVIRONMENT"
_BUILT_IN: tuple[type[Environment], ...] = (
    Ours,
    Torchrun,
    Ray,
    LSF,
    MPI,
    Slurm,
    Kubeflow,
    ByHand,
    Alone,
)
"""The narrower first: torchrun under srun is torchrun's, mpirun in a batch script MPI's; jsrun sets Open MPI's too."""


def environment_for(variables: Variables | None = None) -> Environment:
    """Who started this process, by its variables.

    Raises:
        ConfigError: TREADLE_ENVIRONMENT names none that there is, or an installed one can't be used.
    """
    variables = os.environ if variables is None else variables
    if wanted := variables.get(VARIABLE):
        known: dict[str, Environment] = {}
        for environment in _all():
            known.setdefault(environment.name, environment)  # an installed one before one of ours that it replaces
        if wanted not in known:
            raise ConfigError(
                f"{VARIABLE}={wanted} is unknown.",
                why=f"known environments are {', '.join(known)}.",
                fix=nearest(wanted, known),
            )
        return known[wanted]
    return next(environment for environment in _all() if environment.detect(variables))


def _all() -> Iterator[Environment]:
    for name in plugins.names("treadle.environments"):
        provided = plugins.named("treadle.environments", name)
        made = provided() if callable(provided) else provided
        if not isinstance(made, Environment):
            raise ConfigError(
                f"the plugin {name!r} in treadle.environments is a {type(made).__name__}.",
                why="an environment has the methods of treadle.environments.Environment.",
                fix=f"repair or uninstall what brings it; {plugins.VARIABLE}=none runs without plugins.",
            )
        yield made
    for kind in _BUILT_IN:
        yield kind()
