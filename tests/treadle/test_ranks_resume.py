"""A run on several ranks that was stopped and resumed is the run that never stopped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # before forking: each rank would import it
from rank_training import Left, Net, Plan, require_equal, samples_by_step, train
from ranks import on_trainer_ranks

import treadle

PLANS = {
    "inside an epoch": Plan(module={"dropout": 0.3}, trainer={"max_epochs": 3}),
    "between epochs": Plan(module={"dropout": 0.3}, trainer={"max_epochs": 3}),
    "inside a window": Plan(
        module={"dropout": 0.3, "weighted": True}, trainer={"max_epochs": 3, "accumulate_grad_batches": 2}
    ),
    "augmented in workers": Plan(module={"dropout": 0.3}, workers=2, noise=0.3, trainer={"max_epochs": 3}),
}
STEPS = {"inside an epoch": 4, "between epochs": 3, "inside a window": 3, "augmented in workers": 5}


def stopped_and_resumed(folder: Path, count: int, strategy: str) -> dict[str, tuple[Left, Left]]:
    found = {}
    for name, plan in PLANS.items():
        unbroken = train(plan, folder / name / "whole", count, strategy)
        stopped = Plan(**{**vars(plan), "trainer": {**plan.trainer, "max_steps": STEPS[name]}})
        if name == "inside a window":
            stopped = Plan(**{**vars(plan), "trainer": {**plan.trainer, "callbacks": [StopsAfter(4)]}})
        train(stopped, folder / name / "parts", count, strategy)
        torch.manual_seed(99)
        resumed = train(plan, folder / name / "parts", count, strategy, ckpt_path="last")
        found[name] = (unbroken, resumed)
    return found


class StopsAfter(treadle.Callback):
    """Asks to stop on one rank only."""

    def __init__(self, batches: int) -> None:
        self.batches, self.seen = batches, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += 1
        if trainer.global_rank == trainer.world_size - 1 and self.seen == self.batches:
            trainer.should_stop = True


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_trainer_ranks(2, stopped_and_resumed, tmp_path_factory.mktemp("runs"), 2, request.param)


@pytest.mark.parametrize("name", PLANS)
class TestStoppedAndResumed:
    def test_ends_with_the_weights_of_the_unbroken_run_bit_by_bit(self, runs: list[dict[str, Any]], name: str) -> None:
        for rank in runs:
            unbroken, resumed = rank[name]
            for key, value in unbroken.weights.items():
                assert torch.equal(resumed.weights[key], value), key

    def test_has_its_metrics_and_rows(self, runs: list[dict[str, Any]], name: str) -> None:
        for rank in runs:
            unbroken, resumed = rank[name]
            assert resumed.metrics == unbroken.metrics
        unbroken, resumed = runs[0][name]
        assert resumed.rows == unbroken.rows
        assert len(unbroken.rows) > 3

    def test_sees_what_was_left(self, runs: list[dict[str, Any]], name: str) -> None:
        for rank in runs:
            unbroken, resumed = rank[name]
            assert 0 < len(resumed.seen) < len(unbroken.seen)
            assert resumed.seen == unbroken.seen[-len(resumed.seen) :]


def some_steps(folder: Path, count: int, strategy: str) -> Left:
    return train(Plan(trainer={"max_steps": 4}), folder, count, strategy)


def the_rest(folder: Path, count: int, strategy: str) -> Left:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", treadle.errors.TreadleWarning)
        return train(Plan(trainer={"max_epochs": 3}), folder, count, strategy, ckpt_path="last")


class TestAnotherNumberOfRanks:
    @pytest.mark.parametrize(
        "before, strategy, after, then",
        [
            (2, "ddp", 4, "ddp"),
            (2, "fsdp", 1, "auto"),
            (1, "auto", 2, "fsdp"),
            (2, "ddp", 2, "fsdp"),
            (4, "fsdp", 2, "ddp"),
        ],
    )
    def test_goes_on_with_the_same_samples_and_weights(
        self, tmp_path: Path, before: int, strategy: str, after: int, then: str
    ) -> None:
        """The batch size is that of one rank: half of it on twice as many."""
        single = train(Plan(trainer={"max_epochs": 3}), tmp_path / "one", 1, "auto")
        folder = tmp_path / "several"
        for count, kind, run in ((before, strategy, some_steps), (after, then, the_rest)):
            if count == 1:
                runs = [run(folder, 1, kind)]
            else:
                runs = on_trainer_ranks(count, run, folder, count, kind)
        ours, theirs = samples_by_step(runs), samples_by_step([single])
        assert ours == {step: theirs[step] for step in ours}
        assert len(ours) == 5
        for left in runs:
            require_equal(left, single)
        if after == 1:
            loaded = Net.load_from_checkpoint(next(folder.rglob("last.ckpt")))
            assert torch.equal(loaded.net[0].weight, runs[0].weights["net.0.weight"])
