"""How often each action happened, and how long it took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from treadle.profilers.base import not_started, span
from treadle.profilers.report import Report


@dataclass(slots=True)
class _Action:
    count: int = 0
    total: float = 0.0
    """In seconds, of those that are over."""
    depth: int = 0
    began: float = 0.0


@final
class SimpleProfiler:
    """Wall time of each action, the longest first. An action's time includes that of the actions inside it.

    On an accelerator, work is queued: its time shows in the action that waits for it. ``PyTorchProfiler`` tells them
    apart.

    Args:
        dirpath: A folder for a file for each stage and rank. Default: the run's folder, if ``filename`` is given.
        filename: What the files are called: ``fit-FILENAME-rank0.txt``. Without both, standard error.
        extended: Also how often each happened, and its share of the stage.

    Raises:
        ConfigError: ``dirpath`` is no path, or ``filename`` no name.
    """

    def __init__(
        self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None, extended: bool = True
    ) -> None:
        self._report = Report("simple", dirpath, filename)
        self._extended = extended
        self._actions: dict[str, _Action] = {}
        self._began = time.perf_counter()

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        self._report.setup(stage, rank, folder)
        self._actions.clear()
        self._began = time.perf_counter()

    def teardown(self, stage: str) -> None:
        self._report.publish(self.summary())
        self._actions.clear()

    def start(self, name: str) -> None:
        if (action := self._actions.get(name)) is None:
            action = self._actions[name] = _Action()
        action.depth += 1
        if action.depth == 1:
            action.began = time.perf_counter()

    def stop(self, name: str) -> None:
        now = time.perf_counter()
        action = self._actions.get(name)
        if action is None or action.depth == 0:
            raise not_started(name)
        action.depth -= 1
        if action.depth == 0:
            action.count += 1
            action.total += now - action.began

    def profile(self, name: str) -> AbstractContextManager[None]:
        return span(self, name)

    def summary(self) -> str:
        """A table; an action that is still going on is not counted in it, and named below."""
        elapsed = time.perf_counter() - self._began
        over = sorted((item for item in self._actions.items() if item[1].count), key=lambda item: -item[1].total)
        rows = [self._row(name, action, elapsed) for name, action in over]
        lines = [f"profile of {self._report.stage}, {elapsed:.4g} s", *_table(self._header(), rows)]
        if running := [name for name, action in self._actions.items() if action.depth]:
            lines.append(f"started and not stopped: {', '.join(running)}")
        return "\n".join(lines)

    def _header(self) -> list[str]:
        return (
            ["action", "count", "mean (ms)", "total (s)", "share"]
            if self._extended
            else ["action", "mean (ms)", "total (s)"]
        )

    def _row(self, name: str, action: _Action, elapsed: float) -> list[str]:
        mean, total = f"{1000 * action.total / action.count:.4f}", f"{action.total:.4f}"
        if not self._extended:
            return [name, mean, total]
        return [name, f"{action.count:,}", mean, total, f"{100 * action.total / elapsed:.1f} %"]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as what is in them: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, *rows]
    ]
