"""Ranks whose variables somebody set."""

from __future__ import annotations

from typing import final

from treadle.environments.base import Variables, World
from treadle.environments.torch_variables import NEEDED, torch_world
from treadle.errors import ConfigError


@final
class ByHand:
    """``RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python train.py``, once for each rank."""

    name = "variables"

    def detect(self, variables: Variables) -> bool:
        return "RANK" in variables or "WORLD_SIZE" in variables

    def world(self, variables: Variables) -> World:
        if missing := [name for name in NEEDED if not variables.get(name)]:
            there = [name for name in NEEDED if variables.get(name)]
            raise ConfigError(
                f"{' and '.join(there)} set, and {' and '.join(missing)} not.",
                why="together they say where this process stands among several.",
                fix=f"unset {' '.join(there)} for one process, or start with torchrun, which sets all of them.",
            )
        return torch_world(variables, self.name)

    def requeue(self, variables: Variables) -> bool:
        return False
