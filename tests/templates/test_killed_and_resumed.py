"""A generated project, killed anywhere and resumed, ends as if it had never been killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 4 * 19  # of four epochs: 1168 training scans in batches of 64
OVERLAY = """
trainer:
  accelerator: cpu
  max_epochs: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
    - class_path: treadle.callbacks.ModelCheckpoint
      init_args: {monitor: val_accuracy, mode: max}
    - class_path: treadle.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 7, save_top_k: 0}
    - class_path: observer.Observer
data:
  batch_size: 64
"""
OBSERVER = '''
"""Tells the test how far the run is; metrics.csv is flushed at checkpoints only."""
import os
from pathlib import Path
from treadle import Callback


class Observer(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        Path(os.environ["OBSERVED"]).write_text(f"{trainer.global_step:03}")
'''


class Training:
    """The project's command line on one run, in a folder of its own."""

    def __init__(self, project: Path, folder: Path, environment: dict[str, str], *, workers: int = 0) -> None:
        self.project, self.folder = project, folder
        folder.mkdir()
        (folder / "observer.py").write_text(OBSERVER)
        (folder / "overlay.yaml").write_text(OVERLAY)
        self.observed = folder / "observed"
        self.environment = environment | {
            "PYTHONPATH": f"{environment['PYTHONPATH']}:{folder}",
            "OBSERVED": str(self.observed),
        }
        self.command = [sys.executable, "-m", "my_project", "fit", "--config", "configs/train.yaml"]
        self.command += ["--config", str(folder / "overlay.yaml"), "--trainer.default_root_dir", str(folder)]
        self.command += ["--data.num_workers", str(workers)]

    def start(self, *more: str) -> subprocess.Popen[str]:
        self.observed.unlink(missing_ok=True)
        return subprocess.Popen(
            [*self.command, *more],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """To its end."""
        process = self.start(*more)
        output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def kill_at(self, step: int, *more: str) -> None:
        """``kill -9`` as soon as that many steps are done, in the middle of whatever comes then."""
        with self.start(*more) as process:
            while self.steps_done() < step:
                if process.poll() is not None:
                    pytest.fail(f"it ended before step {step}:\n{process.stdout.read() if process.stdout else ''}")
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert self.steps_done() < STEPS

    def steps_done(self) -> int:
        return int(self.observed.read_text() or 0) if self.observed.exists() else 0

    @property
    def version(self) -> Path:
        """The folder of its only run: a resumed run goes on in its own."""
        [version] = (self.folder / "runs").iterdir()
        return version

    def metrics(self) -> bytes:
        return (self.version / "metrics.csv").read_bytes()

    def last(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self.version / "checkpoints/last.ckpt", weights_only=True)
        return state


@pytest.fixture(scope="module")
def training(
    project: Path, environment: Callable[[Path], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Training]:
    def of(workers: int = 0) -> Training:
        return Training(project, tmp_path_factory.mktemp("training") / "root", environment(project), workers=workers)

    return of


class TestKilledAndResumed:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_bit_for_bit_never_killed(self, training: Callable[..., Training], workers: int) -> None:
        """Killed inside the first epoch, again after resuming, and once more inside the last: the weights, the
        optimizer and every logged row are those of the run that was left alone. It shuffles and augments."""
        alone, killed = training(workers), training(workers)
        done = alone.run()
        assert done.returncode == 0, done.stdout

        killed.kill_at(10)
        killed.kill_at(32, "--ckpt_path", "last")
        killed.kill_at(66, "--ckpt_path", "last")
        done = killed.run("--ckpt_path", "last")
        assert done.returncode == 0, done.stdout

        expected, found = alone.last(), killed.last()
        assert found["global_step"] == expected["global_step"] == STEPS
        assert_same(found["state_dict"], expected["state_dict"])
        assert_same(found["optimizer_states"], expected["optimizer_states"])
        assert killed.metrics() == alone.metrics()
        assert alone.metrics().count(b"\n") > STEPS


class TestKilledBeforeTheFirstCheckpoint:
    def test_has_nothing_to_resume_and_says_so(self, training: Callable[..., Training]) -> None:
        """`--ckpt_path last` is an error that names the way out; `--ckpt_path auto` starts anew."""
        run = training()
        run.kill_at(2)
        refused = run.run("--ckpt_path", "last")
        assert refused.returncode == 1
        assert "Traceback" not in refused.stdout
        assert "last" in refused.stdout
        assert "fix:" in refused.stdout
        anew = run.run("--ckpt_path", "auto", "--trainer.max_epochs", "1")
        assert anew.returncode == 0, anew.stdout


def assert_same(found: Any, expected: Any) -> None:
    """Equal to the last bit, whatever the nesting."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
