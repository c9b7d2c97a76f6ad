"""What a Trainer does around its steps, on several ranks: stopping, saving, logging, other ways to step."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # before forking: each rank would import it
from rank_training import Left, Net, Numbered, Plan, left_by, require_equal, train, trainer_for
from ranks import on_trainer_ranks
from torch import nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping, ModelCheckpoint
from treadle.compiling import Compile


class AsksOnOne(treadle.Callback):
    """``should_stop`` on the last rank, after the fourth batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == trainer.world_size - 1 and trainer.current_epoch == 1 and batch_idx == 0:
            trainer.should_stop = True


class Worsening(Net):
    """Rank 1 alone sees it get worse at once."""

    def on_validation_epoch_end(self) -> None:
        self.log("score", float(self.trainer.current_epoch) * (1 if self.trainer.global_rank else -1), sync_dist=False)


def stopped(folder: Path, strategy: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    net = Net()
    trainer = trainer_for(folder / "a", strategy, callbacks=AsksOnOne(), max_epochs=5)
    trainer.fit(net, DataLoader(Numbered(), 8), DataLoader(Numbered(37), 8))
    found["asked"] = (trainer.global_step, trainer.current_epoch, len(net.seen))
    net = Worsening()
    trainer = trainer_for(folder / "b", strategy, callbacks=EarlyStopping("score", patience=1), max_epochs=6)
    trainer.fit(net, DataLoader(Numbered(), 8), DataLoader(Numbered(37), 8))
    found["early"] = (trainer.global_step, trainer.current_epoch, len(net.seen))
    return found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
class TestOneRankAsksToStop:
    def test_stops_all_after_the_same_batch(self, tmp_path: Path, strategy: str) -> None:
        first, second = on_trainer_ranks(2, stopped, tmp_path, strategy)
        assert first == second
        assert 4 <= first["asked"][0] < 15  # they ask one another about once a second
        assert first["early"][1] < 6


def saved(folder: Path, strategy: str) -> dict[str, Any]:
    keeper = ModelCheckpoint(monitor="val_loss", save_top_k=2, filename="{epoch}-{val_loss:.3f}")
    net = Net()
    trainer = trainer_for(folder, strategy, callbacks=keeper, max_epochs=3)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        trainer.fit(net, DataLoader(Numbered(), 8), DataLoader(Numbered(37), 8))
        log_dir = str(trainer.log_dir)
        after = trainer.validate(dataloaders=DataLoader(Numbered(37), 8), verbose=False)
        trainer.print("once")
    return {
        "best": keeper.best_model_path,
        "files": sorted(p.name for p in Path(keeper.best_model_path).parent.iterdir()),
        "score": float(keeper.best_model_score),
        "after": after,
        "printed": out.getvalue(),
        "log_dir": log_dir,
        "folders": sorted(p.name for p in (folder / "runs").iterdir()),
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
class TestSavingTheBest:
    def test_keeps_the_same_files_on_all_ranks_knowledge(self, tmp_path: Path, strategy: str) -> None:
        first, second = on_trainer_ranks(2, saved, tmp_path, strategy)
        assert first["after"][0]["val_loss"] == pytest.approx(first["score"], rel=1e-6)
        assert "once" in first.pop("printed")
        assert second.pop("printed") == ""
        assert first == second
        assert first["folders"] == ["version_0"]
        assert len(first["files"]) == 4, first["files"]  # and last.ckpt, and the one before
        net = Net.load_from_checkpoint(first["best"])
        assert isinstance(net.net[0].weight, nn.Parameter)


class Adversaries(treadle.Module):
    """Two optimizers that take turns, each with an accumulation and clipping of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.maker = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
            self.judge = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _, _ = batch
        making, judging = self.optimizers()
        loss = nn.functional.softplus(-self.judge(self.maker(x))).mean()
        making.zero_grad()
        self.manual_backward(loss)
        making.step()
        judged = nn.functional.softplus(-self.judge(x)).mean()
        judged = judged + nn.functional.softplus(self.judge(self.maker(x).detach())).mean()
        judging.zero_grad()
        self.manual_backward(judged)
        judging.step()
        self.log_dict({"making": loss, "judging": judged}, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (self.maker, self.judge)]


def adversaries(folder: Path, strategy: str, size: int) -> Left:
    torch.manual_seed(0)
    net = Adversaries()
    trainer = trainer_for(folder, strategy, logger=False, enable_checkpointing=False)
    trainer.fit(net, DataLoader(Numbered(), size, shuffle=True))
    return left_by(trainer, net)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
class TestTwoOptimizersByHand:
    def test_equals_one_device(self, tmp_path: Path, strategy: str) -> None:
        single = adversaries(tmp_path, "auto", 16)
        for run in on_trainer_ranks(2, adversaries, tmp_path, strategy, 8):
            require_equal(run, single, tolerance=2e-6)


PLANS = {
    "sync_batchnorm": Plan(module={"norm": True}, trainer={"sync_batchnorm": True}),
    "compiled": Plan(trainer={"compile": Compile(what="blocks", backend="eager")}),
    "compiled forward": Plan(trainer={"compile": Compile(what="forward", backend="eager")}),
    "bf16-mixed": Plan(trainer={"precision": "bf16-mixed"}),
    "16-mixed": Plan(trainer={"precision": "16-mixed"}),
    "bf16-true": Plan(trainer={"precision": "bf16-true"}),
    "64-true": Plan(trainer={"precision": "64-true"}),
}
TOLERANCES = {"bf16-mixed": 0.03, "16-mixed": 0.01, "bf16-true": 0.1, "64-true": 1e-9}


def ways(folder: Path, ranks: int, strategy: str) -> dict[str, Left]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The .grad attribute of a Tensor that is not a leaf"
        )  # torch's compiler reads it
        return {name: train(plan, folder / name, ranks, strategy) for name, plan in PLANS.items()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    return ways(tmp_path_factory.mktemp("one"), 1, "auto")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Left]]:
    return on_trainer_ranks(2, ways, tmp_path_factory.mktemp("several"), 2, request.param)


@pytest.mark.parametrize("name", PLANS)
class TestWaysToCompute:
    def test_are_near_one_device(self, single: dict[str, Left], several: list[dict[str, Left]], name: str) -> None:
        for run in several:
            require_equal(run[name], single[name], tolerance=TOLERANCES.get(name, 2e-6))
            for key, value in several[0][name].weights.items():
                assert torch.equal(run[name].weights[key], value)


class TestFourRanksWithSyncedBatchNormalization:
    def test_equal_one_device_though_some_repeat_a_batch(self, tmp_path: Path, single: dict[str, Left]) -> None:
        """Of 43 samples in batches of 4, the last round has three: what the fourth rank reads again counts for nothing."""
        runs = on_trainer_ranks(4, train, PLANS["sync_batchnorm"], tmp_path, 4, "ddp")
        require_equal(runs[0], single["sync_batchnorm"], tolerance=2e-6)
