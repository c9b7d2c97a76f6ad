"""One run at a time writes to a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, ClassVar, final

from treadle.errors import CheckpointError

NAME = ".lock"


@final
class FolderLock:
    """Held from :meth:`acquire` to :meth:`release`, or to the end of the process: the system takes it away then, and the
    file that a killed one leaves behind keeps nobody out. Loader workers and other children don't inherit it.

    A file system without locks, and one that is not local (``s3://``), is written without one.

    Args:
        folder: Must be there.
    """

    PATIENCE: ClassVar[float] = 10.0
    """Seconds to wait for another process to end: a job that was restarted may meet the last moments of its predecessor."""
    _held: ClassVar[set[tuple[int, Path]]] = set()
    """By which process: its own lock would not keep it out."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """
        Raises:
            CheckpointError: Another run holds it.
        """
        if self._key in self._held:
            raise self._taken({"pid": os.getpid(), "host": socket.gethostname()}, "this process")
        until = time.monotonic() + self.PATIENCE
        while not self._is_locked():
            if time.monotonic() > until:
                raise self._taken(_read(self.path), "another process")
            time.sleep(0.1)
        self._held.add(self._key)

    def release(self) -> None:
        if self._file is not None:
            self._held.discard(self._key)
            with suppress(OSError):  # the folder may be gone
                self.path.unlink()  # while it is held: nobody else's can be meant
            self._file.close()
            self._file = None

    @property
    def _key(self) -> tuple[int, Path]:
        return os.getpid(), self.path.resolve()

    def _is_locked(self) -> bool:
        """Try to."""
        import fcntl

        with ExitStack() as opened:
            try:
                file = opened.enter_context(self.path.open("a", encoding="utf-8"))
            except OSError as error:
                raise CheckpointError(
                    f"{self.path} can't be written: {error.strerror or error}.",
                    why="a run locks the folder that it writes to; the file may be another user's.",
                    fix="remove it if no run writes there, or give this one a folder of its own.",
                ) from None
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in forked workers
            except (BlockingIOError, PermissionError):
                return False
            except OSError:  # a file system that has none
                pass
            if not self._is(file):  # the one before let go, and removed it
                return False
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
            self._file = file
            opened.pop_all()
        return True

    def _is(self, file: IO[str]) -> bool:
        try:  # not opened a second time: closing it would end the lock
            return os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _taken(self, by: dict[str, object], who: str) -> CheckpointError:
        named = f" (process {by['pid']} on {by['host']})" if {"pid", "host"} <= by.keys() else ""
        return CheckpointError(
            f"{self.path.parent} is being written by another run: {who}{named}.",
            why="two runs in one folder would remove and overwrite each other's checkpoints.",
            fix="wait for it or stop it; or give this run a folder of its own: ModelCheckpoint(dirpath=...), or no ckpt_path.",
        )


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
