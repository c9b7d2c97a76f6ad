"""Runs of the small project in ``project/``: started by any command, watched, compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, final

import pytest
import torch

PROJECT = Path(__file__).parent / "project"
STEPS = 32
"""Of four epochs."""


class Step(TypedDict):
    """What a rank did."""

    step: int
    """Optimizer steps done by then."""
    rank: int
    pid: int
    samples: list[int]
    """In the order in which it read them."""


@final
class Run:
    """The project's command line, with a folder of its own for what it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.observed, self.output = folder, folder / "observed", folder / "output.txt"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        path = os.pathsep.join([str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])])
        ours = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OBSERVED": str(self.observed)}
        # Threads that wait for each other spin: next to other work, two are ten times slower than one here.
        self.environment = inherited | ours | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}

    def arguments(self, *more: str) -> list[str]:
        """Of ``python -m points``."""
        return [
            "fit",
            "--config",
            str(PROJECT / "configs/train.yaml"),
            "--trainer.default_root_dir",
            str(self.folder),
            *more,
        ]

    def module(self, *more: str) -> list[str]:
        """As ``python`` and ``torchrun`` take it."""
        return ["-m", "points", *self.arguments(*more)]

    def start(self, command: Sequence[str | Path], **environment: str) -> subprocess.Popen[bytes]:
        """Any command that runs it, in a session of its own; what it prints goes to ``output``."""
        with self.output.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=PROJECT,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes], timeout: float = 120) -> None:
        """Wait until the command has ended well; nothing of it runs afterwards, however it ends."""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it goes on after {timeout:g} s:\n{self.printed()}")
        finally:
            end(process)
        assert process.returncode == 0, self.printed()

    def complete(self, command: Sequence[str | Path], timeout: float = 120, **environment: str) -> None:
        """From start to finish."""
        self.finish(self.start(command, **environment), timeout)

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def steps(self, rank: int | None = None) -> list[Step]:
        """What a rank, or each of them, did until now, repetitions included."""
        lines = self.observed.read_text().splitlines() if self.observed.exists() else []
        steps: list[Step] = [json.loads(line) for line in lines]
        return [step for step in steps if rank in (None, step["rank"])]

    def wait_for(self, step: int, timeout: float = 120) -> None:
        """Until both ranks have done so many steps."""
        deadline = time.monotonic() + timeout
        while min(max((each["step"] for each in self.steps(rank)), default=0) for rank in (0, 1)) < step:
            if time.monotonic() > deadline:
                pytest.fail(f"it did not come to step {step} within {timeout:g} s:\n{self.printed()}")
            time.sleep(0.02)

    def last(self) -> dict[str, Any]:
        """The checkpoint at its end: what resumes does so in the run's own folder, so that there is one."""
        [version] = (self.folder / "runs").iterdir()
        state: dict[str, Any] = torch.load(version / "checkpoints/last.ckpt", weights_only=True)
        return state

    def rows(self) -> list[str]:
        """Of ``metrics.csv``."""
        [version] = (self.folder / "runs").iterdir()
        return (version / "metrics.csv").read_text().splitlines()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it and of its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def need(*programs: str, packages: str, root: bool = False) -> None:
    """Skip the test where these are missing: in CI, that fails the run."""
    missing = [
        program for program in programs if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: {packages})")
    if root and os.geteuid() != 0:
        pytest.skip("needs root")


def assert_same_training(run: Run, expected: Run) -> None:
    """Weights, optimizer and logged rows to the last bit, and each rank saw the same samples, each of them once."""
    found, wanted = run.last(), expected.last()
    assert found["global_step"] == wanted["global_step"] == STEPS
    assert_equal(found["state_dict"], wanted["state_dict"])
    assert_equal(found["optimizer_states"], wanted["optimizer_states"])
    assert run.rows() == expected.rows()
    for rank in (0, 1):
        assert [step["samples"] for step in run.steps(rank)] == [step["samples"] for step in expected.steps(rank)]


def assert_equal(found: Any, expected: Any) -> None:
    """To the last bit, whatever the nesting."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected
