"""Formats other than 32 bits, and bounded gradients."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

import treadle


def digits_of_sklearn() -> TensorDataset:
    """1,797 scans, shape (64,), from 0 (paper) to 1 (ink), and their digits."""
    scans = load_digits()
    return TensorDataset(torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Returns the loss on digits that are not trained on, after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--max_norm", type=float, default=1.0)
    args = parser.parse_args(arguments)

    fabric = treadle.Fabric(devices=args.devices, strategy=args.strategy, precision=args.precision)
    fabric.launch()
    torch.manual_seed(0)
    data = digits_of_sklearn()
    loader = DataLoader(Subset(data, range(1500)), args.batch_size, shuffle=True, drop_last=True)
    held_out = fabric.to_device(data[1500:])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(loader)

    losses = []
    for epoch in range(args.epochs):
        for scans, digits in loader:
            with fabric.autocast():
                loss = cross_entropy(model(scans), digits)
            fabric.backward(loss)
            fabric.clip_gradients(model, max_norm=args.max_norm, optimizer=optimizer)
            fabric.step(optimizer)
            optimizer.zero_grad()
        with torch.no_grad(), fabric.autocast():
            scans, digits = held_out
            losses.append(cross_entropy(model(scans), digits).item())
        fabric.print(f"epoch {epoch}: loss {losses[-1]:.6f}")
    return losses


if __name__ == "__main__":
    main()
