"""The command line on several ranks: whatever all of them have to say is said once; and of ranks that needn't be there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port
from torch import Tensor, nn

pytest.importorskip("jsonargparse")

import treadle
from treadle.cli import run
from treadle.errors import ConfigError
from treadle.testing import Classifier, Points

PROGRAM = """\
import os
import time
import torch
from treadle.cli import main
from treadle.errors import DataError
from treadle.testing import Classifier, Points


class Trouble(Classifier):
    def __init__(self, kind: str = "none", hidden: int = 4) -> None:
        super().__init__(hidden)
        self.kind = kind

    def training_step(self, batch, batch_idx):
        if self.kind == "wait" and batch_idx == 1 and self.trainer.is_global_zero:
            print("ready", flush=True)
        if self.kind == "wait":
            time.sleep(0.2)
        if self.kind == "everywhere":
            return torch.zeros(3)
        if self.kind == "alone" and self.trainer.global_rank == 1:
            raise DataError("sample 7 is empty.", why="it has no points.", fix="remove it.")
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Trouble, Points)
"""
FIT = ["fit", "--trainer.max_epochs", "9", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with program.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


Ended = list[tuple[int, str]]
"""Of each process, its exit status and what it said on standard error."""


def started(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """In a process group of its own, so that it can be interrupted as by Ctrl-C in a terminal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "program.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def ended(*processes: subprocess.Popen[str]) -> Ended:
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def ours(*arguments: str) -> Ended:
    """Two ranks that treadle starts."""
    return ended(started([*FIT, "--trainer.devices", "2", *arguments]))


