"""Points in the plane, and which of two rings they are from: a project small enough to be trained on every cluster."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import treadle

Batch = list[Tensor]
"""Numbers of the samples, shape (batch,); points, shape (batch, 2); rings, shape (batch,)."""


class Classifier(treadle.Module):
    """Two layers."""

    def __init__(self, hidden: int = 16, learning_rate: float = 0.02, sleep: float = 0.0) -> None:
        """
        Args:
            hidden: Width of the layer between.
            learning_rate: Of Adam.
            sleep: Seconds that a training step takes, so that somebody can interrupt it.
        """
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.learning_rate, self.sleep = learning_rate, sleep

    def forward(self, points: Tensor) -> Tensor:
        scores: Tensor = self.layers(points)
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        time.sleep(self.sleep)
        _, points, rings = batch
        loss = cross_entropy(self(points), rings)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _, points, rings = batch
        self.log("val_loss", cross_entropy(self(points), rings))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Rings(treadle.DataModule):
    """128 points for training: 8 steps of two ranks with 8 each. 52 for validation, so that one rank has more of them."""

    def __init__(self, batch_size: int = 8, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        rings = torch.randint(0, 2, (180,), generator=generator)
        angles = torch.rand(180, generator=generator) * 2 * torch.pi
        radii = 1 + rings + 0.3 * torch.randn(180, generator=generator)
        points = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1)
        self.training: Dataset[Any] = TensorDataset(torch.arange(128), points[:128], rings[:128])
        self.validation: Dataset[Any] = TensorDataset(torch.arange(52), points[128:], rings[128:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.training, batch_size=self.batch_size, num_workers=self.num_workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.validation, batch_size=self.batch_size)


class Observer(treadle.Callback):
    """Tells the test what was done, as it is done: a line of JSON for each training batch of each rank."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        seen = {
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "pid": os.getpid(),
            "samples": batch[0].tolist(),
        }
        line = f"{json.dumps(seen)}\n".encode()
        with Path(os.environ["OBSERVED"]).open("ab", buffering=0) as file:  # one write: lines of ranks don't mix
            file.write(line)
