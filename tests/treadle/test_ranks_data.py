"""Whatever loaders give: on several ranks nothing is lost or counted twice, and all of them end together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_training import Left, Net, Numbered, left_by, trainer_for
from ranks import on_trainer_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from treadle.data import CombinedLoader


class Evaluated(Net):
    """Logs a plain mean, a sum, a maximum, and a metric object, if torchmetrics is there."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []
        torchmetrics = pytest.importorskip("torchmetrics")
        kinds = ["val", "test0", "test1"]
        self.means = nn.ModuleDict({kind: torchmetrics.MeanMetric() for kind in kinds})

    def shared(self, batch: Any, kind: str) -> None:
        x, y, indices = batch
        self.read += indices.tolist()
        losses = nn.functional.cross_entropy(self.net(x), y, reduction="none")
        self.log("mean", losses.mean())
        self.log("sum", float(len(x)), reduce_fx="sum")
        self.log("max", x.max(), reduce_fx="max")
        self.means[kind].update(losses.detach())
        self.log("object", self.means[kind])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.shared(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.shared(batch, f"test{dataloader_idx}")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return batch[2]


def evaluated(folder: Path, strategy: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # torchmetrics tells rank 0 alone, if a rank is one when it is imported; these were forked later.
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")
    for count in (37, 5, 8):
        module = Evaluated()
        trainer = trainer_for(folder, strategy, logger=False, enable_checkpointing=False)
        loader = DataLoader(Numbered(count), 8)
        found[f"validate {count}"] = trainer.validate(module, loader, verbose=False)
        found[f"two {count}"] = trainer.test(module, [loader, DataLoader(Numbered(11), 4)], verbose=False)
        found[f"read {count}"] = module.read
        found[f"predict {count}"] = trainer.predict(module, loader)
    module = Evaluated()
    trainer = trainer_for(folder, strategy, logger=False, enable_checkpointing=False, max_epochs=1)
    trainer.fit(module, DataLoader(Numbered(), 8), DataLoader(Numbered(37), 8))
    found["after fit"] = trainer.test(module, DataLoader(Numbered(37), 8), verbose=False)
    return found


@pytest.mark.parametrize("count, strategy", [(2, "ddp"), (2, "fsdp"), (4, "ddp")])
class TestEvaluation:
    def test_gives_the_numbers_of_one_device(self, tmp_path: Path, count: int, strategy: str) -> None:
        single = evaluated(tmp_path, "auto")
        runs = on_trainer_ranks(count, evaluated, tmp_path, strategy)
        for run in runs:
            for name, value in single.items():
                if name.startswith(("validate", "two")):
                    for ours, theirs in zip(run[name], value, strict=True):
                        assert ours == pytest.approx(theirs, rel=1e-6), name
            assert run["after fit"] == runs[0]["after fit"]
        for size in (37, 5, 8):
            numbers = [n for run in runs for batch in run[f"predict {size}"] for n in batch.tolist()]
            assert sorted(numbers) == list(range(size)), size


class Lines(IterableDataset[Any]):
    """Rank 1 has fewer."""

    def __iter__(self) -> Iterator[Any]:
        data, rank = Numbered(), torch.distributed.get_rank()
        for index in range(rank, len(data) - 10 * rank, torch.distributed.get_world_size()):
            yield data[index]


def fitted(folder: Path, make: Callable[[], Any], settings: dict[str, Any]) -> Left:
    torch.manual_seed(0)
    module = Net()
    trainer = trainer_for(folder, **{"logger": False, "enable_checkpointing": False, "max_epochs": 1, **settings})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, make())
    left = left_by(trainer, module)
    left.folder = " | ".join(str(w.message) for w in caught)
    return left


def samples(left: Left) -> list[list[int]]:
    return [indices for _, _, indices in left.seen]


class TestAnIterableDataSet:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    @pytest.mark.parametrize("accumulate", [1, 4])
    def test_ends_with_the_shortest_rank(self, tmp_path: Path, strategy: str, accumulate: int) -> None:
        settings = {"strategy": strategy, "accumulate_grad_batches": accumulate}
        runs = on_trainer_ranks(2, fitted, tmp_path, lambda: DataLoader(Lines(), 4), settings)
        assert len(runs[0].seen) == len(runs[1].seen) == 4
        assert "more batches" in runs[0].folder
        for name, value in runs[0].weights.items():
            assert torch.equal(value, runs[1].weights[name])


class TestAListOfBatches:
    def test_is_dealt_out(self, tmp_path: Path) -> None:
        runs = on_trainer_ranks(2, fitted, tmp_path, lambda: list(DataLoader(Numbered(), 8)), {"strategy": "ddp"})
        assert [s[0] for s in samples(runs[0])] == [0, 16, 32]
        assert [s[0] for s in samples(runs[1])] == [8, 24, 40]
        single = fitted(tmp_path, lambda: list(DataLoader(Numbered(), 16)), {})
        for name, value in single.weights.items():
            torch.testing.assert_close(runs[1].weights[name], value, atol=1e-6, rtol=1e-6)


class TestOnesOwnDistributedSampler:
    def test_is_left_alone(self, tmp_path: Path) -> None:
        def make() -> Any:
            data = Numbered()
            return DataLoader(data, 8, sampler=DistributedSampler(data, shuffle=True))

        runs = on_trainer_ranks(2, fitted, tmp_path, make, {"strategy": "ddp", "max_epochs": 2})
        for epoch in (0, 1):
            numbers = [[n for e, _, some in run.seen if e == epoch for n in some] for run in runs]
            assert [len(some) for some in numbers] == [22, 22]
            assert set(numbers[0]) | set(numbers[1]) == set(range(43))
        assert runs[0].seen[0][2] != runs[0].seen[3][2]  # set_epoch was called


class TestWithoutDealingOut:
    def test_every_rank_reads_all(self, tmp_path: Path) -> None:
        settings = {"strategy": "ddp", "use_distributed_sampler": False}
        runs = on_trainer_ranks(2, fitted, tmp_path, lambda: DataLoader(Numbered(), 8), settings)
        assert all(sorted(n for some in samples(run) for n in some) == list(range(43)) for run in runs)
        assert runs[0].metrics["samples"] == 86


class Pairs(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = batch["a"], batch["b"]
        together = [torch.cat([one, other]) for one, other in zip(first, second, strict=True)]
        return super().training_step(together, batch_idx)


def fitted_on_pairs(folder: Path, strategy: str, size: int, mode: str) -> Left:
    torch.manual_seed(0)
    module = Pairs()
    trainer = trainer_for(folder, strategy, logger=False, enable_checkpointing=False, max_epochs=2)
    loaders = {
        "a": DataLoader(Numbered(32), size, shuffle=True),
        "b": DataLoader(Numbered(48), size, shuffle=True),
    }
    trainer.fit(module, CombinedLoader(loaders, mode))
    return left_by(trainer, module)


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
class TestSeveralLoadersAtOnce:
    def test_are_dealt_out_each(self, tmp_path: Path, mode: str) -> None:
        single = fitted_on_pairs(tmp_path, "auto", 16, mode)
        runs = on_trainer_ranks(2, fitted_on_pairs, tmp_path, "ddp", 8, mode)
        for name, value in single.weights.items():
            torch.testing.assert_close(runs[1].weights[name], value, atol=1e-6, rtol=1e-6)
        assert runs[0].metrics == pytest.approx(single.metrics, rel=1e-5)


class OfEachStep(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("sum", float(len(batch[0])), sync_dist=True, reduce_fx="sum")
        self.log("one", 1.0, sync_dist=True)
        return super().training_step(batch, batch_idx)


def fitted_on_few(folder: Path, samples: int) -> Left:
    module = OfEachStep()
    trainer = trainer_for(folder, "ddp", max_epochs=1)
    trainer.fit(module, DataLoader(Numbered(samples), 4), DataLoader(Numbered(5), 8))
    return left_by(trainer, module)


class TestARankWithoutABatch:
    @pytest.mark.parametrize("count", [2, 33])
    def test_adds_nothing_and_gets_the_values(self, tmp_path: Path, count: int) -> None:
        """Whether in the last round or in all of them."""
        runs = on_trainer_ranks(4, fitted_on_few, tmp_path, count)
        for run in runs:
            assert run.metrics["samples"] == count
            assert run.metrics["val_samples"] == 5
            assert run.metrics["val_loss"] == runs[0].metrics["val_loss"]
        assert sum(float(row["sum"]) for row in runs[0].rows if row["sum"]) == count
        assert {float(row["one"]) for row in runs[0].rows if row["one"]} == {1.0}
