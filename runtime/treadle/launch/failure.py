"""How a rank failed, and which of several failures was the cause of the others."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, final

from treadle import errors
from treadle.errors import DistributedError, TreadleError

_POLL = 0.1  # seconds


class Blame(IntEnum):
    """Lower is worse: what had a cause of its own comes before what others may have caused."""

    OWN = 0
    """An exception, an exit status, a signal."""
    LEFT = 1
    """It ended without complaint, or was interrupted from the keyboard."""
    LOST = 2
    """It lost the connection to another."""


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """The end of a rank."""

    rank: int
    size: int
    blame: Blame
    when: float
    """Seconds since the epoch."""
    status: int | None
    """Exit status, minus the signal; None while it still runs."""
    record: dict[str, Any]
    """What it wrote down itself; empty if it had no time to."""

    def same_as(self, error: BaseException) -> bool:
        """Whether ``error`` is the same mistake, seen by another rank."""
        return bool(self.record.get("summary") == summary_of(error))

    def error(self) -> TreadleError:
        """For the rank that goes on to say it."""
        which = f"rank {self.rank} of {self.size}"
        if self.record:
            told = "".join(f"    {line}\n" for line in str(self.record["traceback"]).rstrip().splitlines())
            return DistributedError(
                f"{which} failed: {self.record['summary']}",
                why=f"no rank can go on without the others. Its traceback:\n{told.rstrip()}",
                fix=self.record["fix"]
                or "mend what its last lines say; one rank alone (devices=1) is easier to debug.",
            )
        what, why, fix = _in_words(self.status or 0)
        return DistributedError(f"{which} {what}.", why=why, fix=fix)

    def original(self) -> TreadleError | None:
        """The rank's own error, where it was one of treadle's that needs no traceback: a setting, or one that every rank
        raised."""
        kind = getattr(errors, str(self.record.get("kind")), None)
        if kind is None or not (kind is errors.ConfigError or self.record["everywhere"]):
            return None
        found: TreadleError = kind(self.record["what"], why=self.record["why"], fix=self.record["fix"])
        return found


@final
@dataclass(frozen=True, kw_only=True)
class Child:
    """A started rank."""

    rank: int
    record: Path
    """Where it writes why it failed."""
    status: Callable[[], int | None]
    """Its exit status, None while it runs; minus the signal that ended it."""
    terminate: Callable[[], None]
    kill: Callable[[], None]


@final
class Children:
    """The ranks that a process has started."""

    def __init__(self, children: Sequence[Child], size: int) -> None:
        self._children, self._size = tuple(children), size
        self._ends: dict[int, float] = {}

    @property
    def alive(self) -> list[int]:
        """Ranks that still run."""
        return [child.rank for child in self._children if child.status() is None]

    def failure(self, *, left: bool = False) -> Failure | None:
        """The one to blame so far. ``left``: also a rank that runs and has written down that it will fail, and one that
        ended without complaint."""
        found = [failure for failure in self._failures() if left or _complains(failure)]
        return min(found, key=lambda failure: (failure.blame, failure.when), default=None)

    def wait(self, seconds: float | None, *, settle: float, late: float = math.inf) -> None:
        """Until all have ended; no longer than ``seconds``, than ``settle`` seconds after one has failed, and than
        ``late`` seconds after rank 0 has come to its end."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            if self.failure() is not None:
                end, settle = min(end, time.monotonic() + settle), math.inf
            if 0 not in self.alive:
                end, late = min(end, time.monotonic() + late), math.inf
            time.sleep(_POLL)

    def cause(self, seconds: float) -> Failure | None:
        """The one to blame, waiting up to ``seconds`` for one that has a cause of its own."""
        end = time.monotonic() + seconds
        while True:
            failure = self.failure(left=True)
            if (failure and failure.blame is Blame.OWN) or not self.alive or time.monotonic() >= end:
                return failure
            time.sleep(_POLL)

    def end(self, grace: float) -> None:
        """Ask those that still run to end; make them, after ``grace`` seconds."""
        for child in self._running():
            child.terminate()
        try:
            self.wait(grace, settle=grace)
        finally:
            for child in self._running():
                child.kill()
        self.wait(grace, settle=grace)  # a killed process is gone when it was waited for

    def _running(self) -> list[Child]:
        return [child for child in self._children if child.status() is None]

    def _failures(self) -> Iterator[Failure]:
        for child in self._children:
            status, record = child.status(), _read_record(child.record)
            if status is None and not record:
                continue
            if status is not None:
                self._ends.setdefault(child.rank, time.time())
            if status == 0 or (not record and status in (-signal.SIGINT, 128 + signal.SIGINT)):
                blame, record = Blame.LEFT, {}
            else:
                blame = Blame.LOST if record.get("lost") else Blame.OWN
            when = record.get("when") or self._ends[child.rank]
            yield Failure(rank=child.rank, size=self._size, blame=blame, when=when, status=status, record=record)


