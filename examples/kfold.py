"""K-fold cross validation: how good a model is, and how much of that is luck with the split.

One DataModule holds the folds; each is trained by a fresh module and Trainer, seeded alike, in a folder of its own:
``runs/kfold_5/fold_0/version_0`` and so on. Killed and started again, finished folds are only evaluated, and the one that
was running goes on from its last epoch, with the same result. Remove ``runs/kfold_5`` to start anew.

    python examples/kfold.py
    python examples/kfold.py --folds 10 --max_epochs 30

Expect an accuracy of 0.97 on digits that a fold was not trained on, give or take 0.01 from fold to fold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

import treadle
from treadle.loggers import CSVLogger

Batch = tuple[Tensor, Tensor]
"""Scans, shape (batch, 64), from 0 (paper) to 1 (ink), and their digits, shape (batch,)."""


class FoldedDigits(treadle.DataModule):
    """The digits in ``folds`` parts of equal make-up: ``fold`` is validated on, the others are trained on."""

    def __init__(self, folds: int = 5, fold: int = 0, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        scans = load_digits()
        self.data = TensorDataset(torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target))
        # Seeded, so that every fold, and every process that continues one, sees the same parts.
        parts = StratifiedKFold(self.hparams.folds, shuffle=True, random_state=0).split(scans.data, scans.target)
        self.train, self.validation = list(parts)[self.hparams.fold]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(Subset(self.data, self.train), self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(Subset(self.data, self.validation), batch_size=256)


class Classifier(treadle.Module):
    """One hidden layer with dropout."""

    def __init__(self, hidden: int = 128, dropout: float = 0.2, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def training_step(self, batch: Batch) -> Tensor:
        scans, digits = batch
        loss = cross_entropy(self.network(scans), digits)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch) -> None:
        scans, digits = batch
        self.log("val_accuracy", (self.network(scans).argmax(dim=1) == digits).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.hparams.learning_rate)


def accuracy_of(fold: int, folds: int, max_epochs: int, folder: Path) -> float:
    """Train on all folds but one; the accuracy there, of the last weights: the best ones are chosen by that fold."""
    treadle.seed_everything(0)
    model, data = Classifier(), FoldedDigits(folds, fold)
    trainer = treadle.Trainer(max_epochs=max_epochs, logger=CSVLogger(folder / f"kfold_{folds}", name=f"fold_{fold}"))
    trainer.fit(model, datamodule=data, ckpt_path="auto")
    (metrics,) = trainer.validate(model, datamodule=data, verbose=False)
    return metrics["val_accuracy"]


def main(arguments: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--max_epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs' files go")
    args = parser.parse_args(arguments)

    accuracies = [accuracy_of(fold, args.folds, args.max_epochs, args.folder) for fold in range(args.folds)]
    for fold, accuracy in enumerate(accuracies):
        print(f"fold {fold}: {accuracy:.4f}")
    print(f"accuracy: {mean(accuracies):.4f}, standard deviation over {args.folds} folds {stdev(accuracies):.4f}")
    return accuracies


if __name__ == "__main__":
    main()
