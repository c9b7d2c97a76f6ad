"""A loader's worker processes: what they are told at their start, and which of them failed or keeps the run waiting."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, final

import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from treadle.data.machine import host_memory, shared_memory
from treadle.data.standing import standing
from treadle.data.starting import has_workers, starting
from treadle.errors import DataError

RAISED = re.compile(r"Caught \S+ in DataLoader worker process (\d+)")
ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)")
"""How torch says that a worker is gone. It does so wherever the main process happens to be, since a signal tells it."""

_all: weakref.WeakSet[Workers] = weakref.WeakSet()


@final
class Workers:
    """Reads a loader, and knows the processes that read for it.

    Args:
        reader: What is iterated. If it is a ``DataLoader`` with workers, ``prepared`` has seen it.
        name: What messages call it.
        asked: Indices of the batches that were asked for and not yet taken, oldest first, each with something else.
    """

    AFTER, EVERY = 60.0, 5.0
    """Seconds without a batch after which it is said, once in each pass, who keeps the run waiting; and between looks."""

    def __init__(self, reader: Any, name: str, asked: Sequence[tuple[Any, Any]] | None) -> None:
        self.reader, self.name, self.asked = reader, name, asked
        self.processes: list[BaseProcess] = []
        self.waiting_since: float | None = None
        """On the monotonic clock, while the run waits for a batch."""
        self.skipped = 0
        _all.add(self)

    def read(self, skipped: int = 0) -> Iterator[Any]:
        """A pass over the reader, which leaves out its first ``skipped`` batches by itself."""
        self.skipped = skipped
        iterator: Iterator[Any]
        if not has_workers(self.reader):
            iterator = iter(self.reader)
            return iterator
        with starting(self.reader):
            iterator = iter(self.reader)
        if not isinstance(iterator, _MultiProcessingDataLoaderIter):  # a loader of another kind, with its own ways
            return iterator
        if self.processes != iterator._workers:  # not those that persist
            self.processes = list(iterator._workers)
            # Also where the program ends before the iterator is let go; those that end as they should are gone by then.
            Finalize(iterator, _kill, args=(self.processes,), exitpriority=0)
        return _Pass(iterator, self)

    def named(self, index: int) -> str:
        return f"worker {index} of {len(self.processes)} (pid {self.processes[index].pid})"

    def settings(self) -> str:
        loader = self.reader
        return f"num_workers={loader.num_workers}, prefetch_factor={loader.prefetch_factor}, batch_size={_size(loader)}"


@final
class _Pass(Iterator[Any]):
    """The batches, and a thread that looks now and then whether they come."""

    def __init__(self, iterator: _MultiProcessingDataLoaderIter, workers: Workers) -> None:
        self._iterator, self._workers = iterator, workers
        self._over = threading.Event()
        arguments = (workers, weakref.ref(iterator), self._over)
        threading.Thread(target=_watch, args=arguments, name="treadle-workers", daemon=True).start()

    def __next__(self) -> Any:
        workers = self._workers
        workers.waiting_since = time.monotonic()
        try:
            return next(self._iterator)
        except StopIteration:
            self._over.set()
            raise
        except Exception as error:
            if match := RAISED.match(str(error)):
                add_note(error, _raised(workers, self._iterator, int(match[1]), str(error)))
            raise
        finally:
            workers.waiting_since = None

    def __del__(self) -> None:
        self._over.set()


def failure(error: BaseException, at: str = "") -> DataError | None:
    """What torch's words for a worker that is gone mean; None for any other error, and for loaders that we don't read.

    Args:
        error: Raised in the main process.
        at: How far the run is: ``"epoch 3, batch 12"``.
    """
    match = ENDED.search(str(error)) if isinstance(error, RuntimeError) else None
    if match is None:
        return None
    for workers in list(_all):
        for index, process in enumerate(workers.processes):
            if process.pid == int(match[1]):
                return _ended(workers, index, process.exitcode, at)
    return None


def add_note(error: BaseException, note: str) -> None:
    """Let a traceback of ``error`` end with ``note``. Before Python 3.11, it becomes a part of a message that is text."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (type(error.args[0])(f"{error.args[0]}\n{note}"),)


