"""WeightAveraging, EMAWeightAveraging and StochasticWeightAveraging: averages of the weights, and runs with them."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from treadle.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from treadle.errors import CheckpointError, ConfigError, ModuleError, TreadleWarning
from treadle.testing import Classifier, NoisyPoints, Points

BATCHES = DataLoader(torch.ones(6), batch_size=2)  # type: ignore[arg-type]


class Falls(treadle.Module):
    """One number that falls by 1 with each step; ``seen`` lists what it was in each evaluation's batches, and ``hooks``
    what the module's own hooks saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []
        self.hooks: dict[str, float] = {}
        self.fail_at: int | None = None

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None:
        self.seen.append(self.weight.item())
        if self.fail_at == self.global_step:
            raise RuntimeError("in the middle of it")

    test_step = predict_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.hooks["epoch end"] = self.weight.item()

    def on_validation_end(self) -> None:
        self.hooks["end"] = self.weight.item()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def fit(make_trainer: Callable[..., treadle.Trainer]) -> Callable[..., Falls]:
    """A fit of three steps an epoch, a validation with one batch after each."""

    def run(callback: treadle.Callback, **settings: Any) -> Falls:
        module = settings.pop("module", None) or Falls()
        ckpt_path = settings.pop("ckpt_path", None)
        settings = {"num_sanity_val_steps": 0, "limit_val_batches": 1, "val_check_interval": 1, **settings}
        trainer = make_trainer(callbacks=[callback], **settings)
        trainer.fit(module, BATCHES, BATCHES, ckpt_path=ckpt_path)
        return module

    return run


def saved(trainer: treadle.Trainer) -> Any:
    return torch.load(trainer.checkpoint_callback.last_model_path, weights_only=True)  # type: ignore[union-attr]


class TestAnEvaluationInAFit:
    def test_runs_with_the_mean_of_the_weights(self, fit: Any) -> None:
        """After steps to -1, -2 and -3 the means are -1, -1.5 and -2."""
        module = fit(WeightAveraging())
        assert module.seen == [-1.0, -1.5, -2.0]
        assert module.weight.item() == -3.0

    def test_runs_with_the_exponential_average(self, fit: Any) -> None:
        module = fit(EMAWeightAveraging(decay=0.75))
        assert module.seen == [-1.0, -1.25, -1.6875]
        assert module.weight.item() == -3.0

    def test_runs_with_any_average(self, fit: Any) -> None:
        """The rules of torch.optim.swa_utils fit."""
        assert fit(WeightAveraging(get_ema_multi_avg_fn(0.75))).seen == [-1.0, -1.25, -1.6875]

    def test_runs_with_the_raw_weights_before_the_first_update(self, fit: Any) -> None:
        averaging = EMAWeightAveraging(decay=0.75, update_starting_at_step=9)
        module = fit(averaging, num_sanity_val_steps=2)
        assert module.seen == [0.0, -1.0, -2.0, -3.0]
        assert averaging.updates == 0

    def test_shows_the_average_to_the_modules_hooks_but_the_last(self, fit: Any) -> None:
        """The module's on_validation_end comes after the callbacks'."""
        assert fit(WeightAveraging()).hooks == {"epoch end": -2.0, "end": -3.0}

    @pytest.mark.parametrize("inference_mode", [True, False])
    def test_leaves_weights_that_can_be_trained(self, fit: Any, inference_mode: bool) -> None:
        """Nothing of inference mode sticks to them."""
        module = fit(WeightAveraging(), inference_mode=inference_mode, max_epochs=2)
        assert module.weight.item() == -6.0
        assert not module.weight.is_inference()
        (module.weight**2).backward()

    def test_that_fails_leaves_the_raw_weights(self, fit: Any) -> None:
        module = Falls()
        module.fail_at = 2
        with pytest.raises(RuntimeError, match="in the middle of it"):
            fit(WeightAveraging(), module=module)
        assert module.seen[-1] == -1.5
        assert module.weight.item() == -2.0

    def test_without_validation_averages_all_the_same(self, make_bare: Any) -> None:
        averaging, module = WeightAveraging(), Falls()
        make_bare(callbacks=averaging).fit(module, BATCHES)
        averaging.apply_to(module)
        assert module.weight.item() == -2.0


