"""What a run may consist of, and where it may be killed: every cell goes on bit for bit.

One table (``CELLS``). Each cell is a run that is killed by a real SIGKILL, in a forked process, at each of its moments,
and resumed by ``ckpt_path="last"``. What is compared: the samples of each batch with their augmentation, the weights, the
rows byte by byte, and all that the last checkpoint holds.
"""

from __future__ import annotations

import os
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.fsdp  # before forking: each rank would import it
from ranks import on_trainer_ranks
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import MeanMetric

import treadle
from treadle.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    StochasticWeightAveraging,
    WeightAveraging,
)
from treadle.data import CombinedLoader
from treadle.strategies.sharding import whole as unsharded

SIZE, BATCH = 22, 4
"""Five whole batches an epoch, and one of two samples."""


# --- data ---


class Points(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Disturbed from three generators, anew whenever they are read."""

    def __init__(self, size: int = SIZE) -> None:
        self.points = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = 0.1 * torch.randn(3) + random.random() / 10 + float(np.random.rand()) / 10
        return torch.tensor(index), self.points[index] + noise, (self.points[index].sum() > 0).long()


class OwnsItsNoise(Points):
    """Disturbed from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        number, point, label = super().__getitem__(index)
        return number, point + torch.rand(3, generator=self.generator), label


class InBatches(Dataset[Any]):
    """Its items are batches."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> list[Tensor]:
        points = Points()
        return [torch.stack(column) for column in zip(*[points[4 * index + i] for i in range(4)], strict=True)]


class Flow(IterableDataset[Any]):
    """Reads one after the other."""

    def __init__(self) -> None:
        self.points, self.position = Points(), 0

    def __iter__(self) -> Iterator[Any]:
        for index in range(SIZE):
            yield self.points[index]


class KnowsItsPlace(Flow):
    """And can say where it stands."""

    def __iter__(self) -> Iterator[Any]:
        while self.position < SIZE:
            self.position += 1
            yield self.points[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class DrawsAsItGoes(Sampler[int]):
    """A user's sampler: each index from a global generator, at the moment it is asked for."""

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        for number in range(SIZE):
            yield (random.randrange(SIZE), int(np.random.randint(SIZE)), int(torch.randint(SIZE, ())))[number % 3]


class OwnsItsOrder(Sampler[int]):
    """And one with a generator of its own."""

    def __init__(self) -> None:
        self.generator = random.Random(3)

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        for _ in range(SIZE):
            yield self.generator.randrange(SIZE)


class Uneven(Sampler[list[int]]):
    """A user's batch sampler: batches of random sizes."""

    def __init__(self, generator: random.Random | None = None) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[list[int]]:
        draw = self.generator or random
        for _ in range(6):
            yield [draw.randrange(SIZE) for _ in range(draw.randrange(1, 5))]


class Unmeasured(Sampler[list[int]]):
    """A user's batch sampler without a length."""

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(6):
            yield torch.randint(SIZE, (3,)).tolist()


def shuffled(**options: Any) -> Callable[[], DataLoader[Any]]:
    return lambda: DataLoader(Points(), BATCH, shuffle=True, **options)


def in_memory() -> list[Any]:
    points = Points().points
    return [(torch.arange(4), part, (part.sum(1) > 0).long()) for part in points[:20].split(BATCH)] + [
        (torch.arange(2), points[20:], torch.zeros(2, dtype=torch.long))
    ]


DEFAULT = shuffled()


def sampled(sampler: Callable[[], Any], workers: int) -> Callable[[], DataLoader[Any]]:
    return lambda: DataLoader(Points(), BATCH, sampler=sampler(), num_workers=workers)


def in_batches(sampler: Callable[[], Any], workers: int) -> Callable[[], DataLoader[Any]]:
    return lambda: DataLoader(Points(), batch_sampler=sampler(), num_workers=workers)


def combined(mode: Any) -> Callable[[], CombinedLoader]:
    return lambda: CombinedLoader(
        [DataLoader(Points(SIZE), BATCH, shuffle=True, num_workers=1), DataLoader(Points(10), BATCH, shuffle=True)],
        mode,
    )


# --- modules ---


class Net(treadle.Module):
    """Dropout and batch normalization. Writes down what it is trained on, for whoever comes after it was killed."""

    def __init__(self, diary: Path) -> None:
        super().__init__()
        self.diary = diary
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
        self.mean = MeanMetric()

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.layers(points)
        return logits

    def loss(self, batch: Any) -> Tensor:
        parts = [part for part in (batch if isinstance(batch[0], (list, tuple)) else [batch]) if part is not None]
        with self.diary.open("a") as file:
            file.write(f"{self.trainer.progress.batches} {[(p[0].tolist(), p[1].sum().item().hex()) for p in parts]}\n")
        losses = [nn.functional.cross_entropy(self.layers(_two(points)), _two(classes)) for _, points, classes in parts]
        return torch.stack(losses).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.mean.update(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, points, classes = batch
        self.log("val_loss", nn.functional.cross_entropy(self.layers(points), classes))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def _two(tensor: Tensor) -> Tensor:
    """Batch normalization can't work on one sample."""
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor])


