"""The start of a loader's workers, however they are started. multiprocessing's fork server imports this before it forks: it
is in the run's process group too, and torch's workers end with it."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import register_after_fork
from typing import Any, final

from torch.utils.data import DataLoader

from treadle.data.standing import offer_stack
from treadle.signals import ASKING, held_back, leave_to_parent


@final
class Prepared:
    """What each worker runs first, before the user's ``worker_init_fn``, ``given``."""

    def __init__(self, given: Callable[[int], None] | None) -> None:
        self.given = given

    def __call__(self, index: int) -> None:
        leave_to_parent()
        offer_stack()
        if self.given is not None:
            self.given(index)


def prepared(reader: Any, loader: Any) -> Any:
    """``reader``, which reads ``loader``, with workers that go through :class:`Prepared`: a shallow copy, if it is the
    user's loader itself."""
    if not has_workers(loader):
        return reader
    if reader is loader:
        reader = copy.copy(loader)
        reader.__dict__["_iterator"] = None
    reader.worker_init_fn = Prepared(loader.worker_init_fn)
    return reader


def has_workers(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and loader.num_workers > 0


@contextmanager
def starting(reader: DataLoader[Any]) -> Iterator[None]:
    """Inside, ``reader`` makes its iterator: signals that ask the run to end reach its workers when they are prepared."""
    if not isinstance(reader.worker_init_fn, Prepared) or sys.platform == "win32":
        yield
        return
    # What the start method needs besides is started before, or it would take part in this, or break it off.
    method = (reader.multiprocessing_context or multiprocessing).get_start_method()
    if method != "fork":
        with held_back():  # for good: SIGUSR1 would end the tracker
            resource_tracker.ensure_running()
    if method == "forkserver":
        preloaded = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
        if __name__ not in preloaded:
            forkserver.set_forkserver_preload([*preloaded, __name__])
        forkserver.ensure_running()
    with held_back():
        yield


def _let_through(_: object) -> None:
    """In every process that the fork server forks, whoever asked for it; a worker does so itself."""
    arguments = getattr(multiprocessing.current_process(), "_args", ())
    if not any(isinstance(argument, Prepared) for argument in arguments):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    register_after_fork(_let_through, _let_through)
