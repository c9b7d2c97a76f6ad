"""Signals that ask a run to end: a handler sets a flag, and the loop looks at it between two batches."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

ASKING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # what schedulers send before they take the machine away


@final
class Asked:
    """Whether a signal came."""

    LINGER = 30
    """Seconds that a loader's worker lives on after such a signal: the step at hand may need its next batch."""

    def __init__(self) -> None:
        self.number = 0
        """Of the first that came; 0: none."""
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if os.getpid() != self._process:  # a worker forked from here: schedulers signal every process of a job
            signal.alarm(self.LINGER)


@contextmanager
def heard() -> Iterator[Asked]:
    """Inside, SIGTERM and SIGUSR1 only set a flag; afterwards they do what they did before. A thread other than the main
    one hears none. Loader workers that are forked inside inherit this, and live on for a while."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked) for number in ASKING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
