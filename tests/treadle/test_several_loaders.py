"""Several loaders at once, as the loops read them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping
from treadle.data import CombinedLoader
from treadle.errors import ConfigError
from treadle.testing import MemoryLogger


def loader(*numbers: float, size: int = 1) -> DataLoader[Any]:
    return DataLoader(torch.tensor(numbers), size)  # type: ignore[arg-type]


class Weight(treadle.Module):
    """One weight; ``seen`` lists batches as they come, ``places`` the indices they came with."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []
        self.places: list[tuple[int, int]] = []
        self.settings = settings

    def training_step(self, batch: Any) -> Tensor:
        self.seen.append({key: value.tolist() for key, value in batch.items()} if isinstance(batch, dict) else batch)
        return self.weight * 1.0

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.places.append((dataloader_idx, batch_idx))
        self.log("x", batch.mean(), **self.settings)

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return batch + 10 * dataloader_idx

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestTraining:
    def test_on_a_dict_reads_from_all_at_once_and_cycles_the_shorter(self, make_bare: Any) -> None:
        model = Weight()
        make_bare().fit(model, {"a": loader(1.0, 2.0, 3.0), "b": loader(7.0, 8.0)})
        assert model.seen == [{"a": [1.0], "b": [7.0]}, {"a": [2.0], "b": [8.0]}, {"a": [3.0], "b": [7.0]}]

    def test_on_a_combined_loader_has_its_mode(self, make_bare: Any) -> None:
        model = Weight()
        make_bare().fit(model, CombinedLoader({"a": loader(1.0, 2.0, 3.0), "b": loader(7.0, 8.0)}, "min_size"))
        assert len(model.seen) == 2

    def test_one_after_the_other_is_refused(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="sequential"):
            make_bare().fit(Weight(), CombinedLoader([loader(1.0)], "sequential"))


class TestEvaluation:
    def test_reads_one_after_the_other_and_tells_which(self, make_bare: Any) -> None:
        model = Weight()
        results = make_bare().validate(model, [loader(1.0, 2.0), loader(7.0)], verbose=False)
        assert model.places == [(0, 0), (0, 1), (1, 0)]
        assert results == [{"x/dataloader_idx_0": 1.5}, {"x/dataloader_idx_1": 7.0}]

    def test_may_keep_one_metric_over_all_of_them(self, make_bare: Any) -> None:
        """add_dataloader_idx=False: the mean over every sample of every loader."""
        results = make_bare().test(
            Weight(add_dataloader_idx=False), [loader(1.0, 2.0, size=2), loader(6.0)], verbose=False
        )
        assert results == [{"x": 3.0}, {"x": 3.0}]

    def test_names_steps_and_epochs_before_the_loader(self, make_bare: Any) -> None:
        logger = MemoryLogger()
        model = Weight(on_step=True, on_epoch=True)
        make_bare(logger=logger).validate(model, [loader(1.0), loader(7.0)], verbose=False)
        assert logger.rows == [
            {"step": 0, "epoch": 0, "x_step/dataloader_idx_0": 1.0},
            {"step": 1, "epoch": 0, "x_step/dataloader_idx_1": 7.0},
            {"step": 0, "epoch": 0, "x_epoch/dataloader_idx_0": 1.0, "x_epoch/dataloader_idx_1": 7.0},
        ]

    def test_metrics_of_no_loader_are_in_each_result(self, make_bare: Any) -> None:
        class Adds(Weight):
            def on_validation_epoch_end(self) -> None:
                self.log("whole", 1.0)

        results = make_bare().validate(Adds(), [loader(1.0), loader(7.0)], verbose=False)
        assert [result["whole"] for result in results] == [1.0, 1.0]

    def test_limits_hold_for_each_of_them(self, make_bare: Any) -> None:
        model = Weight()
        trainer = make_bare(limit_val_batches=1)
        trainer.validate(model, [loader(1.0, 2.0), loader(7.0, 8.0)], verbose=False)
        assert model.places == [(0, 0), (1, 0)]
        assert trainer.num_val_batches == [1, 1]

    def test_while_fitting_callbacks_follow_one_of_them(self, make_bare: Any) -> None:
        model = Weight()
        trainer = make_bare(max_epochs=9, callbacks=EarlyStopping("x/dataloader_idx_1", patience=2))
        trainer.fit(model, loader(1.0), [loader(1.0), loader(7.0)])
        assert trainer.current_epoch == 3
        assert trainer.num_sanity_val_batches == [1, 1]

    def test_side_by_side_is_one_batch_of_all(self, make_bare: Any) -> None:
        class Pairs(Weight):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                self.seen.append((batch["a"].tolist(), batch["b"].tolist()))

        model = Pairs()
        combined = CombinedLoader({"a": loader(1.0, 2.0), "b": loader(7.0, 8.0)}, "max_size")
        make_bare().validate(model, combined, verbose=False)
        assert model.seen == [([1.0], [7.0]), ([2.0], [8.0])]

    def test_hooks_of_a_batch_are_told_which(self, make_bare: Any) -> None:
        """Those that take the index; others are called without it."""
        told = []

        class Tells(treadle.Callback):
            def on_validation_batch_start(
                self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
            ) -> None:
                told.append((dataloader_idx, batch_idx))

            def on_validation_batch_end(  # type: ignore[override]
                self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                told.append(batch_idx)

        make_bare(callbacks=Tells()).validate(Weight(), [loader(1.0), loader(7.0)], verbose=False)
        assert told == [(0, 0), 0, (1, 0), 0]

    def test_transfer_hooks_are_told_which(self, make_bare: Any) -> None:
        class Scales(Weight):
            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                return batch * (dataloader_idx + 1)

        results = make_bare().validate(Scales(), [loader(1.0), loader(7.0)], verbose=False)
        assert results == [{"x/dataloader_idx_0": 1.0}, {"x/dataloader_idx_1": 14.0}]


class TestPrediction:
    def test_returns_a_list_for_each(self, make_bare: Any) -> None:
        outputs = make_bare().predict(Weight(), [loader(1.0, 2.0), loader(7.0)])
        assert [[float(batch) for batch in of_one] for of_one in outputs] == [[1.0, 2.0], [17.0]]

    def test_knows_the_samples_of_a_batch(self, make_bare: Any) -> None:
        indices = []

        class Looks(treadle.Callback):
            def on_predict_batch_end(self, trainer: Any, *_: Any) -> None:
                indices.append(trainer.predict_batch_indices)

        make_bare(callbacks=Looks()).predict(Weight(), [loader(1.0, 2.0, 3.0, size=2), [torch.ones(1)]])
        assert indices == [[0, 1], [2], None]


class TestASumOverLoaders:
    def test_of_a_metric_in_two_hooks_is_two_metrics(self, make_bare: Any) -> None:
        """The same name twice in one hook with other settings is a mistake, told by name."""

        class Twice(Weight):
            def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
                self.log("x", 1.0)
                self.log("x", 1.0, prog_bar=True)

        with pytest.raises(ConfigError, match=r"self.log\('x'\) was called twice"):
            make_bare().validate(Twice(), [loader(1.0)], verbose=False)
