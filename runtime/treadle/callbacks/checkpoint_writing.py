"""What the ModelCheckpoints of a Trainer have decided at a savepoint, carried out: at once, or behind training."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from treadle.checkpoint import exists, link, plain, remove, write
from treadle.checkpoint.remote import is_remote
from treadle.checkpoint.saving import Background, Staging
from treadle.checkpoint.sharded import write_unnamed
from treadle.errors import CheckpointError, warn
from treadle.strategies.sharding import saves_shards

if TYPE_CHECKING:
    from treadle.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What one of them has decided."""

    kept: Path | None
    """The file in which this state is kept; None if it isn't."""
    last: Path | None
    """The file that always has the newest state; None if there is none."""
    previous: Path | None
    """The file that has the state before that one."""
    displaced: Sequence[Path]
    """Files that make room for the one that is kept."""
    weights_only: bool
    says: str
    """Printed for each file that is written; may be empty."""
    take_back: Callable[[bool], None]
    """Called if a file could not be written, and told whether that is the one in which the state was to be kept."""


@dataclass
class _Outcome:
    done: list[Path] = field(default_factory=list)
    error: str = ""
    told: bool = False
    is_safe: bool = False


@final
class Writer:
    """Writes for all ModelCheckpoints of a Trainer."""

    def __init__(self) -> None:
        self._background, self._staging = Background(), Staging()
        self._savings: Sequence[Saving] = ()
        """Those that are being written."""
        self._outcome = _Outcome()

    def carry_out(self, trainer: Trainer, savings: Sequence[Saving], *, behind: bool) -> None:
        """
        ::

            write the file that each of them keeps, or the newest state; the same state once, other files of it are links
            let the newest state be the one before, and this one the newest
            remove the files that make room

        A disk that is full, or fails, ends neither training nor the checkpoints there are: the state is not saved, which a
        warning says. Collective.

        Args:
            behind: Copy the state, and write it in a thread while training goes on.

        Raises:
            CheckpointError: Something that a file can't hold.
        """
        self._savings, outcome = savings, _Outcome()
        self._outcome = outcome
        kinds = {saving.weights_only for saving in savings if saving.kept is not None or saving.last is not None}
        states = {weights_only: trainer.state_of_run(weights_only=weights_only) for weights_only in sorted(kinds)}

        def begin() -> _Outcome:
            try:
                trainer.flush_loggers()
                contents = {kind: plain(dict(state), "checkpoint") for kind, state in states.items()}
                if behind:
                    copies = self._staging.copy(contents)
                    self._background.start(lambda: self._write(trainer, copies))
                else:
                    self._write(trainer, contents)
            except OSError as error:
                outcome.error = _in_words(error)
            return outcome

        if saves_shards(trainer.fabric.strategy):
            behind = False  # a thread that talks to the other ranks would meet training's collectives
            self._write_together(trainer, states)
        else:
            self._take_over(trainer, begin)
        if not behind or self._outcome.error:
            self._close(trainer)

    def _write_together(self, trainer: Trainer, states: Mapping[bool, Any]) -> None:
        """Each rank its parts."""
        outcome = self._outcome

        def flush() -> _Outcome:
            try:
                trainer.flush_loggers()
            except OSError as error:
                outcome.error = _in_words(error)
            return outcome

        self._take_over(trainer, flush)
        if self._outcome.error:
            return
        ranks = trainer.fabric.ranks
        try:
            written = {
                weights_only: write_unnamed(_first_path(self._savings, weights_only), state, ranks)
                for weights_only, state in states.items()
            }
        except OSError as error:
            self._outcome.error = _in_words(error)
            return

        def put() -> _Outcome:
            try:
                self._write(trainer, {}, written)
            except OSError as error:
                outcome.error = _in_words(error)
            return outcome

        self._take_over(trainer, put)

    def _take_over(self, trainer: Trainer, work: Callable[[], _Outcome]) -> None:
        """What came of ``work`` on rank 0 is known to all; there it stays the object that a thread may still write to."""
        found = trainer.fabric.ranks.from_rank_zero(work)
        if not trainer.is_global_zero:
            self._outcome = found

    @property
    def error(self) -> str:
        """Why the newest state was not saved; empty if it was."""
        return self._outcome.error

    @property
    def is_safe(self) -> bool:
        """There is a file with the newest state, all of it."""
        return not self.error or self._outcome.is_safe

    @property
    def has_news(self) -> bool:
        """What was written behind training is done, on the rank that writes."""
        return self._background.is_over

    def finish(self) -> None:
        """Wait for what is being written, on the rank that writes, and tell if it went wrong. Not collective."""
        try:
            self._background.wait()
        except OSError as error:
            self._outcome.error = _in_words(error)
        except Exception as error:  # noqa: BLE001 - other ranks wait for what comes next
            self._outcome.error = f"{type(error).__name__}: {error}"
        self._tell()

    def settle(self, trainer: Trainer) -> None:
        """The same on all ranks, which then forget what they decided for a state that was not saved. Collective."""
        if not self._savings:
            return

        def finished() -> _Outcome:
            self.finish()
            return self._outcome

        self._take_over(trainer, finished)
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        done = self._outcome.done
        whole = [path for saving in self._savings if not saving.weights_only for path in (saving.kept, saving.last)]
        whole = [path for path in whole if path is not None]
        self._outcome.is_safe = not whole or any(path in done for path in whole)
        if trainer.is_global_zero:
            self._tell()
        savings, self._savings = self._savings, ()
        for saving in savings if self._outcome.error else ():
            kept_is_missing = saving.kept is not None and saving.kept not in done
            if kept_is_missing or (saving.last is not None and saving.last not in done):
                saving.take_back(kept_is_missing)

    def _tell(self) -> None:
        if not self._outcome.error or self._outcome.told:
            return
        self._outcome.told = True
        paths = [path for saving in self._savings for path in (saving.kept, saving.last) if path is not None]
        if not paths:  # nothing was to be saved
            return
        path = next((path for path in paths if path not in self._outcome.done), paths[0])
        warn("not-saved", f"{path} was not saved: {self.error}. Training goes on; older checkpoints are intact.")

    def _write(self, trainer: Trainer, contents: Mapping[bool, Any], written: dict[bool, Path] | None = None) -> None:
        """On the rank that writes. ``written`` has what is on disk already, to be linked to."""
        self._staging.settle()
        written = dict(written or {})
        done = self._outcome.done

        def put(path: Path, saving: Saving) -> None:
            if path in done:
                return
            if saving.weights_only in written:
                link(written[saving.weights_only], path)
            else:
                _require_space(path, contents[saving.weights_only])
                write(path, contents[saving.weights_only])
                written[saving.weights_only] = path
            note(path, saving)

        def note(path: Path, saving: Saving) -> None:
            done.append(path)
            if saving.says:
                trainer.print(f"{saving.says}: saved {path}.")

        def put_last(path: Path, previous: Path | None, saving: Saving) -> None:
            if previous is None or path in done or not exists(path):
                return put(path, saving)
            if saving.weights_only in written or is_remote(path):
                link(path, previous)
                return put(path, saving)
            # Until the new state is whole, there are two before it.
            new = path.with_name(f".{path.name}.{os.getpid()}.new.partial")
            _require_space(new, contents[saving.weights_only])
            try:
                write(new, contents[saving.weights_only])
                link(path, previous)
                link(new, path)
            finally:
                remove(new)
            written[saving.weights_only] = path
            note(path, saving)

        for saving in self._savings:
            if saving.kept is not None:
                self._try(partial(put, saving.kept, saving))
        for saving in self._savings:
            if saving.last is not None:
                self._try(partial(put_last, saving.last, saving.previous, saving))
        for saving in self._savings:
            for path in saving.displaced if saving.kept in done else ():
                if not _is(path, trainer.ckpt_path):  # which the user named to start from
                    self._try(partial(remove, path))

    def _try(self, work: Callable[[], None]) -> None:
        """One folder that fails doesn't keep the others from what is theirs."""
        try:
            work()
        except OSError as error:
            self._outcome.error = _in_words(error)


