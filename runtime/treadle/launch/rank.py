"""A rank that another process started: what it is told, how it ends with that process, and how it says why it failed."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from treadle.ending import let_gloo_finish
from treadle.environments import World
from treadle.errors import ConfigError
from treadle.launch.failure import write_record

_PARENT, _RECORD = "TREADLE_PARENT", "TREADLE_ERROR_FILE"
_HERE = "127.0.0.1"

_record: Path | None = None
"""Where this rank says why it failed; None where nobody started it."""


def located(world: World) -> World:
    """``world`` as rank 0 of one node, at a free port of this machine.

    Raises:
        ConfigError: There are other nodes: nobody here can start theirs.
    """
    if world.nodes > 1:
        command = " ".join(sys.orig_argv[1:]) or "train.py"
        raise ConfigError(
            f"{world.nodes} nodes, and no launcher has started this process.",
            why="a process can start the ranks of its own node only; each node needs its own.",
            fix=f"on every node: torchrun --nnodes {world.nodes} --nproc-per-node {world.local_size} --rdzv-backend c10d "
            f"--rdzv-endpoint FIRST_NODE:29400 {command}\n       or in a SLURM job: srun --nodes {world.nodes} "
            f"--ntasks-per-node {world.local_size} python {command}",
        )
    with socket.socket() as free:
        free.bind((_HERE, 0))
        port = free.getsockname()[1]
    return replace(world, rank=0, local_rank=0, node_rank=0, address=_HERE, port=port, started=True)


def variables_of(rank: int, world: World) -> dict[str, str]:
    """What rank ``rank`` finds in its environment."""
    return {
        "TREADLE_LAUNCHED": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "NODE_RANK": "0",
        "MASTER_ADDR": world.address,
        "MASTER_PORT": str(world.port),
    }


def ties_to_this_process(record: Path) -> dict[str, str]:
    """More variables, that :func:`stay_with_parent` reads in the started rank."""
    return {_PARENT: str(os.getpid()), _RECORD: str(record)}


def stay_with_parent() -> None:
    """In a rank that :func:`~treadle.launch.start_script` started: end when that process does, however it does, and
    leave it to say why this one failed. Elsewhere, and a second time, does nothing."""
    parent, record = os.environ.pop(_PARENT, None), os.environ.pop(_RECORD, None)
    if parent is not None and record is not None:  # taken away: what this rank starts is nobody's rank
        tie(int(parent), Path(record))
        sys.excepthook = _on_uncaught


def tie(parent: int, record: Path) -> None:
    """End with the process ``parent``; write what fails into ``record``."""
    global _record
    _record = record
    atexit.register(let_gloo_finish)
    threading.Thread(target=_end_with, args=(parent, os.getpid(), record), name="treadle-parent", daemon=True).start()


def _end_with(parent: int, process: int, record: Path) -> None:
    # Not a pipe whose end would say so: what the parent forks, the workers of its loaders, would hold it open.
    while os.getppid() == parent:
        time.sleep(0.5)
    if os.getpid() == process:
        shutil.rmtree(record.parent, ignore_errors=True)  # the parent had no time to
        os._exit(1)


def note(error: BaseException) -> bool:
    """Write down that this rank fails with ``error``, for the process that started it.

    Returns:
        Whether that process will say it, so that this one need not. False in rank 0 and under other launchers.
    """
    if _record is None:
        return False
    try:
        write_record(_record, error)
    except OSError:  # a full disk: then it must be said here
        return False
    return True


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt) and not note(error):
        sys.__excepthook__(kind, error, trace)
