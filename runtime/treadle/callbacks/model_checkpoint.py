"""Saves the run: when, which to keep, and under which name. How is ``treadle.checkpoint``'s."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from treadle.callbacks.base import Callback
from treadle.callbacks.checkpoint_naming import format_name, no_metric
from treadle.callbacks.checkpoint_timing import Timing, rhythm
from treadle.callbacks.checkpoint_writing import Saving, Writer, require_one_rank
from treadle.checkpoint import exists, remove
from treadle.checkpoint.folder import tidy
from treadle.checkpoint.remote import is_remote, location
from treadle.checkpoint.retention import Retention
from treadle.errors import CheckpointError, ConfigError, TrainingError
from treadle.progress import Progress
from treadle.schedule import Every

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer


@final
class ModelCheckpoint(Callback):
    """Saves at a rhythm; keeps the best by a metric and, apart from that, always the newest state as ``last.ckpt``.

    ``last.ckpt`` is written once, as a link to a file that is kept anyway where there is one. It moves last, after
    everything else is on disk: a crash at any moment leaves the one before in place. That one is ``previous.ckpt``
    afterwards, to go on from if ``last.ckpt`` can't be read. A disk that is full or fails is a warning, and training goes
    on; only the run's last state must be saved.

    Several of them in one Trainer decide together before the first of them writes, so that each file knows what all of
    them keep; a state that several keep is written once. Where one of them saves everything, another that saves weights
    only leaves ``last.ckpt`` in the same folder to it.

    Args:
        dirpath: The folder, or a URL that fsspec knows (``s3://bucket/run``, extra ``treadle[remote]``). Default:
            ``checkpoints`` in the run's folder. One run at a time writes to it.
        filename: Name of kept files, with metrics in braces: ``"{epoch}-{val_loss:.2f}"`` gives
            ``epoch=3-val_loss=0.12.ckpt``. Default: ``"{epoch}-{step}"``.
        monitor: The logged metric by which to keep; without one the newest are kept.
        verbose: Print what is saved.
        save_last: Write ``last.ckpt``. ``"link"`` is the same: it is a link wherever it can be.
        save_previous: Leave the state before that in ``previous.ckpt``. Costs no write, but the space of one more file.
        save_top_k: How many to keep; -1 all, 0 none.
        save_on_exception: Save ``exception.ckpt`` when an exception ends the fit, which it never hides. The run is in the
            middle of a batch then, and goes on behind it; to continue bit for bit, resume from ``last.ckpt``. Not after a
            ``TrainingError``, which says that the weights are bad.
        save_async: Copy the state to host memory, and write it in a thread while training goes on: a save costs the time of
            one copy, and the memory of one. One that comes before the last is written waits for it.
        save_weights_only: Leave out what only continuing needs. Such a file can be loaded, not resumed.
        mode: Whether less or more of ``monitor`` is better.
        auto_insert_metric_name: Put each metric's name before its value in file names; False: ``3-0.12.ckpt``.
        every_n_train_steps: Save after so many optimizer steps; 0 as if it was not given.
        train_time_interval: Save after so much time.
        every_n_epochs: Save after so many epochs; 0 and no other rhythm: keep none.
        save_on_train_epoch_end: True: at the end of epochs only. False: after validations only. Default: both. Has a
            meaning for the default rhythm, and False for one of epochs.
        enable_version_counter: Add ``-v1`` and so on to a file name that is taken; False: the file is overwritten.
        keep_every: A rhythm in words, as of ``every``: states at it are kept for good, apart from ``save_top_k``.
        every: A rhythm in words: ``"200 steps"``, ``"2 epochs"``, ``"30 min"``. Default rhythm: after each validation,
            after each epoch, and where a run ends inside one. With ``monitor``, a rhythm of steps or time saves after each
            validation too.

    Raises:
        ConfigError: Two rhythms, or settings that contradict each other; while fitting, a metric that is not there, or
            two callbacks that would write the same file.
    """

    CHECKPOINT_NAME_LAST: ClassVar[str] = "last"
    """By another name, ``ckpt_path="last"`` doesn't find it."""
    FILE_EXTENSION: ClassVar[str] = ".ckpt"

    def __init__(
        self,
        dirpath: str | PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] = True,
        save_top_k: int = 1,
        save_on_exception: bool = True,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        every: str | None = None,
        keep_every: str | None = None,
        save_previous: bool = True,
        save_async: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode={mode!r}.", why="of the metric, less or more is better.", fix='mode="min"')
        if save_last not in (True, False, "link"):
            raise ConfigError(
                f"save_last={save_last!r}.", why="last.ckpt is written, or it is not.", fix="save_last=True"
            )
        if save_top_k < -1 or (monitor is None and save_top_k > 1):
            raise ConfigError(
                f"save_top_k={save_top_k} with monitor={monitor!r}.",
                why="the k best need a metric to compare them by; without one it is -1 (all), 0 (none) or 1 (the newest).",
                fix='ModelCheckpoint(monitor="val_loss", save_top_k=3)',
            )
        if Path(filename or "").is_absolute() or ".." in Path(filename or "").parts:
            raise ConfigError(
                f"filename={filename!r}.",
                why="files lie in dirpath, or in folders below it.",
                fix="dirpath=..., for another place.",
            )
        every_so_often = rhythm(every_n_train_steps, every_n_epochs, train_time_interval, every)
        self._timing = Timing(every_so_often, epoch_end=save_on_train_epoch_end, monitors=monitor is not None)
        if every_n_epochs == 0 and every_so_often is None:
            save_top_k = 0
        self._for_good = None if keep_every is None else Timing(Every(keep_every), epoch_end=None, monitors=False)
        self.dirpath = None if dirpath is None else location(dirpath)
        self.filename, self.monitor, self.mode = filename or "{epoch}-{step}", monitor, mode
        self.save_last, self.save_top_k, self.save_weights_only = bool(save_last), save_top_k, save_weights_only
        self.save_on_exception, self.verbose = save_on_exception, verbose
        self.save_previous, self.save_async = save_previous, save_async
        self.auto_insert_metric_name, self.enable_version_counter = auto_insert_metric_name, enable_version_counter
        self.current_score: float | None = None
        """The newest value of ``monitor`` that was looked at."""
        self._retention = Retention(save_top_k, mode)
        self._folder: Path | None = self.dirpath
        self._trains = self._resumed = False
        self._displaced: list[str] = []
        self._kept_for_good: list[str] = []
        self._exception_path = ""
        self._strangers: list[str] = []
        """What was in the folder before the run began."""
        self._writer = Writer()
        self._together: Sequence[ModelCheckpoint] = ()
        """All of the Trainer's, for the first of them."""
        self._neighbours: Sequence[ModelCheckpoint] = ()
        """The others that write to the same folder."""

    # --- what users read ---

    @property
    def best_model_path(self) -> str:
        """The best file that is kept, or the newest without ``monitor``; empty before the first."""
        return self._path_of(self._retention.best)

    @property
    def best_model_score(self) -> float | None:
        best = self._retention.best
        return None if best is None else self._retention.kept[best]

    @property
    def kth_best_model_path(self) -> str:
        """The worst file that is kept, the next to go; empty before the first."""
        return self._path_of(self._retention.worst)

    @property
    def best_k_models(self) -> dict[str, float | None]:
        """Every kept file with its score."""
        return {self._path_of(name): score for name, score in self._retention.kept.items()}

    @property
    def last_model_path(self) -> str:
        """``last.ckpt``; empty while there is none."""
        path = self._in_folder(self._last)
        return str(path) if self._folder is not None and path.exists() else ""

    @property
    def exception_path(self) -> str:
        """``exception.ckpt`` of the fit that an exception has just ended; empty if it was not saved."""
        return self._exception_path

    @property
    def saved_at(self) -> tuple[int, int] | None:
        """Of the newest state: the epoch, and the batches trained on in all epochs; None before the first."""
        return self._timing.saved_at

    def to_yaml(self, filepath: str | PathLike[str] | None = None) -> None:
        """Write :attr:`best_k_models` to a YAML file. Default: ``best_k_models.yaml`` in the folder."""
        path = Path(filepath or (self._folder or Path()) / "best_k_models.yaml")
        lines = [f"{json.dumps(name)}: {_yaml(score)}\n" for name, score in self.best_k_models.items()]
        path.write_text("".join(lines) or "{}\n")

    def format_checkpoint_name(self, metrics: Mapping[str, Any], filename: str | None = None) -> str:
        """The path of a file that is kept with these metrics, ``epoch`` and ``step`` among them."""
        template = self.filename if filename is None else filename
        return self._path_of(
            format_name(template, metrics, with_names=self.auto_insert_metric_name) + self.FILE_EXTENSION
        )

    def _path_of(self, name: str | None) -> str:
        return "" if name is None else str(self._in_folder(name))

    def _in_folder(self, name: str) -> Path:
        return (self._folder or Path()) / name

    @property
    def _last(self) -> str:
        return self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION

    @property
    def _previous(self) -> str:
        return f"previous{self.FILE_EXTENSION}"

    # --- when ---

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._folder = None  # known once the run's folder is: a resumed run continues in its own
            self._resumed, self.current_score, self._exception_path = False, None, ""
            self._retention.kept, self._displaced, self._kept_for_good = (
                {},
                [],
                [],
            )  # of an earlier fit, whose files stay
            for timing in self._timings:
                timing.reset()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        folder = self._folder = self.folder_in(trainer.run_folder)
        trainer.fabric.ranks.from_rank_zero(lambda: trainer.claim_folder(folder))
        others = trainer.checkpoint_callbacks
        self._together = others if others[0] is self else ()
        self._neighbours = [
            c for c in others if c is not self and _one(c.folder_in(trainer.run_folder)) == _one(folder)
        ]
        if not trainer.continues:  # what was there before, in a folder that runs share, is not this run's
            self._resumed, self._retention.kept, self._displaced, self._kept_for_good = False, {}, [], []
            self._strangers = sorted(path.name for path in folder.glob(f"*{self.FILE_EXTENSION}"))
        known = len(self._retention.kept)
        self._retention.kept = {n: s for n, s in self._retention.kept.items() if self._is_own(n)}
        if self._resumed and trainer.is_global_zero:
            self._tidy(whole=len(self._retention.kept) == known)
        for timing in self._timings:
            timing.start_clock(trainer.progress.now())
        self._trains = True

    def folder_in(self, run_folder: Path) -> Path:
        """Where a run in ``run_folder`` saves to."""
        return self.dirpath or run_folder / "checkpoints"

    @property
    def _timings(self) -> list[Timing]:
        return [self._timing, *([self._for_good] if self._for_good is not None else [])]

    def _is_own(self, name: str) -> bool:
        """Whether there is such a file in the folder. Names come from a checkpoint, and may be a stranger's."""
        assert self._folder is not None
        path = self._folder / name
        return path.suffix == self.FILE_EXTENSION and not {"..", "/"} & set(Path(name).parts) and exists(path)

    def _tidy(self, *, whole: bool) -> None:
        """Remove what a killed process was about to: a file it had displaced, if what was to be kept instead was written
        (``whole``); and one that it had half written."""
        assert self._folder is not None
        for name in self._displaced if whole else ():
            if self._is_own(name) and not any(name in c._retention.kept for c in (self, *self._neighbours)):
                remove(self._folder / name)
        for half in self._folder.glob(f".*{self.FILE_EXTENSION}.*.partial"):
            half.unlink(missing_ok=True)
        tidy(self._folder)

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        # The first of them acts for all: each file is to hold what all of them have decided.
        writer, together = self._writer, self._together
        if writer.has_news:
            writer.finish()
        if not together or not (final or any(callback.is_due(trainer, final) for callback in together)):
            return
        writer.settle(trainer)
        savings = [saving for callback in together if (saving := callback._saving(trainer, final))]
        if savings:
            writer.carry_out(trainer, savings, behind=all(callback.save_async for callback in together))
        if final:
            self._require_saved(trainer)

    def _require_saved(self, trainer: Trainer) -> None:
        """The newest state is on disk when this returns."""
        writer = self._writer
        writer.settle(trainer)
        if not writer.is_safe:
            raise CheckpointError(
                f"the run has ended, and its last state was not saved: {writer.error}.",
                why="what was trained since the last checkpoint would be lost with this process.",
                fix='make room, and trainer.save_checkpoint("last.ckpt"); or resume with ckpt_path="auto" from the last one.',
            )

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._trains = False
        self._require_saved(trainer)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self._writer.finish()
        trained, self._trains = self._trains, False
        # After a TrainingError the weights are bad; after Ctrl-C, the second, nobody wants to wait.
        if not (self.save_on_exception and trained) or isinstance(exception, (KeyboardInterrupt, TrainingError)):
            return
        path = self._path_of(f"exception{self.FILE_EXTENSION}")
        try:
            require_one_rank(trainer)
            trainer.save_checkpoint(path, weights_only=self.save_weights_only)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is to see what came first
            said = f"ModelCheckpoint: {path} was not saved. {type(error).__name__}: {error}"
        else:
            self._exception_path, said = path, ""  # the Trainer's report has it
        if said and trainer.is_global_zero:
            print(said, file=sys.stderr, flush=True)

    # --- which ---

    def _saving(self, trainer: Trainer, final: bool) -> Saving | None:
        """What to save at this savepoint; None for nothing."""
        if not self.is_due(trainer, final):
            return None
        progress = trainer.progress
        due, for_good = self._has_its_time(progress, final), self._for_good is not None and self._for_good.due(progress)
        self._timing.saved(progress)
        before = dict(self._retention.kept), list(self._kept_for_good)
        name, evicted = self._decision(trainer) if due else ("", None)
        if self._for_good is not None and for_good:
            self._for_good.saved(progress)
            name, evicted = name or trainer.fabric.ranks.from_rank_zero(lambda: self._name(trainer)), evicted or []
            self._kept_for_good.append(name)
        self._displaced = [old for old in evicted or [] if old not in self._kept_for_good]
        return Saving(
            kept=None if evicted is None else self._in_folder(name),
            last=self._in_folder(self._last) if self._writes_last else None,
            previous=self._in_folder(self._previous) if self._writes_last and self.save_previous else None,
            displaced=[self._in_folder(old) for old in self._displaced],
            weights_only=self.save_weights_only,
            says=f"ModelCheckpoint: epoch {trainer.last_epoch}, step {trainer.global_step}" if self.verbose else "",
            take_back=partial(self._take_back, *before),
        )

    def is_due(self, trainer: Trainer, final: bool) -> bool:
        progress = trainer.progress
        due = (
            final
            or self._has_its_time(progress, final)
            or (self._for_good is not None and self._for_good.due(progress))
        )
        return due and not self._timing.is_saved(progress)

    def _has_its_time(self, progress: Progress, final: bool) -> bool:
        return self._timing.due(progress) or (final and progress.batch > 0 and self._timing.every is None)

    def _take_back(self, kept: dict[str, float | None], for_good: list[str], kept_is_missing: bool) -> None:
        """The state was not saved, or not under all of its names."""
        if kept_is_missing:
            self._retention.kept, self._kept_for_good = kept, for_good
        self._timing.not_saved()

    def _decision(self, trainer: Trainer) -> tuple[str, list[str] | None]:
        """Rank 0's, on all ranks: values that were not reduced differ, and only it sees the folder for sure."""

        def decide() -> tuple[tuple[str, list[str] | None], dict[str, float | None], float | None]:
            return self._admitted(trainer), self._retention.kept, self.current_score

        decided, self._retention.kept, self.current_score = trainer.fabric.ranks.from_rank_zero(decide)
        return decided

    def _admitted(self, trainer: Trainer) -> tuple[str, list[str] | None]:
        """The name under which this state is kept and those it displaces; None if it isn't kept."""
        score = None
        if self.monitor is not None:
            known: dict[str, Any] = {**trainer.callback_metrics, **self._counters(trainer)}
            if self.monitor not in known:
                if trainer.progress.validated < 0 and trainer.num_val_batches:
                    return "", None  # validation has yet to run for the first time
                raise no_metric(self.monitor, sorted(known))
            if self.monitor not in self._counters(trainer) and not trainer.is_fresh(self.monitor):
                return "", None
            score = self.current_score = float(known[self.monitor])
        name = self._name(trainer)
        return name, self._retention.admit(name, score)

    @staticmethod
    def _counters(trainer: Trainer) -> dict[str, int]:
        """To name files by, or to keep the newest by."""
        return {"epoch": trainer.last_epoch, "step": trainer.global_step}

    def _name(self, trainer: Trainer) -> str:
        values = {**trainer.callback_metrics, **self._counters(trainer)}
        name = format_name(self.filename, values, with_names=self.auto_insert_metric_name)
        unique, counter = f"{name}{self.FILE_EXTENSION}", 0
        while self._is_anothers(unique) or (self.enable_version_counter and self._is_taken(unique)):
            if not self.enable_version_counter:
                raise ConfigError(
                    f"a ModelCheckpoint would overwrite {unique} in {self._folder}.",
                    why="it is last.ckpt or exception.ckpt, or a file that another ModelCheckpoint keeps.",
                    fix="give it another filename, or leave enable_version_counter=False out.",
                )
            counter += 1
            unique = f"{name}-v{counter}{self.FILE_EXTENSION}"
        return unique

    def _is_anothers(self, name: str) -> bool:
        if any(name in callback._retention.kept or name in callback._displaced for callback in self._neighbours):
            return True
        writes = (self, *self._neighbours)
        return (name in (self._last, self._previous) and any(callback.save_last for callback in writes)) or (
            name == f"exception{self.FILE_EXTENSION}" and any(callback.save_on_exception for callback in writes)
        )

    def _is_taken(self, name: str) -> bool:
        """Another of the kept has the name, or it is another run's file. A resumed run writes its own ones anew."""
        assert self._folder is not None
        if name in self._retention.kept:
            return self._retention.k != 1
        return exists(self._folder / name) and (not self._resumed or name in self._strangers)

    @property
    def _writes_last(self) -> bool:
        whole = any(callback.save_last and not callback.save_weights_only for callback in self._neighbours)
        return self.save_last and not (self.save_weights_only and whole)

    # --- state ---

    @property
    def _identity(self) -> str:
        """What tells its files from those of another."""
        more = {
            "dirpath": self.dirpath,
            "filename": self.filename if self.filename != "{epoch}-{step}" else None,
            "weights_only": self.save_weights_only or None,
            "epoch_end": self._timing.epoch_end,
        }
        given = [f"{name}={value}" for name, value in more.items() if value is not None]
        return f"ModelCheckpoint[{','.join([str(self.monitor), self.mode, str(self._timing.every), *given])}]"

    @property
    def state_key(self) -> str:
        return f"{self._identity}(top_k={self.save_top_k},last={self.save_last})"

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._retention.state_dict(),
            **self._timing.state_dict(),
            "best": self._retention.best,
            "current_score": self.current_score,
            "displaced": self._displaced,
            "kept_for_good": self._kept_for_good,
            "strangers": self._strangers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._retention.load_state_dict(state)
        self._timing.load_state_dict(state)
        self.current_score, self._displaced = state["current_score"], list(state["displaced"])
        self._kept_for_good, self._strangers = list(state["kept_for_good"]), list(state["strangers"])
        self._resumed = True

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """With another ``save_top_k`` or ``save_last`` than then, or in a folder that was moved, a resumed run goes on with
        what it kept."""
        states: dict[str, Any] = checkpoint.get("callbacks", {})
        claimed = {callback.state_key for callback in trainer.checkpoint_callbacks}
        if trainer.state.fn == "fit" and self.state_key not in states:
            mine = _wherever(self._identity)
            own = [key for key in states if key not in claimed and _wherever(key) == mine]
            if len(own) == 1:
                self.load_state_dict(states[own[0]])


def _one(folder: Path) -> Path:
    """However it is spelled."""
    return folder if is_remote(folder) else folder.resolve()


def _wherever(key: str) -> str:
    """A state's key without the folder, and without what may be changed."""
    return re.sub(r"(?<=[,\[])dirpath=[^,\]]*", "dirpath", re.sub(r"\([^()]*\)$", "", key))


def _yaml(score: float | None) -> str:
    if score is None or math.isfinite(score):
        return "null" if score is None else repr(score)
    return ".nan" if math.isnan(score) else ".inf" if score > 0 else "-.inf"