def still_runs(ranks: Sequence[int], seconds: float) -> DistributedError:
    """Of ``ranks`` that were ended because they had not come to their end ``seconds`` after rank 0."""
    return DistributedError(
        f"rank {', '.join(map(str, ranks))} still ran {seconds:g} s after rank 0 had come to its end, and was ended.",
        why="it waits for the others, or has more to do than they have; all ranks run the same program.",
        fix="look for work or a collective that only some ranks do, in an `if` on the rank or an uneven loop.",
    )


def _complains(failure: Failure) -> bool:
    return failure.status is not None and failure.blame is not Blame.LEFT


def write_record(path: Path, error: BaseException) -> None:
    """Everything that is said about ``error``, whole or not at all."""
    ours = error if isinstance(error, TreadleError) else None
    record = {
        "when": time.time(),
        "summary": summary_of(error),
        "traceback": "".join(traceback.format_exception(error)),
        "lost": lost_others(error),
        "everywhere": came_from_all(error),
        "kind": type(error).__name__,
        **{part: getattr(ours, part, None) for part in ("what", "why", "fix")},
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record))
    partial.replace(path)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def summary_of(error: BaseException) -> str:
    """``ValueError: its message``, in one line."""
    name, text = type(error).__name__, (error.what if isinstance(error, TreadleError) else str(error)).strip()
    return f"{name}: {text.splitlines()[0]}" if text else name


def came_from_all(error: BaseException) -> bool:
    """Whether every rank raises it (:func:`treadle.collectives.everywhere`)."""
    return bool(error.__dict__.get("on_every_rank"))


def lost_others(error: BaseException) -> bool:
    """Whether ``error`` says, or was raised while handling one that says, that another rank is gone or doesn't answer."""
    lost: tuple[type[BaseException], ...] = (DistributedError, ConnectionError)
    dist = sys.modules.get("torch.distributed")  # where nobody has imported it, none of its errors was raised
    if dist is not None and dist.is_available():
        lost = (*lost, dist.DistError)
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        # gloo raises a bare RuntimeError; the place in its sources is the one constant of its messages.
        if isinstance(at, lost) or (isinstance(at, RuntimeError) and "gloo/transport" in str(at)):
            return True
        at = at.__cause__ or at.__context__
    return False


def _in_words(status: int) -> tuple[str, str, str]:
    """What happened, why that may be, what to do."""
    if status == 0:
        return (
            "has left: its program ended without an error, while the others went on",
            "all ranks run the same program; none may return or exit before the others.",
            "take the early exit, or the `if` on the rank around it, out of the program.",
        )
    if status > 0:
        return (
            f"ended with exit status {status}",
            "it raised nothing that treadle saw: something called exit, or it failed before it came this far.",
            "look at its output above.",
        )
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    match name:
        case "SIGKILL":
            return (
                "was killed (SIGKILL)",
                "the kernel's out-of-memory killer does that, and a scheduler whose memory limit was passed.",
                "look for it in `dmesg`; use a smaller batch_size or fewer num_workers.",
            )
        case "SIGSEGV" | "SIGBUS" | "SIGABRT" | "SIGILL" | "SIGFPE":
            return (
                f"crashed ({name})",
                "compiled code broke: an extension, a driver, a data set's decoder; SIGBUS: no shared memory left.",
                "set PYTHONFAULTHANDLER=1 and run again: it prints the Python line where that happens.",
            )
        case _:
            return (f"was ended by {name}", "somebody sent that signal to it.", "find out who, or start the run again.")
