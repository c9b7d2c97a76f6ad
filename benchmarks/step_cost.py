"""What a training step costs over a plain loop: Python calls (exact) and time (ratios, measured in turn).

The same work everywhere: an MLP 32-64-1, batches of 8 from a list in memory, AdamW, one thread, one logged value, no
checkpoints, no progress bar.

    python benchmarks/step_cost.py
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

import treadle

STEPS, ROUNDS = 2000, 7


class Batches:
    """A loader that costs nothing: what is measured is the loop around it."""

    def __init__(self) -> None:
        self.batches = [(torch.randn(8, 32), torch.randn(8, 1)) for _ in range(STEPS)]

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


BATCHES = Batches()
LIGHTNING = importlib.util.find_spec("pytorch_lightning") is not None


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))


def plain(steps: int) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    for x, y in islice(BATCHES, steps):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def module(base: Any) -> Any:
    class Regression(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            loss = nn.functional.mse_loss(self.network(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    return Regression()


def with_treadle(steps: int) -> None:
    trainer = treadle.Trainer(
        max_epochs=1, limit_train_batches=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module(treadle.Module), BATCHES)


def with_lightning(steps: int) -> None:
    import pytorch_lightning as pl

    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
        accelerator="cpu",
    )
    trainer.fit(module(pl.LightningModule), BATCHES)


def calls(train: Callable[[int], None]) -> float:
    """Python calls a step, as the difference of a long and a short run."""

    def counted(steps: int) -> int:
        count = 0

        def profile(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        try:
            train(steps)
        finally:
            sys.setprofile(None)
        return count

    return (counted(140) - counted(40)) / 100


def microseconds(train: Callable[[int], None]) -> float:
    """Time a step, without what starting and ending costs."""

    def taken(steps: int) -> float:
        start = time.perf_counter()
        train(steps)
        return time.perf_counter() - start

    return (taken(STEPS) - taken(STEPS // 10)) / (STEPS * 0.9) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    programs = {
        "plain loop": plain,
        "treadle": with_treadle,
        **({"pytorch-lightning": with_lightning} if LIGHTNING else {}),
    }
    for train in programs.values():
        train(50)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, train in programs.items():
            times[name].append(microseconds(train))
    print(f"torch {torch.__version__}, {STEPS} steps, {ROUNDS} rounds; ratios are medians, pair by pair")
    for name, train in programs.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["plain loop"], strict=True))
        print(
            f"{name:20} {calls(train):7.0f} calls   {statistics.median(times[name]):7.0f} us   {ratio:5.2f} x plain loop"
        )
    if not LIGHTNING:
        print("pytorch-lightning is not installed: not measured")


if __name__ == "__main__":
    main()
