"""A command or a function on a real pseudo terminal, and somebody who types there."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
import warnings

UP, DOWN, ESCAPE, CTRL_C, CTRL_D, ENTER = "\x1b[A", "\x1b[B", "\x1b", "\x03", "\x04", "\r"
BACKSPACES = "\x7f" * 40
SUMMARY = "All right?"
WHERE = b"\x1b[6n"  # a terminal is asked where its cursor is


def run(machine, cwd, arguments, *steps, **environment):
    """Run the command on a pseudo terminal: exit code and all that was on screen."""
    child, terminal = fork()
    if child == 0:
        os.chdir(cwd)
        more = {**machine.environment, "TERM": "xterm", **environment}
        os.execvpe(sys.executable, [sys.executable, "-m", "scaffold", *arguments], more)
    return play(child, terminal, steps)


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child, terminal = pty.fork()
    if child == 0:  # not the streams that pytest put there
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    return child, terminal


def readable(screen):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.decode(errors="replace"))


def play(child, terminal, steps):
    """Press each step's keys (or send its signal) once its text has appeared after the last keys and the screen rests."""
    screen, seen, waiting = b"", 0, list(steps)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        expected = waiting[0][0] if waiting else None
        ready = bool(waiting) and (expected is None or expected in readable(screen[seen:]))
        if select.select([terminal], [], [], 0.08 if ready else 1.0)[0]:
            try:
                more = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            screen += more
            for _ in range(more.count(WHERE)):
                os.write(terminal, b"\x1b[1;1R")
        elif ready:
            seen, keys = len(screen), waiting.pop(0)[1]
            if isinstance(keys, signal.Signals):
                os.kill(child, keys)
            else:
                os.write(terminal, keys.encode())
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    text = screen.decode(errors="replace")
    assert not waiting, f"never came to {waiting[0]}:\n{readable(screen)}"
    return os.waitstatus_to_exitcode(status), text
