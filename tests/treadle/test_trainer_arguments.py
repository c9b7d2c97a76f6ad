"""The Trainer's arguments beyond limits and durations: what each of them does, and where else it may come from."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping, ModelSummary, Timer
from treadle.errors import ConfigError
from treadle.testing import Classifier, MemoryLogger, Points, Recorder

BATCHES = [torch.tensor([float(n)]) for n in range(1, 7)]


class Weight(treadle.Module):
    """One weight; ``validated`` lists after which batches it was validated, ``seen`` what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.validated: list[int] = []
        self.seen: list[float] = []

    def training_step(self, batch: Tensor) -> Tensor:
        self.seen += batch.flatten().tolist()
        self.log("mean", batch.mean())
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None: ...
    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.progress.batches)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestFromTheEnvironment:
    def test_each_one_has_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TREADLE_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("TREADLE_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
        monkeypatch.setenv("TREADLE_TRAINER_LOGGER", "false")
        monkeypatch.setenv("TREADLE_TRAINER_ACCELERATOR", "cpu")
        trainer = treadle.Trainer()
        assert (trainer.max_epochs, trainer.limits.train, trainer.loggers) == (3, 0.5, [])

    def test_what_the_code_says_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TREADLE_TRAINER_MAX_EPOCHS", "3")
        assert treadle.Trainer(max_epochs=5).max_epochs == 5

    def test_a_misspelled_one_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TREADLE_TRAINER_MAX_EPOCH", "3")
        with pytest.raises(ConfigError, match="TREADLE_TRAINER_MAX_EPOCH=3 is not an argument") as error:
            treadle.Trainer()
        assert error.value.fix == "did you mean 'max_epochs'?"

    def test_a_wrong_value_is_told_as_in_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TREADLE_TRAINER_MAX_EPOCHS", "many")
        with pytest.raises(ConfigError, match="max_epochs='many' makes no sense"):
            treadle.Trainer()


class TestMaxTime:
    @pytest.mark.parametrize("value", ["00:00:00:01", timedelta(seconds=1), {"seconds": 1}])
    def test_adds_a_timer(self, make_bare: Any, value: Any) -> None:
        trainer = make_bare(max_time=value)
        assert [type(callback) for callback in trainer.callbacks] == [Timer]

    def test_ends_a_fit_that_nothing_else_would_end(self, make_bare: Any) -> None:
        trainer = make_bare(max_time={"milliseconds": 5}, max_epochs=-1)
        trainer.fit(Weight(), BATCHES)
        assert trainer.should_stop


class TestOverfitting:
    def test_repeats_the_same_batches_unshuffled(self, make_bare: Any) -> None:
        """The user's loader still shuffles."""
        loader = DataLoader(torch.arange(20.0), 2, shuffle=True)  # type: ignore[arg-type]
        model = Weight()
        with pytest.warns(treadle.errors.TreadleWarning, match="overfit"):
            make_bare(overfit_batches=2, max_epochs=3).fit(model, loader)
        assert model.seen == [0.0, 1.0, 2.0, 3.0] * 3
        assert isinstance(loader.sampler, torch.utils.data.RandomSampler)

    def test_limits_validation_too(self, make_bare: Any) -> None:
        trainer = make_bare(overfit_batches=0.5)
        trainer.fit(Weight(), BATCHES, BATCHES)
        assert (trainer.num_training_batches, trainer.num_val_batches) == (3, [3])


class TestFastDevRun:
    def test_leaves_out_whatever_writes_or_stops(self, make_trainer: Any, tmp_path: Path) -> None:
        from treadle.callbacks import LearningRateMonitor

        trainer = make_trainer(fast_dev_run=True, callbacks=[EarlyStopping("x"), LearningRateMonitor()])
        trainer.fit(Classifier(), datamodule=Points())
        assert not any(isinstance(callback, (EarlyStopping, LearningRateMonitor)) for callback in trainer.callbacks)
        assert list(tmp_path.iterdir()) == []


class TestBarebones:
    def test_turns_off_everything_but_training(self, tmp_path: Path, monkeypatch: Any) -> None:
        """Logging too: self.log does nothing, with nonsense or without."""
        monkeypatch.chdir(tmp_path)

        class Logs(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.log("nonsense", "a word")
                return super().training_step(batch)

        model = Logs()
        trainer = treadle.Trainer(barebones=True, max_epochs=1)
        trainer.fit(model, BATCHES, BATCHES)
        assert trainer.callbacks == []
        assert trainer.callback_metrics == {}
        assert model.seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert list(tmp_path.iterdir()) == []


class TestValidationRhythms:
    @pytest.mark.parametrize(
        "settings, after",
        [
            ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12, 16]),
            ({"val_check_interval": "4 steps"}, [4, 8, 12, 16]),
            ({"val_check_interval": treadle.Every("5 steps"), "accumulate_grad_batches": 2}, [10]),
            ({"val_check_interval": "2 epochs"}, [12]),
            ({"val_check_interval": "4 steps", "check_val_every_n_epoch": 2}, [8, 12]),
            ({"val_check_interval": {"microseconds": 1}}, list(range(1, 19))),
            ({"val_check_interval": timedelta(hours=1)}, []),
            ({"val_check_interval": "00:01:00:00"}, []),
            ({"val_check_interval": 0.5, "check_val_every_n_epoch": 3}, [15, 18]),
        ],
        ids=str,
    )
    def test_of_every_kind(self, make_bare: Any, settings: dict[str, Any], after: list[int]) -> None:
        """Three epochs of six batches."""
        model = Weight()
        make_bare(max_epochs=3, **settings).fit(model, BATCHES, BATCHES[:1])
        assert model.validated == after

    def test_a_skipped_batch_after_a_step_is_no_second_one(self, make_bare: Any) -> None:
        class Skips(Weight):
            def training_step(self, batch: Tensor) -> Any:
                return None if float(batch) in (3.0, 4.0) else super().training_step(batch)

        model = Skips()
        make_bare(val_check_interval="2 steps").fit(model, BATCHES, BATCHES[:1])
        assert model.validated == [2, 6]