def _is(path: Path, other: Path | None) -> bool:
    return path == other or (other is not None and not is_remote(other) and path.absolute() == other.absolute())


def _first_path(savings: Sequence[Saving], weights_only: bool) -> Path:
    return next(p for s in savings if s.weights_only == weights_only for p in (s.kept, s.last) if p is not None)


def _require_space(path: Path, content: Any) -> None:
    """
    Raises:
        OSError: The disk has less than what will be written: nothing is begun then.
    """
    if is_remote(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = _size(content), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes needed, {free:,} are free")


def _size(content: Any) -> int:
    """Bytes of the tensors, each memory once."""
    memories: dict[tuple[Any, int], int] = {}

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            size = value.numel() * value.element_size()
            key = (value.device, value.data_ptr() if size else 0)
            memories[key] = max(size, memories.get(key, 0))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            look(item)

    look(content)
    return sum(memories.values())


def _in_words(error: OSError) -> str:
    return (error.strerror or str(error)).rstrip(".")


def require_one_rank(trainer: Trainer) -> None:
    """
    Raises:
        CheckpointError: After an exception on one of several ranks, the others can't be asked for their state.
    """
    if trainer.world_size > 1:
        raise CheckpointError(
            f"an exception ended a run on {trainer.world_size} ranks.",
            why="a checkpoint needs the state of all of them, and this one can't know what the others do.",
            fix="resume from last.ckpt.",
        )
