"""What a module may override of a training step, and what it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping, ModelCheckpoint
from treadle.errors import ModuleError
from treadle.testing import Classifier, MemoryLogger, NoisyPoints, Points

BATCHES = [torch.tensor([float(n)]) for n in range(1, 5)]


class Weight(treadle.Module):
    """One weight, whose gradient is the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.gradients: list[float] = []

    def training_step(self, batch: Tensor) -> Any:
        return self.weight * batch.mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(float(self.weight.grad))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestTheArgumentsOfAStep:
    @pytest.mark.parametrize(
        "step",
        [
            lambda self, batch: (batch,),
            lambda self, batch, batch_idx: (batch, batch_idx),
            lambda self, data, number: (data, number),
            lambda self, x, i, which=0: (x, i, which),
            lambda self, batch, dataloader_idx: (batch, dataloader_idx),
            lambda self, batch, batch_idx, dataloader_idx: (batch, batch_idx, dataloader_idx),
            lambda self, *everything: everything,
            lambda self, batch, *, scale=2.0: (batch,),
        ],
    )
    def test_may_be_left_out_and_named_freely(self, make_bare: Any, step: Any) -> None:
        """Of two loaders, the second batch of the second is passed by name where there are names, else by place."""
        model = type("Steps", (Weight,), {"predict_step": step})()
        (outputs,) = make_bare().predict(model, [torch.tensor([7.0])])
        assert float(outputs[0]) == 7.0
        assert all(index == 0 for index in outputs[1:])

    def test_of_several_loaders_must_tell_which(self, make_bare: Any) -> None:
        class Forgets(Weight):
            def test_step(self, batch: Tensor, batch_idx: int) -> None: ...

        with pytest.raises(ModuleError, match="test_step takes no dataloader_idx"):
            make_bare().test(Forgets(), [DataLoader(NoisyPoints()), DataLoader(NoisyPoints())])

    def test_that_are_never_passed_are_refused(self, make_bare: Any) -> None:
        class Wants(Weight):
            def training_step(self, batch: Tensor, batch_idx: int, hidden: Any) -> Any: ...

        with pytest.raises(ModuleError, match="training_step takes batch, batch_idx, hidden"):
            make_bare().fit(Wants(), BATCHES)

    def test_are_not_an_iterator(self, make_bare: Any) -> None:
        class Iterates(Weight):
            def training_step(self, dataloader_iter: Any) -> Any: ...

        with pytest.raises(ModuleError, match="dataloader_iter"):
            make_bare().fit(Iterates(), BATCHES)


class TestABackwardOfItsOwn:
    def test_is_given_the_divided_loss(self, make_bare: Any) -> None:
        losses = []

        class Own(Weight):
            def training_step(self, batch: Tensor) -> Any:
                return (self.weight + 1) * batch.mean()

            def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
                losses.append(float(loss.detach()))
                super().backward(loss, *args, **kwargs)

        model = Own()
        make_bare(accumulate_grad_batches=2).fit(model, BATCHES[:2])
        assert losses == [0.5, 1.0]
        assert model.gradients == [1.5]


class TestAnOptimizerStepOfItsOwn:
    def test_may_do_something_around_it(self, make_bare: Any) -> None:
        """Warmup, as it is often written: the step first, then the rate."""

        class Warms(Weight):
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                optimizer.step(closure=optimizer_closure)
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * (self.trainer.global_step + 2)

        model = Warms()
        trainer = make_bare()
        trainer.fit(model, BATCHES[:3])
        assert float(model.weight.detach()) == pytest.approx(-(0.1 + 2 * 0.2 + 3 * 0.3))
        assert trainer.global_step == 3

    def test_may_leave_steps_out(self, make_bare: Any) -> None:
        """The closure alone: gradients, and no step; the counter says so."""

        class EverySecond(Weight):
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                if batch_idx % 2:
                    optimizer.step(closure=optimizer_closure)
                else:
                    optimizer_closure()

        model = EverySecond()
        trainer = make_bare()
        trainer.fit(model, BATCHES)
        assert trainer.global_step == 2
        assert float(model.weight.detach()) == pytest.approx(-0.1 * (2 + 4))

    def test_sees_the_mean_gradient_of_a_window(self, make_bare: Any) -> None:
        class Own(Weight):
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                optimizer.step(closure=optimizer_closure)

        model = Own()
        make_bare(accumulate_grad_batches=3).fit(model, BATCHES)
        assert model.gradients == [2.0, 4.0]

    def test_that_forgets_its_closure_is_told(self, make_bare: Any) -> None:
        class Forgets(Weight):
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                optimizer.step()

        with pytest.raises(ModuleError, match="optimizer_step never called its closure"):
            make_bare().fit(Forgets(), BATCHES)

    def test_moves_nothing_where_the_batch_is_skipped(self, make_bare: Any) -> None:
        class Skips(Weight):
            def training_step(self, batch: Tensor) -> Any:
                return None if float(batch) == 2.0 else super().training_step(batch)

            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                optimizer.step(closure=optimizer_closure)

        model = Skips()
        trainer = make_bare()
        trainer.fit(model, BATCHES)
        assert model.gradients == [1.0, 3.0, 4.0]
        assert trainer.global_step == 3