class TestReloading:
    def test_asks_for_the_loaders_anew(self, make_bare: Any) -> None:
        asked = []

        class Grows(Weight):
            def train_dataloader(self) -> Any:
                asked.append(("train", self.current_epoch))
                return BATCHES[: self.current_epoch + 1]

            def val_dataloader(self) -> Any:
                asked.append(("val", self.current_epoch))
                return BATCHES[:1]

        model = Grows()
        make_bare(max_epochs=5, reload_dataloaders_every_n_epochs=2, num_sanity_val_steps=0).fit(model)
        assert asked == [("train", 0), ("val", 0), ("train", 2), ("val", 2), ("train", 4), ("val", 4)]
        assert model.seen == [1.0, 1.0, *[1.0, 2.0, 3.0] * 2, 1.0, 2.0, 3.0, 4.0, 5.0]

    @pytest.mark.parametrize("stop", [3, 4, 6, 8])
    def test_resumes_bit_for_bit(self, make_bare: Any, tmp_path: Path, stop: int) -> None:
        """A loader that is drawn anew in each epoch, stopped inside an epoch and at its end."""

        class Draws(Weight):
            def train_dataloader(self) -> Any:
                return DataLoader(torch.rand(8), 2, shuffle=True)  # type: ignore[arg-type]

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.batches == stop:
                    trainer.save_checkpoint(tmp_path / "here.ckpt")  # of an epoch's end the later one
                    if stop % 4 or trainer.progress.batch == 0:
                        raise KeyboardInterrupt

        settings = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
        treadle.seed_everything(1)
        whole = Draws()
        make_bare(**settings).fit(whole)
        treadle.seed_everything(1)
        with pytest.raises(KeyboardInterrupt):
            make_bare(callbacks=Stops(), **settings).fit(Draws())
        if stop % 4 == 0:  # inside an epoch, what it drew its samples from is gone with the process
            resumed = Draws()
            treadle.seed_everything(99)
            make_bare(**settings).fit(resumed, ckpt_path=tmp_path / "here.ckpt")
            assert resumed.seen == whole.seen[stop * 2 :]
            assert torch.equal(resumed.weight, whole.weight)


