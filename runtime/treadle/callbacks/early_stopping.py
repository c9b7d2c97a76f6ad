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
    """Ends the fit after ``patience`` checks in a row without an improvement of more than ``min_delta``, or at once when
    the metric is past a threshold or not finite. ``stopping_reason`` then says why.

    A check happens after each validation, or at the end of each epoch in runs without validation.

    Args:
        monitor: The logged metric.
        min_delta: How much better counts as better; at least 0.
        patience: Checks without improvement before it stops; at least 1.
        verbose: Print improvements and the reason to stop.
        mode: Whether less or more is better.
        strict: A metric that is not there is an error, not a check that is left out.
        check_finite: Stop at once when the metric is infinite or not a number.
        stopping_threshold: Good enough: stop at once when the metric is better than that.
        divergence_threshold: Hopeless: stop at once when the metric is worse than that.
        check_on_train_epoch_end: Check at the end of each epoch, not after validation. Default: as said above.
        log_rank_zero_only: Accepted: what ``verbose`` prints comes from rank 0 only, in any case.

    Raises:
        ConfigError: An argument out of its range; while fitting, a metric that is not there.
    """

    after_module = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in ("min", "max") or min_delta < 0 or patience < 1:
            raise ConfigError(
                f"EarlyStopping(mode={mode!r}, min_delta={min_delta}, patience={patience}).",
                why='mode is "min" or "max", min_delta at least 0, patience at least 1.',
                fix=f'EarlyStopping({monitor!r}, mode="min", patience=3)',
            )
        self.monitor, self.min_delta, self.patience, self.mode = monitor, min_delta, patience, mode
        self.verbose, self.strict, self.check_finite = verbose, strict, check_finite
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        if None not in (stopping_threshold, divergence_threshold) and not self._better(
            float(stopping_threshold), float(divergence_threshold)  # type: ignore[arg-type]
        ):
            raise ConfigError(
                f"EarlyStopping(mode={mode!r}) with stopping_threshold={stopping_threshold} and "
                f"divergence_threshold={divergence_threshold}.",
                why="what is good enough is better than what is hopeless, or every value would stop the run.",
                fix="exchange the two, or set mode to the other one.",
            )
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.wait_count = 0
        self.best_score: float | None = None
        self.stopped_epoch = 0
        self.stopping_reason: str | None = None
        self._stopped_with: tuple[float, int] | None = None
        """The score and the checks without improvement when it asked to stop."""

    @property
    def state_key(self) -> str:
        return f"EarlyStopping[{self.monitor},{self.mode}]"

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "best_score": self.best_score,
            "stopped_epoch": self.stopped_epoch,
            "stopped_with": self._stopped_with,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wait_count, self.best_score = state["wait_count"], state["best_score"]
        self.stopped_epoch, self._stopped_with = state["stopped_epoch"], state["stopped_with"]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":  # an earlier fit's are not this one's
            self.wait_count, self.best_score, self._stopped_with = 0, None, None
            self.stopped_epoch, self.stopping_reason = 0, None

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """A resumed run that had asked to stop still does, unless it would not with the settings of now."""
        if self._stopped_with is not None and (reason := self._reason(*self._stopped_with)) is not None:
            self.stopping_reason, trainer.should_stop = f"{reason}, when the run was saved", True

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking and not self.check_on_train_epoch_end:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        default = not any(trainer.num_val_batches)
        if default if self.check_on_train_epoch_end is None else self.check_on_train_epoch_end:
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if (found := trainer.callback_metrics.get(self.monitor)) is None:
            if not self.strict:
                return
            known = sorted(trainer.callback_metrics)
            raise ConfigError(
                f"EarlyStopping follows {self.monitor!r}, which is not logged.",
                why=f"logged so far: {', '.join(known) or 'nothing'}.",
                fix=nearest(self.monitor, known) if known else f'self.log("{self.monitor}", ...) in validation_step',
            )
        score = float(found)
        best = self.best_score
        if not math.isnan(score) and (best is None or self._better(score, best, by=self.min_delta)):
            self._say(trainer, f"{self.monitor} improved to {score:.5g}")
            self.best_score, self.wait_count = score, 0
        else:
            self.wait_count += 1
        if (reason := self._reason(score, self.wait_count)) is not None:
            self._say(trainer, reason)
            self.stopped_epoch, self.stopping_reason = trainer.current_epoch, reason
            self._stopped_with = (score, self.wait_count)
            trainer.should_stop = True

    def _reason(self, score: float, waited: int) -> str | None:
        """Why to stop with this score after so many checks without improvement; None for going on."""
        if self.check_finite and not math.isfinite(score):
            return f"{self.monitor} = {score} is not finite"
        if self.stopping_threshold is not None and self._better(score, self.stopping_threshold):
            return f"{self.monitor} = {score:.5g} is past its stopping threshold of {self.stopping_threshold:.5g}"
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, score):
            return f"{self.monitor} = {score:.5g} is past its divergence threshold of {self.divergence_threshold:.5g}"
        if waited >= self.patience:
            best = math.nan if self.best_score is None else self.best_score
            return f"{self.monitor} did not improve on {best:.5g} in {waited} checks"
        return None

    def _better(self, score: float, than: float, by: float = 0.0) -> bool:
        return score < than - by if self.mode == "min" else score > than + by

    def _say(self, trainer: Trainer, what: str) -> None:
        if self.verbose:
            trainer.print(f"EarlyStopping: {what}.")
