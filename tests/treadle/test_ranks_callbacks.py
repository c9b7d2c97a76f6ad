"""Callbacks that change weights, or decide something, on two real ranks."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_trainer_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from treadle.errors import ConfigError, TreadleError
from treadle.strategies.sharding import whole

POINTS = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(POINTS, (POINTS.sum(1) > 0).long())


class Model(treadle.Module):
    """A backbone and a head. ``worsens``: its val_loss grows."""

    def __init__(self, *, norm: bool = False, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh())
        self.head = nn.Linear(6, 2)
        self.automatic_optimization = not manual

    def forward(self, points: Tensor) -> Tensor:
        answer: Tensor = self.head(self.backbone(points))
        return answer

    def training_step(self, batch: Any) -> Any:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))
        self.log("worsens", float(self.global_step))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def fit(
    folder: Path,
    strategy: str,
    callbacks: Callable[[], list[treadle.Callback]],
    model: Callable[[], Model] = Model,
    ckpt_path: Any = None,
    **settings: Any,
) -> tuple[dict[str, Tensor], int, dict[str, float]]:
    """Weights, steps and metrics of a fit with the global batch of 8."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch's FSDP and schedulers
        trainer = treadle.Trainer(
            strategy=strategy,
            callbacks=callbacks(),
            default_root_dir=folder,
            enable_progress_bar=False,
            **{"max_epochs": 3, **settings},
        )
        module = model()
        torch.manual_seed(0)
        loader = DataLoader(DATA, 8 // size, shuffle=True)
        trainer.fit(module, loader, DataLoader(DATA, 8 // size), ckpt_path=ckpt_path)
        weights = {name: value.clone() for name, value in whole(module.state_dict()).items()}
    return weights, trainer.global_step, {name: float(value) for name, value in trainer.callback_metrics.items()}


def require_near(some: dict[str, Tensor], others: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, value in some.items():
        torch.testing.assert_close(others[name], value, atol=tolerance, rtol=tolerance, msg=name)


class TestWeightsThatAreTrainedLater:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_meet_as_those_from_the_start(self, tmp_path: Path, strategy: str) -> None:
        """DDP is told of them when they are unfrozen."""

        def thaw() -> list[treadle.Callback]:
            return [BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)]

        alone, *_ = fit(tmp_path / "one", "auto", thaw)
        for weights, *_ in on_trainer_ranks(2, fit, tmp_path / "two", strategy, thaw):
            require_near(alone, weights)
        assert not torch.equal(alone["backbone.0.weight"], Model().backbone[0].weight)


class TestAveragedWeights:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_are_those_of_one_device(self, tmp_path: Path, strategy: str) -> None:
        def averages() -> list[treadle.Callback]:
            return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)]

        alone, *_ = fit(tmp_path / "one", "auto", averages)
        for weights, *_ in on_trainer_ranks(2, fit, tmp_path / "two", strategy, averages):
            require_near(alone, weights)

    def test_have_the_statistics_of_all_ranks(self, tmp_path: Path) -> None:
        """Of batch normalization, gathered anew at the end, over the whole data."""

        def averages() -> list[treadle.Callback]:
            return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)]

        def normed() -> Model:
            return Model(norm=True)

        settings = {"sync_batchnorm": True, "model": normed}
        alone, *_ = fit(tmp_path / "one", "auto", averages, normed)
        for weights, *_ in on_trainer_ranks(2, _fit_with, tmp_path / "two", averages, settings):
            assert abs(weights["backbone.1.running_mean"] - alone["backbone.1.running_mean"]).max() < 0.02

    def test_resume_where_they_are_sharded(self, tmp_path: Path) -> None:
        def averages() -> list[treadle.Callback]:
            return [EMAWeightAveraging(decay=0.9)]

        unbroken = on_trainer_ranks(2, fit, tmp_path / "unbroken", "fsdp", averages)
        resumed = on_trainer_ranks(2, _stopped_and_resumed, tmp_path / "broken", "fsdp", averages, Model)
        for (weights, steps, metrics), (same, as_many, alike) in zip(unbroken, resumed, strict=True):
            require_near(weights, same, tolerance=0.0)
            assert (steps, metrics) == (as_many, alike)


class TestManualOptimization:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_resumes(self, tmp_path: Path, strategy: str) -> None:
        def manual() -> Model:
            return Model(manual=True)

        unbroken = on_trainer_ranks(2, fit, tmp_path / "unbroken", strategy, list, manual)
        resumed = on_trainer_ranks(2, _stopped_and_resumed, tmp_path / "broken", strategy, list, manual)
        for (weights, *_), (same, *_) in zip(unbroken, resumed, strict=True):
            require_near(weights, same, tolerance=0.0)


class TestPruning:
    def test_at_random_leaves_the_same_on_all_ranks(self, tmp_path: Path) -> None:
        def prunes() -> list[treadle.Callback]:
            return [ModelPruning("random_unstructured", parameter_names=["weight"], amount=0.5, verbose=0)]

        (one, *_), (other, *_) = on_trainer_ranks(2, _fit_with, tmp_path, prunes, {"max_epochs": 1})
        assert (one["head.weight"] == 0).any()
        require_near(one, other, tolerance=0.0)

    def test_of_sharded_weights_is_refused(self, tmp_path: Path) -> None:
        def refused() -> str:
            with pytest.raises(ConfigError, match="ModelPruning with strategy='fsdp'") as error:
                fit(tmp_path, "fsdp", lambda: [ModelPruning("l1_unstructured", amount=0.5)])
            return error.value.fix

        assert on_trainer_ranks(2, refused) == ['strategy="ddp"'] * 2


class TestAStopThatAValidationAsksFor:
    def test_comes_after_the_same_batch_as_on_one_device(self, tmp_path: Path) -> None:
        def stops() -> list[treadle.Callback]:
            return [EarlyStopping("worsens", patience=1)]

        settings = {"val_check_interval": 2}
        _, alone, _ = fit(tmp_path / "one", "auto", stops, **settings)
        assert alone == 4
        assert [steps for _, steps, _ in on_trainer_ranks(2, _fit_with, tmp_path, stops, settings)] == [4, 4]


class TestADecisionThatRankZeroCannotTake:
    def test_is_an_error_on_all(self, tmp_path: Path) -> None:
        def said() -> str:
            with pytest.raises(TreadleError) as error:
                fit(tmp_path, "ddp", lambda: [ModelCheckpoint(monitor="nothing")])
            return error.value.what

        one, other = on_trainer_ranks(2, said)
        assert one == other
        assert "'nothing'" in one


def _fit_with(folder: Path, callbacks: Any, settings: dict[str, Any]) -> Any:
    return fit(folder, "ddp", callbacks, **settings)


def _stopped_and_resumed(folder: Path, strategy: str, callbacks: Any, model: Any) -> Any:
    fit(folder, strategy, callbacks, model, max_epochs=-1, max_steps=9)
    return fit(folder, strategy, callbacks, model, ckpt_path="last")
