"""examples/fabric: each step of the way computes what the plain loop does, on one device and on two ranks."""

import difflib
import importlib.util
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "fabric"
NAMES = ["0_plain", "1_setup", "2_precision_and_clipping", "3_accumulation_and_logging", "4_save_and_resume"]
ADOPTING = NAMES[1:]
EPOCHS = ("--epochs", "2")


def unclipped(name: str, folder: Path) -> tuple[str, ...]:
    """Arguments with which a step computes what the plain loop does, its files in ``folder``."""
    clipping = () if name in NAMES[:2] else ("--max_norm", "1e9")
    return clipping if name in NAMES[:3] else (*clipping, "--folder", str(folder))


def losses(name: str, *arguments: str) -> list[float]:
    """Of ``main``, in this process."""
    spec = importlib.util.spec_from_file_location(f"fabric_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[float] = module.main([*EPOCHS, *arguments])
    return found


def printed(*command: str) -> list[float]:
    """Losses that a command prints, each once however many ranks there are."""
    finished = subprocess.run(
        [sys.executable, *command, *EPOCHS],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return [float(loss) for loss in re.findall(r"^epoch \d+: loss (\S+)$", finished.stdout, re.MULTILINE)]


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return losses("0_plain")


class TestTheReadme:
    def test_lists_every_file(self) -> None:
        assert sorted(path.stem for path in FOLDER.glob("*.py")) == NAMES

    @pytest.mark.parametrize("one, other", [*pairwise(NAMES)])
    def test_shows_what_changes_from_one_to_the_next(self, one: str, other: str) -> None:
        lines = [(FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines() for name in (one, other)]
        diff = difflib.unified_diff(*lines, f"{one}.py", f"{other}.py", n=1, lineterm="")
        shown = "\n".join(line.rstrip() for line in diff)
        assert f"```diff\n{shown}\n```" in (FOLDER / "README.md").read_text(encoding="utf-8")


class TestOnOneDevice:
    @pytest.mark.parametrize("name", ADOPTING)
    def test_every_step_has_the_losses_of_the_plain_loop_bit_for_bit(
        self, name: str, plain: list[float], tmp_path: Path
    ) -> None:
        assert losses(name, *unclipped(name, tmp_path)) == plain

    def test_clipping_changes_them(self, plain: list[float]) -> None:
        assert losses("2_precision_and_clipping", "--max_norm", "0.1") != plain

    def test_bfloat16_comes_close(self, plain: list[float]) -> None:
        mixed = losses("2_precision_and_clipping", "--max_norm", "1e9", "--precision", "bf16-mixed")
        assert mixed != plain
        assert mixed == pytest.approx(plain, rel=0.05)

    def test_steps_of_two_half_batches_are_those_of_whole_ones(self, plain: list[float], tmp_path: Path) -> None:
        name = "3_accumulation_and_logging"
        halves = losses(name, "--batch_size", "32", "--accumulate", "2", *unclipped(name, tmp_path))
        assert halves == pytest.approx(plain, abs=1e-5)

    def test_metrics_are_in_a_file(self, tmp_path: Path) -> None:
        found = losses("3_accumulation_and_logging", "--folder", str(tmp_path))
        rows = (tmp_path / "logs/version_0/metrics.csv").read_text().splitlines()
        assert rows[0] == "step,train_loss,held_out_loss"
        assert [row.split(",")[0] for row in rows[1:]] == ["10", "20", "23", "30", "40", "46"]
        assert float(rows[-1].split(",")[2]) == found[-1]

    @pytest.mark.parametrize("max_steps", ["15", "23", "37"])
    def test_a_run_that_was_stopped_goes_on_bit_for_bit(
        self, max_steps: str, plain: list[float], tmp_path: Path
    ) -> None:
        """From the step that was saved last, or with its next start from the beginning; 23 is the last of an epoch."""
        arguments = unclipped("4_save_and_resume", tmp_path)
        losses(
            "4_save_and_resume",
            *arguments,
            "--max_steps",
            max_steps,
            "--save_every",
            "23" if max_steps == "23" else "10",
        )
        assert losses("4_save_and_resume", *arguments) == plain


class TestOnTwoRanks:
    """Each with half the batch. They compute the same in another order: equal to 1e-5."""

    @pytest.mark.parametrize("name", ADOPTING[:-1])
    def test_every_step_has_the_losses_of_the_plain_loop(self, name: str, plain: list[float], tmp_path: Path) -> None:
        settings = ("--devices", "2", "--strategy", "fsdp", "--batch_size", "32")
        found = printed(str(FOLDER / f"{name}.py"), *settings, *unclipped(name, tmp_path))
        assert found == pytest.approx(plain, abs=1e-5)

    def test_torchrun_may_start_them(self, plain: list[float]) -> None:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        found = printed(*torchrun, str(FOLDER / "1_setup.py"), "--batch_size", "32")
        assert found == pytest.approx(plain, abs=1e-5)

    def test_a_run_goes_on_with_another_strategy_and_then_on_one_device(
        self, plain: list[float], tmp_path: Path
    ) -> None:
        name, arguments = "4_save_and_resume", unclipped("4_save_and_resume", tmp_path)
        ranks = (str(FOLDER / f"{name}.py"), "--devices", "2", "--batch_size", "32", *arguments)
        assert printed(*ranks, "--strategy", "fsdp", "--max_steps", "15") == []
        assert printed(*ranks, "--strategy", "ddp", "--max_steps", "37") == pytest.approx(plain[:1], abs=1e-5)
        assert losses(name, *arguments) == pytest.approx(plain, abs=1e-5)
