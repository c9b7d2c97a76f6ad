"""A function that runs on several ranks, called from a session that can't be run again: a notebook, a prompt."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, final

from treadle.environments import World
from treadle.errors import ConfigError
from treadle.launch.failure import Child, Children, still_runs
from treadle.launch.rank import located, note, tie, variables_of

_SETTLE = 3.0  # seconds


def is_interactive() -> bool:
    """Whether this process has no script that could be run again: a notebook, IPython, a prompt, ``python -i``,
    ``python -c``."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return True
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    return not hasattr(sys.modules["__main__"], "__file__")


def run_in_ranks(
    world: World, method: Literal["fork", "spawn"], function: Callable[..., Any], *args: Any, late: float = 60.0
) -> Any:
    """Call ``function(*args)`` in ``world.size`` new processes, and return what it returned on rank 0.

    Each finds its place in its environment variables. A fork has the objects of this process as they are, and one thread
    per rank: torch's pool of threads does not survive a fork. A spawned process is a new interpreter: function and
    arguments must be picklable. What the ranks change, weights for example, they change in their own copy.

    Args:
        world: How many ranks.
        method: How their processes are made.
        function: What each of them calls.
        *args: Its arguments.
        late: Seconds that the others have to come to their end after rank 0 has.

    Raises:
        ConfigError: The method cannot work here; or a rank raised it.
        DistributedError: A rank failed, with its traceback; or it still ran ``late`` seconds after rank 0.
        TreadleError: What every rank raised.
    """
    if method == "fork":
        _refuse_to_fork_an_accelerator()
    else:
        _refuse_to_import_a_session(function)
    world = located(world)
    from torch.multiprocessing import get_context

    context: Any = get_context(method)
    with TemporaryDirectory(prefix="treadle-ranks-", ignore_cleanup_errors=True) as place:
        children: list[Child] = []
        result = Path(place, "result.pt")
        try:
            gc.collect()  # what is garbage here is to be none in a fork; see _run
            with warnings.catch_warnings():
                # From Python 3.12 on, of any process with threads; what breaks in torch is prevented in _run.
                warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
                for rank in range(world.size):
                    record = Path(place, f"{rank}.json")
                    tied = (os.getpid(), record, variables_of(rank, world), method == "fork")
                    process = context.Process(target=_run, args=(*tied, result, _Work(function, args)))
                    _start(process, function, args)
                    children.append(_child(rank, record, process))
            together = Children(children, world.size)
            together.wait(None, settle=_SETTLE, late=late)
            failure, left = together.failure(left=not result.exists()), together.alive
        finally:
            Children(children, world.size).end(2.0)
        if failure is not None:
            raise failure.original() or failure.error()
        if left:
            raise still_runs(left, late)
        import torch

        # Written by our own child a moment ago, and any object: the safe default would refuse most of them.
        return torch.load(result, weights_only=False)


@final
class _Work:
    """What a rank does. Pickled by value: multiprocessing would give all ranks the same memory for each tensor."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (pickle.dumps((self.function, self.args)),)


def _unpacked(content: bytes) -> _Work:
    return _Work(*pickle.loads(content))  # noqa: S301 - from the process that started this one


def _run(
    parent: int,
    record: Path,
    variables: Mapping[str, str],
    forked: bool,
    result: Path,
    work: _Work,
) -> None:
    import torch

    tie(parent, record)
    os.environ.update(variables)
    if forked:
        gc.freeze()  # a collection here would tear down process groups of the parent, and wait for threads that it has
        torch.set_num_threads(1)  # else the first parallel operation waits for threads that stayed in the parent
    try:
        value = work.function(*work.args)
        if variables["RANK"] == "0":
            torch.save(value, result)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not note(error):
            raise
        sys.exit(1)


def _start(process: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        process.start()
    except Exception as error:
        named = {f"the function {_name(function)}": function}
        named.update({f"argument {number} ({_name(value)})": value for number, value in enumerate(args, 1)})
        for name, value in named.items():
            reason = _not_picklable(value)
            if reason is not None:
                raise ConfigError(
                    f"{name} cannot be sent to a spawned process: {reason}.",
                    why="spawned ranks are new interpreters; what they work on is pickled.",
                    fix='launch with "fork", or define it at the top level of a module (no lambda, no local class, no open '
                    "file).",
                ) from error
        raise


def _not_picklable(value: Any) -> str | None:
    try:
        ForkingPickler.dumps(value)
    except Exception as error:  # noqa: BLE001 (whatever a __reduce__ raises)
        return f"{type(error).__name__}: {error}".rstrip(".")
    return None


def _name(value: Any) -> str:
    return str(getattr(value if callable(value) else type(value), "__qualname__", type(value).__qualname__))


def _child(rank: int, record: Path, process: Any) -> Child:
    return Child(
        rank=rank,
        record=record,
        status=lambda: process.exitcode,
        terminate=process.terminate,
        kill=process.kill,
    )


def _refuse_to_fork_an_accelerator() -> None:
    import torch

    for kind in ("cuda", "xpu"):
        if getattr(torch, kind).is_initialized():
            raise ConfigError(
                f'launch "fork", but {kind} is in use in this process already.',
                why="a driver does not survive a fork: every rank would fail at its first operation on the device.",
                fix=f'restart the session and create nothing on {kind} before the launch, or launch with "spawn".',
            )


def _refuse_to_import_a_session(function: Callable[..., Any]) -> None:
    if getattr(function, "__module__", None) == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(
            f'launch "spawn" of {_name(function)}, which is defined in this session.',
            why="a spawned process is a new interpreter, and imports what it runs from a file.",
            fix='launch with "fork", or move it into a module and import it.',
        )
