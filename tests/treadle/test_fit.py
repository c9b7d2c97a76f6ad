"""What fit, validate, test and predict do, in which order, and how often."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.testing import Classifier, MemoryLogger, NoisyPoints, Points, Recorder


class Weight(treadle.Module):
    """One weight, whose gradient is the mean of the batch. ``gradients`` lists those it stepped with."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.learning_rate = learning_rate
        self.gradients: list[float] = []
        self.batches: list[Any] = []

    def training_step(self, batch: Tensor) -> Tensor | None:
        self.batches.append(batch.tolist())
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None:
        self.log("val_mean", batch.mean())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append(float(self.weight.grad or 0.0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def ones(count: int, size: int = 2) -> list[Tensor]:
    return [torch.ones(size) for _ in range(count)]


class WithoutLength:
    """Batches of a loader that can't tell how many it has."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class TestAnException:
    def test_reaches_callbacks_loggers_and_teardown(self, make_trainer: Any) -> None:
        """And the caller, unchanged."""

        class Breaks(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                raise KeyboardInterrupt

        logger, recorder, seen = MemoryLogger(), Recorder("teardown"), []

        class Notes(treadle.Callback):
            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                seen.append(exception)

        trainer = make_trainer(logger=logger, callbacks=[recorder, Notes()])
        with pytest.raises(KeyboardInterrupt) as caught:
            trainer.fit(Breaks(), datamodule=Points())
        assert seen == [caught.value]
        assert recorder.calls == ["teardown"]
        assert logger.status == "failed"

    def test_in_a_teardown_keeps_no_other_from_running(self, make_bare: Any) -> None:
        """What each of them would free is freed."""

        class Breaks(treadle.Callback):
            def teardown(self, trainer: Any, module: Any, stage: str) -> None:
                raise RuntimeError("here")

        recorder = Recorder("teardown")
        with pytest.raises(RuntimeError, match="here"):
            make_bare(callbacks=[Breaks(), recorder]).fit(Classifier(), datamodule=Points())
        assert recorder.calls == ["teardown"]

    def test_in_validation_leaves_the_modes_of_submodules_as_they_were(self, make_bare: Any) -> None:
        class Breaks(Classifier):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                raise RuntimeError("here")

        model = Breaks()
        with pytest.raises(RuntimeError, match="here"):
            make_bare().validate(model, datamodule=Points())
        assert model.training

    def test_leaves_no_logbook_behind(self, make_bare: Any) -> None:
        """After it, self.log is outside of a run again, and says so."""

        class Breaks(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                raise RuntimeError("here")

        model = Breaks()
        with pytest.raises(RuntimeError, match="here"):
            make_bare().fit(model, datamodule=Points())
        with pytest.warns(treadle.errors.TreadleWarning, match=r"treadle\[log\].*outside of a run"):
            model.log("a", 1.0)

    def test_is_not_hidden_by_success(self, make_trainer: Any) -> None:
        logger = MemoryLogger()
        make_trainer(logger=logger).fit(Classifier(), datamodule=Points())
        assert logger.status == "success"


# --- how long ---


def trained(make_bare: Any, loader: Any, val: Any = None, **settings: Any) -> tuple[treadle.Trainer, Weight]:
    model = Weight()
    trainer = make_bare(**settings)
    trainer.fit(model, loader, val)
    return trainer, model


class TestDuration:
    def test_max_epochs(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(3), max_epochs=2)
        assert (len(model.batches), trainer.current_epoch, trainer.global_step) == (6, 2, 6)

    def test_no_epochs(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(3), max_epochs=0)
        assert (model.batches, trainer.global_step) == ([], 0)

    def test_max_steps_ends_inside_an_epoch(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(3), max_epochs=None, max_steps=4)
        assert (len(model.batches), trainer.global_step) == (4, 4)

    def test_max_steps_counts_optimizer_steps_not_batches(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(6), max_epochs=-1, max_steps=4, accumulate_grad_batches=2)
        assert (len(model.batches), trainer.global_step) == (8, 4)

    def test_the_first_bound_that_is_reached_ends_it(self, make_bare: Any) -> None:
        assert len(trained(make_bare, ones(3), max_epochs=1, max_steps=100)[1].batches) == 3

    def test_should_stop_ends_it_after_the_batch(self, make_bare: Any) -> None:
        _, model = trained(make_bare, ones(5), callbacks=StopsAt(2), max_epochs=3)
        assert len(model.batches) == 2

    def test_min_epochs_delays_a_stop(self, make_bare: Any) -> None:
        """It stops at the first moment that it may."""
        _, model = trained(make_bare, ones(3), callbacks=StopsAt(1), max_epochs=9, min_epochs=2)
        assert len(model.batches) == 6

    def test_min_steps_delays_a_stop(self, make_bare: Any) -> None:
        _, model = trained(make_bare, ones(3), callbacks=StopsAt(1), max_epochs=9, min_steps=4)
        assert len(model.batches) == 4

    def test_max_steps_comes_before_min_epochs(self, make_bare: Any) -> None:
        assert len(trained(make_bare, ones(3), max_steps=2, min_epochs=2)[1].batches) == 2

    def test_the_number_of_steps_is_known_before(self, make_bare: Any) -> None:
        """For schedules: windows of accumulation are counted, also the short last one."""
        trainer, _ = trained(make_bare, ones(8), max_epochs=2, accumulate_grad_batches=3)
        assert trainer.estimated_stepping_batches == trainer.global_step == 6

    @pytest.mark.parametrize("max_steps, known", [(5, 5), (-1, float("inf"))])
    def test_of_a_loader_without_length_only_max_steps_tells_it(
        self, make_bare: Any, max_steps: int, known: float
    ) -> None:
        trainer, _ = trained(make_bare, WithoutLength(ones(8)), max_epochs=1, max_steps=max_steps)
        assert trainer.estimated_stepping_batches == known


class StopsAt(treadle.Callback):
    """Asks to stop after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: treadle.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        trainer.should_stop = trainer.should_stop or trainer.progress.batches == self.batches


class TestLimits:
    @pytest.mark.parametrize("limit, batches", [(3, 3), (0.5, 4), (100, 8), (1.0, 8), (1, 1), (0, 0), (0.0, 0)])
    def test_are_counts_or_fractions(self, make_bare: Any, limit: float, batches: int) -> None:
        trainer, model = trained(make_bare, ones(8), limit_train_batches=limit)
        assert len(model.batches) == trainer.num_training_batches == batches

    def test_hold_for_a_loader_without_length(self, make_bare: Any) -> None:
        assert len(trained(make_bare, WithoutLength(ones(8)), limit_train_batches=3)[1].batches) == 3

    @pytest.mark.parametrize("verb, hook", [("validate", "validation"), ("test", "test"), ("predict", "predict")])
    def test_hold_for_each_evaluation(self, make_bare: Any, verb: str, hook: str) -> None:
        recorder = Recorder(f"on_{hook}_batch_end")
        limits = {"limit_val_batches": 2, "limit_test_batches": 2, "limit_predict_batches": 2}
        getattr(make_bare(callbacks=recorder, **limits), verb)(Classifier(), datamodule=Points(40))
        assert len(recorder.calls) == 2


class TestFastDevRun:
    def test_runs_one_batch_of_each_and_writes_nothing(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        recorder = Recorder("on_train_batch_end", "on_validation_batch_end")
        trainer = treadle.Trainer(fast_dev_run=True, callbacks=[recorder, ModelCheckpoint()], max_epochs=7)
        trainer.fit(Classifier(), datamodule=Points())
        assert recorder.calls == ["on_train_batch_end", "on_validation_batch_end"]
        assert list(tmp_path.iterdir()) == []

    def test_runs_as_many_as_asked_for(self, tmp_path: Path) -> None:
        recorder = Recorder("on_train_batch_end", "on_validation_batch_end", "on_test_batch_end")
        trainer = treadle.Trainer(fast_dev_run=2, callbacks=recorder, default_root_dir=tmp_path)
        trainer.fit(Classifier(), datamodule=Points())
        trainer.test(datamodule=Points())
        assert (
            recorder.calls == ["on_train_batch_end"] * 2 + ["on_validation_batch_end"] * 2 + ["on_test_batch_end"] * 2
        )


# --- when validation runs ---


def validated_after(make_bare: Any, batches: int = 6, **settings: Any) -> list[int]:
    """After how many training batches each validation ran."""
    counts: list[int] = []

    class Notes(treadle.Callback):
        def on_validation_start(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
            counts.append(trainer.progress.batches)

    trained(make_bare, ones(batches), ones(1), callbacks=Notes(), num_sanity_val_steps=0, **settings)
    return counts


class TestValidation:
    def test_runs_at_the_end_of_each_epoch(self, make_bare: Any) -> None:
        assert validated_after(make_bare, max_epochs=2) == [6, 12]

    def test_runs_every_so_many_batches(self, make_bare: Any) -> None:
        """Counted anew in each epoch; what is left over at its end is not validated."""
        assert validated_after(make_bare, max_epochs=2, val_check_interval=4) == [4, 10]

    def test_runs_at_every_fraction_of_an_epoch(self, make_bare: Any) -> None:
        assert validated_after(make_bare, val_check_interval=0.5) == [3, 6]

    def test_runs_in_every_so_many_epochs(self, make_bare: Any) -> None:
        assert validated_after(make_bare, max_epochs=5, check_val_every_n_epoch=2) == [12, 24]

    def test_with_both_intervals(self, make_bare: Any) -> None:
        settings = {"max_epochs": 2, "check_val_every_n_epoch": 2, "val_check_interval": 3}
        assert validated_after(make_bare, **settings) == [9, 12]

    def test_without_a_loader_is_left_out(self, make_bare: Any) -> None:
        """A val loader is optional, and so is validation_step then."""

        class Trains(treadle.Module):
            training_step, configure_optimizers = Weight.training_step, Weight.configure_optimizers

            def __init__(self) -> None:
                super().__init__()
                self.weight, self.learning_rate, self.batches = nn.Parameter(torch.zeros(())), 0.1, []

        trainer = make_bare()
        trainer.fit(Trains(), ones(2))
        assert trainer.num_val_batches == []

    def test_runs_in_eval_mode_without_gradients(self, make_bare: Any) -> None:
        modes: list[tuple[bool, bool]] = []

        class Notes(Classifier):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                modes.append((self.layers.training, torch.is_grad_enabled()))

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                modes.append((self.layers.training, torch.is_grad_enabled()))
                return super().training_step(batch, batch_idx)

        make_bare(limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0, max_epochs=2).fit(
            Notes(), datamodule=Points()
        )
        assert modes == [(True, True), (False, False)] * 2

    def test_restores_each_submodules_own_mode(self, make_bare: Any) -> None:
        """A part that was frozen in eval mode is still so after validation."""
        model = Classifier()
        model.layers[2].eval()
        make_bare().fit(model, datamodule=Points())
        assert [module.training for module in model.layers] == [True, True, False, True]
        assert model.training

    def test_without_batches_is_an_error(self, make_bare: Any) -> None:
        """A generator is used up after its first pass; a validation over nothing would look like one that went well."""
        with pytest.raises(treadle.errors.DataError, match="the val loader gave no batch"):
            trained(make_bare, ones(2), (batch for batch in ones(2)), num_sanity_val_steps=0, max_epochs=2)


class TestTheSanityCheck:
    def test_runs_so_many_batches(self, make_bare: Any) -> None:
        for steps, expected in ((0, 0), (2, 2), (-1, 5), (9, 5)):
            recorder = Recorder("on_validation_batch_end")
            make_bare(num_sanity_val_steps=steps, limit_train_batches=0, callbacks=recorder).fit(
                Weight(), ones(1), ones(5)
            )
            assert len(recorder.calls) == expected

    def test_leaves_no_row_and_no_result(self, make_bare: Any) -> None:
        logger, found = MemoryLogger(), []

        class Notes(treadle.Callback):
            def on_train_start(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
                found.append((dict(trainer.callback_metrics), dict(trainer.logged_metrics), list(logger.rows)))

        make_bare(logger=logger, callbacks=Notes()).fit(Weight(), ones(1), ones(1))
        assert found == [({}, {}, [])]

    @pytest.mark.parametrize("own_generator", [False, True])
    def test_draws_no_random_number(self, make_bare: Any, own_generator: bool) -> None:
        """With or without it, training goes the same way, also when the loaders share a generator."""

        def fitted(steps: int) -> tuple[list[Any], float]:
            treadle.seed_everything(1)
            generator = torch.Generator().manual_seed(3) if own_generator else None
            model = DrawsInValidation()
            loader = DataLoader(NoisyPoints(), 4, shuffle=True, generator=generator)
            make_bare(num_sanity_val_steps=steps).fit(
                model, loader, DataLoader(NoisyPoints(), 4, shuffle=True, generator=generator)
            )
            return model.seen, random.random()

        assert fitted(0) == fitted(2)

    def test_says_that_it_is_one(self, make_bare: Any) -> None:
        flags = []

        class Notes(treadle.Callback):
            def on_validation_start(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
                flags.append((trainer.sanity_checking, trainer.validating, trainer.training))

        make_bare(callbacks=Notes()).fit(Weight(), ones(1), ones(1))
        assert flags == [(True, False, False), (False, True, False)]


class DrawsInValidation(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        random.random()
        torch.rand(3)


# --- gradients ---


class TestAWindowThatEndsWithTheEpoch:
    """Of a loader without length: its step comes after the last batch, and is a step like any other."""

    class Logs(Weight):
        def training_step(self, batch: Tensor) -> Tensor | None:
            self.log("mean", batch.mean())
            return super().training_step(batch)

        def configure_gradient_clipping(self, optimizer: Any, *_: Any) -> None:
            self.log("clipped", 1.0)

    def test_is_logged_validated_and_saved(self, make_trainer: Any) -> None:
        logger, validated = MemoryLogger(), []

        class Looks(treadle.Callback):
            def on_validation_end(self, trainer: Any, module: Any) -> None:
                validated.append(trainer.global_step)

        trainer = make_trainer(
            logger=logger,
            callbacks=[Looks(), ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, filename="{step}")],
            accumulate_grad_batches=2,
            log_every_n_steps=2,
            val_check_interval="2 steps",
            num_sanity_val_steps=0,
            max_epochs=2,
        )
        trainer.fit(self.Logs(), WithoutLength(ones(3)), ones(1))
        assert [row["step"] for row in logger.rows if "mean" in row] == [1, 3]
        assert validated == [2, 4]
        assert sorted(Path(path).name for path in trainer.checkpoint_callback.best_k_models) == [
            "step=2.ckpt",
            "step=4.ckpt",
        ]


class TestAccumulation:
    @pytest.mark.parametrize("loader", [list, WithoutLength], ids=["a list", "without length"])
    def test_steps_with_the_mean_of_each_window(self, make_bare: Any, loader: Any) -> None:
        """8 batches of gradient 1.0 by threes step with 1.0 each; the window of two is divided by two."""
        trainer, model = trained(make_bare, loader(ones(8)), accumulate_grad_batches=3)
        assert model.gradients == pytest.approx([1.0, 1.0, 1.0])
        assert trainer.global_step == 3

    def test_starts_a_window_with_each_epoch(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(4), accumulate_grad_batches=3, max_epochs=2)
        assert model.gradients == pytest.approx([1.0] * 4)
        assert trainer.global_step == 4

    @pytest.mark.parametrize("loader", [list, WithoutLength], ids=["a list", "without length"])
    def test_does_not_count_skipped_batches(self, make_bare: Any, loader: Any) -> None:
        """A loss of None: the window's mean is over the others; a window of nothing else makes no step."""

        class Skips(Weight):
            def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:  # type: ignore[override]
                return None if batch_idx in (1, 3, 4, 5, 8) else super().training_step(batch)

        model, trainer = Skips(), make_bare(accumulate_grad_batches=3)
        trainer.fit(model, loader(ones(9)))
        assert model.gradients == pytest.approx([1.0, 1.0])
        assert trainer.global_step == 2

    def test_equals_one_large_batch(self, make_bare: Any) -> None:
        points = torch.randn(12, 2)
        weights = [self.regression(make_bare, points.split(size), accumulate) for size, accumulate in ((12, 1), (4, 3))]
        torch.testing.assert_close(weights[0], weights[1])

    @staticmethod
    def regression(make_bare: Any, batches: Any, accumulate: int) -> Tensor:
        class Line(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                return (self.weight * batch[:, 0] - batch[:, 1]).square().mean()

        model = Line()
        make_bare(accumulate_grad_batches=accumulate, max_epochs=3).fit(model, list(batches))
        return model.weight.detach()

    def test_a_batch_start_of_minus_one_closes_the_window(self, make_bare: Any) -> None:
        """The rest of the epoch is skipped; what was accumulated until then is stepped with, as a mean."""
        trainer, model = trained(make_bare, ones(8), callbacks=SkipsFrom(5), accumulate_grad_batches=3)
        assert model.gradients == pytest.approx([1.0, 1.0])
        assert trainer.progress.batches == 5


class SkipsFrom(treadle.Callback):
    def __init__(self, index: int) -> None:
        self.index = index

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.index else None


class TestSkippingTheRestOfAnEpoch:
    def test_goes_on_with_the_next(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(4), callbacks=SkipsFrom(2), max_epochs=3)
        assert (len(model.batches), trainer.current_epoch) == (6, 3)

    def test_validates_and_ends_the_epoch(self, make_bare: Any) -> None:
        recorder = Recorder("on_validation_end", "on_train_epoch_end")
        trained(make_bare, ones(4), ones(1), callbacks=[SkipsFrom(2), recorder], num_sanity_val_steps=0)
        assert recorder.calls == ["on_validation_end", "on_train_epoch_end"]

    def test_may_skip_all_of_it(self, make_bare: Any) -> None:
        trainer, model = trained(make_bare, ones(4), callbacks=SkipsFrom(0), max_epochs=2)
        assert (model.batches, trainer.current_epoch, trainer.global_step) == ([], 2, 0)


class TestTheGlobalStep:
    def test_counts_training_steps_that_updated(self, make_bare: Any) -> None:
        class Skips(Weight):
            def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:  # type: ignore[override]
                return None if batch_idx % 2 else super().training_step(batch)

        model, trainer = Skips(), make_bare()
        trainer.fit(model, ones(6))
        assert trainer.global_step == model.global_step == 3

    def test_counts_batches_where_nothing_is_optimized(self, make_bare: Any) -> None:
        class Idle(Weight):
            def configure_optimizers(self) -> None:
                return None

        trainer = make_bare()
        with pytest.warns(treadle.errors.TreadleWarning, match="no-optimizer"):
            trainer.fit(Idle(), ones(3))
        assert trainer.global_step == 3


class TestClipping:
    def test_by_norm(self, make_bare: Any) -> None:
        """The hook sees whole gradients, the optimizer clipped ones."""
        _, model = trained(make_bare, [torch.full((2,), 10.0)], gradient_clip_val=0.5)
        assert model.gradients == [10.0]
        assert model.weight.item() == pytest.approx(-0.1 * 0.5)

    def test_by_norm_over_all_parameters(self, make_bare: Any) -> None:
        class Two(Weight):
            def __init__(self) -> None:
                super().__init__()
                self.other = nn.Parameter(torch.zeros(()))

            def training_step(self, batch: Tensor) -> Tensor:
                return 3 * self.weight + 4 * self.other

        model = Two()
        make_bare(gradient_clip_val=1.0).fit(model, ones(1))
        assert [model.weight.item(), model.other.item()] == pytest.approx([-0.06, -0.08])

    def test_by_value(self, make_bare: Any) -> None:
        _, model = trained(
            make_bare, [torch.full((2,), -10.0)], gradient_clip_val=0.25, gradient_clip_algorithm="value"
        )
        assert model.weight.item() == pytest.approx(0.1 * 0.25)

    def test_leaves_small_gradients_alone(self, make_bare: Any) -> None:
        _, model = trained(make_bare, [torch.full((2,), 0.25)], gradient_clip_val=0.5)
        assert model.weight.item() == pytest.approx(-0.025)


# --- learning rates ---


class Scheduled(Weight):
    """Halves its learning rate with each step of its scheduler. ``rates`` lists what each batch was trained with."""

    def __init__(self, **config: Any) -> None:
        super().__init__(learning_rate=1.0)
        self.config = config
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}

    def training_step(self, batch: Tensor) -> Tensor | None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch)


class TestSchedulers:
    @pytest.mark.parametrize(
        "config, rates",
        [
            ({}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
            ({"interval": "epoch", "frequency": 2}, [1, 1, 1, 1, 0.5, 0.5]),
            ({"interval": "step"}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
            ({"interval": "step", "frequency": 3}, [1, 1, 1, 0.5, 0.5, 0.5]),
        ],
        ids=["by default each epoch", "every second epoch", "each step", "every third step"],
    )
    def test_step(self, make_bare: Any, config: dict[str, Any], rates: list[float]) -> None:
        model = Scheduled(**config)
        make_bare(max_epochs=3).fit(model, ones(2))
        assert model.rates == rates

    def test_count_optimizer_steps_not_batches(self, make_bare: Any) -> None:
        model = Scheduled(interval="step")
        make_bare(accumulate_grad_batches=2).fit(model, ones(5))
        assert model.rates == [1, 1, 0.5, 0.5, 0.25]

    def test_of_an_epoch_step_before_its_end_is_told(self, make_bare: Any) -> None:
        """on_train_epoch_end sees, and can log, the rate of the next epoch."""
        rates: list[float] = []

        class Notes(treadle.Callback):
            def on_train_epoch_end(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        make_bare(callbacks=Notes(), max_epochs=2).fit(Scheduled(), ones(2))
        assert rates == [0.5, 0.25]


class Plateau(Weight):
    """Logs the given values and halves its rate at once when they don't fall."""

    def __init__(self, values: list[float], where: str, **config: Any) -> None:
        super().__init__(learning_rate=1.0)
        self.values, self.where, self.config = values, where, config
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}, "monitor": "followed"}

    def training_step(self, batch: Tensor) -> Tensor | None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.where == "training_step":
            self.log("followed", self.values[self.current_epoch], on_step=False, on_epoch=True)
        return super().training_step(batch)

    def validation_step(self, batch: Tensor) -> None:
        if self.where == "validation_step" and not self.trainer.sanity_checking:
            self.log("followed", self.values[self.current_epoch])

    def on_train_epoch_end(self) -> None:
        if self.where == "on_train_epoch_end":
            self.log("followed", self.values[self.current_epoch])


class TestAPlateauScheduler:
    @pytest.mark.parametrize("where", ["validation_step", "training_step", "on_train_epoch_end"])
    def test_follows_a_metric(self, make_bare: Any, where: str) -> None:
        """Wherever in the epoch it was logged."""
        model = Plateau([3.0, 2.0, 2.5, 2.5], where)
        make_bare(max_epochs=4).fit(model, ones(1), ones(1))
        assert model.rates == [1, 1, 1, 0.5]

    def test_that_finds_no_metric_says_so(self, make_bare: Any) -> None:
        with pytest.raises(treadle.errors.ConfigError, match="follows 'followed', which is not logged"):
            make_bare().fit(Plateau([], "nowhere"), ones(1))

    def test_that_is_not_strict_waits_for_its_metric(self, make_bare: Any) -> None:
        model = Plateau([], "nowhere", strict=False)
        make_bare(max_epochs=2).fit(model, ones(1))
        assert model.rates == [1, 1]


class TestWhatConfigureOptimizersMayReturn:
    @pytest.mark.parametrize(
        "shape",
        [
            lambda o, s: o,
            lambda o, s: [o],
            lambda o, s: (o,),
            lambda o, s: ([o], [s]),
            lambda o, s: ([o], [{"scheduler": s, "interval": "step"}]),
            lambda o, s: {"optimizer": o},
            lambda o, s: {"optimizer": o, "lr_scheduler": s},
            lambda o, s: [{"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "epoch", "name": "x"}}],
        ],
    )
    def test_trains_with_each_shape(self, make_bare: Any, shape: Any) -> None:
        class Shaped(Weight):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return shape(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))

        model = Shaped()
        make_bare().fit(model, ones(2))
        assert model.weight.item() == pytest.approx(-0.2)


# --- data ---


class TestTheUsersLoader:
    def test_keeps_its_order(self, make_bare: Any) -> None:
        """shuffle=False means it: training sees the data in order, in every epoch."""
        model = Classifier()
        make_bare(max_epochs=2).fit(model, DataLoader(NoisyPoints(10), 4))
        assert model.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2

    def test_is_shuffled_anew_in_each_epoch(self, make_bare: Any) -> None:
        model = Classifier()
        make_bare(max_epochs=2).fit(model, DataLoader(NoisyPoints(16), 16, shuffle=True))
        assert sorted(model.seen[0]) == sorted(model.seen[1]) == list(range(16))
        assert model.seen[0] != model.seen[1]

    @pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"num_workers": 1, "persistent_workers": True}])
    def test_is_not_changed(self, make_bare: Any, options: dict[str, Any]) -> None:
        loader = DataLoader(NoisyPoints(8), 4, **options)
        before = dict(vars(loader))
        make_bare().fit(Classifier(), loader, loader)
        assert vars(loader) == before

    def test_sees_the_epoch_where_it_asks_for_it(self, make_bare: Any) -> None:
        """set_epoch of a sampler that shuffles by epoch."""

        class ByEpoch(torch.utils.data.SequentialSampler):
            def set_epoch(self, epoch: int) -> None:
                epochs.append(epoch)

        epochs: list[int] = []
        data = NoisyPoints(4)
        make_bare(max_epochs=3).fit(Classifier(), DataLoader(data, 4, sampler=ByEpoch(data)))
        assert epochs == [0, 1, 2]

    def test_may_be_the_modules_own(self, make_bare: Any) -> None:
        class Complete(Weight):
            def train_dataloader(self) -> list[Tensor]:
                return ones(3)

        model = Complete()
        make_bare().fit(model)
        assert len(model.batches) == 3

    def test_may_be_a_datamodule_in_the_first_place(self, make_bare: Any) -> None:
        model = Classifier()
        make_bare().fit(model, Points())
        assert len(model.seen) == 5


class TestSteps:
    def test_may_leave_out_the_index(self, make_bare: Any) -> None:
        """And call their arguments what they like."""
        indices = []

        class Named(Weight):
            def training_step(self, these: Tensor, number: int) -> Tensor:  # type: ignore[override]
                indices.append(number)
                return self.weight * these.mean()

        make_bare(max_epochs=2).fit(Named(), ones(2))
        assert indices == [0, 1, 0, 1]

    def test_may_return_a_dict(self, make_bare: Any) -> None:
        """The loss in it is trained on; hooks get all of it."""
        outputs = []

        class Extra(Weight):
            def training_step(self, batch: Tensor) -> Any:
                return {"loss": super().training_step(batch), "extra": 7}

            def on_train_batch_end(self, out: Any, batch: Any, batch_idx: int) -> None:
                outputs.append(out["extra"])

        model = Extra()
        make_bare().fit(model, ones(2))
        assert outputs == [7, 7]
        assert model.gradients == [1.0, 1.0]

    def test_may_return_a_loss_of_one_element(self, make_bare: Any) -> None:
        class OneElement(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                return (self.weight * batch.mean()).reshape(1)

        model = OneElement()
        make_bare().fit(model, ones(2))
        assert model.gradients == [1.0, 1.0]


class TestPredict:
    def test_returns_the_outputs_of_each_batch(self, make_bare: Any) -> None:
        data = Points()
        outputs = make_bare().predict(Classifier(), datamodule=data)
        assert [len(output) for output in outputs] == [4, 4, 2]

    def test_applies_the_module_by_default(self, make_bare: Any) -> None:
        class Doubles(treadle.Module):
            def forward(self, batch: Tensor) -> Tensor:
                return 2 * batch

        assert [out.tolist() for out in make_bare().predict(Doubles(), ones(2))] == [[2.0, 2.0]] * 2

    def test_keeps_nothing_when_not_asked_for(self, make_bare: Any) -> None:
        assert make_bare().predict(Classifier(), datamodule=Points(), return_predictions=False) is None

    def test_runs_in_eval_mode(self, make_bare: Any) -> None:
        """Dropout is off: twice the same."""
        model, data = Classifier(), Points()
        once, again = (torch.cat(make_bare().predict(model, datamodule=data)) for _ in range(2))
        assert torch.equal(once, again)
        assert model.training


class TestASecondFit:
    def test_starts_anew(self, make_trainer: Any) -> None:
        """Counters are those of the new fit, and last.ckpt is its state."""
        trainer, data = make_trainer(), Points()
        trainer.fit(Classifier(), datamodule=data)
        second = Classifier()
        trainer.fit(second, datamodule=data)
        assert (trainer.current_epoch, trainer.global_step) == (1, 5)
        saved = torch.load(trainer.checkpoint_callback.last_model_path, weights_only=True)["state_dict"]
        assert all(torch.equal(saved[name], value) for name, value in second.state_dict().items())


class TestEvaluationOfACheckpoint:
    def test_leaves_the_callbacks_of_the_fit_alone(self, make_trainer: Any) -> None:
        """test(ckpt_path="best") is of that one's weights and counters; which checkpoints are kept, and where the fit
        stands, is not its business."""
        trainer, data = make_trainer(max_epochs=3, callbacks=ModelCheckpoint(save_top_k=-1)), Points()
        trainer.fit(Classifier(), datamodule=data)
        kept = trainer.checkpoint_callback.best_k_models
        first = next(iter(kept))
        trainer.test(datamodule=data, ckpt_path=first, verbose=False)
        assert trainer.checkpoint_callback.best_k_models == kept
        assert trainer.global_step == 15

    def test_without_a_model_takes_the_fitted_one_as_it_is(self, make_trainer: Any) -> None:
        trainer, model, data = make_trainer(), Classifier(), Points()
        trainer.fit(model, datamodule=data)
        assert trainer.test(datamodule=data, verbose=False) == trainer.test(model, datamodule=data, verbose=False)
