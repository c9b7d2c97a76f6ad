"""Mistakes: each is found before it costs anything, and its message says what, why and what to type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping, ModelCheckpoint
from treadle.errors import CheckpointError, ConfigError, DataError, ModuleError, TrainingError, TreadleError
from treadle.loggers import CSVLogger
from treadle.testing import Classifier, NoisyPoints, Points

BATCHES = [torch.ones(2)] * 2


class Good(treadle.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor) -> Any:
        return self.weight * batch.mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def assert_helpful(error: TreadleError, what: str, fix: str = "") -> None:
    assert what in error.what
    assert error.why
    assert error.fix
    assert fix in error.fix
    assert str(error) == f"{error.what}\n  why: {error.why}\n  fix: {error.fix}"


# --- the Trainer's arguments ---


class TestAnArgumentOfTheTrainer:
    @pytest.mark.parametrize(
        "name, values",
        [
            ("accelerator", ["tpuu", None, 3]),
            ("devices", [0, -2, "all", None, [0, 0], [], True, 1.5]),
            ("num_nodes", [0, -1, "two", None]),
            ("strategy", ["dpp", None, 3, nn.Linear]),
            ("precision", ["33-true", None, 8, 1.5, torch.float16]),
            ("compile", ["everything", 3]),
            ("sync_batchnorm", ["no", 2]),
            ("use_distributed_sampler", ["no", 2]),
            ("logger", ["csv", 3, CSVLogger, [CSVLogger], [None]]),
            ("callbacks", [EarlyStopping, [EarlyStopping], "EarlyStopping", 3, [None], {"a": 1}]),
            ("fast_dev_run", [-1, 0.5, "yes", None]),
            ("max_epochs", [-2, 1.5, "3", True]),
            ("min_epochs", [-1, 1.5, "3"]),
            ("max_steps", [-2, 1.5, "3", None]),
            ("min_steps", [-1, 1.5, "3"]),
            ("limit_train_batches", [-1, 1.5, -0.1, "all", None, True]),
            ("limit_val_batches", [-1, 1.5, "all", None]),
            ("limit_test_batches", [-1, 1.5, "all", None]),
            ("limit_predict_batches", [-1, 1.5, "all", None]),
            ("max_time", ["12 hours", 3, "00:00:00:00", {"hour": 1}]),
            ("val_check_interval", [0, 0.0, -1, 1.5, "sometimes", None, "00:00:00:00", {"hour": 1}]),
            ("check_val_every_n_epoch", [0, -1, 0.5, "2"]),
            ("num_sanity_val_steps", [-2, 0.5, "2"]),
            ("log_every_n_steps", [0, -1, 0.5, "2", None]),
            ("overfit_batches", [-1, 1.5, "all", None]),
            ("reload_dataloaders_every_n_epochs", [-1, 0.5, "2", None]),
            ("enable_checkpointing", ["no", 2]),
            ("enable_progress_bar", ["no", 2]),
            ("enable_model_summary", ["no", 2]),
            ("enable_autolog_hparams", ["no", 2]),
            ("deterministic", ["no", 2]),
            ("benchmark", ["no", 2]),
            ("inference_mode", ["no", None, 2]),
            ("barebones", ["no", None, 2]),
            ("profiler", ["simpel", 3]),
            ("plugins", ["all", 3, [3]]),
            ("micro_batch_size", [0, -1, 1.5, "2", True]),
            ("accumulate_grad_batches", [0, -1, 1.5, "2", None, {0: 2}]),
            ("gradient_clip_val", [-1.0, "1.0", float("nan")]),
            ("gradient_clip_algorithm", ["nrm", None, 2]),
            ("detect_anomaly", ["no", None, 2]),
            ("default_root_dir", [3, ["a"]]),
        ],
    )
    def test_with_a_value_that_makes_no_sense_is_an_error(self, name: str, values: list[Any]) -> None:
        """Before anything runs, and with the argument's name."""
        for value in values:
            with pytest.raises(ConfigError) as error:
                treadle.Trainer(**{name: value})
            assert_helpful(error.value, "" if name == "max_time" else name)

    def test_is_each_one_covered_above(self) -> None:
        import inspect

        marks = type(self).test_with_a_value_that_makes_no_sense_is_an_error.pytestmark  # type: ignore[attr-defined]
        covered = {name for name, _ in marks[0].args[1]}
        assert covered == set(inspect.signature(treadle.Trainer).parameters)

    @pytest.mark.parametrize(
        "settings, fix",
        [
            ({"accelerator": "gpuu"}, "did you mean 'gpu'?"),
            ({"strategy": "sinle"}, "did you mean 'single'?"),
            ({"precision": "32-tru"}, "did you mean '32-true'?"),
            ({"precision": "bf16-mixd"}, "did you mean 'bf16-mixed'?"),
            ({"strategy": "fdsp"}, "did you mean 'fsdp'?"),
        ],
    )
    def test_that_is_a_misspelled_name_gets_the_nearest(self, settings: dict[str, Any], fix: str) -> None:
        with pytest.raises(ConfigError) as error:
            treadle.Trainer(**settings)
        assert error.value.fix == fix

    def test_that_names_a_device_this_machine_lacks_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="accelerator='mps': this machine has none") as error:
            treadle.Trainer(accelerator="mps")
        assert_helpful(error.value, "mps", 'accelerator="auto"')

    def test_that_contradicts_another_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="enable_checkpointing=False with a ModelCheckpoint"):
            treadle.Trainer(enable_checkpointing=False, callbacks=ModelCheckpoint())

    @pytest.mark.parametrize(
        "name, fix",
        [("max_epoch", "did you mean 'max_epochs'?"), ("gpus", 'accelerator="gpu"')],
    )
    def test_that_there_is_none_of_is_told_so(self, name: str, fix: str) -> None:
        """The nearest name, or what to do instead of one that the old library has."""
        with pytest.raises(ConfigError, match=f"{name} is not an argument of Trainer") as error:
            treadle.Trainer(**{name: 3})
        assert_helpful(error.value, name, fix)

    def test_without_a_name_is_told_so(self) -> None:
        with pytest.raises(ConfigError, match="without a name"):
            treadle.Trainer(3)  # type: ignore[misc]

    @pytest.mark.parametrize(
        "settings",
        [
            {"barebones": True, "logger": True},
            {"barebones": True, "fast_dev_run": True},
            {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
            {"val_check_interval": "2 epochs", "check_val_every_n_epoch": 2},
            {"benchmark": True, "deterministic": True},
        ],
        ids=str,
    )
    def test_that_makes_no_sense_beside_another_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError) as error:
            treadle.Trainer(**settings)
        assert_helpful(error.value, next(iter(settings)))

    @pytest.mark.parametrize("interval, loader", [(3, BATCHES), (0.5, iter(BATCHES))])
    def test_that_does_not_fit_the_data_is_an_error(self, make_bare: Any, interval: float, loader: Any) -> None:
        """An interval no epoch reaches; a fraction of an unknown length."""
        with pytest.raises(ConfigError) as error:
            make_bare(val_check_interval=interval).fit(Good(), loader)
        assert_helpful(error.value, f"val_check_interval={interval}")

    @pytest.mark.parametrize("loader", [BATCHES, iter(BATCHES)])
    def test_that_limits_to_a_fraction_of_nothing_is_an_error(self, make_bare: Any, loader: Any) -> None:
        with pytest.raises(DataError) as error:
            make_bare(limit_train_batches=0.3).fit(Good(), loader)
        assert_helpful(error.value, "0.3", "as a count")