class TestAnOptimizerThatNeedsAClosure:
    class Lbfgs(Weight):
        def __init__(self) -> None:
            super().__init__()
            self.evaluations = 0

        def training_step(self, batch: Tensor) -> Any:
            self.evaluations += 1
            return (self.weight - batch.mean()) ** 2

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=1.0)

    def test_evaluates_its_loss_as_often_as_it_likes(self, make_bare: Any) -> None:
        model = self.Lbfgs()
        trainer = make_bare()
        trainer.fit(model, [torch.tensor([3.0])])
        assert float(model.weight.detach()) == pytest.approx(3.0, abs=1e-4)
        assert model.evaluations > 1
        assert trainer.global_step == 1

    def test_can_not_accumulate(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="LBFGS evaluates the loss of a step more than once"):
            make_bare(accumulate_grad_batches=2).fit(self.Lbfgs(), BATCHES)

    def test_can_not_skip(self, make_bare: Any) -> None:
        model = type("Skips", (self.Lbfgs,), {"training_step": lambda self, batch: None})()
        with pytest.raises(ModuleError, match="LBFGS is in the middle of a step"):
            make_bare().fit(model, BATCHES)

    def test_resumes_bit_for_bit(self, make_trainer: Any, tmp_path: Path) -> None:
        class Learns(Classifier):
            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

        def fit(folder: str, **settings: Any) -> Classifier:
            torch.manual_seed(0)
            model = Learns()
            trainer = make_trainer(default_root_dir=tmp_path / folder, max_epochs=settings.pop("epochs", 2))
            trainer.fit(model, datamodule=Points(), **settings)
            return model

        whole = fit("whole")
        fit("parts", epochs=1)
        resumed = fit("parts", ckpt_path="last")
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class TestOverridingClippingAndZeroGrad:
    def test_clipping_is_given_the_trainers_settings(self, make_bare: Any) -> None:
        given = []

        class Own(Weight):
            def configure_gradient_clipping(
                self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
            ) -> None:
                given.append((gradient_clip_val, gradient_clip_algorithm))
                self.clip_gradients(optimizer, gradient_clip_val=0.25, gradient_clip_algorithm="value")

        model = Own()
        make_bare(gradient_clip_val=2.0).fit(model, BATCHES[:2])
        assert given == [(2.0, "norm")] * 2
        assert float(model.weight.detach()) == pytest.approx(-0.05)

    def test_clipping_of_its_own_needs_no_setting(self, make_bare: Any) -> None:
        class Own(Weight):
            def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
                self.clip_gradients(optimizer, 0.5)

        model = Own()
        make_bare().fit(model, BATCHES[:1])
        assert float(model.weight.detach()) == pytest.approx(-0.05)

    def test_zero_grad_may_keep_a_part(self, make_bare: Any) -> None:
        """Momentum by hand: half of the old gradient stays."""

        class Halves(Weight):
            def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
                if self.weight.grad is not None:
                    self.weight.grad.mul_(0.5)

        model = Halves()
        make_bare().fit(model, BATCHES[:3])
        assert model.gradients == [1.0, 2.5, 4.25]


