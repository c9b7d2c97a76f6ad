"""A process that nobody started as one of several."""

from __future__ import annotations

from typing import final

from treadle.environments.base import Variables, World


@final
class Alone:
    """``python -m my_project fit ...``: if several devices are asked for, this process starts the other ranks."""

    name = "alone"

    def detect(self, variables: Variables) -> bool:
        return True

    def world(self, variables: Variables) -> World:
        return World(environment=self.name)

    def requeue(self, variables: Variables) -> bool:
        return False
