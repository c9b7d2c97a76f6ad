"""A progress bar, redrawn by time and silent when nobody watches."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, final

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from treadle.module import Module
    from treadle.trainer import Trainer


@final
class RichProgressBar(Callback):
    """One line for training and one for evaluation, with the metrics logged with ``prog_bar=True``.

    Drawn on standard error, only if that is a terminal. Values are fetched from the device when it is drawn.

    Args:
        refresh_rate: Redraws a second, at most.

    Raises:
        ConfigError: A rate that is not above 0.
    """

    def __init__(self, refresh_rate: float = 10.0) -> None:
        if not isinstance(refresh_rate, (int, float)) or not refresh_rate > 0:
            raise ConfigError(
                f"RichProgressBar(refresh_rate={refresh_rate!r}).",
                why="it is redrawn so many times a second, at most.",
                fix="RichProgressBar(refresh_rate=10), or Trainer(enable_progress_bar=False) for none.",
            )
        self._interval = 1 / refresh_rate
        self._due = 0.0
        self._bar: Progress | None = None
        self._train: TaskID | None = None
        self._eval: TaskID | None = None
        self._lengths: list[int | float] = []

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._bar.start()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self._close()

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if self._bar is None:
            return
        if self._train is None:
            length = trainer.num_training_batches
            self._train = self._bar.add_task("", total=None if length == float("inf") else length, metrics="")
        self._bar.reset(self._train, description=f"epoch {trainer.current_epoch}", completed=trainer.progress.batch)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer, self._train, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            self._draw(trainer, self._train, trainer.progress.batch)

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking:
            self._start_eval("sanity check", trainer.num_sanity_val_batches)
        else:
            self._start_eval("validate", trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._start_eval("test", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._start_eval("predict", trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._advance_eval(trainer, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._advance_eval(trainer, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._advance_eval(trainer, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None and self._eval is not None:
            self._bar.remove_task(self._eval)
            self._eval = None

    def _start_eval(self, what: str, lengths: list[int | float]) -> None:
        if self._bar is not None:
            self._lengths, length = lengths, sum(lengths)
            self._eval = self._bar.add_task(what, total=None if length == float("inf") else length, metrics="")

    def _advance_eval(self, trainer: Trainer, batch_idx: int, loader: int) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer, self._eval, int(sum(self._lengths[:loader])) + batch_idx + 1)

    def _draw(self, trainer: Trainer, task: TaskID | None, completed: int) -> None:
        if self._bar is None or task is None:
            return
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
        self._bar.update(task, completed=completed, metrics=metrics)
        self._bar.refresh()
        self._due = time.monotonic() + self._interval

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._train, self._eval = None, None, None