class TestASchedulerStepOfItsOwn:
    def test_is_given_the_metric(self, make_bare: Any) -> None:
        given = []

        class Own(Weight):
            def training_step(self, batch: Tensor) -> Any:
                self.log("mean", batch.mean(), on_epoch=True)
                return super().training_step(batch)

            def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
                given.append(None if metric is None else float(metric))
                super().lr_scheduler_step(scheduler, metric)

            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
                step = torch.optim.lr_scheduler.StepLR(optimizer, 1)
                return [optimizer], [{"scheduler": plateau, "monitor": "mean"}, step]

        make_bare().fit(Own(), BATCHES)
        assert given == [None, 2.5]

    def test_of_any_class_is_stepped(self, make_bare: Any) -> None:
        """Whatever has step, state_dict and load_state_dict."""

        class Doubles:
            def __init__(self, optimizer: Any) -> None:
                self.optimizer = optimizer

            def step(self) -> None:
                self.optimizer.param_groups[0]["lr"] *= 2

            def state_dict(self) -> dict[str, Any]:
                return {}

            def load_state_dict(self, state: dict[str, Any]) -> None: ...

        class Own(Weight):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Doubles(optimizer), "interval": "step"}}

        trainer = make_bare()
        trainer.fit(Own(), BATCHES[:2])
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.4)


class TestAPlateauThatStepsOnSteps:
    def test_follows_the_validation_of_the_same_batch(self, make_bare: Any) -> None:
        """interval="step": it steps after the validation that is due there, and sees its value."""
        seen = []

        class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
            def step(self, metrics: Any, epoch: Any = None) -> None:
                seen.append(float(metrics))

        class Own(Weight):
            def validation_step(self, batch: Tensor) -> None:
                self.log("val_weight", -self.weight)

            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                config = {"scheduler": Plateau(optimizer), "monitor": "val_weight", "interval": "step"}
                return [optimizer], [{**config, "strict": False}]

        make_bare(val_check_interval=1, num_sanity_val_steps=0).fit(Own(), BATCHES[:3], BATCHES[:1])
        assert seen == [pytest.approx(0.1), pytest.approx(0.3), pytest.approx(0.6)]


class TestCallbacksOfTheModule:
    class Brings(Classifier):
        def configure_callbacks(self) -> Any:
            return [EarlyStopping("val_loss", patience=7), ModelCheckpoint(monitor="val_loss")]

    def test_take_the_place_of_the_trainers_of_the_same_type(self, make_trainer: Any) -> None:
        trainer = make_trainer(callbacks=[EarlyStopping("train_loss"), ModelCheckpoint(monitor="train_loss")])
        trainer.fit(self.Brings(), datamodule=Points())
        assert [callback.patience for callback in trainer.early_stopping_callbacks] == [7]
        assert [callback.monitor for callback in trainer.checkpoint_callbacks] == ["val_loss"]
        assert isinstance(trainer.callbacks[-1], ModelCheckpoint)

    def test_go_with_the_module(self, make_bare: Any) -> None:
        """The next module has the Trainer's own again."""
        own = EarlyStopping("train_loss")

        class Brings(Classifier):
            def configure_callbacks(self) -> Any:
                return EarlyStopping("val_loss", patience=7)

        trainer = make_bare(callbacks=own)
        trainer.fit(Brings(), datamodule=Points())
        assert trainer.early_stopping_callback is not own
        trainer.fit(Classifier(), datamodule=Points())
        assert trainer.early_stopping_callback is own

    def test_must_be_callbacks(self, make_bare: Any) -> None:
        model = type("Wrong", (Classifier,), {"configure_callbacks": lambda self: EarlyStopping})()
        with pytest.raises(treadle.errors.ConfigError, match=r"Wrong\.configure_callbacks returned the class"):
            make_bare().fit(model, datamodule=Points())


