"""Steps of several batches, and metrics in a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

import treadle
from treadle.loggers import CSVLogger


def digits_of_sklearn(file: Path) -> TensorDataset:
    """1,797 scans, shape (64,), from 0 (paper) to 1 (ink), and their digits; made once, then read from ``file``."""
    if not file.exists():
        scans = load_digits()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save((torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target)), file)
    return TensorDataset(*torch.load(file))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Returns the loss on digits that are not trained on, after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--max_norm", type=float, default=1.0)
    parser.add_argument("--accumulate", type=int, default=1, help="batches in a step")
    parser.add_argument("--log_every", type=int, default=10, help="steps")
    parser.add_argument("--folder", type=Path, default=Path("runs/fabric"))
    args = parser.parse_args(arguments)

    logger = CSVLogger(args.folder, name="logs")
    fabric = treadle.Fabric(devices=args.devices, strategy=args.strategy, precision=args.precision, loggers=logger)
    fabric.launch()
    torch.manual_seed(0)
    with fabric.rank_zero_first(local=True):
        data = digits_of_sklearn(args.folder / "digits.pt")
    loader = DataLoader(Subset(data, range(1500)), args.batch_size, shuffle=True, drop_last=True)
    held_out = fabric.to_device(data[1500:])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(loader)

    losses, step = [], 0
    for epoch in range(args.epochs):
        for index, (scans, digits) in enumerate(loader):
            first = index - index % args.accumulate
            window = min(args.accumulate, len(loader) - first)  # the last one may be shorter
            closes = index + 1 == first + window
            with fabric.no_backward_sync(model, enabled=not closes):
                with fabric.autocast():
                    loss = cross_entropy(model(scans), digits)
                fabric.backward(loss / window)
            if not closes:
                continue
            fabric.clip_gradients(model, max_norm=args.max_norm, optimizer=optimizer)
            fabric.step(optimizer)
            optimizer.zero_grad()
            step += 1
            if step % args.log_every == 0:
                fabric.log("train_loss", fabric.all_reduce(loss.detach()), step)
        with torch.no_grad(), fabric.autocast():
            scans, digits = held_out
            losses.append(cross_entropy(model(scans), digits).item())
        fabric.log("held_out_loss", losses[-1], step)
        fabric.print(f"epoch {epoch}: loss {losses[-1]:.6f}")
    return losses


if __name__ == "__main__":
    main()