class TestNumerics:
    def test_hold_while_it_runs_and_no_longer(self, make_bare: Any) -> None:
        seen = []

        class Looks(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                seen.append(
                    (
                        torch.are_deterministic_algorithms_enabled(),
                        torch.is_deterministic_algorithms_warn_only_enabled(),
                        torch.backends.cudnn.benchmark,
                    )
                )
                return super().training_step(batch)

        make_bare(deterministic=True).fit(Looks(), BATCHES[:1])
        make_bare(deterministic="warn").fit(Looks(), BATCHES[:1])
        make_bare(benchmark=True).fit(Looks(), BATCHES[:1])
        assert seen == [(True, False, False), (True, True, False), (False, False, True)]
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark

    @pytest.mark.parametrize("inference", [True, False])
    def test_evaluation_is_in_inference_mode_or_without_gradients(self, make_bare: Any, inference: bool) -> None:
        seen = []

        class Looks(Weight):
            def validation_step(self, batch: Tensor) -> None:
                seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

        make_bare(inference_mode=inference).validate(Looks(), BATCHES[:1], verbose=False)
        assert seen == [(inference, False)]


class TestHyperparameters:
    @pytest.mark.parametrize("wanted", [True, False])
    def test_are_handed_to_the_loggers_or_not(self, make_bare: Any, wanted: bool) -> None:
        logger = MemoryLogger()
        make_bare(logger=logger, enable_autolog_hparams=wanted).fit(Classifier(), datamodule=Points())
        assert bool(logger.params) == wanted


class TestAModelSummary:
    def test_is_printed_when_asked_for(self, make_bare: Any, capfd: pytest.CaptureFixture[str]) -> None:
        trainer = make_bare(enable_model_summary=True)
        assert any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)
        trainer.fit(Classifier(), datamodule=Points())
        assert "layers" in capfd.readouterr().err


class TestPlugins:
    def test_may_be_a_precision_of_ones_own(self) -> None:
        from treadle.precision import FullPrecision

        mine = FullPrecision()
        assert treadle.Trainer(plugins=mine).precision_plugin is mine

    def test_must_not_contradict_the_precision(self) -> None:
        from treadle.precision import FullPrecision

        with pytest.raises(ConfigError, match="a Precision in plugins"):
            treadle.Trainer(plugins=[FullPrecision()], precision=FullPrecision())


