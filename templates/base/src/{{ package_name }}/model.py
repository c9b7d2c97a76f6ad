"""A small convolutional network that says which digit a scan shows."""

from typing import Any

import torch
import treadle
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]
"""Scans, shape (batch, 1, 8, 8), and their digits, shape (batch,)."""


class DigitClassifier(treadle.Module):
    """Two convolutions, one hidden layer; AdamW, with a learning rate that shrinks after every epoch."""

    def __init__(
        self,
        channels: int = 32,
        hidden: int = 128,
        dropout: float = 0.25,
        learning_rate: float = 0.003,
        learning_rate_decay: float = 0.9,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # kept in every checkpoint, for DigitClassifier.load_from_checkpoint
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.weight_decay = weight_decay
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels * 4 * 4, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Ten scores for each scan, shape (batch, 10): the highest is the answer."""
        scores: Tensor = self.network(images)
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, digits = batch
        loss = cross_entropy(self(images), digits)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_quality("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_quality("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, _ = batch
        digits: Tensor = self(images).argmax(dim=1)
        return digits

    def log_quality(self, stage: str, batch: Batch) -> None:
        """Log loss and accuracy: treadle averages them over all scans of the stage, not over batches."""
        images, digits = batch
        scores = self(images)
        self.log(f"{stage}_loss", cross_entropy(scores, digits))
        self.log(f"{stage}_accuracy", (scores.argmax(dim=1) == digits).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=self.learning_rate_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
