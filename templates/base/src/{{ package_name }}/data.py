"""1,797 scans of handwritten digits, 8x8 pixels each. They come with scikit-learn; nothing is downloaded."""

from hashlib import sha256
from typing import Any

import numpy as np
import torch
import treadle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

Example = tuple[Tensor, Tensor]
"""Pixels from -1 (paper) to 1 (ink), shape (1, 8, 8), and the digit, shape ()."""


class Scans(Dataset[Example]):
    """The scans at `indices`; with `shift`, each moved by up to that many pixels, differently at every reading."""

    def __init__(self, images: Tensor, digits: Tensor, indices: Tensor, shift: int = 0) -> None:
        self.images = images[indices]
        self.digits = digits[indices]
        self.shift = shift

    def __len__(self) -> int:
        return len(self.digits)

    def fingerprint(self) -> str:
        """Which scans these are: a run is not resumed with others."""
        return sha256(self.images.numpy().tobytes()).hexdigest()[:16]

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        if self.shift:
            # Drawn from torch's generator, which treadle seeds in every worker and restores on resume.
            down, right = torch.randint(2 * self.shift + 1, (2,)).tolist()
            height, width = image.shape[-2:]
            padded = pad(image, (self.shift,) * 4, value=-1.0)
            image = padded[:, down : down + height, right : right + width]
        return image, self.digits[index]


class Digits(treadle.DataModule):
    """Train, validation and test scans: the same split every time, each digit equally frequent in all three."""

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        shift: int = 1,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shift = shift
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    def setup(self, stage: str) -> None:
        scans = load_digits()
        images = torch.tensor(scans.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # ink comes as 0 to 16
        digits = torch.tensor(scans.target)
        learning, test = self.split(np.arange(len(digits)), scans.target, self.test_fraction)
        of_learning = self.validation_fraction / (1 - self.test_fraction)
        train, validation = self.split(learning, scans.target, of_learning)
        self.train = Scans(images, digits, train, self.shift)
        self.validation = Scans(images, digits, validation)
        self.test = Scans(images, digits, test)

    def split(self, indices: Any, labels: Any, fraction: float) -> Any:
        return train_test_split(indices, test_size=fraction, stratify=labels[indices], random_state=self.split_seed)

    def train_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.validation, self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.test, self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Example]:
        return self.test_dataloader()