class Scheduled(Net):
    """With a scheduler of every kind in turn."""

    how: Callable[[Any], dict[str, Any]]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": type(self).how(optimizer)}


def scheduled(how: Callable[[Any], Any], **settings: Any) -> type[Net]:
    return type("Scheduled", (Scheduled,), {"how": staticmethod(lambda o: {"scheduler": how(o), **settings})})


class Weighed(Net):
    """Each batch has a weight."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "weight": batch[0].sum() + 1.0}


class Closure(Net):
    """Its optimizer evaluates the step several times."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=2)


class TwoOptimizers(Net):
    """Manual optimization: two optimizers in turn, a scheduler of its own."""

    def __init__(self, diary: Path) -> None:
        super().__init__(diary)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[batch_idx % 3 == 0]
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.layers[:2].parameters(), lr=0.05)
        second = torch.optim.SGD(self.layers[2:].parameters(), lr=0.05, momentum=0.9)
        return [first, second], [lr_scheduler.StepLR(first, 1, 0.7)]


# --- the table ---


@dataclass(frozen=True)
class Cell:
    """A run, and the moments at which it is killed."""

    loader: Callable[[], Any] = DEFAULT
    module: type[Net] = Net
    callbacks: Callable[[], list[treadle.Callback]] = list
    trainer: dict[str, Any] = field(default_factory=dict)
    before: tuple[int, ...] = (2, 6, 9)
    """Killed before it trains on this batch, counted over epochs; the one before is in the checkpoint."""
    inside: tuple[int, ...] = ()
    """Killed inside the validation after so many batches; the last of them is not in the checkpoint."""
    says: str = ""
    """The code of a warning that is said on resuming."""


def swa() -> list[treadle.Callback]:
    return [StochasticWeightAveraging(0.02, swa_epoch_start=1, inputs_of=lambda batch: batch[1])]