class TestWhenItUpdates:
    @pytest.mark.parametrize(
        "settings, updates",
        [
            ({}, 6),
            ({"update_every_n_steps": 2}, 3),
            ({"update_every_n_steps": 4}, 2),
            ({"update_starting_at_step": 2}, 4),
            ({"update_starting_at_epoch": 1}, 3),
            ({"update_starting_at_epoch": 2}, 0),
            ({"update_starting_at_step": 1, "update_every_n_steps": 2}, 2),
        ],
        ids=str,
    )
    def test_is_told_by_steps_and_epochs(self, make_bare: Any, settings: dict[str, int], updates: int) -> None:
        """Of the six steps in two epochs."""
        averaging = EMAWeightAveraging(**settings)
        make_bare(callbacks=averaging, max_epochs=2).fit(Falls(), BATCHES)
        assert averaging.updates == updates

    @pytest.mark.parametrize(
        "batches, updates", [(BATCHES, 2), (list(BATCHES), 2), (iter, 2)], ids=["loader-2", "list-2", "iterator-2"]
    )
    def test_counts_real_steps_when_gradients_accumulate(self, make_bare: Any, batches: Any, updates: int) -> None:
        """Three batches in windows of two are two steps, the second at the epoch's end; also of a loader that can't tell
        its length."""

        class Endless:
            def __iter__(self) -> Any:
                return iter(BATCHES)

        averaging, module = WeightAveraging(), Falls()
        trainer = make_bare(callbacks=averaging, accumulate_grad_batches=2)
        trainer.fit(module, Endless() if batches is iter else batches)
        assert trainer.global_step == averaging.updates == updates
        averaging.apply_to(module)
        assert module.weight.item() == -1.5

    def test_may_be_chosen_by_overriding(self, make_bare: Any) -> None:
        class AtEpochs(WeightAveraging):
            def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
                return epoch_idx is not None and epoch_idx >= 1

        averaging, module = AtEpochs(), Falls()
        make_bare(callbacks=averaging, max_epochs=3).fit(module, BATCHES)
        assert averaging.updates == 2
        averaging.apply_to(module)
        assert module.weight.item() == -7.5  # of -6 and -9
        stopped = AtEpochs()
        make_bare(callbacks=stopped, max_epochs=3, max_steps=8).fit(Falls(), BATCHES)
        assert stopped.updates == 1  # the third epoch goes on when the run is prolonged