class TestAModelMadeLate:
    class Late(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.extra: nn.Module | None = None

        def configure_model(self) -> None:
            if self.extra is None:
                self.extra = nn.Linear(2, 2)

        def forward(self, points: Tensor) -> Tensor:
            assert self.extra is not None
            logits: Tensor = self.layers(self.extra(points))
            return logits

    def test_is_trained_saved_and_loaded(self, make_trainer: Any) -> None:
        trainer, model = make_trainer(), self.Late()
        trainer.fit(model, datamodule=Points())
        again = self.Late.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
        assert again.extra is not None
        assert model.extra is not None
        assert torch.equal(again.extra.weight, model.extra.weight)  # type: ignore[arg-type]
        trainer = make_trainer(max_epochs=2)
        trainer.fit(self.Late(), datamodule=Points(), ckpt_path="last")
        assert trainer.current_epoch == 2


class TestStrictLoading:
    def test_is_the_modules_own_setting(self, make_trainer: Any) -> None:
        """strict_loading=False: a checkpoint without a part of the module is fine, wherever one is loaded."""

        class Grown(Classifier):
            strict_loading = False

            def __init__(self, hidden: int = 4, learning_rate: float = 0.05) -> None:
                super().__init__(hidden, learning_rate)
                self.new = nn.Linear(1, 1)

        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=Points())
        path = trainer.checkpoint_callback.best_model_path
        assert isinstance(Grown.load_from_checkpoint(path), Grown)
        make_trainer().test(Grown(), datamodule=Points(), ckpt_path=path, verbose=False)
        with pytest.raises(treadle.errors.CheckpointError, match="don't fit Grown"):
            Grown.load_from_checkpoint(path, strict=True)


class TestModesAroundAValidation:
    def test_may_be_chosen(self, make_bare: Any) -> None:
        """A module that keeps dropout on while validating, and freezes a part afterwards."""
        seen = []

        class Own(Classifier):
            def on_validation_model_eval(self) -> None:
                self.layers[0].eval()

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                seen.append((self.layers[0].training, self.layers[2].training))

            def on_validation_model_train(self) -> None:
                self.train()
                self.layers[3].eval()

        model = Own()
        make_bare(limit_val_batches=1, num_sanity_val_steps=0).fit(model, datamodule=Points())
        assert seen == [(False, True)]
        assert not model.layers[3].training

    def test_gradients_of_an_open_window_survive_it(self, make_bare: Any) -> None:
        """The memory of gradients is only freed when none of them wait for a step."""
        kept = []

        class Own(Weight):
            def validation_step(self, batch: Tensor) -> None:
                kept.append(self.weight.grad is not None)

        model = Own()
        make_bare(accumulate_grad_batches=2, val_check_interval=1, num_sanity_val_steps=0).fit(
            model, BATCHES, BATCHES[:1]
        )
        assert kept == [True, False, True, False]
        assert model.gradients == [1.5, 3.5]


class TestForOnesOwnUse:
    def test_attributes_lead_to_the_run(self, make_bare: Any) -> None:
        seen = {}

        class Looks(Weight):
            def training_step(self, batch: Tensor) -> Any:
                seen.update(
                    logger=self.logger,
                    loggers=self.loggers,
                    fabric=self.fabric,
                    ranks=(self.global_rank, self.local_rank),
                    device=self.device,
                    gathered=self.all_gather({"x": [batch, 1]}),
                )
                return super().training_step(batch)

        logger = MemoryLogger()
        trainer = make_bare(logger=logger)
        trainer.fit(Looks(), BATCHES[:1])
        assert seen["logger"] is logger
        assert seen["loggers"] == [logger]
        assert seen["fabric"] is trainer.fabric
        assert seen["ranks"] == (0, 0)
        assert seen["device"] == torch.device("cpu")
        assert torch.equal(seen["gathered"]["x"][0], BATCHES[0])  # on one rank nothing is added

    def test_hyperparameters_may_come_from_a_file(self, make_trainer: Callable[..., Any], tmp_path: Path) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(hidden=3), datamodule=Points())
        path = trainer.checkpoint_callback.best_model_path
        for name, text in (
            ("h.json", '{"hidden": 3, "learning_rate": 0.5}'),
            ("h.yaml", "hidden: 3\nlearning_rate: 0.5"),
        ):
            (tmp_path / name).write_text(text)
            loaded = Classifier.load_from_checkpoint(path, hparams_file=tmp_path / name)
            assert loaded.hparams.learning_rate == 0.5
        with pytest.raises(treadle.errors.ConfigError, match="can't be read"):
            Classifier.load_from_checkpoint(path, hparams_file=tmp_path / "none.yaml")
        with pytest.raises(treadle.errors.ConfigError, match="weights_only=False"):
            Classifier.load_from_checkpoint(path, weights_only=False)

    def test_the_first_hyperparameters_are_kept(self) -> None:
        model = Classifier(hidden=3)
        model.hparams.hidden = 9
        assert (model.hparams.hidden, model.hparams_initial.hidden) == (9, 3)
