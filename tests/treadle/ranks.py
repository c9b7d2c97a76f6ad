"""Functions run on several real ranks."""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch
import torch.multiprocessing as multiprocessing

from treadle.collectives import Ranks
from treadle.environments import World

Result = TypeVar("Result")


def on_ranks(count: int, function: Callable[..., Result], *arguments: Any, timeout: float = 120.0) -> list[Result]:
    """What ``function(ranks, *arguments)`` returns on each of ``count`` processes that have met over gloo, by rank.

    They are forked, so ``function`` may be any. A failure is raised here with the traceback of the rank that failed first;
    the others are ended. Results are pickled.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    gc.collect()
    pipes, processes = [], []
    for rank in range(count):
        receiving, sending = context.Pipe(duplex=False)
        world = World(
            environment="a test", rank=rank, size=count, local_rank=rank, local_size=count, port=port, started=True
        )
        process = context.Process(target=_child, args=(world, sending, function, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run; these use their own
            process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    try:
        return _received(pipes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def on_trainer_ranks(
    count: int, function: Callable[..., Result], *arguments: Any, timeout: float = 120.0
) -> list[Result]:
    """What ``function(*arguments)`` returns on each of ``count`` ranks that a Trainer finds by their variables, by rank."""
    return on_ranks(count, _as_launched, function, *arguments, timeout=timeout)


def _as_launched(ranks: Ranks, function: Callable[..., Result], *arguments: Any) -> Result:
    world = ranks.world
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_size),
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port),
    )
    return function(*arguments)


def free_port() -> int:
    """One of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _received(pipes: list[Connection], end: float) -> list[Any]:
    results: dict[int, Any] = {}
    open_pipes = {pipe: rank for rank, pipe in enumerate(pipes)}
    while open_pipes:
        ready = wait(list(open_pipes), timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise AssertionError(f"ranks {sorted(open_pipes.values())} did not end in time")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = open_pipes.pop(pipe)
            try:
                failed, value = pickle.loads(pipe.recv_bytes())  # noqa: S301  # of our own child
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            if failed:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _child(world: World, sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if faulthandler.is_enabled():
        faulthandler.disable()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    ranks = Ranks(world, torch.device("cpu"), timedelta(seconds=60))
    try:
        ranks.meet(always=True)
        # Pickled here: a pipe would share the tensors' memory, which ends with this process.
        answer = pickle.dumps((False, function(ranks, *arguments)))
    except BaseException:  # noqa: BLE001  # whatever it was, the parent says it
        answer = pickle.dumps((True, traceback.format_exc()))
    sending.send_bytes(answer)
    sending.close()
    os._exit(0)  # no exit handlers of the parent's
