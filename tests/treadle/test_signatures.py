"""Methods that can't be called as they are written, or are called by nothing: told before anything runs."""

from typing import Any

import pytest
import torch

import treadle
from treadle.errors import ConfigError, ModuleError, TreadleWarning
from treadle.testing import Classifier, Points


class TestAMethodWithOtherArguments:
    @pytest.mark.parametrize(
        "name, method",
        [
            ("on_train_epoch_end", lambda self, outputs: None),
            ("on_before_optimizer_step", lambda self, optimizer, optimizer_idx: None),
            ("optimizer_step", lambda self, epoch, batch_idx, optimizer, optimizer_idx, closure, on_tpu, native: None),
            ("lr_scheduler_step", lambda self, scheduler, optimizer_idx, metric: None),
            ("on_after_batch_transfer", lambda self, batch: batch),
            ("on_train_batch_end", lambda self, outputs, batch, batch_idx, dataloader_idx: None),
            ("setup", lambda self: None),
        ],
    )
    def test_is_an_error_before_the_first_batch(self, make_bare: Any, name: str, method: Any) -> None:
        """As older releases of Lightning had them. It says what the method is given."""
        model = type("Old", (Classifier,), {name: method})()
        with pytest.raises(ModuleError, match=rf"Old\.{name}\(.*\) can't be called as it is") as error:
            make_bare().fit(model, datamodule=Points())
        assert error.value.fix.startswith(f"def {name}(self")
        assert model.seen == []

    def test_of_a_callback_too(self, make_bare: Any) -> None:
        class Old(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any) -> None:  # type: ignore[override]
                ...

        with pytest.raises(ModuleError, match=r"Old\.on_train_batch_end"):
            make_bare(callbacks=Old()).fit(Classifier(), datamodule=Points())

    def test_of_a_data_module_too(self, make_bare: Any) -> None:
        class Old(Points):
            def setup(self) -> None:  # type: ignore[override]
                ...

        with pytest.raises(ModuleError, match=r"Old\.setup"):
            make_bare().fit(Classifier(), datamodule=Old())

    def test_may_have_more_with_defaults(self, make_bare: Any) -> None:
        model = type("Own", (Classifier,), {"on_train_epoch_end": lambda self, verbose=False: None})()
        make_bare().fit(model, datamodule=Points())
        assert model.seen


class TestAMethodThatIsNearlyOne:
    @pytest.mark.parametrize("name", ["val_dataloaders", "configure_callback", "optimizers_step", "train_step"])
    def test_is_told(self, make_bare: Any, name: str) -> None:
        """Nothing calls it; a validation that never runs is found too late."""
        model = type("Near", (Classifier,), {name: lambda self: None})()
        if name == "train_step":  # is something else
            make_bare().fit(model, datamodule=Points())
            return
        with pytest.warns(TreadleWarning, match=rf"Near\.{name} is called by nothing here; did you mean"):
            make_bare().fit(model, datamodule=Points())

    def test_beside_the_right_one_is_the_users_own_affair(self, make_bare: Any) -> None:
        model = type("Own", (Classifier,), {"training_steps": lambda self: None})()
        make_bare().fit(model, datamodule=Points())
        assert model.seen


class TestTwoSourcesOfData:
    @pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
    def test_are_an_error(self, make_bare: Any, verb: str) -> None:
        with pytest.raises(ConfigError, match="loaders and a data module were given"):
            getattr(make_bare(), verb)(Classifier(), [torch.ones(1)], datamodule=Points())

    def test_for_validation_too(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="loaders and a data module were given"):
            make_bare().fit(Classifier(), val_dataloaders=[torch.ones(1)], datamodule=Points())


class TestAFitThatCouldNeverEnd:
    @pytest.mark.parametrize("skips", ["the step", "the epoch"])
    def test_is_an_error(self, make_bare: Any, skips: str) -> None:
        """Only steps would end it, and an epoch took none."""

        class Skips(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return None if skips == "the step" else super().training_step(batch, batch_idx)

            def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
                return -1 if skips == "the epoch" else None

        with pytest.raises(ModuleError, match="took no optimizer step, and only max_steps=5 would end the run"):
            make_bare(max_epochs=None, max_steps=5).fit(Skips(), datamodule=Points())


class TestAnErrorInAHook:
    def test_of_an_error_keeps_no_other_from_running(self, make_bare: Any) -> None:
        told = []

        class Breaks(treadle.Callback):
            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                raise RuntimeError("again")

        class Hears(treadle.Callback):
            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                told.append(exception)

        class Fails(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                raise ValueError("first")

        with pytest.raises(RuntimeError, match="again"):
            make_bare(callbacks=[Breaks(), Hears()]).fit(Fails(), datamodule=Points())
        assert len(told) == 1

    def test_leaves_no_parameter_toggled(self, make_bare: Any) -> None:
        class Fails(Classifier):
            automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.toggle_optimizer(self.optimizers()[0])
                raise ValueError("here")

            def configure_optimizers(self) -> Any:
                return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.layers[0], self.layers[3])]

        model = Fails()
        with pytest.raises(ValueError, match="here"):
            make_bare().fit(model, datamodule=Points())
        assert all(parameter.requires_grad for parameter in model.parameters())
