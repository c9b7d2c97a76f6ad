"""One training run, as it is on one device or on several ranks, and what it left behind."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import treadle
from treadle.strategies.sharding import whole

SAMPLES, VALIDATED = 43, 37
"""Neither fills the last batch, nor the last round of batches of two or four ranks."""
GLOBAL_BATCH = 16


class Numbered(Dataset[tuple[Tensor, Tensor, int]]):
    """Points with their numbers; with ``noise``, disturbed anew whenever they are read."""

    def __init__(self, count: int = SAMPLES, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(count, 4, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        disturbed = self.x[index] + self.noise * torch.randn(4) if self.noise else self.x[index]
        return disturbed, self.y[index], index


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(8, 8), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.dropout(torch.relu(self.layer(x)))
        return result


class Net(treadle.Module):
    """Remembers which samples each of its steps saw."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False, weighted: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            first = [nn.Linear(4, 8, bias=not norm), nn.BatchNorm1d(8) if norm else nn.Identity()]
            self.net = nn.Sequential(*first, Block(dropout), Block(dropout), nn.Linear(8, 2))
        self.weighted = weighted
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, indices = batch
        self.seen.append((self.trainer.current_epoch, batch_idx, indices.tolist()))
        losses = nn.functional.cross_entropy(self.net(x), y, reduction="none")
        weights = 1.0 + (indices % 5).float() if self.weighted else torch.ones(len(x))
        loss = (losses * weights).sum() / weights.sum()
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("samples", float(len(x)), on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("farthest", x.abs().max(), on_step=False, on_epoch=True, reduce_fx="max")
        return {"loss": loss, "weight": weights.sum()} if self.weighted else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x), y))
        self.log("val_samples", float(len(x)), reduce_fx="sum")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        by_step = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_step, "interval": "step"}}


@dataclass
class Left:
    """What a run left behind on one rank."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    seen: list[tuple[int, int, list[int]]]
    rows: list[dict[str, str]] = field(default_factory=list)
    folder: str = ""


@dataclass(frozen=True)
class Plan:
    """A run: the module's settings, the loader's, and the Trainer's."""

    module: dict[str, Any] = field(default_factory=dict)
    batch: int | None = None
    """Of one rank; None: its part of the global batch."""
    workers: int = 0
    noise: float = 0.0
    trainer: dict[str, Any] = field(default_factory=dict)


def train(plan: Plan, folder: Path, ranks: int, strategy: str, ckpt_path: Path | None = None) -> Left:
    """The run of ``plan`` as one of ``ranks``, each with its part of the global batch."""
    torch.manual_seed(0)
    module = Net(**plan.module)
    size = plan.batch or GLOBAL_BATCH // ranks
    trainer = trainer_for(folder, strategy, **plan.trainer)
    trainer.fit(
        module,
        DataLoader(Numbered(noise=plan.noise), size, shuffle=True, num_workers=plan.workers),
        DataLoader(Numbered(VALIDATED), size),
        ckpt_path=ckpt_path,
    )
    return left_by(trainer, module)


def trainer_for(folder: Path, strategy: str = "auto", **settings: Any) -> treadle.Trainer:
    defaults = {"max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    return treadle.Trainer(default_root_dir=folder, strategy=strategy, **{**defaults, **settings})


def left_by(trainer: treadle.Trainer, module: Any) -> Left:
    weights = {name: value.detach().clone() for name, value in whole(module.state_dict()).items()}
    path = Path(trainer.log_dir or "") / "metrics.csv"
    return Left(
        weights,
        {name: float(value) for name, value in trainer.callback_metrics.items()},
        getattr(module, "seen", []),
        list(csv.DictReader(path.read_text().splitlines())) if trainer.log_dir and path.exists() else [],
        str(trainer.log_dir),
    )


def samples_by_step(runs: list[Left]) -> dict[tuple[int, int], set[int]]:
    """The samples that each step saw on any rank."""
    steps: dict[tuple[int, int], set[int]] = {}
    for run in runs:
        for epoch, batch, indices in run.seen:
            steps.setdefault((epoch, batch), set()).update(indices)
    return steps


def require_equal(run: Left, single: Left, *, tolerance: float = 1e-6) -> None:
    for name, value in single.weights.items():
        torch.testing.assert_close(run.weights[name], value, atol=tolerance, rtol=tolerance, msg=f"{name} differs")
    assert run.metrics.keys() == single.metrics.keys()
    for name, number in single.metrics.items():
        assert abs(run.metrics[name] - number) <= 10 * tolerance * max(1.0, abs(number)), (
            name,
            run.metrics[name],
            number,
        )