# --- what the calls are given ---


class TestAModel:
    @pytest.mark.parametrize("model", [nn.Linear(1, 1), Good, None, "model"])
    @pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
    def test_that_is_no_module_is_an_error(self, make_bare: Any, verb: str, model: Any) -> None:
        with pytest.raises(ModuleError) as error:
            getattr(make_bare(), verb)(model, BATCHES)
        assert_helpful(error.value, "")

    def test_that_is_a_class_is_to_be_made_first(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="fit was given the class Good") as error:
            make_bare().fit(Good, BATCHES)
        assert_helpful(error.value, "Good", "Good(")

    @pytest.mark.parametrize(
        "verb, method",
        [
            *[("fit", "training_step"), ("fit", "configure_optimizers"), ("fit", "train_dataloader")],
            *[("validate", "validation_step"), ("test", "test_step"), ("test", "test_dataloader")],
        ],
    )
    def test_that_lacks_a_method_is_told_which(self, make_bare: Any, verb: str, method: str) -> None:
        class Lacks(Classifier):
            train_dataloader = test_dataloader = val_dataloader = lambda self: DataLoader(NoisyPoints(), 4)

        setattr(Lacks, method, getattr(treadle.Module, method))
        with pytest.raises(ModuleError, match=f"Lacks has no {method}") as error:
            getattr(make_bare(), verb)(Lacks())
        assert_helpful(error.value, method, f"define {method}")

    def test_without_a_validation_step_is_told_so_when_given_data_for_it(self, make_bare: Any) -> None:
        """Data for validation that is never looked at would be a mistake nobody notices."""
        with pytest.raises(ModuleError, match="Good has no validation_step"):
            make_bare().fit(Good(), BATCHES, BATCHES)

    def test_is_needed_for_an_evaluation(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="no model to evaluate"):
            make_bare().test(dataloaders=BATCHES)


