"""Signals: a stop at any moment unwinds like an error, and never in the middle of a step that must be whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in the block, so that ``finally`` runs as it does for Ctrl-C."""

    def stop(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [number for number in _STOPS if number != signal.SIGINT]
    before = {number: signal.signal(number, stop) for number in others if signal.getsignal(number) != signal.SIG_IGN}
    unraisable, sys.unraisablehook = sys.unraisablehook, _send_again(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_again(unraisable: Callable[[sys.UnraisableHookArgs], Any]) -> Callable[[sys.UnraisableHookArgs], None]:
    """A stop that strikes while Python finalizes an object or collects garbage is raised there, and goes no further."""

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        match dropped.exc_value:
            case KeyboardInterrupt():
                number = int(signal.SIGINT)
            case SystemExit(code=int(code)) if code > 128:
                number = code - 128
            case _:
                unraisable(dropped)
                return
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # once that is over

    return hook


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that arrives in the block takes effect at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            os.kill(os.getpid(), arrived[0])
