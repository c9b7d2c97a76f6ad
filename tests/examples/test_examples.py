"""The programs in examples/ run as they stand, do what they say they do, and use nothing that a user can't."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

from treadle.precision import FullPrecision
from treadle.strategies import Strategy

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = ["finetuning", "gan", "kfold", "own_strategy", "several_loaders", "streaming_rl"]
"""Each has a class below."""


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """``main`` of an example, as from the command line, its files below the test's own folder."""

    def run(name: str, *arguments: object, folder: str = "runs") -> Any:
        return example(name).main([*map(str, arguments), "--folder", str(tmp_path / folder)])

    return run


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


class TestTheFolder:
    def test_lists_every_example_in_its_readme_and_here(self) -> None:
        names = sorted(path.stem for path in FOLDER.glob("*.py"))
        assert names == EXAMPLES
        readme = (FOLDER / "README.md").read_text(encoding="utf-8")
        assert [name for name in names if f"[{name}.py]({name}.py)" not in readme] == []

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_uses_only_public_names(self, name: str) -> None:
        """What is imported from treadle is in the ``__all__`` of a package that a user is told of."""
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        found = [(node.module, alias.name) for node in imports for alias in node.names]
        ours = [(module, imported) for module, imported in found if module and module.startswith("treadle")]
        assert [f"{m}.{i}" for m, i in ours if i not in importlib.import_module(m).__all__] == []


class TestTheGan:
    def test_trains_both_networks(self, run: Callable[..., Any]) -> None:
        one, three = run("gan", "--max_steps", 1).module, run("gan", "--max_steps", 3).module
        assert not same_weights(one.generator, three.generator)
        assert not same_weights(one.discriminator, three.discriminator)

    def test_logs_both_losses_and_the_distance(self, run: Callable[..., Any], tmp_path: Path) -> None:
        """90 steps are five epochs: a row of losses after 50, and a validation at the end."""
        run("gan", "--max_steps", 90)
        columns = (tmp_path / "runs/gan/version_0/metrics.csv").read_text().splitlines()[0].split(",")
        assert {"generator_loss", "discriminator_loss", "frechet_distance"} <= set(columns)

    def test_accumulates_as_the_trainer_is_told(self, run: Callable[..., Any]) -> None:
        """An epoch has 18 batches: nine steps are all of it, in windows of two."""
        assert run("gan", "--max_steps", 9).current_epoch == 0
        assert run("gan", "--max_steps", 9, "--accumulate_grad_batches", 2).current_epoch == 1

    def test_clips_as_the_trainer_is_told(self, run: Callable[..., Any]) -> None:
        """Next to Adam's epsilon, gradients of this size are none at all: both networks stay where they were."""
        one = run("gan", "--max_steps", 1, "--gradient_clip_val", 1e-14).module
        three = run("gan", "--max_steps", 3, "--gradient_clip_val", 1e-14).module
        moved = [float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), three.parameters(), strict=True)]
        assert max(moved) < 1e-7


class TestKFold:
    def test_gives_an_accuracy_for_each_fold_and_a_folder(self, run: Callable[..., Any], tmp_path: Path) -> None:
        accuracies = run("kfold", "--folds", 3, "--max_epochs", 1)
        assert len(accuracies) == 3
        assert all(0.5 < accuracy < 1 for accuracy in accuracies)
        assert len(set(accuracies)) == 3  # of other weights, on other digits
        folders = [tmp_path / f"runs/kfold_3/fold_{fold}/version_0" for fold in range(3)]
        assert all((folder / "checkpoints/last.ckpt").is_file() for folder in folders)

    def test_validates_on_each_digit_once(self) -> None:
        folded = [example("kfold").FoldedDigits(folds=4, fold=fold) for fold in range(4)]
        for data in folded:
            data.setup("fit")
            assert set(data.train).isdisjoint(data.validation)
        assert sorted(index for data in folded for index in data.validation) == list(range(1797))

    def test_started_again_continues_each_fold(self, run: Callable[..., Any], tmp_path: Path) -> None:
        """Two epochs, one at a time, are two epochs; in the same folders."""
        whole = run("kfold", "--folds", 2, "--max_epochs", 2, folder="whole")
        run("kfold", "--folds", 2, "--max_epochs", 1)
        assert run("kfold", "--folds", 2, "--max_epochs", 2) == whole
        assert [path.name for path in tmp_path.glob("runs/kfold_2/fold_*/*")] == ["version_0"] * 2


class TestFinetuning:
    SHORT = ("--pretraining_epochs", 1, "--max_epochs", 2)

    def test_trains_the_head_alone_at_first(self, run: Callable[..., Any]) -> None:
        trainers = run("finetuning", *self.SHORT, "--unfreeze_at", 2)
        before, after = trainers["pretraining"].module, trainers["finetuning"].module
        assert same_weights(before.backbone, after.backbone)
        assert not same_weights(before.head, after.head)

    def test_trains_the_backbone_from_an_epoch_on(self, run: Callable[..., Any]) -> None:
        """At a smaller learning rate, in a group of its own."""
        trainers = run("finetuning", *self.SHORT, "--unfreeze_at", 1)
        assert not same_weights(trainers["pretraining"].module.backbone, trainers["finetuning"].module.backbone)
        head, backbone = trainers["finetuning"].optimizers[0].param_groups
        assert backbone["lr"] == pytest.approx(0.1 * head["lr"])

    def test_is_compared_with_as_many_steps_from_scratch(self, run: Callable[..., Any]) -> None:
        trainers = run("finetuning", *self.SHORT, "--labels", 8)
        steps = {name: trainer.global_step for name, trainer in trainers.items()}
        assert steps["finetuning"] == steps["from_scratch"] == 2 * 3  # 40 scans in batches of 16


