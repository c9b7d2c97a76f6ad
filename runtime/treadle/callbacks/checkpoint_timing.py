"""When a ModelCheckpoint saves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, final

from treadle.errors import ConfigError
from treadle.progress import Progress
from treadle.schedule import Every


@final
class Timing:
    """When to save: at each savepoint it is asked, and told when it was followed.

    Args:
        every: The rhythm. Default: after each validation and each epoch.
        epoch_end: At the end of epochs only (True), or after validations only (False).
        monitors: Saving goes by a metric, so the state after a validation counts whatever the rhythm of steps or time.

    Raises:
        ConfigError: The end of epochs, and another rhythm.
    """

    def __init__(self, every: Every | None, *, epoch_end: bool | None, monitors: bool) -> None:
        if epoch_end and every is not None and every.unit != "epochs":
            raise ConfigError(
                f"save_on_train_epoch_end=True with a rhythm of {every.unit}.",
                why="one callback has one rhythm.",
                fix="leave it out, or add a second ModelCheckpoint.",
            )
        self.every, self.epoch_end, self.monitors = every, epoch_end, monitors
        self.reset()

    def reset(self) -> None:
        """A new run."""
        self.saved_at: tuple[int, int] | None = None
        """Epoch, and batches trained on in all, of the state that was saved last."""
        self._validated = -1
        """Batches trained on at the validation that was acted on last."""
        self._started = 0.0

    def start_clock(self, now: float) -> None:
        """A rhythm of time counts from ``now``."""
        self._started = now

    def is_saved(self, progress: Progress) -> bool:
        """The state of now was saved already."""
        return self.saved_at == (progress.epoch, progress.batches) and self._validated == progress.validated

    def due(self, progress: Progress) -> bool:
        epoch_over, validated = progress.batch == 0, progress.validated == progress.batches
        anew = validated and progress.validated != self._validated
        if self.every is None:
            if self.epoch_end is None:
                return epoch_over or validated
            return epoch_over if self.epoch_end else anew
        match self.every.unit:
            case "epochs":
                epoch = progress.epoch + (not epoch_over)  # that of the last batch, counted from 1
                return (anew if self.epoch_end is False else epoch_over) and epoch % self.every.count == 0
            case "steps":
                stepped = progress.window == 0 and progress.batch > 0 and progress.global_step > 0
                due = stepped and progress.global_step % self.every.count == 0
            case _:
                due = progress.now() - self._started >= self.every.count
        return due or (self.monitors and anew)

    def saved(self, progress: Progress) -> None:
        """The state of now is dealt with."""
        self.saved_at, self._validated = (progress.epoch, progress.batches), progress.validated
        self.start_clock(progress.now())

    def not_saved(self) -> None:
        """It could not be followed."""
        self.saved_at = None

    def state_dict(self) -> dict[str, Any]:
        return {"saved_at": self.saved_at, "validated": self._validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved_at = tuple(state["saved_at"]) if state["saved_at"] else None
        self._validated = state["validated"]


def rhythm(steps: int | None, epochs: int | None, interval: timedelta | None, words: str | None) -> Every | None:
    """The one rhythm among the arguments of ``ModelCheckpoint``; None if there is none, 0 being none.

    Raises:
        ConfigError: Two, or one that is none.
    """
    given = {
        "every_n_train_steps": steps,
        "every_n_epochs": epochs,
        "train_time_interval": interval,
        "every": words,
    }
    named = {name: value for name, value in given.items() if value is not None and value != 0}
    if len(named) > 1:
        raise ConfigError(
            f"ModelCheckpoint with {' and '.join(named)}.",
            why="one callback has one rhythm.",
            fix="keep one of them, or add a second ModelCheckpoint.",
        )
    match named:
        case {"every_n_train_steps": n}:
            return Every(f"{n} steps")
        case {"every_n_epochs": n}:
            return Every(f"{n} epochs")
        case {"train_time_interval": timedelta() as time_between}:
            return Every(f"{time_between.total_seconds():f} s")
        case {"every": str(text)}:
            return Every(text)
    if not named:
        return None
    ((name, value),) = named.items()
    raise ConfigError(
        f"ModelCheckpoint({name}={value!r}).",
        why="train_time_interval is a timedelta, and every is a rhythm in words.",
        fix='every="30 min"',
    )