class TestACheckpoint:
    def test_has_the_raw_weights_and_the_average_beside_them(self, fit: Any) -> None:
        module = fit(EMAWeightAveraging(decay=0.75))
        checkpoint = saved(module.trainer)
        assert checkpoint["state_dict"]["weight"].item() == -3.0
        assert checkpoint["ema"]["state_dict"]["weight"].item() == -1.6875
        assert checkpoint["ema"]["updates"] == 3

    def test_saved_in_the_middle_of_a_validation_has_the_raw_weights(self, fit: Any, tmp_path: Path) -> None:
        class SavesInside(Falls):
            def on_validation_epoch_end(self) -> None:
                self.trainer.save_checkpoint(tmp_path / f"{self.global_step}.ckpt")

        module = fit(WeightAveraging(), module=SavesInside())
        checkpoint = torch.load(tmp_path / "2.ckpt", weights_only=True)
        assert checkpoint["state_dict"]["weight"].item() == -2.0
        assert checkpoint["average"]["state_dict"]["weight"].item() == -1.5
        assert module.seen == [-1.0, -1.5, -2.0]

    def test_loads_without_the_callback(self, fit: Any, make_bare: Any) -> None:
        path = fit(WeightAveraging()).trainer.checkpoint_callback.last_model_path
        assert Falls.load_from_checkpoint(path).weight.item() == -3.0
        module = Falls()
        make_bare().test(module, BATCHES, ckpt_path=path, verbose=False)
        assert module.seen == [-3.0] * 3

    def test_has_an_average_that_a_module_loads(self, fit: Any) -> None:
        checkpoint = saved(fit(WeightAveraging()).trainer)
        module = Falls()
        module.load_state_dict(checkpoint["average"]["state_dict"])
        assert module.weight.item() == -2.0

    def test_without_an_average_starts_one(self, fit: Any, make_trainer: Any) -> None:
        """The callback was added to a run that had none."""
        make_trainer().fit(Falls(), BATCHES)
        module = fit(WeightAveraging(), max_epochs=2, ckpt_path="last")
        assert module.seen == [-4.0, -4.5, -5.0]

    def test_of_another_module_is_an_error(self, make_trainer: Any) -> None:
        make_trainer(callbacks=WeightAveraging()).fit(Classifier(), datamodule=Points())

        class Wider(Classifier):
            strict_loading = False

            def __init__(self) -> None:
                super().__init__()
                self.more = nn.Linear(2, 2)

        trainer = make_trainer(callbacks=WeightAveraging(), max_epochs=2)
        with pytest.raises(CheckpointError, match="averaged weights don't fit Wider") as error:
            trainer.fit(Wider(), datamodule=Points(), ckpt_path="last")
        assert "more.weight" in error.value.why


class TestAnEvaluationByItself:
    @pytest.mark.parametrize("stage", ["validate", "test", "predict"])
    def test_of_a_checkpoint_runs_with_its_average(self, fit: Any, make_bare: Any, stage: str) -> None:
        """In a new process: a new Trainer, a new module, the callback."""
        path = fit(WeightAveraging()).trainer.checkpoint_callback.last_model_path
        module, trainer = Falls(), make_bare(callbacks=WeightAveraging())
        quiet = {} if stage == "predict" else {"verbose": False}
        getattr(trainer, stage)(module, BATCHES, ckpt_path=path, **quiet)
        assert module.seen == [-2.0] * 3
        assert module.weight.item() == -3.0

    def test_after_the_fit_runs_with_the_average(self, fit: Any) -> None:
        module = fit(WeightAveraging())
        module.seen.clear()
        module.trainer.test(module, BATCHES, verbose=False)
        assert module.seen == [-2.0] * 3
        assert module.weight.item() == -3.0

    def test_of_a_checkpoint_without_average_runs_with_its_weights(self, fit: Any, make_trainer: Any) -> None:
        """The fit's average is not that of another run's checkpoint."""
        other = make_trainer()
        other.fit(Falls(), BATCHES)
        module = fit(WeightAveraging())
        module.seen.clear()
        path = other.checkpoint_callback.last_model_path
        module.trainer.test(module, BATCHES, ckpt_path=path, verbose=False)
        assert module.seen == [-3.0] * 3

    def test_of_another_module_runs_with_its_weights(self, fit: Any) -> None:
        trainer, other = fit(WeightAveraging()).trainer, Falls()
        trainer.test(other, BATCHES, verbose=False)
        assert other.seen == [0.0] * 3


class TestASecondFit:
    def test_starts_its_own_average(self, fit: Any) -> None:
        trainer, second = fit(WeightAveraging()).trainer, Falls()
        trainer.fit(second, BATCHES, BATCHES)
        assert second.seen == [-1.0, -1.5, -2.0]


