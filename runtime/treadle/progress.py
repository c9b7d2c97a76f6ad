"""The run's counters: where a run stands, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict


class ProgressState(TypedDict):
    epoch: int
    batch: int
    batches: int
    window: int
    global_step: int
    validated: int


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
    """Optimizer steps taken."""
    validated: int = -1
    """``batches`` when the last validation ended, or -1."""

    def state_dict(self) -> ProgressState:
        return ProgressState(
            epoch=self.epoch,
            batch=self.batch,
            batches=self.batches,
            window=self.window,
            global_step=self.global_step,
            validated=self.validated,
        )

    def load_state_dict(self, state: ProgressState) -> None:
        for field in fields(self):
            setattr(self, field.name, state[field.name])  # type: ignore[literal-required]
