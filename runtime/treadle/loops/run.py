"""What every loop of one call (fit, validate, test, predict) works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from treadle.callbacks.hooks import Hooks
from treadle.data import DataModule
from treadle.data.stream import Batches
from treadle.fabric import Fabric
from treadle.loggers import Logger
from treadle.loops.syncing import agree_on_epoch, agree_on_step
from treadle.metrics import Logbook, Number, as_floats, as_tensors
from treadle.module import Module
from treadle.progress import Progress

if TYPE_CHECKING:
    from treadle.profilers import Profiler


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
        values = {**book.newest(), **book.callback_values()}
        self._values.update(values)
        self._found_at.update(dict.fromkeys(values, batches))
        self.shown.update(book.epoch_values(of="prog_bar"))

    def keep_steps(self, book: Logbook, batches: int) -> None:
        """Take over the values of the step at hand: an evaluation inside the epoch may ask for them."""
        values = book.newest()
        self._values.update(values)
        self._found_at.update(dict.fromkeys(values, batches))

    def is_fresh(self, name: str, batches: int) -> bool:
        """Whether it was found after the batch trained on last."""
        return self._found_at.get(name) == batches

    def tensors(self) -> dict[str, Tensor]:
        return as_tensors(self._values)

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
    datamodule: DataModule | None
    hooks: Hooks
    loggers: Sequence[Logger]
    progress: Progress
    results: Results
    inference_mode: bool = True
    """Evaluate in torch's inference mode, not only without gradients."""
    profiler: Profiler | None = None
    fitting: bool = False
    silent: bool = False
    """``self.log`` does nothing."""
    book: Logbook | None = None
    """Of the stage that runs now."""
    stage: str = ""
    """``train``, ``validate``, ``sanity_check``, ``test`` or ``predict``."""
    should_stop: bool = False
    last_batch: bool = False
    """The batch at hand is its epoch's last."""
    current_stream: Batches | None = None
    """Where an evaluation's batch at hand came from."""
    logged: dict[str, float] = field(default_factory=dict)
    """The newest value of everything written to loggers."""

    def __post_init__(self) -> None:
        self._opened: list[Logbook] = []
        self.close_book()

    @property
    def own_loggers(self) -> Sequence[Logger]:
        """Rank 0's: the others have none."""
        return self.loggers if self.fabric.is_global_zero else ()

    def write(self, values: dict[str, Number], step: int) -> None:
        """Write a row to every logger. A metric called ``step`` takes the place of ``step``. Syncs the device."""
        if not values:
            return
        row = as_floats(values)
        self.logged.update(row)
        if self.loggers and self.fabric.is_global_zero:
            step = int(row.pop("step", step))
            row = {"epoch": self.progress.epoch if self.fitting else self.progress.last_epoch, **row}
            for logger in self.loggers:
                logger.log_metrics(row, step)

    def open_book(self, book: Logbook, stage: str) -> None:
        self.book, self.stage = book, stage
        self._opened.append(book)
        self.module.__dict__["_logbook"] = _Deaf() if self.silent else book

    def close_book(self) -> None:
        """Until the next is opened, there is nothing to log to; doing so is an error."""
        self.book, self.stage = None, ""
        self.module.__dict__["_logbook"] = _Deaf() if self.silent else Logbook(lambda: 1)

    def new_book(self, batch_size: Callable[[], int]) -> Logbook:
        """For one stage of this module."""
        book = Logbook(batch_size, self.module)
        book.alone = self.fabric.world_size == 1
        return book

    def agree(self, book: Logbook) -> None:
        """Let the ranks agree on the reductions over the epoch. Collective; see ``loops/syncing.py``."""
        if not self.silent:
            agree_on_epoch(book, self.fabric.ranks, self.fabric.strategy.share.group, self.module)

    def take_step_row(self, book: Logbook) -> dict[str, Number]:
        """The values of the step at hand, for the loggers. Collective."""
        if not self.silent:
            agree_on_step(book, self.fabric.ranks, self.fabric.strategy.share.group)
        return book.take_step_row()

    def keep(self, book: Logbook) -> None:
        """Take over what the book knows now, agreed on by all ranks. Collective."""
        self.agree(book)
        self.results.keep(book, self.progress.batches)

    def leave(self) -> None:
        """The module works alone from here on, and nothing of the run is left in it: gathered metrics, an open toggle."""
        self.module.__dict__.pop("_logbook", None)
        for toggled in reversed(self.module.__dict__.pop("_toggled", [])):
            for parameter, required in toggled:
                parameter.requires_grad_(required)
        for book in self._opened:
            book.reset()


class _Deaf:
    """A logbook that takes nothing."""

    def log(self, *_: Any) -> None:
        pass
