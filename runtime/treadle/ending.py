"""How a process ends that has spoken with other ranks."""

from __future__ import annotations

import time
from pathlib import Path


def let_gloo_finish() -> None:
    """Give gloo's threads the processor and the interpreter until they sleep, for a second at most.

    One that lets go of its last tensor wants the interpreter for it. Where that ends meanwhile, Python unwinds the thread in
    the middle of C++, which aborts the process: seen on a busy machine, with torch 2.13.
    """
    deadline = time.monotonic() + 1.0
    while True:
        time.sleep(0.01)
        if time.monotonic() > deadline or not any(map(_runs, Path("/proc/self/task").glob("*/stat"))):
            return


def _runs(stat: Path) -> bool:
    """A thread's state, where Linux tells it."""
    try:
        name, _, state = stat.read_text().rpartition(") ")
    except OSError:  # it has ended
        return False
    return "gloo" in name and not state.startswith("S")
