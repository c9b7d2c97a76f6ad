"""When some ranks wait for one that doesn't come: which one, and where it is."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, final

import torch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """What the main thread does."""

    call: str | None
    """The function of torch.distributed that it waits in, or ``backward``; None in any other code."""
    line: str
    """The innermost line that the user wrote."""
    inside: str
    """The innermost line of all."""


@final
@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank lets the others know."""

    beat: int
    clock: str
    """Its time of day."""
    position: str
    call: str | None
    line: str
    inside: str
    still: float
    """Seconds for which it has been there."""


@final
class Watch:
    """Reports a collective that stalls: once per stall, on standard error of one rank, which ranks wait, which one they
    probably wait for, where in its program that one is, and whose process is dead or frozen.

    A thread of its own looks at the main thread now and then, which costs that nothing. What all ranks do together, and
    what is not waited for, is not reported however long it takes. It ends nothing: the process group's timeout does.

    The report comes at most ``after + 4 * every`` seconds after the first rank began to wait, 80 as it is set; where
    rank 0 is dead or frozen ``after + 6 * every``, if the ranks' store is not in that process.

    Args:
        store: Where all ranks of the run meet. The thread has a connection of its own.
        rank: Of this process.
        size: Of the run.
        after: Seconds of waiting in one place.
        every: Seconds between two looks.
        position: How far this rank is, for the report: ``"epoch 3, batch 12"``. Called from the thread.
        out: Where the report is printed; default: standard error.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        after: float = 60.0,
        every: float = 5.0,
        position: Callable[[], str],
        out: TextIO | None = None,
    ) -> None:
        self._given, self._rank, self._size = store, rank, size
        self._after, self._every, self._position = after, every, position
        self._out = out
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        if self._thread is None and self._size > 1:
            from torch.distributed.distributed_c10d import PrefixStore

            # The given one is for the main thread: an operation that waits blocks all others on the same connection.
            own: Store = self._given.clone()  # type: ignore[attr-defined]
            own.set_timeout(timedelta(seconds=max(30.0, 4 * self._every)))
            self._store = PrefixStore("treadle/watch", own)
            self._thread = threading.Thread(target=self._run, name="treadle-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more. Called before the ranks part: the store goes with rank 0."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(2 * self._every)

    def _run(self) -> None:
        try:
            self._look_until_stopped()
        except RuntimeError as error:  # of the store, in all its kinds
            if not self._over.is_set() and self._rank == 1:
                self._print(
                    f"rank 0, where the ranks meet, does not answer rank 1: {_first_line(error)}. Its process is dead or "
                    "frozen, or the network is down."
                )

    def _look_until_stopped(self) -> None:
        here: tuple[Any, ...] = ()
        since, reports, beat = time.monotonic(), 0, 0
        while not self._over.wait(self._every if beat else 0.0):
            beat += 1
            now, place, position = time.monotonic(), _place(), self._position()
            told = self._store.add("reports", 0)
            last, here = here, (position, place.call, place.line, _collectives())
            if here != last:
                since, reports = now, told
            sign = Sign(
                beat=beat,
                clock=time.strftime("%H:%M:%S"),
                position=position,
                call=place.call,
                line=place.line,
                inside=place.inside,
                still=now - since,
            )
            self._store.set(str(self._rank), json.dumps(asdict(sign)))
            stalled = place.call is not None and now - since >= self._after and told == reports
            if stalled:
                self._store.set(f"stalled/{told}", "")
            # Rank 0 says it, whether it waits or is waited for; where it doesn't, one of those who wait.
            mine = stalled and now - since >= self._after + 2 * self._every
            if mine or (self._rank == 0 and self._store.check([f"stalled/{told}"])):
                self._report(told)

    def _report(self, number: int) -> None:
        if self._store.add(f"claims/{number}", 1) > 1:
            return
        before = dict(self._signs())
        if self._over.wait(2 * self._every):
            return
        signs = dict(self._signs())
        # Clocks of two machines may differ, so a heart beats if it has beaten since.
        silent = {rank for rank, sign in signs.items() if rank in before and sign.beat == before[rank].beat}
        silent.discard(self._rank)
        text = report(signs, silent, self._size, self._after)
        if text is not None:
            self._print(text)
        self._store.add("reports", 1)

    def _signs(self) -> Iterator[tuple[int, Sign]]:
        for rank in range(self._size):
            if self._store.check([str(rank)]):
                yield rank, Sign(**json.loads(self._store.get(str(rank))))

    def _print(self, text: str) -> None:
        print(f"treadle: {text}", file=self._out or sys.stderr, flush=True)


def report(signs: Mapping[int, Sign], silent: set[int], size: int, after: float) -> str | None:
    """The stall in words; None where all ranks do the same, or none waits ``after`` seconds any more."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank in range(size):
        groups.setdefault(_group(signs.get(rank), rank in silent), []).append(rank)
    waiting = [rank for rank, sign in signs.items() if sign.call is not None and rank not in silent]
    longest = max((signs[rank].still for rank in waiting), default=0.0)
    if not waiting or longest < after or len(groups) == 1:
        return None
    lines = [f"{_ranks(waiting)} wait{'s' * (len(waiting) == 1)} for others, for {longest:.0f} s."]
    lines += [f"{_ranks(ranks)}: {'; '.join(filter(None, group))}" for group, ranks in groups.items()]
    absent = [rank for rank in range(size) if rank not in waiting]
    if absent:
        lines.append(f"probably waited for: {_ranks(absent)}.")
    else:
        lines.append("each waits in another call: all ranks must make the same collective calls in the same order.")
    lines.append("The run goes on until they come, or the process group's timeout ends it.")
    return "\n  ".join(lines)


