"""Fine-tuning: a backbone that learned one task is frozen, then unfrozen, on another with few labels.

A small convolutional network learns the digits 0 to 4, at random places. Its head is made anew for the digits 5 to 9, of
which five each have a label: at first the head alone is trained, and from an epoch on the backbone as well, at a smaller
learning rate. The same network from scratch, on the same labels, shows what the digits 0 to 4 were good for.

    python examples/finetuning.py
    python examples/finetuning.py --labels 10

Expect an accuracy of 0.75, and of 0.66 from scratch. Other seeds move both, and keep them 0.08 to 0.11 apart; more
labels bring them together. With --unfreeze_at 40, never, the head alone reaches 0.65.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.callbacks import BackboneFinetuning, ModelCheckpoint
from treadle.loggers import CSVLogger

Batch = tuple[Tensor, Tensor]
"""Scans, shape (batch, 1, 12, 12), from 0 (paper) to 1 (ink), and their classes from 0 to 4, shape (batch,)."""
Loader = DataLoader[tuple[Tensor, ...]]


class Classifier(treadle.Module):
    """Five classes: a ``backbone`` that sees, and a ``head`` that decides."""

    def __init__(self, channels: int = 32, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * channels, 5)

    def forward(self, scans: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(scans))
        return scores

    def training_step(self, batch: Batch) -> Tensor:
        scans, classes = batch
        loss = cross_entropy(self(scans), classes)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch) -> None:
        scans, classes = batch
        self.log("val_accuracy", (self(scans).argmax(dim=1) == classes).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # What is frozen now is added by the callback when it is unfrozen, with a learning rate of its own.
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trainable, self.hparams.learning_rate)


def loaders_of(first: int, labels: int | None = None) -> tuple[Loader, Loader]:
    """The five digits from ``first`` on: ``labels`` scans of each, or four fifths, to train; the others to validate."""
    data = load_digits()
    of_five = (data.target >= first) & (data.target < first + 5)
    scans = torch.stack([placed(scan) for scan in torch.tensor(data.images[of_five], dtype=torch.float32) / 16])
    classes = torch.tensor(data.target[of_five] - first)
    train, validation = train_test_split(
        torch.arange(len(classes)), train_size=5 * labels if labels else 0.8, stratify=classes, random_state=0
    )
    return (
        DataLoader(TensorDataset(scans[train], classes[train]), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(scans[validation], classes[validation]), batch_size=256),
    )


def placed(scan: Tensor) -> Tensor:
    """A scan of 8 by 8 somewhere on a paper of 12 by 12, shape (1, 12, 12)."""
    left, top = torch.randint(5, (2,)).tolist()
    return pad(scan, (left, 4 - left, top, 4 - top)).unsqueeze(0)


def main(arguments: Sequence[str] | None = None) -> dict[str, treadle.Trainer]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=5, help="scans of each digit from 5 to 9")
    parser.add_argument("--max_epochs", type=int, default=40, help="on the digits 5 to 9")
    parser.add_argument("--unfreeze_at", type=int, default=20, help="the epoch from which the backbone is trained")
    parser.add_argument("--pretraining_epochs", type=int, default=10, help="on the digits 0 to 4")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs' files go")
    args = parser.parse_args(arguments)

    def trainer(name: str, max_epochs: int, callback: treadle.Callback | None = None) -> treadle.Trainer:
        logger = CSVLogger(args.folder / "finetuning", name=name)
        return treadle.Trainer(max_epochs=max_epochs, callbacks=callback, logger=logger)

    treadle.seed_everything(0)
    few, many = loaders_of(first=5, labels=args.labels)

    best = ModelCheckpoint(monitor="val_accuracy", mode="max")
    pretraining = trainer("pretraining", args.pretraining_epochs, best)
    pretraining.fit(Classifier(), *loaders_of(first=0))

    model = Classifier.load_from_checkpoint(best.best_model_path)
    model.head.reset_parameters()
    finetuning = trainer("finetuning", args.max_epochs, BackboneFinetuning(args.unfreeze_at))
    finetuning.fit(model, few, many)

    from_scratch = trainer("from_scratch", args.max_epochs)
    from_scratch.fit(Classifier(), few, many)
    trainers = {"pretraining": pretraining, "finetuning": finetuning, "from_scratch": from_scratch}
    for name, one in trainers.items():
        print(f"{name}: accuracy {one.callback_metrics['val_accuracy']:.3f}")
    return trainers


if __name__ == "__main__":
    main()