class TestWhatTheTrainerTells:
    def test_of_its_state(self, make_bare: Any) -> None:
        seen = []

        class Looks(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                state = self.trainer.state
                seen.append((state.fn, state.stage, state.status, self.trainer.is_last_batch))
                return super().training_step(batch)

        trainer = make_bare()
        assert trainer.state.status == "initializing"
        trainer.fit(Looks(), BATCHES[:2])
        assert seen == [("fit", "train", "running", False), ("fit", "train", "running", True)]
        assert trainer.state.status == "finished"

    @pytest.mark.parametrize("error, status", [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
    def test_of_its_end(self, make_bare: Any, error: type[BaseException], status: str) -> None:
        class Breaks(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                raise error

        trainer = make_bare()
        with pytest.raises(error):
            trainer.fit(Breaks(), BATCHES)
        assert trainer.state.status == status
        assert trainer.interrupted == (error is KeyboardInterrupt)

    def test_of_an_error_to_the_data_module_too(self, make_bare: Any) -> None:
        seen = []

        class Data(Points):
            def on_exception(self, exception: BaseException) -> None:
                seen.append(exception)

        class Breaks(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                raise RuntimeError("here")

        with pytest.raises(RuntimeError) as error:
            make_bare().fit(Breaks(), datamodule=Data())
        assert seen == [error.value]

    def test_lengths_as_soon_as_the_data_are_set_up(self, make_bare: Any) -> None:
        """In configure_optimizers, where schedules need them; loaders are asked for once all the same."""
        asked, told = [], []

        class Data(Points):
            def train_dataloader(self) -> Any:
                asked.append(1)
                return super().train_dataloader()

        class Plans(Classifier):
            def configure_optimizers(self) -> Any:
                told.append((self.trainer.estimated_stepping_batches, self.trainer.num_training_batches))
                return super().configure_optimizers()

        make_bare(max_epochs=3, accumulate_grad_batches=2).fit(Plans(), datamodule=Data())
        assert told == [(9, 5)]
        assert asked == [1]

    def test_how_many_steps_there_will_be_with_changing_accumulation(self, make_bare: Any) -> None:
        from treadle.callbacks import GradientAccumulationScheduler

        told = []

        class Plans(Weight):
            def configure_optimizers(self) -> Any:
                told.append(self.trainer.estimated_stepping_batches)
                return super().configure_optimizers()

        trainer = make_bare(max_epochs=3, callbacks=GradientAccumulationScheduler({0: 1, 1: 4}))
        trainer.fit(Plans(), BATCHES)
        assert told == [6 + 2 + 2] == [trainer.global_step]

    def test_of_the_machine(self) -> None:
        trainer = treadle.Trainer(accelerator="cpu")
        assert (trainer.accelerator, trainer.precision, trainer.num_devices, trainer.device_ids) == (
            "cpu",
            "32-true",
            1,
            [0],
        )
        assert (trainer.world_size, trainer.node_rank, trainer.local_rank, trainer.num_nodes) == (1, 0, 0, 1)


class TestAnEvaluationWithoutAModel:
    def test_is_of_the_best_weights(self, make_trainer: Any) -> None:
        """As users of `trainer.fit(model); trainer.test()` expect, not of the last ones."""
        from treadle.callbacks import ModelCheckpoint

        class Worsens(Weight):
            def validation_step(self, batch: Tensor) -> None:
                self.log("loss", -self.weight)

            def test_step(self, batch: Tensor) -> None:
                self.log("weight", self.weight)

        trainer = make_trainer(max_epochs=3, callbacks=ModelCheckpoint(monitor="loss"))
        model = Worsens()
        trainer.fit(model, BATCHES[:1], BATCHES[:1])
        last = float(model.weight.detach())
        (result,) = trainer.test(dataloaders=BATCHES[:1], verbose=False)
        assert last == pytest.approx(-0.3)
        assert result["weight"] == pytest.approx(-0.1)


class TestCallbacksLog:
    def test_as_the_module_does(self, make_bare: Any) -> None:
        class Speed(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                self.log("speed", 7.0)
                self.log_dict({"a": 1.0, "b": 2.0}, on_step=False, on_epoch=True)

        logger = MemoryLogger()
        make_bare(logger=logger, callbacks=Speed(), log_every_n_steps=6).fit(Weight(), BATCHES)
        assert logger.rows == [
            {"step": 5, "epoch": 0, "mean": 6.0, "speed": 7.0},
            {"step": 5, "epoch": 0, "a": 1.0, "b": 2.0},
        ]

    def test_outside_of_a_run_is_told(self) -> None:
        with pytest.warns(treadle.errors.TreadleWarning, match="outside of a run"):
            Recorder().log("x", 1.0)


class TestInitModule:
    def test_makes_parameters_on_the_device(self, make_bare: Callable[..., treadle.Trainer]) -> None:
        trainer = make_bare()
        with trainer.init_module():
            layer = nn.Linear(2, 2)
        assert layer.weight.device == trainer.fabric.device