class Normed(Classifier):
    """With BatchNorm, a tied weight and a buffer that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, nn.BatchNorm1d(4))
        self.again = self.layers[0]
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


class TestBuffers:
    def running_means(self, make_trainer: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        trainer = make_trainer(callbacks=EMAWeightAveraging(0.5, **settings), max_epochs=2)
        trainer.fit(Normed(), datamodule=Points())
        checkpoint = saved(trainer)
        assert checkpoint["ema"]["state_dict"].keys() == checkpoint["state_dict"].keys()
        counts = [checkpoint[key]["layers.1.num_batches_tracked"] for key in ("state_dict",)]
        assert counts == [checkpoint["ema"]["state_dict"]["layers.1.num_batches_tracked"]]
        name = "layers.1.running_mean"
        return checkpoint["state_dict"][name], checkpoint["ema"]["state_dict"][name]

    def test_with_floating_point_numbers_are_averaged(self, make_trainer: Any) -> None:
        raw, averaged = self.running_means(make_trainer)
        assert not torch.equal(raw, averaged)

    def test_are_those_of_now_if_one_wishes(self, make_trainer: Any) -> None:
        raw, averaged = self.running_means(make_trainer, use_buffers=False)
        assert torch.equal(raw, averaged)

    def test_that_are_replaced_by_the_module_are_followed(self, make_bare: Any) -> None:
        """self.mean = ... in a step makes a new tensor each time."""

        class Replaces(Falls):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mean", torch.zeros(()))

            def training_step(self, batch: Tensor) -> Tensor:
                self.mean = self.mean + 1.0
                return super().training_step(batch)

        averaging, module = WeightAveraging(), Replaces()
        make_bare(callbacks=averaging).fit(module, BATCHES)
        averaging.apply_to(module)
        assert module.mean.item() == 2.0  # of 1, 2, 3


class TestSettingsThatMakeNoSense:
    @pytest.mark.parametrize(
        "settings",
        [
            {"decay": 1.5},
            {"decay": -0.1},
            {"update_every_n_steps": 0},
            {"update_starting_at_step": -1},
            {"update_starting_at_epoch": -1},
        ],
        ids=str,
    )
    def test_are_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            EMAWeightAveraging(**settings)

    def test_as_two_averages_are_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="two callbacks that average"):
            make_bare(callbacks=[EMAWeightAveraging(), WeightAveraging()]).fit(Falls(), BATCHES)

    def test_as_an_average_before_there_is_one_are_an_error(self) -> None:
        with pytest.raises(ConfigError, match="has no average to give"):
            WeightAveraging().apply_to(Falls())


class TestACallback:
    @pytest.mark.parametrize("averaging", [WeightAveraging(), EMAWeightAveraging()], ids=["mean", "ema"])
    def test_that_averages_is_pickled_and_copied(self, averaging: WeightAveraging) -> None:
        """Processes are started with it."""
        assert len(pickle.dumps(averaging)) < 2_000
        assert copy.deepcopy(averaging).updates == 0


# --- stochastic weight averaging ---


class Rates(treadle.Callback):
    """``rates`` lists the learning rate in each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.rates.append(round(trainer.optimizers[0].param_groups[0]["lr"], 6))


