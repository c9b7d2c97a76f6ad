"""Memory of a rank with FSDP on two processes: through treadle, and with torch's FSDP2 alone.

Counted, not sampled: every tensor's bytes that torch's CPU allocator gives out and takes back, as its profiler records
them, from before the model is made. The same work everywhere: eight blocks 512-2048-512 (16.8 million parameters, 67 MB,
made whole on each rank, then sharded block by block), 32 samples a rank and step, AdamW, eleven steps. The Trainer clears
gradients between a step's forward and backward pass, where Lightning's hooks expect it, so that they are there in the
forward pass: a loop of torch's own that does the same is measured, too.

    python benchmarks/fsdp_memory.py
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

RANKS, BLOCKS, WIDTH, BATCH, STEPS = 2, 8, 512, 32, 11
MARK = "a step begins"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.narrow(torch.relu(self.wide(x)))
        return out


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block() for _ in range(BLOCKS)])

    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function(MARK):
            pass
        out: Tensor = self.blocks(x).square().mean()
        return out


def batches() -> list[Tensor]:
    """Of all ranks, by turns."""
    return [torch.randn(BATCH, WIDTH)] * STEPS * RANKS


def plain(*, late: bool = False) -> None:
    from torch.distributed.fsdp import fully_shard

    model = Network()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in batches()[:STEPS]:
        loss = model(batch)
        if late:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not late:
            optimizer.zero_grad()


def with_fabric() -> None:
    import treadle

    fabric = treadle.Fabric(accelerator="cpu", strategy="fsdp")
    fabric.launch()
    model = fabric.setup(Network())
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in fabric.setup_dataloaders(batches()):
        loss = model(batch)
        fabric.backward(loss)
        fabric.step(optimizer)
        optimizer.zero_grad()


def with_trainer() -> None:
    import treadle

    class Module(treadle.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def training_step(self, batch: Tensor) -> Tensor:
            loss: Tensor = self.network(batch)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    trainer = treadle.Trainer(
        accelerator="cpu",
        strategy="fsdp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Module(), batches())


PROGRAMS: dict[str, Callable[[], None]] = {
    "FSDP2": plain,
    "FSDP2, zero_grad late": partial(plain, late=True),
    "treadle Fabric": with_fabric,
    "treadle Trainer": with_trainer,
}


def megabytes(run: Callable[[], None]) -> tuple[float, float]:
    """At most in a step, and as a step begins: each the median of the steps after the first, which makes the optimizer's
    state. When gloo's threads let go of a tensor varies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events: list[Any] = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    held, peaks, starts = 0, [], []
    for event in events:
        if event.name() == MARK:
            starts.append(held)
            peaks.append(held)
        elif event.name() == "[memory]":
            held += event.nbytes()
            if peaks:
                peaks[-1] = max(peaks[-1], held)
    return median(peaks[1:]) / 1e6, median(starts[1:]) / 1e6


def measure(name: str) -> None:
    """On one of the ranks."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("treadle").setLevel(logging.ERROR)
    dist.init_process_group("gloo")
    found = megabytes(PROGRAMS[name])
    if dist.get_rank() == 0:
        print(*found)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    print(f"torch {torch.__version__}, {RANKS} processes; megabytes of rank 0, and beside FSDP2 alone")
    print(f"{'':22} {'most in a step':>16} {'between steps':>16}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows: dict[str, list[float]] = {}
    for name in PROGRAMS:
        done = subprocess.run([*torchrun, __file__, name], env=settings, check=True, capture_output=True, text=True)
        rows[name] = [float(word) for word in done.stdout.split()]
        cells = [f"{own:8.1f} ({own / other:5.3f})" for own, other in zip(rows[name], rows["FSDP2"], strict=True)]
        print(f"{name:22}", *(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    if "RANK" in os.environ:
        measure(sys.argv[-1])
    else:
        main()
