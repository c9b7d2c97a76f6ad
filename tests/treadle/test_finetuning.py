"""BaseFinetuning and BackboneFinetuning: parts of a module that are trained later in the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from treadle.errors import CheckpointError, ConfigError, ModuleError, TreadleWarning
from treadle.testing import Classifier, NoisyPoints, Points


class Transfer(Classifier):
    """A backbone with BatchNorm and a head; ``rates`` lists the groups' learning rates in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 4), nn.Tanh()]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(4, 2)
        self.layers = nn.Sequential(self.backbone, self.head)
        self.rates: list[list[float]] = []

    def on_train_epoch_start(self) -> None:
        self.rates.append([round(group["lr"], 6) for group in self.trainer.optimizers[0].param_groups])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def with_schedule(make: Any) -> type[Transfer]:
    class Scheduled(Transfer):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": "step"}}

    return Scheduled


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class TestABackbone:
    def fit(self, make_bare: Any, callback: treadle.Callback, epochs: int = 4, module: Any = Transfer) -> Transfer:
        model: Transfer = module()
        make_bare(callbacks=callback, max_epochs=epochs).fit(model, DataLoader(NoisyPoints(), 4))
        return model

    def test_is_not_trained_before_its_epoch(self, make_bare: Any) -> None:
        """But for its BatchNorm."""
        model = Transfer()
        before = weights(model.backbone)
        make_bare(callbacks=BackboneFinetuning(2), max_epochs=2).fit(model, DataLoader(NoisyPoints(), 4))
        changed = {name for name, value in weights(model.backbone).items() if not torch.equal(value, before[name])}
        assert changed == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}

    def test_is_not_trained_before_its_epoch_with_its_batch_norm_if_one_wishes(self, make_bare: Any) -> None:
        model = Transfer()
        before = weights(model.backbone)
        make_bare(callbacks=BackboneFinetuning(2, train_bn=False), max_epochs=3).fit(
            model, DataLoader(NoisyPoints(), 4)
        )
        changed = {name for name, value in weights(model.backbone).items() if not torch.equal(value, before[name])}
        assert changed - {"0.bias"} == {
            "0.weight",
            "4.weight",
            "4.bias",
        }  # a bias before BatchNorm hardly has a gradient

    def test_is_trained_from_its_epoch_on(self, make_bare: Any) -> None:
        model = Transfer()
        before = weights(model.backbone)
        make_bare(callbacks=BackboneFinetuning(1), max_epochs=2).fit(model, DataLoader(NoisyPoints(), 4))
        after = weights(model.backbone)
        assert not any(torch.equal(after[name], before[name]) for name in ("0.weight", "4.weight", "1.weight"))

    @pytest.mark.parametrize(
        "settings, backbone",
        [
            ({}, [0.01, 0.02, 0.04, 0.08, 0.1]),
            ({"should_align": False}, [0.01, 0.02, 0.04, 0.08, 0.16]),
            ({"backbone_initial_lr": 0.05}, [0.05, 0.1, 0.1, 0.1, 0.1]),
            ({"backbone_initial_ratio_lr": 0.5, "lambda_func": lambda _: 1.0}, [0.05] * 5),
            ({"backbone_initial_ratio_lr": None, "initial_denom_lr": 100.0}, [0.001, 0.002, 0.004, 0.008, 0.016]),
            ({"lambda_func": lambda epoch: float(epoch)}, [0.01, 0.03, 0.1, 0.1, 0.1]),
        ],
        ids=["default", "not aligned", "a number", "a part", "divided", "by epoch"],
    )
    def test_has_a_learning_rate_of_its_own(
        self, make_bare: Any, settings: dict[str, Any], backbone: list[float]
    ) -> None:
        model = self.fit(make_bare, BackboneFinetuning(1, **settings), epochs=6)
        assert model.rates == [[0.1], *[[0.1, rate] for rate in backbone]]

    def test_may_be_trained_at_once(self, make_bare: Any) -> None:
        assert self.fit(make_bare, BackboneFinetuning(0), epochs=1).rates == [[0.1, 0.01]]

    def test_says_its_rates_when_asked_to(self, make_bare: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.fit(make_bare, BackboneFinetuning(1, verbose=True, rounding=3), epochs=2)
        said = capsys.readouterr().out
        assert "BackboneFinetuning: epoch 1, learning rate 0.1, the backbone's 0.01." in said

    def test_of_batch_norm_only_needs_no_group(self, make_bare: Any) -> None:
        class Normed(Transfer):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = nn.Sequential(nn.BatchNorm1d(2))
                self.layers = nn.Sequential(self.backbone, nn.Linear(2, 2))

        assert self.fit(make_bare, BackboneFinetuning(1), epochs=3, module=Normed).rates == [[0.1]] * 3

    def test_is_frozen_anew_by_a_second_fit(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=BackboneFinetuning(1), max_epochs=2)
        for _ in range(2):
            model = Transfer()
            trainer.fit(model, DataLoader(NoisyPoints(), 4))
            assert model.rates == [[0.1], [0.1, 0.01]]


class TestASchedule:
    """Of every kind, also those that torch makes for a fixed number of groups."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda optimizer: StepLR(optimizer, 3, 0.5),
            lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            lambda optimizer: CosineAnnealingLR(optimizer, 40),
            lambda optimizer: OneCycleLR(optimizer, 0.1, 40),
            lambda optimizer: CyclicLR(optimizer, 0.01, 0.1),
            lambda optimizer: SequentialLR(
                optimizer,
                [LinearLR(optimizer, 0.1, total_iters=8), LambdaLR(optimizer, lambda step: 1 / (1 + step))],
                [8],
            ),
        ],
        ids=["step", "lambda", "cosine", "one cycle", "cyclic", "sequential"],
    )
    def test_takes_the_new_group_along_in_proportion(self, make_bare: Any, make: Any) -> None:
        """At the end of the unfreezing epoch its rate is a tenth of the first group's, as at the epoch's start."""
        model = with_schedule(make)()
        trainer = make_bare(callbacks=BackboneFinetuning(1), max_epochs=2)
        trainer.fit(model, DataLoader(NoisyPoints(), 4))
        first, added = [group["lr"] for group in trainer.optimizers[0].param_groups]
        assert first != model.rates[1][0]
        assert added == pytest.approx(first / 10)


class TestSettingsThatMakeNoSense:
    @pytest.mark.parametrize(
        "settings",
        [
            {"unfreeze_backbone_at_epoch": -1},
            {"backbone_initial_lr": 0.0},
            {"backbone_initial_ratio_lr": -0.1},
            {"initial_denom_lr": 0.0},
            {"initial_denom_lr": 100.0},
        ],
        ids=str,
    )
    def test_are_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            BackboneFinetuning(**settings)

    def test_as_a_module_without_backbone_are_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="Classifier has no backbone"):
            make_bare(callbacks=BackboneFinetuning()).fit(Classifier(), datamodule=Points())

    def test_as_an_optimizer_with_all_parameters_are_an_error(self, make_bare: Any) -> None:
        class All(Transfer):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        with pytest.raises(ConfigError, match="from the start") as error:
            make_bare(callbacks=BackboneFinetuning()).fit(All(), datamodule=Points())
        assert "p.requires_grad" in error.value.fix

    def test_as_two_optimizers_are_an_error(self, make_bare: Any) -> None:
        class Two(Transfer):
            automatic_optimization = False

            def configure_optimizers(self) -> Any:
                return [torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1) for _ in range(2)]

        with pytest.raises(ConfigError, match="with 2 optimizers"):
            make_bare(callbacks=BackboneFinetuning()).fit(Two(), datamodule=Points())

    def test_as_a_callback_without_methods_are_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="doesn't define freeze_before_training"):
            make_bare(callbacks=BaseFinetuning()).fit(Transfer(), datamodule=Points())


class Layered(BaseFinetuning):
    """Thaws the second half of the backbone in epoch 1, the first in epoch 2."""

    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.backbone, train_bn=False)

    def finetune_function(self, module: Any, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.backbone[4:], optimizer)
        if epoch == 2:
            self.unfreeze_and_add_param_group([module.backbone[0], module.backbone[1]], optimizer, lr=0.002)


class TestACallbackOfOnesOwn:
    def test_thaws_layer_by_layer(self, make_bare: Any) -> None:
        model = Transfer()
        make_bare(callbacks=Layered(), max_epochs=3).fit(model, DataLoader(NoisyPoints(), 4))
        assert model.rates == [[0.1], [0.1, 0.01], [0.1, 0.01, 0.002]]
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.backbone[1].track_running_stats

    def test_that_adds_what_is_there_is_told(self, make_bare: Any) -> None:
        class Twice(Layered):
            def freeze_before_training(self, module: Any) -> None: ...

            def finetune_function(self, module: Any, epoch: int, optimizer: Optimizer) -> None:
                self.freeze(module.head)
                self.unfreeze_and_add_param_group(module.head, optimizer)

        with pytest.warns(TreadleWarning, match=r"treadle\[finetuning\]: 2 parameters to be added"):
            make_bare(callbacks=Twice()).fit(Transfer(), datamodule=Points())

    def test_that_adds_what_is_not_the_modules_is_an_error(self, make_bare: Any) -> None:
        class Foreign(Layered):
            def finetune_function(self, module: Any, epoch: int, optimizer: Optimizer) -> None:
                self.unfreeze_and_add_param_group(nn.Linear(2, 2), optimizer)

        with pytest.raises(ModuleError, match="that Transfer doesn't have"):
            make_bare(callbacks=Foreign()).fit(Transfer(), datamodule=Points())


class TestTheHelpers:
    def test_flatten_modules_of_any_nesting(self) -> None:
        model = Transfer()
        assert len(BaseFinetuning.flatten_modules(model.backbone)) == 6
        assert BaseFinetuning.flatten_modules([model.head, [model.backbone[0]]]) == [model.head, model.backbone[0]]

    def test_flatten_modules_keep_one_with_parameters_of_its_own(self) -> None:
        class Scaled(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Linear(1, 1))
                self.scale = nn.Parameter(torch.ones(()))

        scaled = Scaled()
        assert BaseFinetuning.flatten_modules(scaled) == [scaled, scaled[0]]
        BaseFinetuning.freeze(scaled)
        assert not scaled.scale.requires_grad

    def test_filter_params_by_what_is_trainable(self) -> None:
        backbone = Transfer().backbone
        BaseFinetuning.freeze(backbone[:1])
        assert len(list(BaseFinetuning.filter_params(backbone))) == 4
        assert len(list(BaseFinetuning.filter_params(backbone, train_bn=False))) == 2
        assert len(list(BaseFinetuning.filter_params(backbone, requires_grad=False))) == 2

    def test_freeze_and_make_trainable(self) -> None:
        backbone = Transfer().backbone
        BaseFinetuning.freeze(backbone, train_bn=False)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not backbone[1].track_running_stats
        BaseFinetuning.make_trainable(backbone)
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        assert backbone[1].track_running_stats


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
    module: type[Transfer] = Transfer,
    kill_after: int | None = None,
    ckpt_path: str | None = None,
    **settings: Any,
) -> tuple[Transfer, str]:
    """Four epochs of five steps, saved after each. Returns the module and the rows."""
    treadle.seed_everything(7 if ckpt_path is None else 999)
    model = module()
    settings = {"max_epochs": 4, "log_every_n_steps": 1, "enable_progress_bar": False, **settings}
    saves = [KillAfter(kill_after), ModelCheckpoint(every="1 step")]
    trainer = treadle.Trainer(default_root_dir=root, callbacks=[callback, *saves], **settings)
    try:
        trainer.fit(model, DataLoader(NoisyPoints(), 4, shuffle=True), ckpt_path=ckpt_path)
    except Killed:
        assert kill_after is not None
    return model, (root / "runs/version_0/metrics.csv").read_text()


def same(one: Any, other: Any) -> bool:
    """Bit for bit, tensors within dicts and lists too."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class TestARunStoppedAndResumed:
    KILLS = (3, 5, 6, 10, 12, 15, 18)
    """Inside each epoch, and after each: layers are thawed in the second and the third."""

    def check(self, tmp_path: Path, make: Any, kills: Any, **settings: Any) -> None:
        whole, rows = run(tmp_path / "whole", make(), **settings)
        for kill in kills:
            root = tmp_path / f"killed after {kill}"
            run(root, make(), kill_after=kill, **settings)
            again, resumed_rows = run(root, make(), ckpt_path="last", **settings)
            for one, other in ((again, whole), (again.trainer.optimizers[0], whole.trainer.optimizers[0])):
                assert same(one.state_dict(), other.state_dict()), f"differs after {kill} batches"
            assert resumed_rows == rows, f"rows differ after {kill} batches"

    def test_has_the_thawed_layers_again(self, tmp_path: Path) -> None:
        self.check(tmp_path, Layered, self.KILLS)

    def test_has_the_backbone_again(self, tmp_path: Path) -> None:
        self.check(tmp_path, lambda: BackboneFinetuning(1), (4, 6, 10, 13))

    def test_has_schedules_of_all_groups_again(self, tmp_path: Path) -> None:
        module = with_schedule(lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)))
        self.check(tmp_path, lambda: BackboneFinetuning(1), (6, 11), module=module)

    def test_has_them_in_an_accumulation_window(self, tmp_path: Path) -> None:
        self.check(tmp_path, Layered, (7, 12), accumulate_grad_batches=2)

    def test_with_another_optimizer_is_an_error(self, tmp_path: Path) -> None:
        class All(Transfer):
            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        run(tmp_path, Layered(), kill_after=7)
        with pytest.raises(CheckpointError, match="had added layers") as error:
            run(tmp_path, Layered(), ckpt_path="last", module=All)
        assert "configure_optimizers is not what it was" in error.value.why
