"""Ranks that treadle started itself."""

from __future__ import annotations

from dataclasses import replace
from typing import final

from treadle.environments import slurm
from treadle.environments.base import Variables, World
from treadle.environments.torch_variables import torch_world


@final
class Ours:
    """The processes of ``Fabric.launch``, beside the one that started them."""

    name = "ours"

    def detect(self, variables: Variables) -> bool:
        return variables.get("TREADLE_LAUNCHED") == "1"

    def world(self, variables: Variables) -> World:
        world = torch_world(variables, self.name)
        return replace(world, job=slurm.job_of(variables), restarts=slurm.restarts_of(variables))

    def requeue(self, variables: Variables) -> bool:
        return slurm.requeue(variables)
