"""Metric objects: anything with update, compute and reset; torchmetrics' among them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryRecall

import treadle
from treadle.errors import ConfigError, ModuleError
from treadle.testing import MemoryLogger

BATCHES = [torch.tensor([float(n)]) for n in range(1, 7)]


class Total:
    """A metric object of one's own: no module, no base class."""

    def __init__(self) -> None:
        self.resets = 0
        self.reset()

    def update(self, value: Tensor) -> None:
        self.total = self.total + float(value)

    def compute(self) -> float:
        return self.total

    def reset(self) -> None:
        self.total = 0.0
        self.resets += 1


class Weight(treadle.Module):
    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.metric = metric

    def training_step(self, batch: Tensor) -> Tensor:
        self.metric.update(batch)
        self.log("x", self.metric, on_step=False, on_epoch=True)
        return self.weight * 1.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(make_bare: Any, model: treadle.Module, *loaders: Any, **settings: Any) -> list[dict[str, float]]:
    logger = MemoryLogger()
    make_bare(logger=logger, **settings).fit(model, *loaders)
    return logger.rows


class TestAnObjectThatIsLogged:
    @pytest.mark.parametrize("metric", [Total, MeanMetric])
    def test_is_computed_and_reset_at_the_epochs_end(self, make_bare: Any, metric: Any) -> None:
        rows = fit(make_bare, Weight(metric()), BATCHES, max_epochs=2)
        assert [row["x"] for row in rows] == [21.0, 21.0] if metric is Total else [3.5, 3.5]

    def test_on_steps_shows_the_value_of_the_batch(self, make_bare: Any) -> None:
        """Where the object keeps what a call returned last, as torchmetrics does; written at log points."""

        class Calls(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.metric(batch)
                self.log("x", self.metric, on_step=True, on_epoch=True)
                return self.weight * 1.0

        rows = fit(make_bare, Calls(MeanMetric()), BATCHES, log_every_n_steps=3)
        assert rows == [
            {"step": 2, "epoch": 0, "x_step": 3.0},
            {"step": 5, "epoch": 0, "x_step": 6.0},
            {"step": 5, "epoch": 0, "x_epoch": 3.5},
        ]

    def test_is_asked_for_its_value_only_when_one_is_needed(self, make_bare: Any) -> None:
        """compute() may be expensive, and may sync."""
        computed = []

        class Counts(Total):
            def compute(self) -> float:
                computed.append(1)
                return super().compute()

        class Steps(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.metric.update(batch)
                self.log("x", self.metric)
                return self.weight * 1.0

        fit(make_bare, Steps(Counts()), BATCHES, log_every_n_steps=3)
        assert len(computed) <= 4  # two rows, and what the epoch's end keeps for callbacks

    def test_of_validation_starts_anew_with_each(self, make_bare: Any) -> None:
        """The sanity check leaves nothing in it."""

        class Validates(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                return self.weight * 1.0

            def validation_step(self, batch: Tensor) -> None:
                self.metric.update(batch)
                self.log("x", self.metric)

        rows = fit(make_bare, Validates(Total()), BATCHES, BATCHES[:3], max_epochs=2)
        assert [row["x"] for row in rows] == [6.0, 6.0]

    def test_may_be_a_collection(self, make_bare: Any) -> None:
        class Several(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.metric.update((batch > 3).float(), (batch > 2).int())
                self.log_dict(self.metric, on_step=False, on_epoch=True)
                return self.weight * 1.0

        (row,) = fit(make_bare, Several(MetricCollection([BinaryAccuracy(), BinaryRecall()])), BATCHES)
        assert row["BinaryAccuracy"] == pytest.approx(5 / 6)
        assert row["BinaryRecall"] == pytest.approx(3 / 4)

    def test_that_computes_more_than_a_number_is_told(self, make_bare: Any) -> None:
        class Pair(Total):
            def compute(self) -> Any:
                return torch.ones(2)

        with pytest.raises(ModuleError, match=r"self.log\('x'\) was given a Tensor of shape \(2,\)"):
            fit(make_bare, Weight(Pair()), BATCHES)


class TestAValueThatIsLogged:
    def test_leaves_the_object_alone(self, make_bare: Any) -> None:
        """Only an object that was logged itself is reset by the loop."""

        class Values(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.metric.update(batch)
                self.log("x", self.metric.compute(), on_step=False, on_epoch=True, reduce_fx="max")
                return self.weight * 1.0

        metric = Total()
        rows = fit(make_bare, Values(metric), BATCHES, max_epochs=2)
        assert [row["x"] for row in rows] == [21.0, 42.0]
        assert metric.resets == 1


class TestStoppedInsideAnEpoch:
    @pytest.mark.parametrize("metric", [Total, MeanMetric])
    @pytest.mark.parametrize("stop", [1, 4])
    def test_what_it_had_gathered_is_state(self, make_bare: Any, tmp_path: Path, metric: Any, stop: int) -> None:
        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.batches == stop:
                    trainer.save_checkpoint(tmp_path / "here.ckpt")
                    raise KeyboardInterrupt

        loader = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            fit(make_bare, Weight(metric()), loader, callbacks=Stops())
        logger = MemoryLogger()
        make_bare(logger=logger).fit(Weight(metric()), loader, ckpt_path=tmp_path / "here.ckpt")
        assert [row["x"] for row in logger.rows] == [21.0] if metric is Total else [3.5]

    def test_an_object_that_is_nowhere_in_the_module_is_told(self, make_bare: Any, tmp_path: Path) -> None:
        found = Total()

        class Elsewhere(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                found.update(batch)
                self.log("x", found, on_step=False, on_epoch=True)
                return self.weight * 1.0

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                trainer.save_checkpoint(tmp_path / "here.ckpt")
                raise KeyboardInterrupt

        loader = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            make_bare(callbacks=Stops()).fit(Elsewhere(None), loader)
        with pytest.warns(treadle.errors.TreadleWarning, match=r"treadle\[metric\]"):
            make_bare().fit(Elsewhere(None), loader, ckpt_path=tmp_path / "here.ckpt")

    @pytest.mark.parametrize("stop", [2, 6])
    def test_it_is_state_before_it_was_ever_logged(self, make_bare: Any, tmp_path: Path, stop: int) -> None:
        """Updated in each step, logged at the epoch's end, with attributes of any name: the commonest pattern."""

        class Private:
            def __init__(self) -> None:
                self.reset()

            def update(self, value: Tensor) -> None:
                self._total, self._count = self._total + value.sum(), self._count + 1

            def compute(self) -> Tensor:
                return self._total / self._count

            def reset(self) -> None:
                self._total, self._count = torch.zeros(()), 0

        class AtTheEnd(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.metric.update(batch)
                return self.weight * 1.0

            def on_train_epoch_end(self) -> None:
                self.log("x", self.metric)

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.batches == stop:
                    trainer.save_checkpoint(tmp_path / "here.ckpt")
                    raise KeyboardInterrupt

        loader = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            make_bare(callbacks=Stops()).fit(AtTheEnd(Private()), loader)
        logger = MemoryLogger()
        make_bare(logger=logger).fit(AtTheEnd(Private()), loader, ckpt_path=tmp_path / "here.ckpt")
        assert [row["x"] for row in logger.rows] == [3.5]


class TestAStageThatEndsBadly:
    def test_leaves_nothing_in_the_object(self, make_bare: Any) -> None:
        """The next one starts anew: after an error, and after a fit that ended inside an epoch."""

        class Fails(Weight):
            fails = True

            def validation_step(self, batch: Tensor) -> None:
                self.metric.update(batch)
                self.log("x", self.metric)
                if self.fails and float(batch) == 2.0:
                    raise RuntimeError("here")

        model = Fails(Total())
        with pytest.raises(RuntimeError, match="here"):
            make_bare().validate(model, BATCHES, verbose=False)
        model.fails = False
        assert make_bare().validate(model, BATCHES, verbose=False) == [{"x": 21.0}]
        make_bare(max_steps=2).fit(model, BATCHES)
        assert model.metric.total == 0.0


class TestOneObjectForTwo:
    def test_loaders_is_an_error(self, make_bare: Any) -> None:
        class Shares(Weight):
            def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int) -> None:
                self.metric.update(batch)
                self.log("x", self.metric)

        with pytest.raises(ConfigError, match="another loader or stage logs too"):
            make_bare().validate(Shares(Total()), [DataLoader(BATCHES), DataLoader(BATCHES)], verbose=False)  # type: ignore[arg-type]

    def test_stages_is_an_error(self, make_bare: Any) -> None:
        """Validation would reset what training had gathered."""

        class Shares(Weight):
            def validation_step(self, batch: Tensor) -> None:
                self.metric.update(batch)
                self.log("x", self.metric)

        with pytest.raises(ConfigError, match="another loader or stage logs too"):
            make_bare().fit(Shares(Total()), BATCHES, BATCHES)

    def test_class_is_no_object(self, make_bare: Any) -> None:
        class Forgets(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.log("x", Total)
                return self.weight * 1.0

        with pytest.raises(ModuleError, match="was given a type"):
            make_bare().fit(Forgets(Total()), BATCHES)