OFTEN = {"val_check_interval": 2}
CELLS = {
    # loader workers
    **{f"{count} workers": Cell(shuffled(num_workers=count)) for count in (1, 2, 3, 4)},
    "persistent workers": Cell(shuffled(num_workers=3, persistent_workers=True)),
    "workers that read far ahead": Cell(shuffled(num_workers=2, prefetch_factor=4)),
    "workers, inside an accumulation": Cell(shuffled(num_workers=2), trainer={"accumulate_grad_batches": 4}),
    "workers, and no last batch": Cell(shuffled(num_workers=2, drop_last=True)),
    "workers, a generator of the loader's and a limit": Cell(
        lambda: DataLoader(Points(), BATCH, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(1)),
        trainer={"limit_train_batches": 4},
        before=(1, 4, 5),
    ),
    "workers, and a generator of the loader's": Cell(
        lambda: DataLoader(Points(), BATCH, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(1))
    ),
    # samplers
    **{
        f"{name}, {workers} workers": Cell(sampled(sampler, workers))
        for workers in (0, 2)
        for name, sampler in {
            "weighted": lambda: WeightedRandomSampler([1.0, 2.0] * (SIZE // 2), SIZE),
            "with replacement": lambda: RandomSampler(Points(), replacement=True, num_samples=SIZE),
            "by epoch": lambda: DistributedSampler(Points(), num_replicas=1, rank=0),
            "a sampler that draws as it goes": DrawsAsItGoes,
            "a sampler with a generator": OwnsItsOrder,
        }.items()
    },
    **{
        f"{name}, {workers} workers": Cell(in_batches(sampler, workers))
        for workers in (0, 2)
        for name, sampler in {
            "batches of a user's sampler": lambda: BatchSampler(DrawsAsItGoes(), 3, drop_last=True),
            "a batch sampler": Uneven,
            "a batch sampler with a generator": lambda: Uneven(random.Random(4)),
            "a batch sampler without length": Unmeasured,
        }.items()
    },
    "no batch sampler, 2 workers": Cell(lambda: DataLoader(InBatches(), None, shuffle=True, num_workers=2)),
    "a data set with a generator": Cell(lambda: DataLoader(OwnsItsNoise(), BATCH, shuffle=True)),
    **{
        f"a subset, {workers} workers": Cell(
            sampled(lambda: SubsetRandomSampler(range(0, SIZE, 2)), workers), before=(1, 3, 5)
        )
        for workers in (0, 2)
    },
    # iterables
    "an iterable": Cell(lambda: DataLoader(Flow(), BATCH), says="replay"),
    "an iterable in a worker": Cell(lambda: DataLoader(Flow(), BATCH, num_workers=1), says="replay"),
    "an iterable that knows its place": Cell(lambda: DataLoader(KnowsItsPlace(), BATCH)),
    "an iterable inside an accumulation": Cell(
        lambda: DataLoader(KnowsItsPlace(), BATCH), trainer={"accumulate_grad_batches": 4}, before=(2, 5, 6, 7, 9)
    ),
    "a list of batches": Cell(in_memory, says="replay"),
    # several loaders
    "the longer of two loaders, cycled": Cell(combined("max_size_cycle")),
    "the longer of two loaders": Cell(combined("max_size")),
    "the shorter of two loaders": Cell(combined("min_size"), before=(1, 3, 5)),
    # accumulation and optimization
    "inside an accumulation": Cell(trainer={"accumulate_grad_batches": 4}, before=(1, 3, 4, 5, 6, 7, 9, 11)),
    "accumulation that grows": Cell(
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 3})], before=(4, 5, 6, 7, 8, 10)
    ),
    "weighted gradients, accumulated": Cell(module=Weighed, trainer={"accumulate_grad_batches": 3}),
    "gradients clipped by value": Cell(trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16": Cell(trainer={"precision": "bf16-mixed", "accumulate_grad_batches": 2}),
    "an optimizer with a closure": Cell(module=Closure),
    "two optimizers": Cell(module=TwoOptimizers),
    "two optimizers, accumulated": Cell(module=TwoOptimizers, trainer={"accumulate_grad_batches": 3}),
    # schedulers
    "plateau by validation": Cell(
        module=scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), monitor="val_loss"), trainer=OFTEN
    ),
    "plateau by validation, each third step": Cell(
        module=scheduled(
            lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
            monitor="val_loss",
            interval="step",
            frequency=3,
        ),
        trainer=OFTEN,
    ),
    "one cycle": Cell(module=scheduled(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12), interval="step")),
    "warm restarts, accumulated": Cell(
        module=scheduled(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3), interval="step"),
        trainer={"accumulate_grad_batches": 2},
    ),
    "schedulers in sequence": Cell(
        module=scheduled(
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
            ),
            interval="step",
        ),
        callbacks=lambda: [LearningRateMonitor()],
    ),
    # validation
    "validation inside epochs": Cell(trainer=OFTEN, before=(2, 3, 6), inside=(2, 4, 8)),
    "validation after half an epoch": Cell(trainer={"val_check_interval": 0.5}, inside=(3, 6, 9)),
    "validation across epochs": Cell(
        trainer={"val_check_interval": 4, "check_val_every_n_epoch": None}, inside=(4, 8, 12)
    ),
    "validation at the end of epochs": Cell(before=(), inside=(6, 12)),
    "validation inside an accumulation": Cell(trainer={**OFTEN, "accumulate_grad_batches": 3}, inside=(2, 4, 8)),
    "validation with workers": Cell(shuffled(num_workers=2), trainer=OFTEN, inside=(4,)),
    "rare rows and few batches": Cell(trainer={"log_every_n_steps": 3, "limit_train_batches": 4}, before=(2, 4, 6)),
    # callbacks
    "an exponential average": Cell(callbacks=lambda: [EMAWeightAveraging(0.8)], trainer=OFTEN, inside=(4, 8)),
    "a mean of weights": Cell(callbacks=lambda: [WeightAveraging()], trainer=OFTEN, inside=(4, 8)),
    "stochastic averaging": Cell(
        module=scheduled(lambda o: lr_scheduler.StepLR(o, 1, 0.9)), callbacks=swa, before=(4, 6, 8, 11), inside=(12,)
    ),
    "patience": Cell(
        callbacks=lambda: [EarlyStopping("val_loss", patience=3, min_delta=9.0)],
        trainer={**OFTEN, "max_epochs": 9},
        before=(3, 5, 6, 7),
        inside=(4, 6),
    ),
}


# --- the run ---


