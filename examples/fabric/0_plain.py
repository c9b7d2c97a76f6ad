"""A plain PyTorch loop: which digit is it?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset


def digits_of_sklearn() -> TensorDataset:
    """1,797 scans, shape (64,), from 0 (paper) to 1 (ink), and their digits."""
    scans = load_digits()
    return TensorDataset(torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Returns the loss on digits that are not trained on, after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = digits_of_sklearn()
    loader = DataLoader(Subset(data, range(1500)), args.batch_size, shuffle=True, drop_last=True)
    held_out = data[1500:]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    losses = []
    for epoch in range(args.epochs):
        for scans, digits in loader:
            loss = cross_entropy(model(scans), digits)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            scans, digits = held_out
            losses.append(cross_entropy(model(scans), digits).item())
        print(f"epoch {epoch}: loss {losses[-1]:.6f}")
    return losses


if __name__ == "__main__":
    main()
