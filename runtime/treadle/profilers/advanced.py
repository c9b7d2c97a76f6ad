"""Which functions each action spends its time in."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

from treadle.errors import ConfigError
from treadle.profilers.base import not_started, span
from treadle.profilers.report import Report


@final
class AdvancedProfiler:
    """Python's ``cProfile`` for each action. It makes every Python call slower: read the result as proportions.

    One profile runs at a time: while an action is inside another, its functions are listed under itself, and not under
    the outer one as well.

    Args:
        dirpath: A folder for a file for each stage and rank. Default: the run's folder, if ``filename`` is given.
        filename: What the files are called: ``fit-FILENAME-rank0.txt``. Without both, standard error.
        line_count_restriction: How much of each action's functions to list: a count (int) or a fraction (float).

    Raises:
        ConfigError: An argument out of its range; while running, another ``cProfile`` is at work.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: int | float = 1.0,
    ) -> None:
        lines = line_count_restriction
        fraction = isinstance(lines, float) and 0 < lines <= 1
        count = isinstance(lines, int) and not isinstance(lines, bool) and lines >= 1
        if not (fraction or count):
            raise ConfigError(
                f"AdvancedProfiler(line_count_restriction={lines!r}).",
                why="it is a count of lines (int, at least 1) or a fraction of them (float, above 0 and at most 1).",
                fix="line_count_restriction=20",
            )
        self._report = Report("advanced", dirpath, filename)
        self._lines = lines
        self._profiles: dict[str, cProfile.Profile] = {}
        self._running: list[str] = []

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        self._end()
        self._report.setup(stage, rank, folder)

    def teardown(self, stage: str) -> None:
        self._pause()
        text = self._text()
        self._end()
        self._report.publish(text)

    def start(self, name: str) -> None:
        self._pause()
        if name not in self._profiles:
            self._profiles[name] = cProfile.Profile()
        self._running.append(name)
        self._continue()

    def stop(self, name: str) -> None:
        if name not in self._running:
            raise not_started(name)
        self._pause()
        del self._running[len(self._running) - 1 - self._running[::-1].index(name)]
        self._continue()

    def profile(self, name: str) -> AbstractContextManager[None]:
        return span(self, name)

    def summary(self) -> str:
        """For each action the functions called in it, those that took longest first."""
        self._pause()
        try:
            return self._text()
        finally:
            self._continue()

    def _text(self) -> str:
        parts = [f"profile of {self._report.stage}, functions by action"]
        parts += [f"{name}\n{self._functions(profile)}" for name, profile in self._profiles.items()]
        if self._running:
            parts.append(f"started and not stopped: {', '.join(dict.fromkeys(self._running))}")
        return "\n\n".join(parts)

    def _functions(self, profile: cProfile.Profile) -> str:
        profile.create_stats()
        if not profile.stats:
            return "   no function called"
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(self._lines)
        return text.getvalue().strip("\n")

    def _pause(self) -> None:
        if self._running:
            self._profiles[self._running[-1]].disable()

    def _continue(self) -> None:
        if not self._running:
            return
        try:
            self._profiles[self._running[-1]].enable()
        except ValueError as error:  # from Python 3.12 on; before, the other one is cut off
            self._running.clear()
            raise ConfigError(
                f"AdvancedProfiler can't start: {error}.",
                why="Python runs one cProfile at a time, and one is at work already.",
                fix='run without `python -m cProfile`, or with profiler="simple".',
            ) from error

    def _end(self) -> None:
        self._pause()
        self._profiles.clear()
        self._running.clear()
