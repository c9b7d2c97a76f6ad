"""Signals that ask a run to end: a handler sets a flag, and the loop looks at it between two batches."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import final

ASKING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
)  # what schedulers send before they take the machine away, and Ctrl-C

INTERRUPTED = b"treadle: finishing the step, then saving; Ctrl-C again ends now\n"


@final
class Asked:
    """Whether a signal came.

    Args:
        tells: Says on standard error what the first Ctrl-C does.
        at_work: Whether somebody looks at it before long; it changes.
    """

    LINGER = 30
    """Seconds that a process forked from this one lives on after such a signal: the step at hand may need it."""

    def __init__(self, *, tells: bool = True, at_work: bool = True) -> None:
        self.number = 0
        """Of the first that came; 0: none."""
        self.interrupt: Callable[[int, FrameType | None], object] = signal.default_int_handler
        """What a second Ctrl-C does."""
        self.at_work = at_work
        """Somebody looks at the flag before long; else the first Ctrl-C does what the second would."""
        self._tells = tells
        self._process = os.getpid()
        self._interrupted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # schedulers signal every process of a job, terminals all in the foreground
            signal.alarm(self.LINGER)
            return
        if number == signal.SIGINT and (self._interrupted or not self.at_work):
            self.interrupt(number, frame)
        self.number = self.number or number
        if number == signal.SIGINT:
            self._interrupted = True
            if self._tells:
                with suppress(OSError):
                    os.write(2, INTERRUPTED)  # print would fail if it is what was interrupted


@contextmanager
def heard(*, tells: bool = True, at_work: bool = True) -> Iterator[Asked]:
    """Inside, SIGTERM, SIGUSR1 and the first SIGINT only set a flag, and a second SIGINT raises ``KeyboardInterrupt``;
    afterwards they do what they did before. A thread other than the main one hears none, and a SIGINT that is ignored,
    as under nohup, stays so. Processes that are forked inside inherit this, and live on for a while.

    Args:
        tells: See :class:`Asked`.
        at_work: The same.
    """
    asked = Asked(tells=tells, at_work=at_work)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    interrupt = signal.getsignal(signal.SIGINT)
    if callable(interrupt):
        asked.interrupt = interrupt
    heard = [number for number in ASKING if number != signal.SIGINT or callable(interrupt)]
    before = {number: signal.signal(number, asked) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, these signals wait, for this thread and for the processes that it starts. Those must call
    :func:`leave_to_parent`, or they never get any."""
    if sys.platform == "win32":  # which sends none of them
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """In a loader's worker: these signals don't end it. The main process got them too, and ends it when it needs no
    batch any more; once that process is gone, so is this one."""
    handler = _LeftToParent()
    for number in ASKING:
        signal.signal(number, handler)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


@final
class _LeftToParent:
    def __init__(self) -> None:
        self._parent = os.getppid()
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:  # not an alarm, which the user's data set may have uses for
            self._asked = True
            start_new_thread(self._follow, (number,))

    def _follow(self, number: int) -> None:
        while os.getppid() == self._parent:
            time.sleep(1.0)
        os._exit(128 + number)
