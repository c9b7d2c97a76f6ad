"""Data modules: what a Trainer does with them, and what they can be made from."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

import treadle
from treadle.checkpoint import read
from treadle.data import CombinedLoader
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.testing import Classifier, NoisyPoints, Points

DATA = NoisyPoints(10)


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from iter(int, 1)


class TestFromDatasets:
    def test_loads_one_data_set_each(self) -> None:
        """Shuffled for training, in order for everything else."""
        data = treadle.DataModule.from_datasets(DATA, DATA, DATA, DATA, batch_size=4, num_workers=2)
        loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
        assert [type(loader.sampler) for loader in loaders] == [RandomSampler, *[SequentialSampler] * 3]
        assert {(loader.dataset, loader.batch_size, loader.num_workers) for loader in loaders} == {(DATA, 4, 2)}

    def test_loads_several_in_their_collection(self) -> None:
        data = treadle.DataModule.from_datasets({"a": DATA, "b": DATA}, [DATA, NoisyPoints(4)], batch_size=2)
        assert {name: len(loader) for name, loader in data.train_dataloader().items()} == {"a": 5, "b": 5}
        assert [len(loader) for loader in data.val_dataloader()] == [5, 2]

    def test_does_not_shuffle_an_iterable_one(self) -> None:
        loader = treadle.DataModule.from_datasets([Endless(), DATA]).train_dataloader()
        assert next(iter(loader[0])) == torch.tensor([0])
        assert type(loader[1].sampler) is RandomSampler

    @pytest.mark.parametrize("missing", ["train", "val", "test", "predict"])
    def test_has_no_other_loaders(self, missing: str) -> None:
        given: dict[str, Any] = {f"{name}_dataset": DATA for name in ("train", "val", "test", "predict")}
        data = treadle.DataModule.from_datasets(**{**given, f"{missing}_dataset": None})
        with pytest.raises(ModuleError, match=f"DataModule has no {missing}_dataloader"):
            getattr(data, f"{missing}_dataloader")()

    def test_is_of_the_class_it_is_called_on(self) -> None:
        """Its ``__init__`` gets what it takes; arguments of one's own win."""
        data = Points.from_datasets(DATA, batch_size=5, size=40)
        assert type(data) is Points
        assert dict(data.hparams) == {"size": 40, "batch_size": 5, "num_workers": 0}
        assert data.train_dataloader().dataset is DATA
        assert data.val_dataloader().dataset is data.evaluation  # its own, since none was given

    def test_is_validated_on_while_fitting(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Classifier(), treadle.DataModule.from_datasets(DATA, DATA, batch_size=5))
        assert "val_loss" in trainer.callback_metrics

    def test_can_be_copied_and_pickled(self) -> None:
        data = treadle.DataModule.from_datasets(train_dataset=DATA, batch_size=5)
        for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):  # noqa: S301
            assert len(twin.train_dataloader()) == 2

    @pytest.mark.parametrize(
        "wrong", [5, NoisyPoints, torch.zeros(3), "data", [(1, 2), (3, 4)], [torch.zeros(2)], {"a": [DATA]}, [5]]
    )
    def test_refuses_what_is_no_data_set(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"DataModule.from_datasets\(val_dataset=...\) was given a \w+") as error:
            treadle.DataModule.from_datasets(val_dataset=wrong)
        assert "TensorDataset" in error.value.fix


class WithState(Points):
    """Remembers how often it was set up."""

    def __init__(self, size: int = 20, batch_size: int = 4) -> None:
        super().__init__(size, batch_size)
        self.set_up = 0

    def setup(self, stage: str) -> None:
        self.set_up += 1

    def state_dict(self) -> dict[str, Any]:
        return {"set_up": self.set_up}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_up = state["set_up"]


class Needs(WithState):
    def __init__(self, size: int) -> None:
        super().__init__(size)


class TestLoadingFromACheckpoint:
    @pytest.fixture
    def path(self, make_trainer: Any, tmp_path: Path) -> Path:
        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=WithState(size=40, batch_size=8))
        trainer.save_checkpoint(tmp_path / "it.ckpt")
        return tmp_path / "it.ckpt"

    def test_gives_one_with_its_hyperparameters_and_its_state(self, path: Path) -> None:
        data = WithState.load_from_checkpoint(path)
        assert (data.hparams.size, data.hparams.batch_size, data.set_up) == (40, 8, 1)
        assert len(data.train_dataloader()) == 5

    def test_takes_other_hyperparameters(self, path: Path, tmp_path: Path) -> None:
        """Given as arguments, or in a file in place of the checkpoint's."""
        assert WithState.load_from_checkpoint(path, batch_size=2).hparams.batch_size == 2
        (tmp_path / "h.json").write_text('{"size": 16}')
        data = WithState.load_from_checkpoint(path, hparams_file=tmp_path / "h.json", batch_size=2)
        assert dict(data.hparams) == {"size": 16, "batch_size": 2, "num_workers": 0}

    def test_says_which_argument_is_missing(self, path: Path) -> None:
        checkpoint = read(path)
        del checkpoint["datamodule_hyper_parameters"]
        torch.save(checkpoint, path)
        with pytest.raises(CheckpointError, match=r"lacks size, which Needs needs"):
            Needs.load_from_checkpoint(path)
        assert Needs.load_from_checkpoint(path, size=8).set_up == 1

    def test_is_refused_where_there_was_none(self, make_trainer: Any, tmp_path: Path) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(), DataLoader(NoisyPoints(), 4))
        trainer.save_checkpoint(tmp_path / "it.ckpt")
        with pytest.raises(CheckpointError, match="holds no DataModule"):
            WithState.load_from_checkpoint(tmp_path / "it.ckpt")

    def test_never_reads_objects(self, path: Path) -> None:
        with pytest.raises(ConfigError, match="weights_only=False"):
            WithState.load_from_checkpoint(path, weights_only=False)