class TestALoader:
    @pytest.mark.parametrize("empty", [[], DataLoader(NoisyPoints(3), 4, drop_last=True)], ids=["list", "DataLoader"])
    def test_that_is_empty_is_an_error(self, make_bare: Any, empty: Any) -> None:
        with pytest.raises(DataError, match="the train loader has no batches") as error:
            make_bare().fit(Good(), empty)
        assert_helpful(error.value, "no batches")

    def test_that_is_a_generator_is_used_up_after_one_epoch(self, make_bare: Any) -> None:
        with pytest.raises(DataError, match="the train loader gave no batch in epoch 1") as error:
            make_bare(max_epochs=2).fit(Good(), (batch for batch in BATCHES))
        assert "generator" in error.value.why

    @pytest.mark.parametrize("loader", [5, DataLoader, object()], ids=["number", "class", "object"])
    def test_that_can_not_be_iterated_is_an_error(self, make_bare: Any, loader: Any) -> None:
        with pytest.raises(DataError) as error:
            make_bare().fit(Good(), loader)
        assert_helpful(error.value, "the train loader is")

    def test_that_is_none_is_an_error(self, make_bare: Any) -> None:
        class Nothing(Points):
            def train_dataloader(self) -> Any:
                return None

        with pytest.raises(ModuleError, match=r"Nothing\.train_dataloader returned None"):
            make_bare().fit(Classifier(), datamodule=Nothing())

    def test_is_not_taken_from_a_datamodules_class(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="datamodule is the class Points") as error:
            make_bare().fit(Classifier(), datamodule=Points)
        assert_helpful(error.value, "Points", "Points(")

    def test_that_a_datamodule_lacks_is_named(self, make_bare: Any) -> None:
        class Lacks(treadle.DataModule):
            pass

        with pytest.raises(ModuleError, match="Lacks has no train_dataloader"):
            make_bare().fit(Classifier(), datamodule=Lacks())


# --- what a step returns ---


class TestALoss:
    @pytest.mark.parametrize(
        "loss, what, fix",
        [
            (lambda w: w * torch.ones(3), "a loss of shape (3,)", "return loss.mean()"),
            (lambda w: (w * 1.0).detach(), "doesn't depend on any parameter", "not loss.detach()"),
            (lambda w: torch.tensor(1.0), "doesn't depend on any parameter", ""),
            (lambda w: 1.0, "training_step returned float", "return loss"),
            (lambda w: "loss", "training_step returned str", "return loss"),
            (lambda w: {"los": w * 1.0}, "with the keys ['los']", "return loss"),
            (lambda w: {"loss": 1.0}, "training_step returned dict", "return loss"),
            (lambda w: (w * 1.0, 2), "training_step returned tuple", "return loss"),
        ],
    )
    def test_that_is_none_is_an_error(self, make_bare: Any, loss: Callable[..., Any], what: str, fix: str) -> None:
        class Returns(Good):
            def training_step(self, batch: Tensor) -> Any:
                return loss(self.weight)

        with pytest.raises(ModuleError) as error:
            make_bare().fit(Returns(), BATCHES)
        assert_helpful(error.value, what, fix)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_that_is_not_finite_ends_a_run_that_looks_for_it(self, make_bare: Any, value: float) -> None:
        class Diverges(Good):
            def training_step(self, batch: Tensor, batch_idx: int) -> Any:  # type: ignore[override]
                return self.weight * (value if batch_idx == 1 else 1.0)

        with pytest.raises(TrainingError, match=f"the loss is {value} in epoch 0, batch 1") as error:
            make_bare(detect_anomaly=True).fit(Diverges(), BATCHES)
        assert_helpful(error.value, "loss")

    def test_that_is_not_finite_goes_on_otherwise(self, make_bare: Any) -> None:
        class Diverges(Good):
            def training_step(self, batch: Tensor) -> Any:
                return self.weight * float("nan")

        trainer = make_bare()
        trainer.fit(Diverges(), BATCHES)
        assert trainer.global_step == 2


