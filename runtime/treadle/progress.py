"""The run's counters: where a run stands, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypedDict


class ProgressState(TypedDict):
    epoch: int
    batch: int
    batches: int
    window: int
    global_step: int
    validated: int
    stepped: bool
    optimizer_steps: list[int]
    validating: bool


@dataclass(slots=True)
class Progress:
    """Moved by the loops only. One counter counts one thing."""

    epoch: int = 0
    """Epochs completed; so also the index of the running one."""
    batch: int = 0
    """Batches of the running epoch already trained on."""
    batches: int = 0
    """Batches trained on in all epochs."""
    window: int = 0
    """Batches whose gradients wait for the next optimizer step (gradient accumulation)."""
    global_step: int = 0
    """Training steps that updated weights, however many optimizers stepped in each."""
    validated: int = -1
    """``batches`` when the last validation ended, or -1."""
    stepped: bool = False
    """The batch trained on last updated weights."""
    optimizer_steps: list[int] = field(default_factory=list)
    """Steps of each optimizer."""
    validating: bool = False
    """A validation was broken off: it is done anew before anything else."""
    now: Callable[[], float] = field(default=time.monotonic, compare=False, repr=False)
    """Seconds on a monotonic clock, the same on all ranks at the same batch. Not state."""

    @property
    def last_epoch(self) -> int:
        """The epoch of the batch trained on last."""
        return self.epoch - (self.batch == 0 and self.epoch > 0)

    def state_dict(self) -> ProgressState:
        return ProgressState(
            epoch=self.epoch,
            batch=self.batch,
            batches=self.batches,
            window=self.window,
            global_step=self.global_step,
            validated=self.validated,
            stepped=self.stepped,
            optimizer_steps=list(self.optimizer_steps),
            validating=self.validating,
        )

    def load_state_dict(self, state: ProgressState) -> None:
        for counter in fields(self):
            if counter.name != "now":
                setattr(self, counter.name, state[counter.name])  # type: ignore[literal-required]
        self.optimizer_steps = list(self.optimizer_steps)