def _group(sign: Sign | None, silent: bool) -> tuple[str, ...]:
    if sign is None:
        return ("has not come this far", "", "")
    where = f"in {sign.call}, {sign.line}" if sign.call else f"in {sign.line}"
    if not sign.call and sign.inside != sign.line:
        where += f", inside of {sign.inside}"
    lost = f"no sign of life since {sign.clock}: its process is dead or frozen" if silent else ""
    return (lost, where, sign.position)


def _ranks(ranks: list[int]) -> str:
    """
    >>> _ranks([0, 1, 2, 5])
    'ranks 0-2, 5'
    """
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    named = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' * (len(ranks) > 1)} {named}"


def _collectives() -> int:
    """How many there were so far: a loop that does little else is in the same call at every look."""
    import torch.distributed as dist

    group: Any = dist.group.WORLD if dist.is_initialized() else None
    return 0 if group is None else int(group._get_sequence_number_for_group())


_OURS = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
_DISTRIBUTED, _AUTOGRAD = _TORCH + "distributed" + os.sep, _TORCH + "autograd" + os.sep
_INSTALLED = tuple({sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib")})
_LIBRARY = sysconfig.get_path("stdlib") + os.sep


def _place() -> Place:
    """Of the main thread, now."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    inner: list[FrameType] = []  # innermost first, up to the user's
    while frame is not None and not _written_by_the_user(frame):
        inner.append(frame)
        frame = frame.f_back
    if frame is None and not inner:
        return Place(call=None, line="no code: it has ended", inside="")
    line = _said(frame if frame is not None else inner[-1])
    return Place(call=_collective(inner), line=line, inside=_said(inner[0]) if inner else line)


def _written_by_the_user(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    if path.startswith("<"):  # what dataclasses, torch.fx and the like generate, if it was not typed at a prompt
        return path.startswith(("<stdin", "<ipython"))
    return not path.startswith((_OURS, _TORCH, _LIBRARY, *_INSTALLED))


def _collective(inner: list[FrameType]) -> str | None:
    """The call nearest to the user's code. Only below that: a model that torch wraps has torch's frames around it too."""
    backward = False
    for frame in reversed(inner):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(_DISTRIBUTED) and name != "wrapper":
            return name
        backward = backward or path.startswith(_AUTOGRAD)
    return "backward" if backward else None


def _said(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
