"""Back to the middle of an epoch: ten million samples, shuffled. How long it takes, and whether it is the right place.

Measured is the time from ``fit`` to the first batch in ``training_step``: of a run that begins, and of one that resumes
after half of its first epoch's 312,500 batches. The difference is what the position costs over loading. (The checkpoint
is that of a run that was stopped after three batches, its counters set to the middle.) The right place is where a plain
loop over the same loader with the same seed would be.

    python benchmarks/resume_position.py
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

import treadle
import treadle.callbacks

SAMPLES, BATCH_SIZE = 10_000_000, 32
MIDDLE = SAMPLES // BATCH_SIZE // 2
KINDS = ("0 workers", "2 workers", "a sampler of one's own")


class Numbers(Dataset[int]):
    """Its own indices. Counts in ``reads`` how often it was read, also in worker processes."""

    def __init__(self) -> None:
        self.reads = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        self.reads += 1
        return index


class Permuted(Sampler[int]):
    """A sampler of which nothing is known but its length."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(SAMPLES).tolist())


def loader(kind: str) -> DataLoader[int]:
    if kind == KINDS[2]:
        return DataLoader(Numbers(), BATCH_SIZE, sampler=Permuted())
    return DataLoader(Numbers(), BATCH_SIZE, shuffle=True, num_workers=int(kind.split()[0]))


class Arrived(BaseException):
    """The first batch is there."""


def module(library: Any, *, stops_after: int) -> Any:
    base: Any = treadle.Module if library is treadle else library.LightningModule

    class Weight(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen: list[list[int]] = []

        def on_train_epoch_start(self) -> None:
            torch.manual_seed(1)  # of this epoch's order

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.seen.append(batch.tolist())
            if len(self.seen) > stops_after:
                self.arrived = time.perf_counter()
                raise Arrived
            return self.weight * 1.0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Weight()


def trainer(library: Any, root: Path, **settings: Any) -> Any:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return library.Trainer(accelerator="cpu", default_root_dir=root, max_epochs=1, **{**off, **settings})


def first_batch(library: Any, root: Path, kind: str, ckpt_path: Path | None = None) -> tuple[float, list[int], int]:
    """Seconds until it is there, its samples, and how many samples were read until then."""
    model, data = module(library, stops_after=0), loader(kind)
    started = time.perf_counter()
    with suppress(Arrived):
        trainer(library, root).fit(model, data, ckpt_path=ckpt_path)
    dataset: Any = data.dataset
    return model.arrived - started, model.seen[0], int(dataset.reads)


def stopped_in_the_middle(library: Any, root: Path, kind: str) -> Path:
    """A checkpoint of a run of three batches, its counters set to the middle."""
    path = root / "middle.ckpt"
    saves = library.callbacks.ModelCheckpoint(dirpath=root, filename=path.stem, every_n_train_steps=3)
    with suppress(Arrived):
        fit = trainer(library, root, enable_checkpointing=True, callbacks=[saves])
        fit.fit(module(library, stops_after=3), loader(kind))
    state = torch.load(path, weights_only=True)
    if library is treadle:
        state["stream"]["consumed"] = state["progress"]["batch"] = state["progress"]["batches"] = MIDDLE
    else:
        batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (batches["total"], batches["current"]):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), MIDDLE))
    torch.save(state, path)
    return path


def in_a_plain_loop(kind: str) -> list[int]:
    """The samples in the middle of an epoch whose order is drawn from the same seed."""
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()  # the seed that every loader draws for its workers
    batches: Any = loader(kind).batch_sampler
    found: list[int] = next(islice(batches, MIDDLE, None))
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    libraries = [treadle]
    if importlib.util.find_spec("pytorch_lightning") is not None:
        import pytorch_lightning

        libraries.append(pytorch_lightning)
    print(
        f"torch {torch.__version__}, {SAMPLES:,} samples in batches of {BATCH_SIZE}, resumed after {MIDDLE:,} batches"
    )
    for kind in KINDS:
        right = in_a_plain_loop(kind)
        for library in libraries:
            with tempfile.TemporaryDirectory() as folder:
                path = stopped_in_the_middle(library, Path(folder), kind)
                start, _, _ = first_batch(library, Path(folder), kind)
                middle, samples, reads = first_batch(library, Path(folder), kind, path)
            known = kind != KINDS[2] or library is not treadle  # which draws it from generators of its own
            place = ("the right samples" if samples == right else "other samples") if known else "its own order"
            print(
                f"{kind:23} {library.__name__:18} first batch of a run {start:5.2f} s, of a resumed one {middle:5.2f} s "
                f"({middle - start:+.2f} s); {place}; {reads} samples read"
            )
    if len(libraries) == 1:
        print("pytorch-lightning is not installed: not measured")


if __name__ == "__main__":
    main()