class Dies(treadle.Callback):
    """Kills its process, and those that it started: before it trains after so many batches, or inside the validation
    after them."""

    def __init__(self, after: int, inside_validation: bool) -> None:
        self.after, self.inside_validation = after, inside_validation
        self.saved = after - inside_validation

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.progress.batches == self.after and not self.inside_validation:
            self.die()

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.progress.batches == self.after and self.inside_validation and batch_idx == 1:
            self.die()

    def die(self) -> None:
        os.killpg(0, signal.SIGKILL)


class Saves(treadle.Callback):
    """After so many batches, inside accumulation windows too, and at the end: saving leaves no trace."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
        if final or trainer.progress.batches == self.after:
            trainer.save_checkpoint(trainer.run_folder / "checkpoints" / "last.ckpt")


NEVER = Dies(-1, False)
"""A callback that may skip batches changes how DDP rounds: gradients meet at each batch. So all runs have one."""


def run(
    cell: Cell, root: Path, *, resumes: bool = False, dies: Dies = NEVER, strategy: str = "auto", diary: str = "diary"
) -> Net:
    root.mkdir(parents=True, exist_ok=True)
    treadle.seed_everything(999 if resumes else 7)  # a resumed process starts from another state
    model = cell.module(root / diary)
    trainer = treadle.Trainer(
        default_root_dir=root,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[Saves(dies.saved), dies, *cell.callbacks()],
        strategy=strategy,
        **{"max_epochs": 2, "log_every_n_steps": 1, **cell.trainer},
    )
    validation = DataLoader(Points(8), 2)
    trainer.fit(model, cell.loader(), validation, ckpt_path="last" if resumes else None)
    return model


def killed(cell: Cell, root: Path, dies: Dies) -> None:
    """Run it in a process that ends as it says: by SIGKILL."""
    root.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run; these use their own
        pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.setpgid(0, 0)
            try:
                run(cell, root, dies=dies)
            except BaseException:  # noqa: BLE001  # whatever it was, the test says it
                (root / "error").write_text(traceback.format_exc())
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    error = root / "error"
    assert status == -signal.SIGKILL, error.read_text() if error.exists() else "it ended before its moment"


def diary(root: Path, name: str = "diary") -> dict[str, str]:
    """What each batch was; one that was trained on twice must have been the same."""
    seen: dict[str, str] = {}
    for line in (root / name).read_text().splitlines():
        batch, content = line.split(" ", 1)
        assert seen.setdefault(batch, content) == content, f"batch {batch} differs when it comes again"
    return seen


def left(root: Path) -> dict[str, Any]:
    folder = root / "runs/version_0"
    return {
        "rows": (folder / "metrics.csv").read_text(),
        "checkpoint": torch.load(folder / "checkpoints/last.ckpt", weights_only=True),
    }


def differing(one: Any, other: Any, at: str) -> Iterator[str]:
    """Where two such values are not the same bit by bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            yield at
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differing(one[key], other[key], f"{at}[{key!r}]")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from differing(first, second, f"{at}[{index}]")
    elif one != other and not (one != one and other != other):
        yield at


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("name", CELLS)
class TestARunThatIsKilled:
    def test_goes_on_bit_for_bit(self, tmp_path: Path, name: str) -> None:
        """The same samples with the same augmentation, weights, rows and state as if nothing had happened."""
        cell = CELLS[name]
        whole = run(cell, tmp_path / "whole")
        expected, seen = left(tmp_path / "whole"), diary(tmp_path / "whole")
        for dies in [Dies(at, False) for at in cell.before] + [Dies(at, True) for at in cell.inside]:
            moment = f"{'in the validation ' * dies.inside_validation}after {dies.after}"
            root = tmp_path / moment
            killed(cell, root, dies)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                again = run(cell, root, resumes=True)
            said = {text for text in (str(warning.message) for warning in caught) if "treadle[" in text}
            assert all(cell.says and f"treadle[{cell.says}]" in text for text in said), said
            assert diary(root) == seen, moment
            assert list(differing(left(root), expected, "left")) == [], moment
            assert list(differing(again.state_dict(), whole.state_dict(), "weights")) == [], moment


