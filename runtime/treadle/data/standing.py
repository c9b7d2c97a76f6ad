"""Where a worker process stands, seen from outside: its line of Python, and what the kernel says of it."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch.utils.data

STACK = "treadle-stack"
ASKS = 5
"""Which of the realtime signals, which nobody else has a meaning for, asks a worker for its stack."""
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a network drive",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)

_TORCH = str(Path(torch.utils.data.__file__).parent) + os.sep


def offer_stack() -> None:
    """In a worker: from now on, a signal writes its stack into memory that others can read. Linux only."""
    if sys.platform == "linux":
        faulthandler.register(signal.SIGRTMIN + ASKS, file=os.memfd_create(STACK), all_threads=False)


def standing(pid: int, over: threading.Event) -> str | None:
    """What to say after "which is", such as ``"in data.py:12 in __getitem__; sleeping, 0.0 s of CPU time in the last
    second"``; None where that can't be known.

    Args:
        pid: Of a worker. It is asked for its stack only if it offers it: the signal would end any other.
        over: Ends the waiting for it.
    """
    if sys.platform != "linux":
        return None
    try:
        stack, before = _stack(pid, over), _processor_time(pid)
        over.wait(1.0)
        spent = _processor_time(pid) - before
        state = _status(pid)[0]
    except OSError:  # it has ended
        return None
    parts = [_place(stack)] if stack else []
    parts.append(f"{STATES.get(state, state)}, {spent:.1f} s of CPU time in the last second")
    with suppress(OSError):
        channel = (Path(f"/proc/{pid}/wchan")).read_text()
        if channel.strip("0"):
            parts[-1] += f", in {channel} of the kernel"
    return "; ".join(parts)


def _stack(pid: int, over: threading.Event) -> str:
    """As ``faulthandler`` writes it, or nothing."""
    if sys.platform != "linux":
        return ""
    number = signal.SIGRTMIN + ASKS
    status = Path(f"/proc/{pid}/status").read_text()
    if not int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1:
        return ""
    files = [link for link in Path(f"/proc/{pid}/fd").iterdir() if STACK in str(link.readlink())]
    before = {file: len(file.read_text()) for file in files}  # what it said the last time
    os.kill(pid, number)
    for _ in range(20):
        for file in files:
            if (text := file.read_text()[before[file] :]).endswith("\n") and FRAME.search(text):
                return text
        if over.wait(0.05):
            break
    return ""


def _place(stack: str) -> str:
    """The line of the data set that torch called, and the innermost of all.

    >>> _place('  File "/lib/socket.py", line 7 in read\\n  File "/a/data.py", line 2 in __getitem__\\n')
    'in data.py:2 in __getitem__, inside of socket.py:7 in read'
    """
    frames = []
    for path, line, function in FRAME.findall(stack):  # innermost first
        if path.startswith(_TORCH):
            break
        frames.append(f"{Path(path).name}:{line} in {function}")
    if not frames:
        return "between two batches"
    return f"in {frames[-1]}" + (f", inside of {frames[0]}" if len(frames) > 1 else "")


def _processor_time(pid: int) -> float:
    user, kernel = _status(pid)[11:13]
    return (int(user) + int(kernel)) / float(os.sysconf("SC_CLK_TCK"))


def _status(pid: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` after the name, which may have spaces in it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