class TestSeveralLoaders:
    def test_have_metrics_of_their_own(self, run: Callable[..., Any]) -> None:
        clean, noisy = run("several_loaders", "--max_epochs", 8)
        assert set(clean) == {"val_error/dataloader_idx_0", "val_accuracy/dataloader_idx_0"}
        assert set(noisy) == {"val_error/dataloader_idx_1", "val_accuracy/dataloader_idx_1"}
        assert clean["val_error/dataloader_idx_0"] < noisy["val_error/dataloader_idx_1"]

    def test_are_read_as_far_as_the_longest_goes(self) -> None:
        """The few labelled digits come again in each epoch, as often as it takes."""
        data = example("several_loaders").Digits(labels=50)
        data.setup("fit")
        batches = [batch for batch, _, _ in data.train_dataloader()]
        assert len(batches) == 13
        assert {len(batch["labelled"][1]) for batch in batches} == {25}
        assert sum(len(batch["unlabelled"][0]) for batch in batches) == 1297


class TestTheStream:
    def test_resumes_exactly(self, run: Callable[..., Any], tmp_path: Path) -> None:
        """Stopped after 70 steps and started again, the run ends with the weights and the rows of one that went on."""
        whole = run("streaming_rl", "--max_steps", 260, folder="whole").module
        run("streaming_rl", "--max_steps", 70)
        resumed = run("streaming_rl", "--max_steps", 260).module
        assert same_weights(whole, resumed)
        rows = [(tmp_path / f / "streaming_rl/version_0/metrics.csv").read_text() for f in ("whole", "runs")]
        assert rows[0] == rows[1]
        assert "val_return" in rows[0]

    def test_comes_from_the_policy_as_it_is_now(self) -> None:
        """All walkers go where they are led, as soon as they are led elsewhere."""
        rl = example("streaming_rl")
        action = rl.UP
        walks = iter(rl.Walks(lambda cells: torch.full_like(cells, action), walkers=3, exploration=0.0))
        assert next(walks)[3].tolist() == [rl.START - rl.COLUMNS] * 3
        action = rl.RIGHT
        assert next(walks)[3].tolist() == [rl.START - rl.COLUMNS + 1] * 3

    def test_is_of_a_world_whose_shortest_way_is_13_long(self) -> None:
        """Up, eleven to the right, and down; right at once is down the cliff."""
        rl = example("streaming_rl")
        cells, total = torch.tensor([rl.START]), 0.0
        for action in [rl.UP, *[rl.RIGHT] * 11, rl.DOWN]:
            cells, rewards, ends = rl.walk(cells, torch.tensor([action]))
            total += float(rewards)
        assert (int(cells), total, bool(ends)) == (rl.GOAL, -13.0, True)
        cells, rewards, ends = rl.walk(torch.tensor([rl.START]), torch.tensor([rl.RIGHT]))
        assert (int(cells), float(rewards), bool(ends)) == (rl.START, -100.0, False)


def steps_of_local_sgd(ranks: Any, every: int, steps: int) -> list[float]:
    """A weight from 0 that each rank's gradient, its number plus one, pulls down: its value after every step."""
    strategy = example("own_strategy").LocalSGD(every=every)
    strategy.start(ranks, FullPrecision())
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, float(ranks.rank))  # rank 0's counts
    optimizer = torch.optim.SGD(strategy.place(module).parameters(), lr=1.0)
    weights = []
    for _ in range(steps):
        (module.weight * (ranks.rank + 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(module.weight.item())
    strategy.hook.remove()
    return weights


class TestTheOwnStrategy:
    def test_is_a_strategy_of_less_than_60_lines(self) -> None:
        local_sgd = example("own_strategy").LocalSGD
        assert isinstance(local_sgd(), Strategy)
        tree = ast.parse((FOLDER / "own_strategy.py").read_text(encoding="utf-8"))
        (lines,) = [
            node.end_lineno - node.lineno + 1
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == "LocalSGD" and node.end_lineno is not None
        ]
        assert lines < 60

    def test_averages_the_weights_every_few_steps(self) -> None:
        """Gradients 1 and 2: apart after each step, and 1.5 a step together."""
        assert on_ranks(2, steps_of_local_sgd, 2, 4) == [[-1.0, -3.0, -4.0, -6.0], [-2.0, -3.0, -5.0, -6.0]]

    def test_trains_on_two_ranks(self, tmp_path: Path) -> None:
        arguments = ("--devices", "2", "--max_epochs", "3", "--folder", str(tmp_path))
        command = [sys.executable, str(FOLDER / "own_strategy.py"), *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert finished.returncode == 0, finished.stderr
        (accuracy,) = re.findall(r"^accuracy: (\S+)$", finished.stdout, re.MULTILINE)
        assert float(accuracy) > 0.7
        assert "2 x cpu by local-sgd" in finished.stderr
