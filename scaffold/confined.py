"""A call in a process of its own, with limits: what a stranger's template computes can neither hang nor fill this machine.

The process is forked, so the call costs some milliseconds and may be any function. Its result comes back as JSON, which
nothing it returns can turn into code.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, final

from scaffold import errors
from scaffold.errors import ScaffoldError, UnsafeTemplate
from scaffold.settings import Limits


def run(
    function: Callable[..., Any], *arguments: Any, seconds: float | None = None, limits: Limits | None = None
) -> Any:
    """What ``function(*arguments)`` returns, once it has been through JSON: tuples come back as lists.

    Args:
        seconds: How long it may take; default: ``limits.seconds``.

    Raises:
        UnsafeTemplate: It took longer than that, or more memory than the limits allow.
        ScaffoldError: Raised there is raised here, and so is an OSError. Another exception is a RuntimeError here.
    """
    with Call(function, *arguments, seconds=seconds, limits=limits) as call:
        return call.result()


@final
class Call:
    """The same, begun: several can be under way. Leaving the block ends what has not ended."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        seconds: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self._seconds = limits.seconds if seconds is None else seconds
        self._deadline = time.monotonic() + self._seconds
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run; ours hold no lock
            self._child = os.fork()
        if self._child == 0:
            os.close(self._pipe)
            _work(function, arguments, writing, limits)
        os.close(writing)
        with contextlib.suppress(OSError):
            os.setpgid(self._child, self._child)  # here as well: whoever comes first
        self._status: int | None = None

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def result(self) -> Any:
        """Wait for it; see :func:`run`."""
        answer = _read(self._pipe, self._deadline)
        self._end()
        if answer is None:
            raise UnsafeTemplate(
                f"The template took longer than {self._seconds:g} s.",
                why="rendering one takes a second; this one may never end.",
                fix="do not use this template; tell its author.",
            )
        if not answer:
            signalled = os.WTERMSIG(self._status) if self._status and os.WIFSIGNALED(self._status) else 0
            raise _too_much(f" (ended by signal {signalled})" if signalled else "")
        return _result(json.loads(answer))

    def _end(self) -> None:
        if self._status is not None:
            return
        os.close(self._pipe)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child, signal.SIGKILL)  # with the git processes that it may have started
        _, self._status = os.waitpid(self._child, 0)


def _read(pipe: int, deadline: float) -> bytes | None:
    """Everything until its end; None when that does not come in time."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        if not (part := os.read(pipe, 1 << 16)):
            return b"".join(parts)
        parts.append(part)


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], pipe: int, limits: Limits) -> None:
    """The child, to its end."""
    try:
        os.setpgid(0, 0)
        # A stop is the parent's: it removes what this one has written.
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(stop, signal.SIG_DFL)
        _limit(limits)
        silent = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silent, number)
        try:
            answer: dict[str, Any] = {"value": function(*arguments)}
        except ScaffoldError as error:
            answer = {"scaffold": [type(error).__name__, error.what, error.why, error.fix]}
        except OSError as error:
            answer = {"os": [error.errno, error.strerror, error.filename and os.fsdecode(error.filename)]}
        text = json.dumps(answer, default=str).encode()
    except MemoryError:
        text = b'{"memory": true}'
    except BaseException as error:  # noqa: BLE001 - said over there
        text = json.dumps({"other": f"{type(error).__name__}: {error}"}).encode()
    try:
        while text:
            text = text[os.write(pipe, text) :]
    finally:
        os._exit(0)


def _limit(limits: Limits) -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - as few calls as can be
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return
    for kind, most in ((resource.RLIMIT_AS, now + limits.memory), (resource.RLIMIT_FSIZE, limits.total_bytes)):
        soft, hard = resource.getrlimit(kind)
        allowed = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min([most, *allowed]), hard))


def _result(answer: dict[str, Any]) -> Any:
    match answer:
        case {"value": value}:
            return value
        case {"scaffold": [kind, what, why, fix]}:
            raise getattr(errors, kind)(what, why=why, fix=fix)
        case {"os": [number, text, file]}:
            raise OSError(number, text, file)
        case {"memory": _}:
            raise _too_much("")
    raise RuntimeError(answer["other"])


def _too_much(how: str) -> UnsafeTemplate:
    return UnsafeTemplate(
        f"The template took too much memory{how}.",
        why="rendering one takes some megabytes.",
        fix="do not use this template; tell its author.",
    )
