"""What every loop of one call (fit, validate, test, predict) works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from treadle.callbacks.hooks import Hooks
from treadle.fabric import Fabric
from treadle.loggers import Logger
from treadle.metrics import Logbook, Number, as_floats
from treadle.module import Module
from treadle.progress import Progress


class Results:
    """The newest value of every metric, and when it was found."""

    def __init__(self) -> None:
        self._values: dict[str, Number] = {}
        self._found_at: dict[str, int] = {}

    def update(self, values: dict[str, Number], batches: int) -> None:
        self._values.update(values)
        self._found_at.update(dict.fromkeys(values, batches))

    def is_fresh(self, name: str, batches: int) -> bool:
        """Whether it was found after the batch trained on last."""
        return self._found_at.get(name) == batches

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(value) for name, value in self._values.items()}


@dataclass
class Run:
    """One call of the Trainer. Loops move ``progress`` and ``results``; nobody else does."""

    fabric: Fabric
    module: Module
    hooks: Hooks
    loggers: Sequence[Logger]
    progress: Progress
    results: Results
    book: Logbook | None = None
    """Of the stage that runs now."""
    stage: str = ""
    """``train``, ``validate``, ``sanity_check``, ``test`` or ``predict``."""
    should_stop: bool = False
    logged: dict[str, float] = field(default_factory=dict)
    """The newest value of everything written to loggers."""

    def write(self, values: dict[str, Number], step: int) -> None:
        """Write a row to every logger. Syncs the device."""
        if not values:
            return
        row = as_floats(values)
        self.logged.update(row)
        if self.loggers:
            row = {"epoch": self.progress.epoch, **row}
            for logger in self.loggers:
                logger.log_metrics(row, step)

    def open_book(self, book: Logbook, stage: str) -> None:
        self.book, self.stage = book, stage
        self.module.__dict__["_logbook"] = book

    def close_book(self) -> None:
        self.book, self.stage = None, ""
        self.module.__dict__.pop("_logbook", None)


def takes_index(step: Callable[..., Any]) -> bool:
    """Whether a step's signature has room for ``batch_idx``."""
    import inspect

    parameters = inspect.signature(step).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
