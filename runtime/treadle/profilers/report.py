"""Where a profiler's findings go."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import final

from treadle.errors import ConfigError


@final
class Report:
    """Standard error of rank 0; or, once ``dirpath`` or ``filename`` is given, a text file for each stage and rank.

    Args:
        kind: The profiler's name, and ``filename`` if only ``dirpath`` is given.
        dirpath: Where files go. Default: the run's folder.
        filename: What the file is called, less stage, rank and ending: ``fit-FILENAME-rank0.txt``.

    Raises:
        ConfigError: Either is no path, or ``filename`` has a folder in it.
    """

    def __init__(self, kind: str, dirpath: str | os.PathLike[str] | None, filename: str | None) -> None:
        if dirpath is not None and not isinstance(dirpath, (str, os.PathLike)):
            raise ConfigError(f"dirpath={dirpath!r}.", why="it is a folder.", fix='dirpath="profiles"')
        if filename is not None and (not isinstance(filename, str) or not filename or Path(filename).name != filename):
            raise ConfigError(
                f"filename={filename!r}.",
                why="it is a part of the files' names: fit-FILENAME-rank0.txt; their folder is dirpath.",
                fix='dirpath="profiles", filename="perf"',
            )
        self._kind, self._dirpath, self._filename = kind, dirpath, filename
        self.setup("fit", 0, Path.cwd)

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        self.stage, self._rank, self._folder = stage, rank, folder

    def file(self, ending: str) -> Path:
        """The path of this stage's and rank's file with that ending; its folder is there."""
        folder = self._folder() if self._dirpath is None else Path(self._dirpath)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.stage}-{self._filename or self._kind}-rank{self._rank}{ending}"

    def publish(self, text: str) -> None:
        """Write ``text`` to its file, in the place of what an earlier run left there, or to standard error."""
        if self._dirpath is not None or self._filename is not None:
            self.file(".txt").write_text(text + "\n", encoding="utf-8")
        elif self._rank == 0:
            print(text, file=sys.stderr, flush=True)