class Halves(Falls):
    """Its learning rate halves with each epoch."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class TestStochasticWeightAveraging:
    @pytest.mark.parametrize(
        "settings, rates",
        [
            ({"annealing_strategy": "linear", "annealing_epochs": 2}, [1.0, 0.5, 0.35, 0.2, 0.2]),
            ({"annealing_strategy": "cos", "annealing_epochs": 2}, [1.0, 0.5, 0.35, 0.2, 0.2]),
            ({"annealing_epochs": 0}, [1.0, 0.2, 0.2, 0.2, 0.2]),
            ({"annealing_epochs": 0, "swa_epoch_start": 4}, [1.0, 0.5, 0.25, 0.2, 0.2]),
            ({"annealing_epochs": 0, "swa_epoch_start": 0.6}, [1.0, 0.5, 0.2, 0.2, 0.2]),
            ({"annealing_epochs": 0, "swa_epoch_start": 0.0}, [0.2, 0.2, 0.2, 0.2, 0.2]),
        ],
        ids=str,
    )
    def test_takes_over_the_learning_rate(self, make_bare: Any, settings: dict[str, Any], rates: list[float]) -> None:
        """From the second of five epochs, if nothing else is said."""
        swa, seen = StochasticWeightAveraging(0.2, **{"swa_epoch_start": 2, **settings}), Rates()
        make_bare(callbacks=[swa, seen], max_epochs=5).fit(Halves(), BATCHES)
        assert seen.rates == rates

    def test_ends_with_the_mean_of_the_epochs_weights(self, make_bare: Any) -> None:
        """Epochs end at -3, -6, -9; the last two count."""
        module = Falls()
        make_bare(callbacks=StochasticWeightAveraging(1.0, swa_epoch_start=2), max_epochs=3).fit(module, BATCHES)
        assert module.weight.item() == -7.5

    def test_averages_as_one_wishes(self, make_bare: Any) -> None:
        swa, module = StochasticWeightAveraging(1.0, 1, avg_fn=lambda average, weight, n: weight - n), Falls()
        make_bare(callbacks=swa, max_epochs=3).fit(module, BATCHES)
        assert module.weight.item() == -11.0

    def test_gives_each_parameter_group_its_rate(self, make_bare: Any) -> None:
        class Grouped(Classifier):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(
                    [{"params": layer.parameters()} for layer in (self.layers[0], self.layers[3])], lr=1
                )

        trainer = make_bare(callbacks=StochasticWeightAveraging([0.1, 0.2], 1, annealing_epochs=0))
        trainer.fit(Grouped(), datamodule=Points())
        assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.2]
        with pytest.raises(ConfigError, match="2 parameter groups"):
            make_bare(callbacks=StochasticWeightAveraging([0.1], 1)).fit(Grouped(), datamodule=Points())

    def test_counts_no_epoch_that_the_fit_ends_inside(self, make_bare: Any) -> None:
        """It goes on when the run is prolonged."""
        module = Falls()
        make_bare(callbacks=StochasticWeightAveraging(1.0, 1), max_epochs=3, max_steps=5).fit(module, BATCHES)
        assert module.weight.item() == -3.0

    def test_leaves_the_weights_alone_if_it_never_starts(self, make_bare: Any) -> None:
        module = Falls()
        with pytest.warns(TreadleWarning, match=r"treadle\[swa\]: averaging starts in epoch 5 of 2"):
            make_bare(callbacks=StochasticWeightAveraging(1.0, 5), max_epochs=2).fit(module, BATCHES)
        assert module.weight.item() == -6.0

    def test_of_a_second_fit_is_its_own(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=StochasticWeightAveraging(1.0, 1), max_epochs=2)
        for _ in range(2):
            module = Falls()
            trainer.fit(module, BATCHES)
            assert module.weight.item() == -4.5

    @pytest.mark.parametrize(
        "settings",
        [
            {"swa_lrs": 0.0},
            {"swa_lrs": []},
            {"swa_lrs": [0.1, -1.0]},
            {"swa_epoch_start": 0},
            {"swa_epoch_start": 1.5},
            {"annealing_epochs": -1},
            {"annealing_epochs": 1.5},
            {"annealing_strategy": "square"},
        ],
        ids=str,
    )
    def test_with_settings_that_make_no_sense_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            StochasticWeightAveraging(**{"swa_lrs": 0.1, **settings})

    def test_by_a_part_of_epochs_that_nothing_bounds_is_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="without max_epochs"):
            make_bare(callbacks=StochasticWeightAveraging(0.1), max_epochs=None, max_steps=9).fit(Falls(), BATCHES)

    def test_with_several_optimizers_is_an_error(self, make_bare: Any) -> None:
        class Two(Falls):
            automatic_optimization = False

            def configure_optimizers(self) -> Any:
                return [torch.optim.SGD(self.parameters(), lr=1.0) for _ in range(2)]

        with pytest.raises(ConfigError, match="with 2 optimizers"):
            make_bare(callbacks=StochasticWeightAveraging(0.1)).fit(Two(), BATCHES)


def second_item(batch: Any) -> Tensor:
    points: Tensor = batch[1]
    return points


class TestBatchNorm:
    def trained(self, make_bare: Any, **settings: Any) -> Normed:
        treadle.seed_everything(1)
        module = Normed()
        swa = StochasticWeightAveraging(0.05, 1, annealing_epochs=0, inputs_of=second_item)
        loader = DataLoader(NoisyPoints(noise=0.0), 10)
        make_bare(callbacks=swa, max_epochs=2, **settings).fit(module, loader)
        return module

    def test_has_the_statistics_of_the_averaged_weights(self, make_bare: Any) -> None:
        """The mean over the batches of the training data, as torch's update_bn makes it."""
        module = self.trained(make_bare)
        means = [module.layers[0](batch[1]).mean(0) for batch in DataLoader(NoisyPoints(noise=0.0), 10)]
        assert torch.allclose(module.layers[1].running_mean, torch.stack(means).mean(0), atol=1e-6)
        assert module.layers[1].num_batches_tracked == 2
        assert module.layers[1].momentum == 0.1
        assert module.training

    def test_sees_the_batches_that_the_run_sees(self, make_bare: Any) -> None:
        assert self.trained(make_bare, limit_train_batches=1).layers[1].num_batches_tracked == 1

    def test_in_eval_mode_keeps_its_statistics(self, make_bare: Any) -> None:
        class Frozen(Normed):
            def on_train_start(self) -> None:
                self.layers[1].eval()

        module = Frozen()
        swa = StochasticWeightAveraging(0.05, 1, inputs_of=second_item)
        make_bare(callbacks=swa).fit(module, datamodule=Points())
        assert module.layers[1].running_mean.tolist() == [0.0] * 4

    def test_draws_no_random_number_of_the_run(self, make_bare: Any) -> None:
        class NoNorm(Classifier):
            pass

        drawn = []
        for module in (NoNorm, Normed):
            treadle.seed_everything(1)
            model = module()
            treadle.seed_everything(1)
            swa = StochasticWeightAveraging(0.05, 1, inputs_of=second_item)
            make_bare(callbacks=swa).fit(model, DataLoader(NoisyPoints(), 4, shuffle=True))
            drawn.append(torch.rand(()).item())
        assert drawn[0] == drawn[1]

    def test_of_inputs_that_forward_does_not_take_is_an_error(self, make_trainer: Any) -> None:
        """The first item of these batches is an index."""
        with pytest.raises(ModuleError, match=r"Normed\.forward doesn't take") as error:
            make_trainer(callbacks=StochasticWeightAveraging(0.05, 1)).fit(Normed(), datamodule=Points())
        assert "inputs_of" in error.value.fix


