"""Processes that stages run: each with a time limit, all of them ended when the command is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE = 3.0
"""Seconds a process has for its own cleaning up before it is killed."""


class Stopped(Exception):
    """The command is being stopped, so nothing is started any more."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of one process."""

    code: int
    output: str
    """Its standard output and error, as they came."""
    timed_out: bool


class Runner:
    """Starts processes, and can end all that it started."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], stdin: str = "") -> Ran:
        """Run ``command`` to its end, or to the time limit, and end what it left running.

        Raises:
            Stopped: All are being stopped.
        """
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
            given.write(stdin.encode())
            given.seek(0)
            with self._lock:
                if self._stopping:
                    raise Stopped
                process = subprocess.Popen(
                    command, cwd=cwd, env=environment, stdin=given, stdout=said, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            timed_out = False
            try:
                process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _end(process)
                with self._lock:
                    self._running.discard(process)
            if self._stopping:
                raise Stopped
            said.seek(0)
            return Ran(code=process.returncode, output=said.read().decode(errors="replace"), timed_out=timed_out)

    def stop(self) -> None:
        """End all processes; none is started from now on."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: politely first, for it to end those that left its group."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
