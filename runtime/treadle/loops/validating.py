"""When a fit validates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from treadle.errors import ConfigError
from treadle.loops.settings import Rhythm
from treadle.progress import Progress
from treadle.schedule import Every


@final
class ValidationRhythm:
    """``val_check_interval`` and ``check_val_every_n_epoch``, resolved for a training loader.

    Args:
        rhythm: The two settings.
        length: Batches of an epoch; None if unknown.
        now: A monotonic clock.
        started: When the last validation ended, on that clock; default: now.

    Raises:
        ConfigError: An interval that no epoch reaches, or a fraction of an unknown length.
    """

    def __init__(
        self,
        rhythm: Rhythm,
        length: int | None,
        now: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self._now = now
        self._epochs = rhythm.check_val_every_n_epoch
        self._batches: int | None = None
        self._every: Every | None = None
        match rhythm.interval:
            case Every() as every:
                self._every = every
                if every.unit == "epochs":
                    self._epochs = int(every.count)
            case float(fraction):
                self._batches = None if fraction == 1.0 else batches_of(fraction, length)
            case int(count):
                if self._epochs is not None and length is not None and count > length > 0:
                    raise ConfigError(
                        f"val_check_interval={count} is more than the {length} batches of an epoch.",
                        why="validation would never run.",
                        fix=f"val_check_interval={length}, 1.0 for once an epoch, or check_val_every_n_epoch=None to "
                        "count batches across epochs.",
                    )
                self._batches = count
        self.inside = self._batches is not None or (self._every is not None and self._every.unit != "epochs")
        """Validation may fall between two batches; else it is at the end of epochs only."""
        self._started = now() if started is None else started

    def after_step(self, progress: Progress) -> bool:
        """Whether to validate after a step that no batch belongs to: on what was left of a window at an epoch's end."""
        return self._every is not None and self.after_batch(progress, stepped=True)

    def after_batch(self, progress: Progress, *, stepped: bool) -> bool:
        """Whether to validate after the batch just trained on, which ``stepped`` or not. Asked only if :attr:`inside`."""
        if not self._in_this_epoch(progress):
            return False
        if self._batches is not None:
            return (progress.batches if self._epochs is None else progress.batch) % self._batches == 0
        assert self._every is not None
        if self._every.unit == "seconds":
            return self._now() - self._started >= self._every.count
        return stepped and progress.global_step % self._every.count == 0

    def after_epoch(self, progress: Progress) -> bool:
        """Whether to validate now that the epoch's last batch is done."""
        return not self.inside and self._in_this_epoch(progress)

    def validated(self) -> float:
        """A validation is just over. Returns the time, on the monotonic clock."""
        self._started = self._now()
        return self._started

    def _in_this_epoch(self, progress: Progress) -> bool:
        return self._epochs is None or (progress.epoch + 1) % self._epochs == 0


def batches_of(fraction: float, length: int | None) -> int:
    if length is None:
        raise ConfigError(
            f"val_check_interval={fraction} with a training loader that has no length.",
            why="a fraction is of the number of batches.",
            fix="give the interval as a count, for example val_check_interval=100.",
        )
    return max(1, int(length * fraction))
