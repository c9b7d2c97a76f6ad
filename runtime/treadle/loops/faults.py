"""What an error in a run means, where the words of torch don't say it."""

from __future__ import annotations

import re
from typing import Literal

import torch

from treadle.data.machine import Room, host_memory, size
from treadle.data.stream import Batches
from treadle.data.workers import add_note, failure
from treadle.errors import DataError
from treadle.loops.loading import Loaders
from treadle.loops.run import Run
from treadle.splitting import is_out_of_memory
from treadle.strategies import ddp

ASKED_FOR = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]iB|\d+ bytes)|Unable to allocate ([\d.]+ [KMGT]iB)")


def explained(
    error: BaseException, run: Run, loaders: Loaders, micro_batch_size: int | Literal["auto"] | None
) -> BaseException:
    """What to raise instead of ``error``: one of ours for a worker that is gone, and for DDP's words. An error for lack of
    memory stays itself, with a note on what to lower; any other as it is.

    Args:
        error: Raised in the run.
        run: How far it is, and with what.
        loaders: What it reads.
        micro_batch_size: The Trainer's.
    """
    if (gone := failure(error, position(run))) is not None:
        return gone
    if is_out_of_memory(error):
        add_note(error, out_of_memory(error, run, _stream(run, loaders), micro_batch_size))
    return ddp.explained(error)


def position(run: Run) -> str:
    """As ``"epoch 3, batch 12"``, with the batch of an evaluation; nothing before the first stage."""
    if not run.stage:
        return ""
    training = f"epoch {run.progress.epoch}, batch {run.progress.batch}"
    stream = run.current_stream
    if run.stage == "train" or stream is None:
        return training
    within = f" ({training})" if run.fitting else ""
    return f"batch {max(0, stream.consumed - 1)} of {stream.name}{within}"


def out_of_memory(
    error: BaseException, run: Run, stream: Batches | None, micro_batch_size: int | Literal["auto"] | None
) -> str:
    """How much was asked for, how much there is, and what to lower."""
    asked = ASKED_FOR.search(str(error))
    amount = (asked[1] or asked[2]) if asked else None
    if amount is not None and amount.endswith(" bytes"):
        amount = size(int(amount.removesuffix(" bytes")))
    in_worker = "DataLoader worker process" in str(error)
    device, room = run.fabric.device, host_memory()
    where = "the host"
    if isinstance(error, torch.OutOfMemoryError) and not in_worker:
        where, room = str(device), _device_memory(device)
    batch_size = _batch_size(stream)
    fact = "treadle: out of memory" + (f": {amount} asked for" if amount is not None else "")
    fact += f"; {where} has {room}" if room is not None else ""
    at = position(run)
    fact += f"; at {at}" if at else ""
    fact += f", batch_size={batch_size}" if batch_size is not None else ""
    ways = _for_workers() if in_worker else _for_steps(run, batch_size, micro_batch_size)
    return f"{fact}\n  fix: {ways[0]}" + "".join(f"\n   or: {way}" for way in ways[1:])


def _for_workers() -> list[str]:
    return [
        "num_workers, prefetch_factor or batch_size of the DataLoader: each worker holds batches in the host's memory"
    ]


def _for_steps(run: Run, batch_size: int | None, micro_batch_size: int | Literal["auto"] | None) -> list[str]:
    """The way that changes least comes first."""
    ways, training = [], run.stage == "train"
    sharded = run.fabric.strategy.in_lockstep
    if training and run.module.automatic_optimization:
        if isinstance(micro_batch_size, int) and micro_batch_size > 1:
            ways.append(f"--trainer.micro_batch_size {micro_batch_size // 2}  (the same gradient, in smaller parts)")
        elif micro_batch_size is None and not sharded:
            ways.append("--trainer.micro_batch_size auto  (the same gradient, in parts that fit)")
        elif micro_batch_size is None and batch_size is not None and batch_size > 1:
            ways.append(f"--trainer.micro_batch_size {batch_size // 2}  (the same gradient, in parts)")
    if batch_size is None or batch_size > 1:
        ways.append(f"--data.batch_size {batch_size // 2 if batch_size else 'N, smaller'}")
    if run.fabric.precision.name.startswith(("32", "64")):
        ways.append("--trainer.precision bf16-mixed" + ("" if training else ", or bf16-true: half of the weights, too"))
    if training:
        if sharded:
            ways.append(
                "strategy=FSDP(activation_checkpointing=True)  (computes activations again instead of keeping them)"
            )
        else:
            ways.append("torch.utils.checkpoint around the model's blocks  (activations are computed again, not kept)")
    if run.fabric.device.type != "cpu" and not sharded:
        ways.append("--trainer.strategy fsdp on several devices  (each keeps a part of the weights)")
    return ways


def _stream(run: Run, loaders: Loaders) -> Batches | None:
    """What the batch at hand came from."""
    if run.stage == "train":
        return next(iter(loaders.streams.get("train", [])), None)
    return run.current_stream if run.stage else None


def _batch_size(stream: Batches | None) -> int | None:
    try:
        return stream.batch_size() if stream is not None and stream.consumed else None
    except DataError:  # nobody can tell
        return None


def _device_memory(device: torch.device) -> Room | None:
    return Room(*torch.cuda.mem_get_info(device)) if device.type == "cuda" and torch.cuda.is_available() else None
