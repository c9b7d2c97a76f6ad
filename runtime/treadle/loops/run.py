"""What every loop of one call (fit, validate, test, predict) works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from treadle.callbacks.hooks import Hooks
from treadle.fabric import Fabric
from treadle.loggers import Logger
from treadle.metrics import Logbook, Number, as_floats
from treadle.module import Module
from treadle.progress import Progress


class ResultsState(TypedDict):
    values: dict[str, Number]
    found_at: dict[str, int]
    shown: dict[str, Number]


class Results:
    """The newest value of every metric, and when it was found."""

    def __init__(self) -> None:
        self._values: dict[str, Number] = {}
        self._found_at: dict[str, int] = {}
        self.shown: dict[str, Number] = {}
        """Those meant for the progress bar."""

    def keep(self, book: Logbook, batches: int) -> None:
        """Take over what ``book`` knows now, ``batches`` being those trained on so far."""
        values = {**book.step_values(), **book.callback_values()}
        self._values.update(values)
        self._found_at.update(dict.fromkeys(values, batches))
        self.shown.update(book.epoch_values(of="prog_bar"))

    def is_fresh(self, name: str, batches: int) -> bool:
        """Whether it was found after the batch trained on last."""
        return self._found_at.get(name) == batches

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(value) for name, value in self._values.items()}

    def state_dict(self) -> ResultsState:
        return ResultsState(values=dict(self._values), found_at=dict(self._found_at), shown=dict(self.shown))

    def load_state_dict(self, state: ResultsState) -> None:
        self._values, self._found_at = dict(state["values"]), dict(state["found_at"])
        self.shown = dict(state["shown"])


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

    def __post_init__(self) -> None:
        self.close_book()

    def write(self, values: dict[str, Number], step: int) -> None:
        """Write a row to every logger. A metric called ``step`` takes the place of ``step``. Syncs the device."""
        if not values:
            return
        row = as_floats(values)
        self.logged.update(row)
        if self.loggers:
            step = int(row.pop("step", step))
            row = {"epoch": self.progress.epoch, **row}
            for logger in self.loggers:
                logger.log_metrics(row, step)

    def open_book(self, book: Logbook, stage: str) -> None:
        self.book, self.stage = book, stage
        self.module.__dict__["_logbook"] = book

    def close_book(self) -> None:
        """Until the next is opened, there is nothing to log to; doing so is an error."""
        self.book, self.stage = None, ""
        self.module.__dict__["_logbook"] = Logbook(lambda: 1, self.fabric.all_reduce)

    def leave(self) -> None:
        """The module works alone from here on."""
        self.module.__dict__.pop("_logbook", None)


def takes_index(step: Callable[..., Any]) -> bool:
    """Whether a step's signature has room for ``batch_idx``."""
    import inspect

    parameters = inspect.signature(step).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