class Read(Points):
    """Counts how often it was read, in worker processes too."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.reads = torch.zeros((), dtype=torch.long).share_memory_()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        self.reads += 1
        return super().__getitem__(index)


WAYS: dict[str, Callable[[Read], Any]] = {
    "shuffled": lambda data: DataLoader(data, 2, shuffle=True),
    "2 workers": lambda data: DataLoader(data, 2, shuffle=True, num_workers=2),
    "persistent workers": lambda data: DataLoader(data, 2, shuffle=True, num_workers=2, persistent_workers=True),
    "weighted": lambda data: DataLoader(data, 2, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE)),
    "a user's sampler": lambda data: DataLoader(data, 2, sampler=DrawsAsItGoes()),
    "a user's batch sampler": lambda data: DataLoader(data, batch_sampler=BatchSampler(OwnsItsOrder(), 2, False)),
    "two loaders": lambda data: CombinedLoader(
        [DataLoader(data, 2, shuffle=True), DataLoader(Points(), 2)], "min_size"
    ),
}


@pytest.mark.parametrize("way", WAYS)
class TestTheWayToThePosition:
    def test_reads_no_sample(self, tmp_path: Path, way: str) -> None:
        """Killed after 9 of an epoch's 11 batches: the resumed run reads the 4 samples of the last two."""
        killed(Cell(lambda: WAYS[way](Read()), trainer={"max_epochs": 1}), tmp_path / "run", Dies(9, False))
        data = Read()
        run(Cell(lambda: WAYS[way](data), trainer={"max_epochs": 1}), tmp_path / "run", resumes=True)
        assert int(data.reads) == 4


# --- several ranks ---

RANKS = {
    "inside an epoch": Cell(before=(2, 5)),
    "with workers": Cell(shuffled(num_workers=1), before=(2, 5)),
    "a sampler that draws as it goes": Cell(sampled(DrawsAsItGoes, 0), before=(2, 5)),
    "a batch sampler": Cell(in_batches(Uneven, 0), before=(2, 5)),
    "inside an accumulation": Cell(trainer={"accumulate_grad_batches": 2}, before=(1, 4)),
    "inside a validation": Cell(trainer=OFTEN, before=(), inside=(2, 5)),
    "an exponential average": Cell(
        callbacks=lambda: [EMAWeightAveraging(0.8)], trainer=OFTEN, before=(4,), inside=(2,)
    ),
    "plateau by validation": Cell(
        module=scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), monitor="val_loss"),
        trainer=OFTEN,
        before=(4,),
    ),
    "patience": Cell(
        callbacks=lambda: [EarlyStopping("val_loss", patience=2, min_delta=9.0)],
        trainer={**OFTEN, "max_epochs": 9},
        before=(3, 4),
    ),
    "two optimizers": Cell(module=TwoOptimizers, before=(2, 5)),
}


class Stopped(BaseException):
    """Stands for SIGKILL where a process has more to do: no handler of the Trainer may save anything on it."""


class Stops(Dies):
    """On all ranks."""

    def die(self) -> None:
        raise Stopped


def on_a_rank(folder: Path, strategy: str) -> dict[str, list[str]]:
    """What differs in each cell of the table, on one of several ranks."""
    found = {}
    for name, cell in RANKS.items():
        try:
            found[name] = stopped_on_a_rank(cell, folder / name, strategy)
        except Exception:  # noqa: BLE001  # the other cells have their own
            found[name] = [traceback.format_exc()]
    return found


def stopped_on_a_rank(cell: Cell, folder: Path, strategy: str) -> list[str]:
    own = f"diary {torch.distributed.get_rank()}"
    whole = run(cell, folder / "whole", strategy=strategy, diary=own)
    found: list[str] = []
    for stops in [Stops(at, False) for at in cell.before] + [Stops(at, True) for at in cell.inside]:
        root = folder / f"{stops.after} {stops.inside_validation}"
        with pytest.raises(Stopped):
            run(cell, root, dies=stops, strategy=strategy, diary=own)
        again = run(cell, root, resumes=True, strategy=strategy, diary=own)
        torch.distributed.barrier()  # rank 0 has written
        weights = [unsharded(dict(module.named_parameters())) for module in (again, whole)]
        found += differing(*weights, f"{root.name}: weights")  # buffers are rank 0's, in the checkpoint
        found += differing(diary(root, own), diary(folder / "whole", own), f"{root.name}: batches")
        found += differing(left(root), left(folder / "whole"), f"{root.name}: left")
    return found


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def differences(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[str]]]:
    return on_trainer_ranks(2, on_a_rank, tmp_path_factory.mktemp("ranks"), request.param, timeout=200.0)


@pytest.mark.parametrize("name", RANKS)
class TestARunOnTwoRanks:
    def test_goes_on_bit_for_bit(self, differences: list[dict[str, list[str]]], name: str) -> None:
        """On each rank: its samples, the weights, the rows, and all that the last checkpoint holds."""
        assert [rank[name] for rank in differences] == [[], []]
