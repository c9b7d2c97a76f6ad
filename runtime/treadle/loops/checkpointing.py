"""What one call of the Trainer reads and writes of checkpoints: which file, whose folder, and how a run goes on in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import cast, final

from treadle.callbacks.model_checkpoint import ModelCheckpoint
from treadle.checkpoint import Checkpoint, link, make_folder, read
from treadle.checkpoint.lineage import DIFF, Lineage, lineage_of
from treadle.checkpoint.lock import FolderLock
from treadle.checkpoint.remote import is_remote, location
from treadle.errors import CheckpointError, ConfigError, warn
from treadle.fabric import Fabric
from treadle.loggers import CSVLogger, Logger
from treadle.loops.finding import FOLDER, JOB, find, is_newest_state, state_beside, state_of_job
from treadle.loops.loading import Loaders
from treadle.loops.state import (
    Parts,
    checkpoint_of,
    logger_keys,
    restore_callbacks,
    restore_for_evaluation,
    restore_model,
    warn_of_changes,
)


@final
class Checkpointing:
    """Made anew for each call of the Trainer. :meth:`close` lets go of the folders.

    Args:
        fabric: The ranks.
        loggers: Rank 0's write.
        savers: What saves, and where.
        root: The Trainer's ``default_root_dir``.
    """

    def __init__(
        self, fabric: Fabric, loggers: Sequence[Logger], savers: Sequence[ModelCheckpoint], root: Path
    ) -> None:
        self.fabric, self.loggers, self.savers, self.root = fabric, loggers, savers, root
        self.path: Path | None = None
        """What was loaded."""
        self.continues = False
        """The run goes on in its own folder; else it starts, or branches off."""
        self.lineage = Lineage()
        self._read: Checkpoint | None = None
        self._locks: dict[Path, FolderLock] = {}

    # --- reading ---

    def load(
        self, parts: Parts, loaders: Loaders, ckpt_path: str | os.PathLike[str] | None, *, resume: bool
    ) -> Checkpoint | None:
        """Find the checkpoint, and restore from it what needs no optimizers. Collective.

        Raises:
            CheckpointError: There is none, it can't be read, or another run writes to its folder.
        """
        self.path, self.continues = self.fabric.ranks.from_rank_zero(lambda: self._looked_up(ckpt_path, resume))
        if self.path is None:
            return None
        checkpoint = self._read or read(self.path)
        self._read = None
        restore_model(parts, checkpoint)
        if not resume:
            restore_for_evaluation(parts, checkpoint)
            return checkpoint
        loaders.asked_at = dict(checkpoint.get("loaders", {}))
        warn_of_changes(parts, checkpoint)
        restore_callbacks(parts, checkpoint)
        if self.continues and self.fabric.is_global_zero:
            for key, logger in logger_keys(self.loggers):
                if self.path.parent.name == FOLDER and not is_remote(self.path):
                    logger.resume_in(self.path.parent.parent)
                if key in checkpoint["loggers"]:
                    logger.load_state_dict(checkpoint["loggers"][key])
        return checkpoint

    def _looked_up(self, ckpt_path: str | os.PathLike[str] | None, resume: bool) -> tuple[Path | None, bool]:
        try:
            return self._readable(ckpt_path, resume)
        except OSError as error:
            raise CheckpointError(
                f"{ckpt_path} can't be looked up: {error.strerror or error}.",
                why="the disk or the store that it lies in can't be reached, or refuses.",
                fix="see that it can be read from here, then start again.",
            ) from error

    def _readable(self, ckpt_path: str | os.PathLike[str] | None, resume: bool) -> tuple[Path | None, bool]:
        """On rank 0: the file, which was read, and whether its run goes on. Where the newest state of a run was asked for
        and can't be read, it is the one before."""
        path, by_name = self.find_path(ckpt_path, resume)
        if path is None:
            return None, False
        continues = resume and is_newest_state(path) and self._is_among_my_runs(path)
        if continues:
            self.claim(path.parent)
        try:
            self._read = read(path)
        except CheckpointError as error:
            older = state_beside(path) if by_name and resume else None
            if older is None:
                raise
            damaged, (path, self._read) = path, older
            names = (f"{damaged.name}.damaged{number or ''}" for number in count())
            aside = next(free for name in names if not (free := damaged.with_name(name)).exists())
            warn(
                "damaged",
                f"{error.what} The run goes on from the state before, {path.name} (epoch {self._read['epoch']}, step "
                f"{self._read['global_step']}){f'; the damaged file is now {aside.name}' if continues else ''}.",
            )
            if continues:
                damaged.replace(aside)
                link(path, damaged)  # so that it is the newest for whoever comes before the next save
        return path, continues and "loggers" in self._read

    def find_path(self, ckpt_path: str | os.PathLike[str] | None, resume: bool) -> tuple[Path | None, bool]:
        """On rank 0: the file, and whether it is the newest state of a run rather than one that was pointed at."""
        if ckpt_path is not None and not isinstance(ckpt_path, (str, os.PathLike)):
            raise ConfigError(
                f"ckpt_path={ckpt_path!r}.",
                why="it is a path, or a name.",
                fix='"last", "best", "auto", or the path of a file.',
            )
        own = self.savers[0] if self.savers else None
        if ckpt_path == "best" and own is not None and own.best_model_path:
            return location(own.best_model_path), False
        whole = [saver for saver in self.savers if not saver.save_weights_only]
        # Where one of them saves to the run's folder, the others' are archives, which several runs may share.
        own_folders = [saver.dirpath for saver in whole if saver.dirpath is not None]
        folders = own_folders if len(own_folders) == len(whole) else []
        files = self._files
        if files is None:
            runs, folders = self.root / "runs", [*folders, self.root / FOLDER]
        elif files.version is None:
            runs = files.save_dir / files.name
        else:  # the run has a name: other runs are not it
            runs, folders = files.log_dir, [*folders, files.log_dir / FOLDER]
        world = self.fabric.world
        # Started again by its scheduler, with the same command: it goes on where it was, whatever it started from.
        again = state_of_job(runs, folders, world.job) if resume and world.restarts and world.job is not None else None
        if again is not None:
            return again, True
        return find(ckpt_path, runs=runs, own_folders=folders, may_start=resume), ckpt_path in ("last", "auto")

    @property
    def _files(self) -> CSVLogger | None:
        return next((logger for logger in self.loggers if isinstance(logger, CSVLogger)), None)

    def _is_among_my_runs(self, path: Path) -> bool:
        """Whether a checkpoint in a run's folder is of a run that the logger would write: another name is another run."""
        files = self._files
        if path.parent.name != FOLDER or files is None or is_remote(path):
            return True
        return path.parent.parent.parent.resolve() == (files.save_dir / files.name).resolve()

    # --- the folders ---

    def open(self, run_folder: Path) -> None:
        """Make the run's folder, and where a scheduler may start the job again leave its mark. On rank 0."""
        if self.loggers:
            make_folder(run_folder)
        job = self.fabric.world.job
        for saver in self.savers if job is not None else ():
            folder = saver.folder_in(run_folder)
            self.claim(folder)
            (folder / JOB).write_text(f"{job}\n", encoding="utf-8")

    def claim(self, folder: Path) -> None:
        """Make ``folder``, and keep other runs out until :meth:`close`. On rank 0.

        Raises:
            CheckpointError: Another run writes to it.
            ConfigError: It can't be written.
        """
        make_folder(folder)
        if not is_remote(folder) and (one := folder.resolve()) not in self._locks:
            lock = FolderLock(folder)
            lock.acquire()
            self._locks[one] = lock

    def close(self) -> None:
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()

    # --- writing ---

    def state(self, parts: Parts, *, weights_only: bool) -> Checkpoint:
        """The state of the run now, and where it comes from. Collective; see ``checkpoint_of``."""
        checkpoint = checkpoint_of(parts, weights_only=weights_only)
        if self.lineage:
            data = parts.loop.data if parts.loop is not None else {}
            checkpoint["lineage"] = cast("Lineage", {**self.lineage, **({"data": dict(data)} if data else {})})
        return checkpoint

    def trace(self, log_dir: Path | None, step: int) -> None:
        """Find out where the run comes from; changes that were not committed are written beside it. On rank 0."""
        lineage, diff = lineage_of(Path.cwd())
        self.lineage = deepcopy(lineage)
        if diff and log_dir is not None:
            path = log_dir / DIFF
            if path.exists() and path.read_text(encoding="utf-8", errors="surrogateescape") != diff:
                path = log_dir / f"{path.stem}-step={step}{path.suffix}"
            path.write_text(diff, encoding="utf-8", errors="surrogateescape")
