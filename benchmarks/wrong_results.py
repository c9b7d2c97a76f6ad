"""Eleven results: what is right, what pytorch-lightning gives, and what treadle gives. The same programs, run by both.

python benchmarks/wrong_results.py
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import DataLoader

import treadle
import treadle.callbacks
import treadle.loggers

LIGHTNING = importlib.util.find_spec("pytorch_lightning") is not None
TWO_RANKS = "--two-ranks"
"""Before a library's name: makes this program one of its two, which starts the other."""


# --- what the programs are made of; ``library`` is one of the two packages, whose names are the same ---


def module(library: Any) -> Any:
    """One weight whose gradient is 1. It notes its samples and gradients, and logs the mean of its batches."""
    base: Any = treadle.Module if library is treadle else library.LightningModule

    class Weight(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen: list[int] = []
            self.gradients: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.seen += map(int, batch)
            self.log("train_mean", batch.mean(), on_step=False, on_epoch=True)
            return self.weight * 1.0

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert self.weight.grad is not None
            self.gradients.append(round(self.weight.grad.item(), 3))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("epoch_index", float(self.current_epoch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Weight


def trainer(library: Any, root: Path, **settings: Any) -> Any:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off = dict.fromkeys(names, False)
    return library.Trainer(**{"accelerator": "cpu", "default_root_dir": root, "max_epochs": 1, **off, **settings})


def saving(library: Any, root: Path, *callbacks: Any, **settings: Any) -> dict[str, Any]:
    """For a trainer that saves."""
    checkpoints = library.callbacks.ModelCheckpoint(dirpath=root, save_last=True, **settings)
    return {"enable_checkpointing": True, "callbacks": [*callbacks, checkpoints]}


def numbers(count: int, batch_size: int = 1, **options: Any) -> DataLoader[Any]:
    """The samples 0.0, 1.0, 2.0 and so on."""
    return DataLoader(torch.arange(float(count)), batch_size, **options)  # type: ignore[arg-type]


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_and_resumed(library: Any, root: Path) -> tuple[Any, Any]:
    """An epoch of 8 batches in two processes, the first of which dies after 5. The second's trainer and module."""

    class Dies(library.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 5:
                raise Killed

    with suppress(Killed):
        first = trainer(library, root, **saving(library, root, Dies(), every_n_train_steps=1))
        first.fit(module(library)(), numbers(8))
    second, model = trainer(library, root), module(library)()
    second.fit(model, numbers(8), ckpt_path=str(root / "last.ckpt"))
    return second, model


def listed(values: Any) -> str:
    return " ".join(map(str, values))


# --- the eleven; each says what came out ---


def last_checkpoint(library: Any, root: Path) -> str:
    settings = saving(library, root, monitor="epoch_index", mode="min")
    trainer(library, root, max_epochs=5, **settings).fit(module(library)(), numbers(2), numbers(2))
    return f"epoch {torch.load(root / 'last.ckpt', weights_only=True)['epoch']}"


def shuffle_order(library: Any, root: Path) -> str:
    def seen(ckpt_path: Path | None = None, **settings: Any) -> list[int]:
        torch.manual_seed(7)  # as a script does that begins with its seed
        model = module(library)()
        trainer(library, root, **settings).fit(model, numbers(8, shuffle=True), ckpt_path=ckpt_path)
        return model.seen  # type: ignore[no-any-return]

    orders = [seen(max_epochs=1, **saving(library, root))]
    orders += [seen(root / "last.ckpt", max_epochs=epoch, **saving(library, root)) for epoch in (2, 3)]
    same = [sample for order in orders for sample in order] == seen(max_epochs=3)
    return f"{len(set(map(tuple, orders)))}, {'as' if same else 'not as'} in one run"


def rest_of_an_epoch(library: Any, root: Path) -> str:
    _, model = killed_and_resumed(library, root)
    return listed(model.seen)


def short_window(library: Any, root: Path) -> str:
    model = module(library)()
    trainer(library, root, accumulate_grad_batches=3).fit(model, numbers(8))
    return listed(model.gradients)


def interrupted_mean(library: Any, root: Path) -> str:
    resumed, _ = killed_and_resumed(library, root)
    return str(resumed.callback_metrics["train_mean"].item())


def evaluated_checkpoint(library: Any, root: Path) -> str:
    settings = {"max_epochs": 2, "max_steps": 3, **saving(library, root, every_n_train_steps=1)}
    trainer(library, root, **settings).fit(module(library)(), numbers(2))
    logger = library.loggers.CSVLogger(root)
    evaluation = trainer(library, root, logger=logger)
    evaluation.validate(module(library)(), numbers(2), ckpt_path=str(root / "last.ckpt"), verbose=False)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    return f"step {row['step']}, epoch {row['epoch']}"


def writes(library: Any, root: Path) -> str:
    with patch.object(torch, "save", wraps=torch.save) as save:
        trainer(library, root, max_epochs=3, **saving(library, root)).fit(module(library)(), numbers(2))
    return str(save.call_count)


def two_optimizers(library: Any, root: Path) -> str:
    class Pair(module(library)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(batch_idx)
            for weight, optimizer in zip((self.weight, self.other), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(weight * 1.0)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([weight], lr=0.1) for weight in (self.weight, self.other)]

    model = Pair()
    trainer(library, root, max_steps=8).fit(model, numbers(8))
    return str(len(model.seen))


def weighted_mean(library: Any, root: Path) -> str:
    class Means(module(library)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("mean", batch["value"].mean())

    def time_first(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"tokens": torch.zeros(3, len(samples)), "value": torch.stack(samples)}

    loader = numbers(5, batch_size=4, collate_fn=time_first)
    (result,) = trainer(library, root).validate(Means(), loader, verbose=False)
    return str(result["mean"])


class Scale:
    """An object of the user's own."""


def object_among_hyperparameters(library: Any, root: Path) -> str:
    class WithAnObject(module(library)):  # type: ignore[misc]
        def __init__(self, scale: Scale) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer(library, root, **saving(library, root)).fit(WithAnObject(Scale()), numbers(2))
    try:
        loaded = WithAnObject.load_from_checkpoint(root / "last.ckpt", scale=Scale())
    except Exception as error:  # noqa: BLE001 - whichever it is, it is the result
        return type(error).__name__
    return f"weight {loaded.weight.item():.1f}"


def order_in_two_processes(library: Any, _root: Path) -> str:
    command = [sys.executable, __file__, TWO_RANKS, library.__name__]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return finished.stdout.splitlines()[-1]


def order_in_one_process(library: Any, root: Path) -> str:
    model = module(library)()
    trainer(library, root).fit(model, numbers(32, shuffle=False))
    return listed(model.seen[:4])


def two_ranks(name: str) -> None:
    """One of two processes that train on the samples 0 to 31; the first says which it got."""
    library = importlib.import_module(name)
    silence()
    model = module(library)()
    with tempfile.TemporaryDirectory() as root:
        run = trainer(library, Path(root), devices=2, strategy="ddp")
        run.fit(model, numbers(32, shuffle=False))
    if run.is_global_zero:
        print(listed(model.seen[:4]))


@dataclass(frozen=True)
class Row:
    number: int
    what: str
    right: str
    result: Callable[[Any, Path], str]


ROWS = [
    Row(1, "last.ckpt of 5 epochs, the first one best", "epoch 4", last_checkpoint),
    Row(2, "orders of 3 epochs, a process for each", "3, as in one run", shuffle_order),
    Row(3, "samples after a kill at 5 of 8", "5 6 7", rest_of_an_epoch),
    Row(4, "gradients, 8 batches of 1.0 by threes", "1.0 1.0 1.0", short_window),
    Row(5, "epoch's mean of 0 to 7, after that kill", "3.5", interrupted_mean),
    Row(6, "row of validate(ckpt_path), at step 3", "step 2, epoch 1", evaluated_checkpoint),
    Row(7, "writes for 3 epochs, save_last=True", "3", writes),
    Row(8, "batches, 2 optimizers and max_steps=8", "8", two_optimizers),
    Row(9, "mean of 0 to 4, in batches of 4 and 1", "2.0", weighted_mean),
    Row(10, "load_from_checkpoint, object in hparams", "weight -0.2", object_among_hyperparameters),
    Row(11, "shuffle=False, rank 0 of 2", "0 2 4 6", order_in_two_processes),
    Row(11, "shuffle=False, one process", "0 1 2 3", order_in_one_process),
]


def measured(row: Row, library: Any) -> str:
    with tempfile.TemporaryDirectory() as root, redirect_stderr(io.StringIO()):
        return row.result(library, Path(root))


def silence() -> None:
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    torch.set_num_threads(1)
    libraries: dict[str, Any] = {"treadle": treadle}
    if LIGHTNING:
        import pytorch_lightning

        libraries = {"pytorch-lightning": pytorch_lightning, **libraries}
    silence()
    versions = ", ".join(f"{name} {library.__version__}" for name, library in libraries.items())
    print(f"torch {torch.__version__}, {versions}")
    line = "{:>2}  {:40}  {:16}" + "  {:23}" * len(libraries)
    print(line.format("", "", "right", *libraries).rstrip())
    for row in ROWS:
        results = [measured(row, library) for library in libraries.values()]
        print(line.format(row.number, row.what, row.right, *results).rstrip(), flush=True)
    if not LIGHTNING:
        print("pytorch-lightning is not installed: not measured")


if __name__ == "__main__":
    if TWO_RANKS in sys.argv:
        two_ranks(sys.argv[-1])
    else:
        main()
