"""Stop when a metric has stopped improving."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, final

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError, nearest

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer


@final
class EarlyStopping(Callback):
    """Ends the fit after ``patience`` checks in a row without an improvement of more than ``min_delta``.

    A check happens after each validation, or at the end of each epoch in runs without validation.

    Args:
        monitor: The logged metric.
        min_delta: How much better counts as better; at least 0.
        patience: Checks without improvement before it stops; at least 1.
        mode: Whether less or more is better.
        strict: A metric that is not there is an error, not a check that is left out.
        check_finite: Stop at once when the metric is infinite or not a number.
        check_on_train_epoch_end: Check at the end of each epoch, not after validation. Default: as said above.

    Raises:
        ConfigError: An argument out of its range; while fitting, a metric that is not there.
    """

    after_module = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        check_on_train_epoch_end: bool | None = None,
    ) -> None:
        if mode not in ("min", "max") or min_delta < 0 or patience < 1:
            raise ConfigError(
                f"EarlyStopping(mode={mode!r}, min_delta={min_delta}, patience={patience}).",
                why='mode is "min" or "max", min_delta at least 0, patience at least 1.',
                fix=f'EarlyStopping({monitor!r}, mode="min", patience=3)',
            )
        self.monitor, self.min_delta, self.patience, self.mode = monitor, min_delta, patience, mode
        self.strict, self.check_finite = strict, check_finite
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.wait_count = 0
        self.best_score: float | None = None
        self.stopped_epoch = 0
        self.stopping_reason: str | None = None

    @property
    def state_key(self) -> str:
        return f"EarlyStopping[{self.monitor},{self.mode}]"

    def state_dict(self) -> dict[str, Any]:
        return {"wait_count": self.wait_count, "best_score": self.best_score, "stopped_epoch": self.stopped_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wait_count, self.best_score = state["wait_count"], state["best_score"]
        self.stopped_epoch = state["stopped_epoch"]

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if self.wait_count >= self.patience:  # a resumed run that had stopped, unless its patience was raised
            self._stop(trainer, f"{self.monitor} had not improved in {self.wait_count} checks when the run was saved")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking and not self.check_on_train_epoch_end:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        default = trainer.num_val_batches == 0
        if default if self.check_on_train_epoch_end is None else self.check_on_train_epoch_end:
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if (found := trainer.callback_metrics.get(self.monitor)) is None:
            if not self.strict:
                return None
            known = sorted(trainer.callback_metrics)
            raise ConfigError(
                f"EarlyStopping follows {self.monitor!r}, which is not logged.",
                why=f"logged so far: {', '.join(known) or 'nothing'}.",
                fix=nearest(self.monitor, known) if known else f'self.log("{self.monitor}", ...) in validation_step',
            )
        score = float(found)
        if self.check_finite and not math.isfinite(score):
            return self._stop(trainer, f"{self.monitor} = {score} is not finite")
        if self.best_score is None or self._better(score, self.best_score):
            self.best_score, self.wait_count = score, 0
            return None
        self.wait_count += 1
        if self.wait_count >= self.patience:
            self._stop(trainer, f"{self.monitor} did not improve on {self.best_score:.5g} in {self.wait_count} checks")

    def _better(self, score: float, best: float) -> bool:
        return score < best - self.min_delta if self.mode == "min" else score > best + self.min_delta

    def _stop(self, trainer: Trainer, reason: str) -> None:
        self.stopped_epoch, self.stopping_reason = trainer.current_epoch, reason
        trainer.should_stop = True
