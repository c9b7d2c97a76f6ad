"""Which operators run, on the host and on the device, in a window of a few batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch.profiler import ProfilerActivity

from treadle.errors import ConfigError, nearest, warn
from treadle.profilers.base import BATCH_ACTIONS, not_started, span
from treadle.profilers.report import Report

SortKey = Literal[
    "count",
    "cpu_time_total",
    "self_cpu_time_total",
    "device_time_total",
    "self_device_time_total",
    "cpu_memory_usage",
    "self_cpu_memory_usage",
    "device_memory_usage",
    "self_device_memory_usage",
]


@final
class PyTorchProfiler:
    """``torch.profiler`` for windows of batches: ``wait`` pass unobserved, ``warmup`` settle it, ``active`` are recorded,
    and so on ``repeat`` times. Outside of a window there is no profiler, and no cost.

    Each window leaves a table of operators and a trace, to be opened in Perfetto or ``chrome://tracing``.

    Args:
        dirpath: A folder for the files. Default: the run's folder.
        filename: What they are called: ``fit-FILENAME-rank0.txt``, ``fit-FILENAME-rank0-batch2.json`` (its first batch).
            Without both, the table goes to standard error.
        wait: Batches before each window; at least 0.
        warmup: Batches that are observed and thrown away, since the first ones are slow; at least 0.
        active: Batches that are recorded; at least 1.
        repeat: Windows in a stage; 0 is no bound.
        activities: What is observed. Default: everything that this machine can.
        record_shapes: Note the shapes of operators' inputs.
        profile_memory: Note what is allocated and freed.
        with_stack: Note where in the source operators were called. Slow.
        with_flops: Estimate the operations of matrix products and convolutions.
        with_modules: Note the modules that operators were called in; TorchScript only.
        export_to_chrome: Write the traces.
        group_by_input_shapes: A line in the table for each operator and shape. Needs ``record_shapes``.
        sort_by_key: What the table is sorted by. Default: time on the device, or on the host if there is no device.
        row_limit: Lines of the table; at least 1.

    Raises:
        ConfigError: An argument out of its range.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        repeat: int = 1,
        activities: Iterable[ProfilerActivity] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        export_to_chrome: bool = True,
        group_by_input_shapes: bool = False,
        sort_by_key: SortKey | None = None,
        row_limit: int = 20,
    ) -> None:
        for name, value, least in (
            ("wait", wait, 0),
            ("warmup", warmup, 0),
            ("active", active, 1),
            ("repeat", repeat, 0),
            ("row_limit", row_limit, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"PyTorchProfiler({name}={value!r}).",
                    why=f"it is a count of at least {least}.",
                    fix="PyTorchProfiler(wait=1, warmup=1, active=3, repeat=1, row_limit=20)",
                )
        if sort_by_key is not None and sort_by_key not in get_args(SortKey):
            raise ConfigError(
                f"PyTorchProfiler(sort_by_key={sort_by_key!r}).",
                why="the table has no such column.",
                fix=nearest(str(sort_by_key), get_args(SortKey)),
            )
        if group_by_input_shapes and not record_shapes:
            raise ConfigError(
                "PyTorchProfiler(group_by_input_shapes=True) without record_shapes.",
                why="lines can't be told apart by shapes that were not noted.",
                fix="record_shapes=True, group_by_input_shapes=True",
            )
        self._report = Report("pytorch", dirpath, filename)
        self._wait, self._warmup, self._active, self._repeat = wait, warmup, active, repeat
        self._settings: dict[str, Any] = {
            "activities": None if activities is None else list(activities),
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
            "with_flops": with_flops,
            "with_modules": with_modules,
        }
        self._export, self._by_shapes = export_to_chrome, group_by_input_shapes
        self._sort_by = sort_by_key or (
            "self_device_time_total" if torch.accelerator.is_available() else "self_cpu_time_total"
        )
        self._rows = row_limit
        self._batch = BATCH_ACTIONS["fit"]
        self._batches = 0
        self._window: torch.profiler.profile | None = None
        self._first = 0
        """The batch that the window records first."""
        self._running: dict[str, list[torch.profiler.record_function | None]] = {}
        self._tables: list[str] = []

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        self._abandon()
        self._report.setup(stage, rank, folder)
        self._batch = BATCH_ACTIONS.get(stage, self._batch)
        self._batches = 0
        self._running.clear()
        self._tables.clear()

    def teardown(self, stage: str) -> None:
        """Write the tables. A window that the stage ended in is kept as far as it came.

        Warns:
            TreadleWarning: The stage had too few batches for any to be recorded.
        """
        self._abandon()
        if not self._tables:
            warn(
                "profile",
                f"the profile of {self._report.stage} is empty: it records from batch {self._wait + self._warmup} on "
                f"(wait={self._wait}, warmup={self._warmup}), and the stage had {self._batches}.",
            )
            return
        self._report.publish(self.summary())

    def start(self, name: str) -> None:
        running = self._running.setdefault(name, [])
        if name == self._batch and not running:
            self._before_batch()
        action = None
        if self._window is not None:
            action = torch.profiler.record_function(name)
            action.__enter__()
        running.append(action)

    def stop(self, name: str) -> None:
        running = self._running.get(name)
        if not running:
            raise not_started(name)
        if (action := running.pop()) is not None:
            action.__exit__(None, None, None)
        if name == self._batch and not running:
            self._after_batch()

    def profile(self, name: str) -> AbstractContextManager[None]:
        return span(self, name)

    def summary(self) -> str:
        """A table of operators for each window that is over."""
        return "\n\n".join(self._tables)

    def _before_batch(self) -> None:
        windows, position = divmod(self._batches, self._wait + self._warmup + self._active)
        if position == self._wait and (self._repeat == 0 or windows < self._repeat):
            self._first = self._batches + self._warmup
            phases = torch.profiler.schedule(wait=0, warmup=self._warmup, active=self._active, repeat=1)
            self._window = torch.profiler.profile(schedule=phases, on_trace_ready=self._keep, **self._settings)
            self._window.start()

    def _after_batch(self) -> None:
        self._batches += 1
        if self._window is not None:
            self._window.step()  # keeps the window, after its last batch
            if self._batches == self._first + self._active:
                self._window = None

    def _abandon(self) -> None:
        """End a window before its time. What is still going on in it ends with it."""
        if self._window is None:
            return
        self._batches += bool(self._running.get(self._batch))
        for running in self._running.values():
            for action in reversed(running):
                if action is not None:
                    action.__exit__(None, None, None)
        self._running.clear()
        self._window.stop()
        self._window = None

    def _keep(self, window: torch.profiler.profile) -> None:
        if self._batches == self._first:  # ended between the warmup and the first batch to record
            return
        last = self._batches - 1
        averages = window.key_averages(group_by_input_shape=self._by_shapes)
        table = averages.table(sort_by=self._sort_by, row_limit=self._rows)
        self._tables.append(f"profile of {self._report.stage}, batches {self._first} to {last}\n{table}")
        if self._export:
            window.export_chrome_trace(str(self._report.file(f"-batch{self._first}.json")))
