"""Reinforcement learning: an endless data set that plays with the policy as it is now, and resumes where it stood.

Q-learning on the cliff walk (Sutton and Barto 2018, example 6.6): from the lower left of a grid to the lower right, along
a cliff. A step costs 1, a fall 100 and sends you back to the start. For each batch the data set lets 32 walkers take a
step, mostly as the network advises, and yields what they met. Its ``state_dict`` goes into each checkpoint: a run that was
killed and started again ends with the weights of one that was not. Remove ``runs/streaming_rl`` to start anew.

    python examples/streaming_rl.py
    python examples/streaming_rl.py --max_steps 6000    # goes on from there

Expect a return of -13, that of the shortest way, after 1,750 steps; an untrained network is at -100 or far below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import DataLoader, IterableDataset

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.loggers import CSVLogger

ROWS, COLUMNS = 4, 12
UP, RIGHT, DOWN, LEFT = range(4)
START, GOAL = (ROWS - 1) * COLUMNS, ROWS * COLUMNS - 1
"""Cells are counted from the upper left, row by row; the cliff is between these two."""

Transitions = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Cells, actions, rewards, the cells they led to, and whether that is the goal: each of shape (walkers,)."""


def walk(cells: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step. Returns the cells it leads to, the rewards, and whether the goal is reached."""
    rows = (cells // COLUMNS + torch.tensor([-1, 0, 1, 0])[actions]).clamp(0, ROWS - 1)
    columns = (cells % COLUMNS + torch.tensor([0, 1, 0, -1])[actions]).clamp(0, COLUMNS - 1)
    reached = rows * COLUMNS + columns
    falls = (reached > START) & (reached < GOAL)
    return torch.where(falls, START, reached), torch.where(falls, -100.0, -1.0), reached == GOAL


class Walks(IterableDataset[Transitions]):
    """What ``walkers`` meet as ``policy`` leads them, or chance does, without end: who reaches the goal starts again."""

    def __init__(self, policy: Callable[[Tensor], Tensor], walkers: int = 32, exploration: float = 0.1) -> None:
        self.policy, self.exploration = policy, exploration
        self.cells = torch.full((walkers,), START)
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Transitions]:
        while True:
            cells, shape = self.cells, self.cells.shape
            explores = torch.rand(shape, generator=self.generator) < self.exploration
            actions = torch.where(explores, torch.randint(4, shape, generator=self.generator), self.policy(cells))
            reached, rewards, ends = walk(cells, actions)
            self.cells = torch.where(ends, START, reached)  # before the yield: checkpoints are saved during it
            yield cells, actions, rewards, reached, ends

    def state_dict(self) -> dict[str, Any]:
        return {"cells": self.cells}  # a generator that the data set owns is in each checkpoint anyway

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cells = state["cells"]


class QLearning(treadle.Module):
    """Learns what each action is worth in each cell: its reward, and what the best one after it is worth."""

    def __init__(self, hidden: int = 64, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Embedding(ROWS * COLUMNS, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    @torch.no_grad()
    def policy(self, cells: Tensor) -> Tensor:
        actions: Tensor = self.network(cells.to(self.device)).argmax(dim=1).cpu()
        return actions

    def train_dataloader(self) -> DataLoader[Transitions]:
        return DataLoader(Walks(self.policy), batch_size=None)  # it makes whole batches itself

    def val_dataloader(self) -> list[Tensor]:
        return [torch.tensor([START])]

    def training_step(self, batch: Transitions) -> Tensor:
        cells, actions, rewards, reached, ends = batch
        values = self.network(cells).gather(1, actions.unsqueeze(1)).squeeze(1)
        best_after = self.network(reached).amax(dim=1).detach()
        loss = smooth_l1_loss(values, rewards + best_after * ~ends)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        cells, total = batch.cpu(), 0.0
        for _ in range(100):
            cells, rewards, ends = walk(cells, self.policy(cells))
            total += float(rewards)
            if ends:
                break
        self.log("val_return", total, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams.learning_rate)


def main(arguments: Sequence[str] | None = None) -> treadle.Trainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=3000)
    parser.add_argument("--folder", default="runs", help="where the run's files go")
    args = parser.parse_args(arguments)

    treadle.seed_everything(0)
    trainer = treadle.Trainer(
        max_steps=args.max_steps,
        val_check_interval=250,  # batches: there is no end of an epoch to validate at
        callbacks=ModelCheckpoint(monitor="val_return", mode="max"),
        logger=CSVLogger(args.folder, name="streaming_rl"),
    )
    trainer.fit(QLearning(), ckpt_path="auto")
    trainer.validate()  # the best that was kept
    return trainer


if __name__ == "__main__":
    main()
