"""One run at a time writes to a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import IO, ClassVar, final

from treadle.errors import CheckpointError

NAME = ".lock"


@final
class FolderLock:
    """Held from :meth:`acquire` to :meth:`release`, or to the end of the process: the system takes it away then, and no
    file that stays behind keeps the next run out. Loader workers and other children don't inherit it.

    A file system without locks, and one that is not local (``s3://``), is written without one.

    Args:
        folder: Must be there.
    """

    PATIENCE: ClassVar[float] = 10.0
    """Seconds to wait for another process to end: a job that was restarted may meet the last moments of its predecessor."""
    _held: ClassVar[set[Path]] = set()
    """By this process, which the system's lock would not keep out."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """
        Raises:
            CheckpointError: Another run holds it.
        """
        if self.path.resolve() in self._held:
            raise self._taken({"pid": os.getpid(), "host": socket.gethostname()}, "this process")
        file = self.path.open("a+", encoding="utf-8")
        try:
            if not self._locked(file):
                file.seek(0)
                raise self._taken(_read(file.read()), "another process")
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        self._file = file
        self._held.add(self.path.resolve())

    def release(self) -> None:
        """The file stays: removed, it could be another's by now."""
        if self._file is not None:
            self._held.discard(self.path.resolve())
            self._file.close()
            self._file = None

    def _locked(self, file: IO[str]) -> bool:
        import fcntl

        until = time.monotonic() + self.PATIENCE
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in forked workers
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    return False
                time.sleep(0.1)
            except OSError:  # a file system that has none
                return True
            else:
                return True

    def _taken(self, by: dict[str, object], who: str) -> CheckpointError:
        named = f" (process {by['pid']} on {by['host']})" if {"pid", "host"} <= by.keys() else ""
        return CheckpointError(
            f"{self.path.parent} is being written by another run: {who}{named}.",
            why="two runs in one folder would remove and overwrite each other's checkpoints.",
            fix="wait for it or stop it; or give this run a folder of its own: ModelCheckpoint(dirpath=...), or no ckpt_path.",
        )


def _read(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