# --- resuming ---


class Killed(BaseException):
    """Stands for SIGKILL."""


class KillAfter(treadle.Callback):
    def __init__(self, batches: int | None) -> None:
        self.batches = batches

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        if trainer.progress.batches == self.batches:
            raise Killed


def run(
    root: Path,
    callback: treadle.Callback,
    *,
    module: type[Classifier] = Normed,
    kill_after: int | None = None,
    ckpt_path: str | None = None,
    **settings: Any,
) -> tuple[Classifier, Any]:
    """Four epochs of five steps, saved after each. Returns the module and the last checkpoint."""
    treadle.seed_everything(7 if ckpt_path is None else 999)
    model = module()
    settings = {"max_epochs": 4, "log_every_n_steps": 1, "enable_progress_bar": False, **settings}
    saves = [KillAfter(kill_after), ModelCheckpoint(every="1 step")]
    trainer = treadle.Trainer(default_root_dir=root, callbacks=[callback, *saves], **settings)
    loader = DataLoader(NoisyPoints(), 4, shuffle=True)
    try:
        trainer.fit(model, loader, Points().val_dataloader(), ckpt_path=ckpt_path)
    except Killed:
        assert kill_after is not None
    last = torch.load(root / "runs/version_0/checkpoints/last.ckpt", weights_only=True)
    return model, {**last, "rows": (root / "runs/version_0/metrics.csv").read_text()}


