"""What a newcomer does first in the default project: check it, train it, measure it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., Path]

TRAIN = ("--config", "configs/train.yaml")


@pytest.fixture(scope="module")
def trained(render: Render, in_project: Run) -> Path:
    """A default project after its default run."""
    project = render()
    done = in_project(project, "my_project", "fit", *TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def accuracy(printed: str) -> float:
    [value] = re.findall(r"test_accuracy\D*([0-9.]+)", printed)
    return float(value)


class TestTheProjectsOwnChecks:
    @pytest.mark.parametrize("check", ["mypy", "pytest"])
    def test_pass(self, project: Path, in_project: Run, check: str) -> None:
        """A fresh project type-checks strictly and passes its tests, warnings being errors."""
        done = in_project(project, check)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_pass_whatever_the_package_is_called(self, render: Render, in_project: Run) -> None:
        """The longest name type-checks as well."""
        done = in_project(render(package_name="a_rather_long_package_name_for_a_project"), "mypy")
        assert done.returncode == 0, done.stdout + done.stderr


class TestTheDefaultRun:
    def test_is_as_good_as_the_readme_says(self, trained: Path, in_project: Run) -> None:
        """`test --ckpt_path best` prints at least 0.96 on scans that training never saw."""
        done = in_project(trained, "my_project", "test", *TRAIN, "--ckpt_path", "best")
        assert done.returncode == 0, done.stdout + done.stderr
        assert accuracy(done.stdout) >= 0.96

    def test_leaves_what_the_readme_says(self, trained: Path) -> None:
        """Curves, the configuration it ran with, the best and the last state."""
        version = trained / "runs/version_0"
        assert "val_accuracy" in (version / "metrics.csv").read_text().splitlines()[0]
        assert "learning_rate: 0.003" in (version / "config.yaml").read_text()
        assert (version / "checkpoints/last.ckpt").is_file()
        assert len(list((version / "checkpoints").iterdir())) == 3, "and the one before the last"

    def test_is_not_warned_about(self, trained: Path, in_project: Run) -> None:
        """Nothing in the output is a warning: what is shipped is how it should be done."""
        done = in_project(trained, "my_project", "validate", *TRAIN, "--ckpt_path", "last")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warn" not in (done.stdout + done.stderr).lower()


class TestAMistake:
    def test_in_a_key_names_the_right_one(self, project: Path, in_project: Run) -> None:
        """A misspelled key stops the run before it starts, and the message holds the nearest one that exists."""
        done = in_project(project, "my_project", "fit", *TRAIN, "--model.hiden", "64")
        assert done.returncode != 0
        assert "hidden" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
