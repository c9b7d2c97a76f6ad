"""How long training stands still for a save of 1 GB, weights and AdamW's moments: treadle at once and beside training,
pytorch-lightning at once and asynchronously, a plain `torch.save`, and one copy of that memory, below which nobody can be.

Measured at the loader: the time between two batches where a save falls between them, over steps that take a millisecond.
Between the saves the loader waits, so that none meets the one before. Durable is the time from the save's begin until the
file has its name and is flushed to disk; Lightning flushes nothing, so its files have no such time. While a save is
written beside training, steps go on: how much slower they are is the last number.

    python benchmarks/save_stall.py
"""

from __future__ import annotations

import importlib.util
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import treadle
from treadle.callbacks import ModelCheckpoint

LAYERS, WIDTH = 20, 2048  # 20 x 2048 x 2048 x 4 bytes x 3 = 1.0 GB
EVERY, SAVES = 200, 4
LIGHTNING = importlib.util.find_spec("pytorch_lightning") is not None


class Steps(Dataset[Tensor]):
    """The moments at which batches were asked for; waits before the batch after which a save is due."""

    def __init__(self, wait: float) -> None:
        self.wait, self.moments = wait, [0.0] * (EVERY * SAVES + 2)

    def __len__(self) -> int:
        return len(self.moments) - 1

    def __getitem__(self, index: int) -> Tensor:
        if index % EVERY == EVERY - 10 and index > EVERY:
            time.sleep(self.wait)
        self.moments[index] = time.perf_counter()
        return torch.ones(1)

    def stalls(self) -> list[float]:
        """Seconds of each save beyond those of a step. A loader that reads one batch ahead shifts it by one."""
        step = statistics.median(self.gaps(1, EVERY - 20))
        return [max(self.gaps(EVERY * n - 2, EVERY * n + 3)) - step for n in range(1, SAVES + 1)]

    def slowdown(self) -> float:
        """Of the steps right behind a save, in the time of a usual one."""
        usual = statistics.mean(self.gaps(20, EVERY - 20))
        return statistics.mean(self.gaps(2 * EVERY + 5, 2 * EVERY + 100)) / usual

    def gaps(self, start: int, stop: int) -> list[float]:
        return [self.moments[index + 1] - self.moments[index] for index in range(start, min(stop, len(self) - 1))]


def big_model(base: type) -> Any:
    class Big(base):  # type: ignore[misc]
        """All weights take the first step, so that all have moments; after it the steps are small."""

        def __init__(self) -> None:
            super().__init__()
            self.big = nn.ParameterList(torch.randn(WIDTH, WIDTH) for _ in range(LAYERS))
            self.small = nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = (self.small * batch).sum()
            if batch_idx == 0:
                loss = loss + sum(parameter.mean() for parameter in self.big)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Big()


class Watch(threading.Thread):
    """Notes when `path` becomes another file."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.seen, self.over = path, [], False
        self.start()

    def run(self) -> None:
        before = None
        while not self.over:
            try:
                now = self.path.stat().st_ino
            except FileNotFoundError:
                now = None
            if now != before and now is not None:
                self.seen.append(time.perf_counter())
            before = now
            time.sleep(0.01)


def of_treadle(folder: Path, behind: bool, wait: float) -> tuple[list[float], list[float], float]:
    steps, watch = Steps(wait), Watch(folder / "c" / "last.ckpt")
    saver = ModelCheckpoint(dirpath=folder / "c", every=f"{EVERY} steps", save_async=behind, save_previous=False)
    trainer = treadle.Trainer(
        max_epochs=1, logger=False, callbacks=saver, enable_progress_bar=False, default_root_dir=folder
    )
    trainer.fit(big_model(treadle.Module), DataLoader(steps, batch_size=None))
    watch.over = True
    durable = [seen - steps.moments[EVERY * (n + 1) - 1] for n, seen in enumerate(watch.seen[:SAVES])]
    return steps.stalls(), durable, steps.slowdown()


def of_lightning(folder: Path, behind: bool, wait: float) -> tuple[list[float], float]:
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.io import AsyncCheckpointIO

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    steps = Steps(wait)
    saver = pl.callbacks.ModelCheckpoint(dirpath=folder / "c", every_n_train_steps=EVERY, save_top_k=1)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=saver,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AsyncCheckpointIO()] if behind else [],
    )
    trainer.fit(big_model(pl.LightningModule), DataLoader(steps, batch_size=None))
    return steps.stalls(), steps.slowdown()


def of_torch(folder: Path) -> tuple[float, float, float, float]:
    """Seconds of torch.save, of its flush to disk, of a copy to new memory, and of one to memory that is there."""
    model = big_model(nn.Module)
    optimizer = torch.optim.AdamW(model.parameters())
    model.training_step(torch.ones(1), 0).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    tensors = [*state["model"].values(), *(v for s in state["optimizer"]["state"].values() for v in s.values())]
    print(f"state: {sum(t.numel() * t.element_size() for t in tensors) / 1e9:.2f} GB in {len(tensors)} tensors")
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with (folder / "plain.pt").open("wb") as file:
            torch.save(state, file)
            saved = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
        flushed = time.perf_counter()
        copies = [tensor.clone() for tensor in tensors]
        cloned = time.perf_counter()
        torch._foreach_copy_(copies, tensors)
        copied = time.perf_counter()
        found.append((saved - start, flushed - saved, cloned - flushed, copied - cloned))
    (folder / "plain.pt").unlink()
    save, flush, new, again = (statistics.median(column) for column in zip(*found, strict=True))
    return save, flush, new, again


def shown(seconds: list[float]) -> str:
    return f"first {seconds[0]:.2f} s, then {statistics.median(seconds[1:]):.2f} s"


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        save, flush, new, again = of_torch(folder)
        wait = 3 * (save + flush) + 1
        print(f"one copy of it: {new:.2f} s to new memory, {again:.2f} s to memory that is there already")
        print(f"torch.save: stands still {save:.2f} s, durable after {save + flush:.2f} s")
        for label, behind in (("at once", False), ("beside training", True)):
            stalls, durable, slowdown = of_treadle(folder / label, behind, wait)
            print(f"treadle {label}: stands still {shown(stalls)}; durable after {shown(durable)}", end="")
            if behind:
                first, later = stalls[0] / new, statistics.median(stalls[1:]) / again
                print(f"; {first:.2f} copies to new memory, then {later:.2f} to memory that is there", end="")
                print(f"; steps meanwhile take {slowdown:.1f} times as long", end="")
            print()
        if not LIGHTNING:
            print('pytorch-lightning is not installed: pip install "pytorch-lightning==2.6.*"')
            return
        for label, behind in (("at once", False), ("asynchronously", True)):
            stalls, slowdown = of_lightning(folder / f"l{label}", behind, wait)
            more = f"; steps meanwhile take {slowdown:.1f} times as long" if behind else ""
            print(f"pytorch-lightning {label}: stands still {shown(stalls)}{more}")


if __name__ == "__main__":
    main()