def theirs(*arguments: str, differently: tuple[str, ...] = ()) -> Ended:
    """Two ranks that somebody else has started on one machine, the second with more arguments."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return ended(
        *[
            started([*FIT, *arguments, *(differently if rank else ())], RANK=str(rank), LOCAL_RANK=str(rank), **world)
            for rank in range(2)
        ]
    )


class TestAMistake:
    def test_in_the_command_is_told_once(self, project: Path) -> None:
        status, text = ours("--model.hiden", "3")[0]
        assert (status, text.count("error: ")) == (1, 1)
        assert text.startswith("error: model.hiden is not a setting.\n  why: ")

    def test_in_the_command_is_told_by_the_first_rank(self, project: Path) -> None:
        """Under torchrun, SLURM and the like: once on each machine, since files may differ there."""
        first, second = theirs("--model.hiden", "3")
        assert first[0] == second[0] == 1
        assert first[1].startswith("error: model.hiden is not a setting.\n")
        assert second[1] == ""

    def test_in_different_commands_is_told_by_rank_0(self, project: Path) -> None:
        first, second = theirs(differently=("--trainer.log_every_n_steps", "7"))
        assert first[0] == second[0] == 1
        assert "error: the ranks were started with different settings: log_every_n_steps is 50 on rank 0" in first[1]
        assert "error" not in second[1]

    def test_in_the_model_is_told_once(self, project: Path) -> None:
        """Both ranks find it; treadle has started them, and says it."""
        status, text = ours("--model.kind", "everywhere")[0]
        assert (status, text.count("training_step returned a loss of shape (3,)")) == (1, 1)
        assert "Traceback" not in text

    def test_that_one_rank_finds_is_told_with_its_number(self, project: Path) -> None:
        status, text = ours("--model.kind", "alone")[0]
        assert status == 1
        assert text.count("error: ") == 1
        assert "error: rank 1 of 2 failed: DataError: sample 7 is empty." in text

    def test_that_one_rank_of_somebody_elses_finds_has_its_number_too(self, project: Path) -> None:
        second = theirs("--model.kind", "alone")[1]
        assert second[0] == 1
        assert "rank 1: error: sample 7 is empty.\n  why: it has no points." in second[1]


class TestARunThatIsAskedToEnd:
    @pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
    def test_says_so_once(self, project: Path, number: signal.Signals, status: int) -> None:
        """A terminal and a scheduler signal every process."""
        process = started([*FIT, "--trainer.devices", "2", "--model.kind", "wait"])
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        ((found, text),) = ended(process)
        assert found == status
        words = "interrupted; fit --ckpt_path auto" if number == signal.SIGINT else "treadle: ended by SIGTERM"
        assert text.count(words) == 1
        assert "Traceback" not in text
        assert "error" not in text


class TestPredictions:
    def test_of_all_ranks_are_in_one_file_in_order(self, project: Path) -> None:
        """5 batches: three of rank 0 and two of rank 1, in turns."""
        run(Classifier, Points, ["fit", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"])
        said = {}
        for devices in ("1", "2"):
            arguments = ["predict", "--trainer.devices", devices, "--trainer.accelerator", "cpu", "--output", devices]
            ((status, said[devices]),) = ended(started([*arguments, "--data.size", "38"]))
            assert status == 0, said[devices]
        one, two = (torch.load(name, weights_only=True) for name in ("1", "2"))
        assert [len(batch) for batch in two] == [4, 4, 4, 4, 3]
        assert all(torch.equal(*batches) for batches in zip(one, two, strict=True))


def estimate(capsys: pytest.CaptureFixture[str], *arguments: str, model: type[treadle.Module] = Classifier) -> Any:
    capsys.readouterr()
    assert run(model, Points, ["estimate", "--json", *arguments]) is None
    return json.loads(capsys.readouterr().out)


class TestAnEstimate:
    def test_is_of_ranks_that_are_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """8 devices on each of 2 machines: nothing is started, and nothing written."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "train.yaml").write_text("trainer: {max_epochs: 3, strategy: fsdp}\nmodel: {hidden: 64}\n")
        arguments = ["--trainer.devices", "8", "--trainer.num_nodes", "2"]
        assert run(Classifier, Points, ["estimate", "--config", "train.yaml", *arguments]) is None
        shown = capsys.readouterr().out
        assert shown.startswith("Classifier on each of 16 ranks: strategy fsdp, precision 32-true\n")
        assert "\n  parameters    322\n" in shown
        assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]

    def test_is_one_json_object_for_machines(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = estimate(capsys, "--model.hidden", "64", "--trainer.precision", "bf16-mixed")
        assert (found["module"], found["parameters"], found["weights"]) == ("Classifier", 322, 4 * 322)
        assert (found["ranks"], found["strategy"], found["precision"]) == (1, "single", "bf16-mixed")
        assert found["flops"] > 0
        assert found["notes"] == []

    @pytest.mark.parametrize(
        "devices, ranks", [("auto", 1), ("4", 4), ("0,2,3", 3), ("[1, 5]", 2)], ids=["auto", "4", "0,2,3", "list"]
    )
    def test_counts_devices_as_the_trainer_does(
        self, capsys: pytest.CaptureFixture[str], devices: str, ranks: int
    ) -> None:
        assert estimate(capsys, "--trainer.devices", devices)["ranks"] == ranks

    def test_knows_strategies_with_settings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        strategy = "{class_path: treadle.strategies.FSDP, init_args: {cpu_offload: true}}"
        (tmp_path / "big.yaml").write_text(f"trainer: {{strategy: {strategy}, devices: 2}}\n")
        assert "the host" in " ".join(estimate(capsys, "--config", "big.yaml")["notes"])

    def test_is_of_a_micro_batch(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Two passes of two samples compute as much as one of four, with activations of two."""
        whole, parts = (estimate(capsys, *arguments) for arguments in ((), ("--trainer.micro_batch_size", "2")))
        assert (parts["accumulate"], whole["accumulate"]) == (2, 1)
        assert parts["flops"] == whole["flops"]
        assert parts["batch"] == whole["batch"]
        assert parts["activations"] < whole["activations"]
        assert parts["peak"] < whole["peak"]

    def test_takes_no_memory_for_weights(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A thousand times a terabyte."""

        class Huge(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(2, 2**48, bias=False), nn.Linear(2**48, 2, bias=False))

        assert estimate(capsys, model=Huge)["weights"] == 2**52

    def test_makes_a_module_for_real_that_reads_its_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Reads(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.scale = float(torch.linspace(0, 1, 3).sum())

            def forward(self, points: Tensor) -> Tensor:
                return self.scale * super().forward(points)

        assert estimate(capsys, model=Reads)["flops"] > 0

    def test_reads_whole_numbers_of_batches_that_are_views(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Such as the inputs and targets of a language model, cut from one tensor."""

        class Cut(Points):
            def train_dataloader(self) -> Any:
                rows = torch.arange(12).view(2, 6)
                return [(rows[:, 0], torch.ones(2, 2), rows[:, 1] % 2)]

        run(Classifier, Cut, ["estimate", "--json"])
        assert json.loads(capsys.readouterr().out)["flops"] > 0

    @pytest.mark.parametrize(
        "arguments, what",
        [
            (["--trainer.devices", "-1"], "devices=-1 in an estimate."),
            (["--trainer.devices", "many"], "devices='many' in an estimate."),
            (["--trainer.num_nodes", "0"], "num_nodes=0 makes no sense."),
            (["--trainer.strategy", "fsd"], "strategy='fsd' is unknown."),
            (["--trainer.strategy", "single", "--trainer.devices", "2"], "strategy='single' with 2 ranks."),
            (["--trainer.precision", "b16"], "precision='b16' is unknown."),
            (["--trainer.micro_batch_size", "0"], "micro_batch_size=0."),
            (["--trainer.device", "2"], "trainer.device is not a setting."),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_of_what_makes_no_sense_is_refused(self, arguments: list[str], what: str) -> None:
        with pytest.raises(ConfigError) as raised:
            run(Classifier, Points, ["estimate", *arguments])
        assert raised.value.what == what
        assert raised.value.fix
