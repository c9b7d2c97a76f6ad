"""Take the time, and stop when it is over."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, final

import torch

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError, nearest
from treadle.schedule import parse_duration

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

STAGES = ("train", "validate", "test")


@final
class Timer(Callback):
    """Measures how long stages take, on a clock that nobody sets; ends the fit after ``duration`` of training.

    The time spent on training is state: a resumed run has what its predecessors left over. On several ranks they agree
    at log points that it is over, which stops the run that much later.

    Args:
        duration: ``"DD:HH:MM:SS"``, a ``timedelta``, or its arguments as a dict; None to measure only.
        interval: Look at the clock after each batch (``step``) or at the end of each epoch (``epoch``).
        verbose: Say it on standard error when the time is over.

    Raises:
        ConfigError: Another interval, or no length of time.
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | None = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigError(
                f"Timer(interval={interval!r}).",
                why="it looks at the clock after each step or at the end of each epoch.",
                fix='Timer(interval="step")',
            )
        self.duration = None if duration is None else parse_duration(duration)
        self.interval, self.verbose = interval, verbose
        self._start: dict[str, float] = {}
        self._end: dict[str, float] = {}
        self._trained_before = 0.0
        self._over = False

    # --- what users read ---

    def start_time(self, stage: str = "train") -> float | None:
        """When the stage started last, in seconds of ``time.monotonic``; None if it hasn't."""
        return self._start.get(_known(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """When it ended; None if it hasn't."""
        return self._end.get(_known(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds it has taken so far. Training counts what it took before the run was resumed."""
        before = self._trained_before if stage == "train" else 0.0
        start, end = self.start_time(stage), self.end_time(stage)
        return before if start is None else before + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds left of ``duration``; None without one."""
        return None if self.duration is None else max(0.0, self.duration.total_seconds() - self.time_elapsed(stage))

    # --- the clock ---

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._start, self._end, self._trained_before, self._over = {}, {}, 0.0, False

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._begin("train")
        self._check(trainer)  # of a resumed run, the time may be over

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        alone = trainer.world_size == 1  # asking the others at each batch would cost more than it saves
        if self.interval == "step" and (alone or trainer.global_step % trainer.log_every_n_steps == 0):
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._finish("train")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking:
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking:
            self._finish("validate")

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._begin("test")

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._finish("test")

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        for unfinished in self._start.keys() - self._end.keys():  # by an error
            self._finish(unfinished)

    def _begin(self, stage: str) -> None:
        self._start[stage] = time.monotonic()
        self._end.pop(stage, None)

    def _finish(self, stage: str) -> None:
        self._end[stage] = time.monotonic()

    def _check(self, trainer: Trainer) -> None:
        if self.duration is None or self._over:
            return
        self._over = _agreed(trainer, self.time_remaining() == 0.0)
        if self._over:
            trainer.should_stop = True
            if self.verbose and trainer.is_global_zero:
                taken = timedelta(seconds=round(self.time_elapsed()))
                print(f"Timer: the time is over after {taken} of training.", file=sys.stderr, flush=True)

    # --- state ---

    @property
    def state_key(self) -> str:
        return "Timer" if self.duration is not None else "Timer[measuring]"  # beside one with a duration

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {"train": self.time_elapsed()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trained_before = state["time_elapsed"]["train"]


def _known(stage: str) -> str:
    if stage not in STAGES:
        raise ConfigError(
            f"Timer knows no stage {stage!r}.", why=f"it times {', '.join(STAGES)}.", fix=nearest(stage, STAGES)
        )
    return stage


def _agreed(trainer: Trainer, over: bool) -> bool:
    """Whether it is over on any rank: clocks differ, and all must stop after the same batch."""
    if trainer.world_size == 1:
        return over
    fabric = trainer.fabric
    return bool(fabric.all_reduce(torch.tensor(float(over), device=fabric.device), "max"))