class TestWhatConfigureOptimizersReturns:
    @pytest.mark.parametrize(
        "returned, what",
        [
            (lambda o, s: "adam", "returned str where an optimizer was expected"),
            (lambda o, s: torch.optim.Adam, "returned type where an optimizer was expected"),
            (lambda o, s: {"optimiser": o}, "the key 'optimiser'"),
            (lambda o, s: {"lr_scheduler": s}, "without an optimizer"),
            (lambda o, s: ([o], ["cosine"]), "where a learning rate scheduler was expected"),
            (lambda o, s: ([o], [{"schedule": s}]), "the key 'schedule'"),
            (lambda o, s: ([o], [{"interval": "step"}]), "where a learning rate scheduler was expected"),
            (lambda o, s: ([o], [{"scheduler": s, "interval": "batch"}]), "interval='batch'"),
            (lambda o, s: ([o], [{"scheduler": s, "frequency": 0}]), "frequency=0"),
            (lambda o, s: ([o], [torch.optim.lr_scheduler.ReduceLROnPlateau(o)]), "without a metric"),
            (lambda o, s: [o, o], "returned 2 optimizers"),
        ],
    )
    def test_that_can_not_be_used_is_an_error(self, make_bare: Any, returned: Any, what: str) -> None:
        class Returns(Good):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return returned(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))

        with pytest.raises((ModuleError, ConfigError)) as error:
            make_bare().fit(Returns(), BATCHES)
        assert_helpful(error.value, what)

    def test_that_steps_a_one_cycle_by_epochs_is_warned_about(self, make_bare: Any) -> None:
        class OneCycle(Good):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)]

        with pytest.warns(treadle.errors.TreadleWarning, match=r"treadle\[onecycle\].*\"interval\": \"step\""):
            make_bare().fit(OneCycle(), BATCHES)


class TestAHookOfTheOldLibraryThatIsNotHere:
    @pytest.mark.parametrize(
        "name", ["training_epoch_end", "validation_epoch_end", "on_epoch_end", "training_step_end"]
    )
    def test_is_an_error_rather_than_silence(self, make_bare: Any, name: str) -> None:
        """Whoever brings a module along must not find out from its results that a method was never called."""
        model = type("Brings", (Good,), {name: lambda self, *_, **__: None})()
        with pytest.raises(ModuleError, match=f"Brings.{name}") as error:
            make_bare().fit(model, BATCHES)
        assert_helpful(error.value, name)


class TestACheckpointPath:
    def test_that_leads_nowhere_is_an_error(self, make_bare: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such file"):
            make_bare().fit(Good(), BATCHES, ckpt_path=tmp_path / "nothing.ckpt")

    def test_is_checked_before_the_model_is_moved_or_data_is_read(self, make_bare: Any, tmp_path: Path) -> None:
        read = []

        class Reads(NoisyPoints):
            def __getitem__(self, index: int) -> Any:
                read.append(index)
                return super().__getitem__(index)

        with pytest.raises(CheckpointError):
            make_bare().fit(Classifier(), DataLoader(Reads(), 4), ckpt_path=tmp_path / "nothing.ckpt")
        assert read == []


class TestAFolderThatCannotBeWritten:
    @pytest.mark.parametrize("logger", [True, False])
    def test_is_said_before_training_starts(self, logger: bool) -> None:
        """/proc takes no folders, not even root's."""
        trainer = treadle.Trainer(default_root_dir="/proc/nowhere", max_epochs=1, logger=logger)
        with pytest.raises(ConfigError, match=r"/proc/nowhere.* can't be written.\n.*\n  fix: default_root_dir="):
            trainer.fit(Classifier(), datamodule=Points())
