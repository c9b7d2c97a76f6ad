"""A Trainer on several ranks trains what it trains on one device with the same global batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed.fsdp  # noqa: F401  # before forking: each rank would import it
from rank_training import GLOBAL_BATCH, SAMPLES, VALIDATED, Left, Plan, require_equal, samples_by_step, train
from ranks import on_trainer_ranks

PLANS = {
    "plain": Plan(),
    "accumulated": Plan(trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
    "value clipped": Plan(trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "weighted": Plan(module={"weighted": True}, trainer={"accumulate_grad_batches": 2}),
}
AUGMENTED = Plan(module={"weighted": True}, workers=2, noise=0.3)


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    return {name: train(plan, tmp_path_factory.mktemp("one"), 1, "auto") for name, plan in PLANS.items()}


def every_plan(folder: Path, count: int, strategy: str) -> dict[str, Left]:
    return {
        name: train(plan, folder / name, count, strategy) for name, plan in {**PLANS, "augmented": AUGMENTED}.items()
    }


@pytest.fixture(
    scope="module", params=[("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4)], ids=lambda p: f"{p[0]}-{p[1]}"
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Left]]:
    strategy, count = request.param
    return on_trainer_ranks(count, every_plan, tmp_path_factory.mktemp("several"), count, strategy)


@pytest.mark.parametrize("name", PLANS)
class TestTheSameGlobalBatch:
    def test_gives_the_weights_and_metrics_of_one_device(
        self, runs: list[dict[str, Left]], singles: dict[str, Left], name: str
    ) -> None:
        for run in runs:
            require_equal(run[name], singles[name])

    def test_has_the_samples_of_one_devices_step_in_each(
        self, runs: list[dict[str, Left]], singles: dict[str, Left], name: str
    ) -> None:
        assert samples_by_step([run[name] for run in runs]) == samples_by_step([singles[name]])

    def test_loses_and_repeats_none(self, runs: list[dict[str, Left]], singles: dict[str, Left], name: str) -> None:
        assert runs[0][name].metrics["samples"] == SAMPLES
        assert runs[0][name].metrics["val_samples"] == VALIDATED

    def test_writes_the_rows_of_one_device_once(
        self, runs: list[dict[str, Left]], singles: dict[str, Left], name: str
    ) -> None:
        """In one folder that all ranks know."""
        assert len({run[name].folder for run in runs}) == 1
        ours, theirs = runs[0][name].rows, singles[name].rows
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
        for our, their in zip(ours, theirs, strict=True):
            for key, value in their.items():
                assert our[key] == value or float(our[key]) == pytest.approx(float(value), abs=1e-5), key


class TestAugmentationInWorkers:
    def test_is_that_of_one_device_which_accumulates_as_many_batches(
        self, runs: list[dict[str, Left]], tmp_path: Path
    ) -> None:
        """Each batch of the loader is augmented alike, whoever reads it."""
        count = len(runs)
        plan = replace(AUGMENTED, batch=GLOBAL_BATCH // count, trainer={"accumulate_grad_batches": count})
        single = train(plan, tmp_path, 1, "auto")
        for run in runs:
            require_equal(run["augmented"], single)
