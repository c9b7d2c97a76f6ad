"""Saves the run: when, which to keep, and under which name. How is ``treadle.checkpoint``'s."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from treadle.callbacks.base import Callback
from treadle.checkpoint import link, make_folder
from treadle.checkpoint.retention import Retention
from treadle.errors import ConfigError, nearest
from treadle.progress import Progress
from treadle.schedule import Every

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

LAST = "last.ckpt"


@final
class ModelCheckpoint(Callback):
    """Saves at a rhythm; keeps the best by a metric and, apart from that, always the newest state as ``last.ckpt``.

    ``last.ckpt`` is written once, as a link to a file that is kept anyway where there is one. It moves last, after
    everything else is on disk: a crash at any moment leaves the one before in place.

    Args:
        dirpath: The folder. Default: ``checkpoints`` in the run's folder.
        filename: Name of kept files, with metrics in braces: ``"{epoch}-{val_loss:.2f}"`` gives
            ``epoch=3-val_loss=0.12.ckpt``. Default: ``"{epoch}-{step}"``.
        monitor: The logged metric by which to keep; without one the newest are kept.
        mode: Whether less or more of ``monitor`` is better.
        save_top_k: How many to keep; -1 all, 0 none.
        save_last: Write ``last.ckpt``.
        save_weights_only: Leave out what only continuing needs. Such a file can be loaded, not resumed.
        every_n_train_steps: Save after so many optimizer steps.
        every_n_epochs: Save after so many epochs.
        train_time_interval: Save after so much time.
        every: The same in words: ``"200 steps"``, ``"2 epochs"``, ``"30 min"``. Default rhythm: after each validation
            and each epoch. With ``monitor``, a rhythm of steps or time saves after each validation too.

    Raises:
        ConfigError: Two rhythms, or settings that contradict each other; while fitting, a metric that is not there.
    """

    def __init__(
        self,
        dirpath: str | PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        save_weights_only: bool = False,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        every: str | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode={mode!r}.", why="of the metric, less or more is better.", fix='mode="min"')
        if save_top_k < -1 or (monitor is None and save_top_k > 1):
            raise ConfigError(
                f"save_top_k={save_top_k} with monitor={monitor!r}.",
                why="the k best need a metric to compare them by; without one it is -1 (all), 0 (none) or 1 (the newest).",
                fix='ModelCheckpoint(monitor="val_loss", save_top_k=3)',
            )
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.filename, self.monitor, self.mode = filename or "{epoch}-{step}", monitor, mode
        self.save_last, self.save_weights_only = save_last, save_weights_only
        self._every = _rhythm(every_n_train_steps, every_n_epochs, train_time_interval, every)
        self._retention = Retention(save_top_k, mode)
        self._folder: Path | None = self.dirpath
        self._saved_at: tuple[int, int] | None = None
        self._started = time.monotonic()
        self._resumed = False
        self._displaced: list[str] = []

    # --- what users read ---

    @property
    def best_model_path(self) -> str:
        """The best file that is kept, or the newest without ``monitor``; empty before the first."""
        best = self._retention.best
        return "" if best is None or self._folder is None else str(self._folder / best)

    @property
    def best_model_score(self) -> float | None:
        best = self._retention.best
        return None if best is None else self._retention.kept[best]

    @property
    def best_k_models(self) -> dict[str, float | None]:
        """Every kept file with its score."""
        return {str((self._folder or Path()) / name): score for name, score in self._retention.kept.items()}

    @property
    def last_model_path(self) -> str:
        """``last.ckpt``; empty while there is none."""
        path = None if self._folder is None else self._folder / LAST
        return str(path) if path is not None and path.exists() else ""

    # --- when ---

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._folder = None  # known once the run's folder is: a resumed run continues in its own
            self._saved_at, self._resumed = None, False
            self._retention.kept, self._displaced = {}, []  # of an earlier fit, whose files stay

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._folder = self.dirpath or trainer.run_folder / "checkpoints"
        make_folder(self._folder)
        # A run that branches off writes elsewhere; the files it comes from are not its own.
        self._retention.kept = {n: s for n, s in self._retention.kept.items() if self._is_own(n)}
        if self._resumed:
            self._tidy()
        self._started = time.monotonic()

    def _is_own(self, name: str) -> bool:
        """Whether there is such a file in the folder. Names come from a checkpoint, and may be a stranger's."""
        assert self._folder is not None
        path = (self._folder / name).resolve()
        return path.suffix == ".ckpt" and path.is_file() and path.is_relative_to(self._folder.resolve())

    def _tidy(self) -> None:
        """Remove what a killed process was about to: a file it had displaced, one it had half written."""
        assert self._folder is not None
        for name in self._displaced:
            if self._is_own(name) and name not in self._retention.kept:
                (self._folder / name).unlink()
        for partial in self._folder.glob(".*.ckpt.*.partial"):
            partial.unlink()

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        progress = trainer.progress
        due = self._due(progress)
        position = (progress.epoch, progress.batches)
        if (due or final) and position != self._saved_at:
            self._saved_at = position
            self._save(trainer, keep=due)

    def _due(self, progress: Progress) -> bool:
        if self._every is None:
            return progress.batch == 0 or progress.validated == progress.batches
        match self._every.unit:
            case "steps":
                stepped = progress.window == 0 and progress.batch > 0 and progress.global_step > 0
                return (stepped and progress.global_step % self._every.count == 0) or self._found_anew(progress)
            case "epochs":
                return progress.batch == 0 and progress.epoch % self._every.count == 0
            case _:
                return time.monotonic() - self._started >= self._every.count or self._found_anew(progress)

    def _found_anew(self, progress: Progress) -> bool:
        """A validation is just over: the best by ``monitor`` may be this state, whatever the rhythm of steps or time."""
        return self.monitor is not None and progress.validated == progress.batches

    # --- which ---

    def _save(self, trainer: Trainer, *, keep: bool) -> None:
        assert self._folder is not None
        self._started = time.monotonic()
        before = dict(self._retention.kept)
        name, evicted = self._admitted(trainer) if keep else ("", None)
        self._displaced = evicted or []
        path = self._folder / (LAST if evicted is None else name)
        if evicted is None and not self.save_last:
            return
        try:
            trainer.save_checkpoint(path, weights_only=self.save_weights_only)
        except BaseException:
            self._retention.kept = before
            raise
        if evicted is not None and self.save_last:
            link(path, self._folder / LAST)
        for old in self._displaced:
            (self._folder / old).unlink(missing_ok=True)

    def _admitted(self, trainer: Trainer) -> tuple[str, list[str] | None]:
        """The name under which this state is kept and those it displaces; None if it isn't kept."""
        score = None
        if self.monitor is not None:
            if self.monitor not in trainer.callback_metrics:
                if trainer.progress.validated < 0 and trainer.num_val_batches:
                    return "", None  # validation has yet to run for the first time
                raise _no_metric(self.monitor, sorted(trainer.callback_metrics))
            if not trainer.is_fresh(self.monitor):
                return "", None
            score = float(trainer.callback_metrics[self.monitor])
        name = self._name(trainer)
        return name, self._retention.admit(name, score)

    def _name(self, trainer: Trainer) -> str:
        assert self._folder is not None
        values = {**trainer.callback_metrics, "epoch": trainer.last_epoch, "step": trainer.global_step}
        name = format_name(self.filename, values)
        unique, counter = f"{name}.ckpt", 0
        while self._taken(unique):
            counter += 1
            unique = f"{name}-v{counter}.ckpt"
        return unique

    def _taken(self, name: str) -> bool:
        """Another of the kept has the name, or it is another run's file. A resumed run writes its own ones anew."""
        assert self._folder is not None
        if name in self._retention.kept:
            return self._retention.k != 1
        return (self._folder / name).exists() and not self._resumed

    # --- state ---

    @property
    def state_key(self) -> str:
        return f"ModelCheckpoint[{self.monitor},{self.mode},{self._every}]"

    def state_dict(self) -> dict[str, Any]:
        own = {"saved_at": self._saved_at, "best": self._retention.best, "displaced": self._displaced}
        return {**self._retention.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._retention.load_state_dict(state)
        self._saved_at = tuple(state["saved_at"]) if state["saved_at"] else None
        self._displaced = list(state["displaced"])
        self._resumed = True


def format_name(template: str, values: Mapping[str, Any]) -> str:
    """A file name from a template with metrics in braces.

    >>> format_name("{epoch}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.125})
    'epoch=3-val_loss=0.12'

    Raises:
        ConfigError: A name that is not logged.
    """

    def fill(match: re.Match[str]) -> str:
        name, spec = match[1], match[2] or ""
        if name not in values:
            raise _no_metric(name, sorted(values))
        value = values[name]
        number = value if isinstance(value, int) else float(value)
        return f"{name.replace('/', '_')}={number:{spec}}"

    return re.sub(r"\{([^{}:]+)(?::([^{}]*))?\}", fill, template)


def _rhythm(steps: int | None, epochs: int | None, interval: timedelta | None, words: str | None) -> Every | None:
    given = {
        "every_n_train_steps": steps,
        "every_n_epochs": epochs,
        "train_time_interval": interval,
        "every": words,
    }
    named = {name: value for name, value in given.items() if value is not None}
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


def _no_metric(name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"ModelCheckpoint needs {name!r}, which is not logged.",
        why=f"known here: {', '.join(known) or 'nothing'}.",
        fix=nearest(name, known) if known else f'self.log("{name}", ...) in validation_step',
    )