class Moves(Points):
    """Has hooks for its batches."""

    calls: list[Any]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(("before", dataloader_idx))
        return batch[:2]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.calls.append((device.type, dataloader_idx))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(("after", dataloader_idx))
        identity, point = batch
        return identity, point, (point.sum(1) > 0).long()

    def val_dataloader(self) -> Any:
        return [DataLoader(self.evaluation, 10), DataLoader(self.evaluation, 10)]


class Two(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


class TestItsBatchHooks:
    def test_change_nothing_by_default(self) -> None:
        batch = [torch.zeros(1), {"a": torch.ones(1)}]
        data = treadle.DataModule()
        moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert data.on_after_batch_transfer(data.on_before_batch_transfer(moved, 0), 0) == batch

    def test_are_called_with_the_loaders_index(self, make_bare: Any) -> None:
        data = Moves(size=20)
        data.calls = []
        make_bare().validate(Two(), datamodule=data, verbose=False)
        assert data.calls == [(hook, index) for index in (0, 1) for hook in ("before", "cpu", "after")]


class TestAFailedRun:
    def test_is_told_to_it(self, make_bare: Any) -> None:
        class Told(Points):
            heard: BaseException | None = None

            def on_exception(self, exception: BaseException) -> None:
                self.heard = exception

        class Breaks(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                raise ValueError("a user's mistake")

        data = Told()
        with pytest.raises(ValueError, match="a user's mistake") as error:
            make_bare().fit(Breaks(), datamodule=data)
        assert data.heard is error.value


class TestPrintingOne:
    def test_shows_its_loaders_and_the_sizes_of_their_data(self) -> None:
        class Mine(treadle.DataModule):
            def train_dataloader(self) -> Any:
                return {"a": DataLoader(DATA, 4), "b": [torch.zeros(1)]}

            def val_dataloader(self) -> Any:
                return [DataLoader(Endless(), 4), DataLoader(TensorDataset(torch.zeros(3)))]

            def test_dataloader(self) -> Any:
                return CombinedLoader([DataLoader(DATA, 5)], "sequential")

        assert str(Mine()).splitlines() == [
            "Mine",
            "  train_dataloader['a']: 10 samples in 3 batches",
            "  train_dataloader['b']: 1 batch",
            "  val_dataloader[0]: an unknown number of batches",
            "  val_dataloader[1]: 3 samples in 3 batches",
            "  test_dataloader[0]: 10 samples in 2 batches",
            "  predict_dataloader: none",
        ]

    def test_does_not_fail_before_setup(self) -> None:
        class Later(treadle.DataModule):
            def setup(self, stage: str) -> None:
                self.data = DATA

            def train_dataloader(self) -> Any:
                return DataLoader(self.data, 5)

            def val_dataloader(self) -> Any:
                return DataLoader(DATA, self.trainer.world_size)

        later = Later()
        assert str(later).splitlines()[1:3] == [
            "  train_dataloader: not known before setup",
            "  val_dataloader: not known before setup",
        ]
        later.setup("fit")
        assert "train_dataloader: 10 samples in 2 batches" in str(later)

    def test_draws_nothing(self) -> None:
        class Splits(treadle.DataModule):
            def train_dataloader(self) -> Any:
                return DataLoader(torch.utils.data.random_split(DATA, [8, 2])[0])

        before = torch.get_rng_state()
        assert "8 samples" in str(Splits())
        assert torch.equal(torch.get_rng_state(), before)

    def test_shows_those_made_from_data_sets(self) -> None:
        assert str(treadle.DataModule.from_datasets(val_dataset=DATA)).splitlines() == [
            "DataModule",
            "  train_dataloader: none",
            "  val_dataloader: 10 samples in 10 batches",
            "  test_dataloader: none",
            "  predict_dataloader: none",
        ]


class TestItsTrainer:
    def test_is_an_error_before_it_has_one(self) -> None:
        with pytest.raises(ModuleError, match="DataModule has no trainer"):
            _ = treadle.DataModule().trainer

    def test_is_there_in_a_run(self, make_bare: Any) -> None:
        class Looks(Points):
            found: Any = None

            def setup(self, stage: str) -> None:
                self.found = self.trainer

        data, trainer = Looks(), make_bare()
        trainer.fit(Classifier(), datamodule=data)
        assert data.found is trainer