def same(one: Any, other: Any) -> bool:
    """Bit for bit, tensors within dicts and lists too."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_resumes_exactly(tmp_path: Path, make: Callable[[], treadle.Callback], kills: Any, **settings: Any) -> None:
    whole, checkpoint = run(tmp_path / "whole", make(), **settings)
    for kill in kills:
        root = tmp_path / f"killed after {kill}"
        run(root, make(), kill_after=kill, **settings)
        again, resumed = run(root, make(), ckpt_path="last", **settings)
        assert same(again.state_dict(), whole.state_dict()), f"weights differ after {kill} batches"
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "rows"):
            assert same(resumed[key], checkpoint[key]), f"{key} differs after {kill} batches"
        for key in {"ema", "average"} & checkpoint.keys():
            assert same(resumed[key], checkpoint[key]), f"{key} differs after {kill} batches"
        for key in checkpoint["callbacks"]:
            if not key.startswith("ModelCheckpoint"):
                assert same(resumed["callbacks"][key], checkpoint["callbacks"][key]), f"{key} differs after {kill}"


class TestARunStoppedAndResumed:
    def test_goes_on_with_the_same_exponential_average(self, tmp_path: Path) -> None:
        def make() -> EMAWeightAveraging:
            return EMAWeightAveraging(0.9, update_every_n_steps=2, update_starting_at_step=3)

        assert_resumes_exactly(tmp_path, make, (1, 4, 5, 7, 12), val_check_interval=2)

    def test_goes_on_with_the_same_mean(self, tmp_path: Path) -> None:
        assert_resumes_exactly(tmp_path, WeightAveraging, (4, 11), accumulate_grad_batches=2)

    def test_goes_on_when_its_updates_start_at_an_epoch(self, tmp_path: Path) -> None:
        assert_resumes_exactly(tmp_path, lambda: EMAWeightAveraging(0.9, update_starting_at_epoch=2), (9, 10, 11, 13))

    @pytest.mark.parametrize("kill", [4, 9, 10, 12, 15, 19])
    def test_goes_on_before_and_inside_stochastic_averaging(self, tmp_path: Path, kill: int) -> None:
        """It starts in the third epoch of four, after ten batches."""
        assert_resumes_exactly(tmp_path, swa, (kill,), module=Scheduled)

    def test_that_is_finished_ends_the_same(self, tmp_path: Path) -> None:
        """The average, and BatchNorm's statistics of shuffled and augmented data."""
        whole, _ = run(tmp_path, swa())
        again, _ = run(tmp_path, swa(), ckpt_path="last")
        assert again.seen == []
        assert same(again.state_dict(), whole.state_dict())

    def test_is_prolonged_from_a_checkpoint_with_the_averaged_weights(self, tmp_path: Path) -> None:
        """trainer.save_checkpoint after the fit; averaging had begun, and goes on."""
        short, _ = run(tmp_path / "short", swa())
        path = tmp_path / "after.ckpt"
        short.trainer.save_checkpoint(path)
        shutil.copytree(tmp_path / "short", tmp_path / "other")
        averaged = torch.load(path, weights_only=True)["state_dict"]
        assert same(averaged, dict(short.state_dict()))
        from_last, _ = run(tmp_path / "short", swa(), ckpt_path="last", max_epochs=5)
        from_averaged, _ = run(tmp_path / "other", swa(), ckpt_path=str(path), max_epochs=5)
        assert same(from_averaged.state_dict(), from_last.state_dict())


class Scheduled(Normed):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def swa() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(0.02, swa_epoch_start=3, annealing_epochs=2, inputs_of=second_item)