def _kill(processes: list[BaseProcess]) -> None:
    """Torch has asked them to end, for seconds; SIGTERM says nothing to them."""
    for process in processes:
        try:
            if process.is_alive():
                process.kill()
                process.join(5.0)
        except RuntimeError:  # torch's, that a worker was killed
            pass


def _ended(workers: Workers, index: int, code: int | None, at: str) -> DataError:
    loader, room = workers.reader, ""
    name = signal.Signals(-code).name if code is not None and code < 0 else ""
    lower = f"lower num_workers ({loader.num_workers}), prefetch_factor ({loader.prefetch_factor}) or batch_size"
    lower += f" ({_size(loader)})"
    look = "num_workers=0, which does the same in the main process, where the error shows"
    match name:
        case "SIGKILL":
            if memory := host_memory():
                room = f"; now, without it, {memory}"
            why = f"the kernel does that if the host runs out of memory{room}. Nobody else usually does."
            fix = lower
        case "SIGBUS":
            if memory := shared_memory():
                room = f" ({memory})"
            why = f"/dev/shm, where workers put their batches, is probably too small{room}."
            fix = f"{lower}; or give the container more: docker run --shm-size=8g, or --ipc=host"
        case "SIGSEGV" | "SIGABRT" | "SIGFPE" | "SIGILL":
            why = "native code that the data set calls crashed: a decoder, an extension in C."
            fix = f"{look}: python -X faulthandler names the line"
        case "":
            why = "something in it ended the process (sys.exit, os._exit, a native library), or it could not start."
            fix = f"look above for what it printed; or {look}"
        case _:
            why = "somebody sent it that signal."
            fix = "find out who: a scheduler, a script, a person"
    how = f"was ended by {name}" if name else f"ended with exit code {code}"
    return DataError(
        f"{workers.named(index)} of {workers.name} {how}{at and f', at {at}'}.",
        why=why,
        fix=f'{fix}. A fit with ckpt_path="auto" goes on from its newest checkpoint as if nothing had happened.',
    )


def _raised(workers: Workers, iterator: _MultiProcessingDataLoaderIter, index: int, text: str) -> str:
    number = workers.skipped + iterator._rcvd_idx - 1  # it is past the one that failed
    note = f"treadle: raised in {workers.named(index)} of {workers.name}, reading its batch {number}"
    if workers.asked:
        note += f": samples {_few(workers.asked[0][0])}"
    if "shared memory" in text and (memory := shared_memory()):
        note += f". /dev/shm has {memory}: {workers.settings()}"
    return note


def _watch(workers: Workers, iterator: weakref.ref[_MultiProcessingDataLoaderIter], over: threading.Event) -> None:
    while not over.wait(workers.EVERY):
        since = workers.waiting_since
        if since is not None and time.monotonic() - since >= workers.AFTER:
            told = _slow(workers, iterator(), time.monotonic() - since, over)
            if workers.waiting_since == since:  # it did not come meanwhile
                print(f"treadle: {told}", file=sys.stderr, flush=True)
                return


def _slow(
    workers: Workers, iterator: _MultiProcessingDataLoaderIter | None, waited: float, over: threading.Event
) -> str:
    rank = f"rank {dist.get_rank()}: " if dist.is_available() and dist.is_initialized() else ""
    begun = time.strftime("%H:%M:%S", time.localtime(time.time() - waited))
    lines = [f"{rank}{workers.name} has given no batch for {waited:.0f} s, since {begun}."]
    batch = 0 if iterator is None else iterator._rcvd_idx
    owed = () if iterator is None else iterator._task_info.get(batch, ())
    del iterator  # or this thread may be the last that has it, and end its workers
    if owed:
        index = owed[0]
        line = f"batch {workers.skipped + batch} is owed by {workers.named(index)}"
        pid = workers.processes[index].pid
        if pid is not None and (where := standing(pid, over)):
            line += f", which is {where}"
        lines.append(f"{line}.")
    lines.append(
        "To see it happen: num_workers=0, in a debugger. To end a run that waits too long: DataLoader(timeout=600)."
    )
    lines.append("The run goes on when the batch comes.")
    return "\n  ".join(lines)


def _size(loader: DataLoader[Any]) -> int | None:
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)


def _few(indices: Any) -> str:
    if not isinstance(indices, (list, tuple)) or len(indices) <= 16:
        return str(indices)
    return f"[{', '.join(map(str, indices[:16]))}, ... {len(indices)} in all]"
