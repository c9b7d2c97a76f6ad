"""A script that runs itself again, once per rank."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import final

from treadle.ending import let_gloo_finish
from treadle.environments import World
from treadle.errors import ConfigError, DistributedError
from treadle.launch.failure import Blame, Child, Children, came_from_all, lost_others, still_runs
from treadle.launch.rank import located, ties_to_this_process, variables_of
from treadle.launch.session import is_interactive


@final
@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long rank 0 waits, in seconds."""

    settle: float = 5.0
    """After a rank failed: for rank 0 to notice, for the others to say that they failed too."""
    stuck: float = 10.0
    """After rank 0 was interrupted: for its main thread to end, before the process is ended as it stands."""
    late: float = 60.0
    """After rank 0 has come to its end: for the others to come to theirs."""


@final
class Launched:
    """The ranks of this node: this process, which is rank 0, and those it started. They live as long as the script."""

    def __init__(self, world: World, children: Children, folder: Path, patience: Patience) -> None:
        self.world = world
        """Where this process stands."""
        self._children, self._folder, self._patience = children, folder, patience
        self._process = os.getpid()
        self._failing = self._interrupted = self._closed = False
        self._told: BaseException | None = None
        self._over = threading.Event()
        self._main = threading.main_thread()
        self._hook, sys.excepthook = sys.excepthook, self._on_uncaught
        self._handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is self._main:
            signal.signal(signal.SIGINT, self._on_interrupt)
        threading.Thread(target=self._watch, name="treadle-ranks", daemon=True).start()
        atexit.register(self._at_exit)

    def explain(self, error: BaseException) -> BaseException:
        """What to raise on this rank in place of ``error``, which it came to: ``error`` itself if that is the cause, else
        a DistributedError that names the rank whose failure was, with its traceback, and has ``error`` as its cause.

        Where ``error`` says that another rank is gone, waits some seconds for that one to say why.
        """
        self._failing = True
        if error is self._told or came_from_all(error):
            return error
        if isinstance(error, KeyboardInterrupt | SystemExit) and not self._interrupted:
            return error
        lost = self._interrupted or lost_others(error)
        failure = self._children.cause(self._patience.settle) if lost else self._children.failure()
        if failure is None or failure.blame is Blame.LOST or (not lost and failure.same_as(error)):
            return error
        told = self._told = failure.error()
        told.__cause__ = error
        return told

    def close(self, failed: bool = False) -> None:
        """Wait for the other ranks to come to their end, and end those that don't. Called when the interpreter exits.

        Args:
            failed: This rank has failed; then the others have little time. One that nobody caught is known.

        Raises:
            DistributedError: This rank has not failed, and another has, or it had not ended a minute after this one.
        """
        if self._closed:
            return
        self._closed = True
        self._over.set()
        failed = failed or self._told is not None
        settle = self._patience.settle
        try:
            self._children.wait(settle if failed else self._patience.late, settle=settle)
        except KeyboardInterrupt:
            failed = True
        failure, late = self._children.failure(), self._children.alive
        self._children.end(2.0)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._let_go()
        if failed:
            return
        if failure is not None:
            raise failure.error()
        if late:
            raise still_runs(late, self._patience.late)

    def _let_go(self) -> None:
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._hook
        on_main = threading.current_thread() is self._main
        if on_main and signal.getsignal(signal.SIGINT) == self._on_interrupt and self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _watch(self) -> None:
        """Where rank 0 does not notice that another one failed, in a collective that never ends or in its own work."""
        while self._children.failure() is None:
            if self._over.wait(0.2):
                return
        if self._over.wait(self._patience.settle):
            return
        patience = self._patience.late  # it came to an error as well, and is about to end
        if not self._failing:
            self._interrupted, patience = True, self._patience.stuck
            if self._main.ident is not None:
                signal.pthread_kill(self._main.ident, signal.SIGINT)  # unlike interrupt_main, it wakes from a sleep
        if self._over.wait(patience):
            return
        failure = self._children.failure()
        print(f"error: {failure.error() if failure else 'a rank failed'}", file=sys.stderr, flush=True)
        self._children.end(2.0)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        failure = self._children.failure() if self._interrupted else None
        if failure is not None:
            self._told = failure.error()
            raise self._told
        if callable(self._handler):
            self._handler(number, frame)
        elif self._handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() == self._process:
            told = self._told = self.explain(error)
            self._over.set()
            if told is not error:
                kind, error, trace = type(told), told, told.__traceback__
        self._hook(kind, error, trace)

    def _at_exit(self) -> None:
        if os.getpid() != self._process:
            return
        try:
            self.close()
            let_gloo_finish()
        except DistributedError as error:
            print(f"error: {error}", file=sys.stderr)
            logging.shutdown()  # the interpreter's way out has no exit status to change any more
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


_launched: Launched | None = None


def launched() -> Launched | None:
    """The ranks that :func:`start_script` has started here, if it has."""
    return _launched


def start_script(world: World, *, patience: Patience | None = None) -> Launched:
    """Make this process rank 0 of ``world`` and start the others, each running this process's own command again.

    The others end with this process, however it ends. What they print is printed; what they raise is written down and
    raised here (:meth:`Launched.explain`, which also acts on what nobody catches). A second call returns the same.

    Raises:
        ConfigError: There are several nodes; or there is no script that could be run again; or this process has
            started another number of ranks before.
    """
    global _launched
    if _launched is not None:
        if _launched.world.size != world.size:
            raise ConfigError(
                f"devices={world.size}, but this script runs as {_launched.world.size} ranks already.",
                why="every rank runs the whole script, so their number stays what the first launch made it.",
                fix=f"devices={_launched.world.size} here too, or a script of its own.",
            )
        return _launched
    if is_interactive():
        raise ConfigError(
            f"{world.size} ranks of a program that is no file.",
            why="ranks are started by running the script again, and `python -c`, a pipe or a prompt has none.",
            fix='put the program into a file and run that, or use the "fork" launch from a notebook.',
        )
    world = located(world)
    folder = Path(tempfile.mkdtemp(prefix="treadle-ranks-"))
    children: list[Child] = []
    try:
        children.extend(_start(rank, world, folder / f"{rank}.json") for rank in range(1, world.size))
    except BaseException:
        Children(children, world.size).end(0.0)
        raise
    _launched = Launched(world, Children(children, world.size), folder, patience or Patience())
    return _launched


def _start(rank: int, world: World, record: Path) -> Child:
    process = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, **variables_of(rank, world), **ties_to_this_process(record)},
        stdin=subprocess.DEVNULL,  # the terminal is rank 0's
    )
    return Child(rank=rank, record=record, status=process.poll, terminate=process.terminate, kill=process.kill)
