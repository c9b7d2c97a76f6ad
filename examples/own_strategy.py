"""A strategy of your own: local SGD. Ranks train alone, and average their weights every few steps.

So they talk as rarely as you like, which suits a slow network. A strategy is a class with the attributes and methods of
``treadle.strategies.Strategy``, here 45 lines; an object of it is passed: ``Trainer(strategy=LocalSGD(every=8))``. An
installed package gives it a name, so that ``--trainer.strategy local-sgd`` finds it::

    [project.entry-points."treadle.strategies"]
    local-sgd = "my_package.own_strategy:LocalSGD"

    python examples/own_strategy.py                         # one device
    python examples/own_strategy.py --devices 2 --every 8   # two, and a message every eight steps

Expect an accuracy of 0.90 on digits that are not trained on, of either; with ``--every 1`` they are the same.

References:
    Stich, "Local SGD Converges Fast and Communicates Little" (ICLR 2019), https://arxiv.org/abs/1805.09767
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Subset, TensorDataset

import treadle
from treadle.precision import Precision
from treadle.strategies import Share


@final
class LocalSGD:
    """Every rank has all parameters and steps on its own gradients; each ``every`` steps, their weights are averaged.

    In between, ranks differ: validate and save after a multiple of ``every`` steps. A checkpoint has rank 0's weights.
    """

    name = "local-sgd"
    in_lockstep = False

    def __init__(self, *, every: int = 8) -> None:
        self.every, self.share = every, Share()

    def start(self, ranks: Any, precision: Precision) -> None:
        self.ranks, self.share = ranks, Share(ranks.rank, ranks.size)

    def place(self, module: nn.Module) -> nn.Module:
        module.to(self.ranks.device)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.copy_(self.ranks.broadcast(tensor.data))
        # The one moment that a strategy isn't told of is the optimizer's step; torch tells it.
        own, steps = {id(parameter) for parameter in module.parameters()}, 0

        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal steps
            if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
                steps += 1
                if steps % self.every == 0:
                    self.average(module)

        if hasattr(self, "hook"):
            self.hook.remove()  # of the run before
        self.hook = register_optimizer_step_post_hook(after_step)
        return module

    def average(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.data.copy_(self.ranks.reduce(parameter.data))

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(module, name)
        return bound

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()  # they always are


class Classifier(treadle.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        scans, digits = batch
        return cross_entropy(self.network(scans), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        scans, digits = batch
        self.log("val_accuracy", (self.network(scans).argmax(dim=1) == digits).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(arguments: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--every", type=int, default=8, help="steps from one average to the next")
    parser.add_argument("--max_epochs", type=int, default=8)
    parser.add_argument("--folder", default="runs", help="where the run's files go")
    args = parser.parse_args(arguments)

    treadle.seed_everything(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train = DataLoader(Subset(data, range(1536)), 64 // args.devices, shuffle=True)  # 24 steps an epoch
    trainer = treadle.Trainer(
        devices=args.devices,
        strategy=LocalSGD(every=args.every),
        max_epochs=args.max_epochs,
        default_root_dir=args.folder,
    )
    trainer.fit(Classifier(), train, DataLoader(Subset(data, range(1536, 1797)), 64))
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    trainer.print(f"accuracy: {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main()
