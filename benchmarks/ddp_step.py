"""DDP on two processes: the throughput of a raw PyTorch loop, and what is left of it with each library around it.

The same work everywhere, in the same two processes, in turns: an MLP 256-1024-1024-10 (1.3 million parameters), 64 samples
a rank and step from memory, AdamW, gloo, one thread each, the loss of each step kept or logged, no checkpoints, no
progress bar. A step takes some milliseconds, as one of a small model on a GPU does. The target is 0.98 of the raw loop's
throughput. On a machine that does other things as well, look at the processor time that a step takes of the processes.

    python benchmarks/ddp_step.py
"""

from __future__ import annotations

import importlib.util
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import treadle

RANKS, BATCH, WARMUP, STEPS, ROUNDS = 2, 64, 20, 150, 9
LIGHTNING = importlib.util.find_spec("pytorch_lightning") is not None
OFF = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


class Timed(Dataset[Any]):
    """Samples in memory that come a batch at a time, and the moments at which they were asked for."""

    def __init__(self) -> None:
        self.x, self.y = torch.randn(4096, 256), torch.randint(10, (4096,))
        self.moments: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return (WARMUP + STEPS + 1) * BATCH * RANKS

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self.moments.append((time.perf_counter(), time.process_time()))
        chosen = torch.tensor(indices) % len(self.x)
        return self.x[chosen], self.y[chosen]

    def seconds(self) -> tuple[float, float]:
        """Of a step: those that passed, and those that the process computed. Asked for batch by batch, or one ahead: it
        is the same number of steps."""
        (start, cpu_start), (end, cpu_end) = self.moments[WARMUP], self.moments[WARMUP + STEPS]
        return (end - start) / STEPS, (cpu_end - cpu_start) / STEPS


def loader(data: Timed, **settings: Any) -> DataLoader[Any]:
    return DataLoader(data, BATCH, collate_fn=lambda batch: batch, **settings)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def raw(data: Timed) -> None:
    net = network()
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(net.parameters())
    total = torch.zeros(())
    for x, y in loader(data, sampler=DistributedSampler(data)):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()


def with_fabric(data: Timed) -> None:
    fabric = treadle.Fabric(accelerator="cpu", strategy="ddp")
    fabric.launch()
    net = network()
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters()))
    total = torch.zeros(())
    for x, y in fabric.setup_dataloaders(loader(data, shuffle=True)):
        with fabric.autocast():
            loss = cross_entropy(model(x), y)
        fabric.backward(loss)
        fabric.step(optimizer)
        optimizer.zero_grad()
        total += loss.detach()


def module(base: Any) -> Any:
    class Classifier(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            loss = cross_entropy(self.network(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    return Classifier()


def with_trainer(data: Timed) -> None:
    trainer = treadle.Trainer(accelerator="cpu", strategy="ddp", max_epochs=1, **OFF)  # type: ignore[arg-type]
    trainer.fit(module(treadle.Module), loader(data, shuffle=True))


def with_lightning(data: Timed) -> None:
    import pytorch_lightning as pl

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=pl.strategies.DDPStrategy(gradient_as_bucket_view=True),
        max_epochs=1,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
        **OFF,  # type: ignore[arg-type]
    )
    trainer.fit(module(pl.LightningModule), loader(data, shuffle=True))


def seconds(train: Callable[[Timed], None]) -> tuple[float, float]:
    data = Timed()
    dist.barrier()
    train(data)
    return data.seconds()


def measure() -> None:
    """On one of the ranks."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    dist.init_process_group("gloo")
    programs = {
        "raw loop": raw,
        "treadle Fabric": with_fabric,
        "treadle Trainer": with_trainer,
        **({"pytorch-lightning": with_lightning} if LIGHTNING else {}),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    order = list(programs)
    for turn in range(-1, ROUNDS):  # the first warms up
        for name in order:
            taken = seconds(programs[name])
            if turn >= 0:
                times[name].append(taken)
        order = [*order[1:], order[0]]
    if dist.get_rank() == 0:
        print(f"{'':20} {'a step':>10}   throughput of the raw loop's, least to most   by processor time")
        for name, taken in times.items():
            ratios, of_cpu = (
                sorted(raw[kind] / own[kind] for raw, own in zip(times["raw loop"], taken, strict=True))
                for kind in (0, 1)
            )
            milliseconds = statistics.median(passed for passed, _ in taken) * 1e3
            print(
                f"{name:20} {milliseconds:7.2f} ms   {statistics.median(ratios):5.3f}, {ratios[0]:5.3f} to "
                f"{ratios[-1]:5.3f} {'':25}   {statistics.median(of_cpu):5.3f}"
            )
        if not LIGHTNING:
            print("pytorch-lightning is not installed: not measured")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    print(
        f"torch {torch.__version__}, {RANKS} processes, {STEPS} steps, {ROUNDS} rounds; medians, ratios round by round; "
        f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*torchrun, __file__], env=settings, check=True, capture_output=True, text=True)
    print(finished.stdout, end="")


if __name__ == "__main__":
    if "RANK" in os.environ:
        measure()
    else:
        main()
