"""Under SLURM: a job of two tasks, and one that is told to make room and goes on later."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence

import pytest

from .conftest import NewRun
from .runs import PROJECT, STEPS, Run, assert_same_training, need
from .slurm import PROGRAMS, Slurm, running

STEP_SECONDS = 0.15


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    need(*PROGRAMS, packages="munge, slurmctld, slurmd, slurm-client", root=True)
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm: Slurm, run: Run, command: Sequence[str], *options: str) -> str:
    """A job script as users write them; its id. SLURM writes what the tasks print to ``run.output``."""
    script = run.folder / "job.sbatch"
    directives = ["--ntasks=2", "--requeue", f"--output={run.output}", f"--chdir={PROJECT}"]
    lines = ["#!/bin/bash", *(f"#SBATCH {each}" for each in (*directives, *options)), f"srun {shlex.join(command)}"]
    script.write_text("\n".join(lines) + "\n")
    return slurm.submit(script, **run.environment)


def complete(slurm: Slurm, run: Run, job: str) -> dict[str, str]:
    """Wait for the job's end, a good one; SLURM's facts about it."""
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), run.printed()
    return facts


class TestTwoTasks:
    def test_are_two_ranks(self, slurm: Slurm, new_run: NewRun, launched: Run) -> None:
        run = new_run()
        job = submit(slurm, run, [sys.executable, *run.module()])
        assert complete(slurm, run, job)["Restarts"] == "0"
        assert_same_training(run, launched)

    def test_may_be_started_by_torchrun_instead(
        self, slurm: Slurm, new_run: NewRun, launched: Run, torchrun: list[str]
    ) -> None:
        """One task on the node, and torchrun in it: SLURM's variables are there too, and speak of the task."""
        run = new_run()
        command = [*torchrun, "--standalone", "--nproc-per-node", "2", *run.module()]
        complete(slurm, run, submit(slurm, run, ["--ntasks=1", *command]))
        assert_same_training(run, launched)


class TestAJobThatIsToldToMakeRoom:
    def test_saves_asks_for_another_turn_and_resumes(self, slurm: Slurm, new_run: NewRun, launched: Run) -> None:
        """SIGUSR1, as `#SBATCH --signal=USR1@300` has it sent: to all processes of the tasks, and so to the workers that
        load data. No step is lost or repeated, and the result is that of a job nobody stopped."""
        run = new_run()
        command = [sys.executable, *run.module("--model.sleep", str(STEP_SECONDS), "--data.num_workers", "1")]
        job = submit(slurm, run, command)
        run.wait_for(step=10)
        slurm.call("scancel", "--signal=USR1", job)
        assert complete(slurm, run, job)["Restarts"] == "1"
        assert_two_turns(run)
        assert_same_training(run, launched)


class TestAJobThatIsRequeuedByTheAdministrator:
    def test_resumes(self, slurm: Slurm, new_run: NewRun, launched: Run) -> None:
        """`scontrol requeue`, or a preemption: SIGTERM, and seconds later SIGKILL."""
        run = new_run()
        job = submit(slurm, run, [sys.executable, *run.module("--model.sleep", str(STEP_SECONDS))])
        run.wait_for(step=10)
        slurm.call("scontrol", "requeue", job)
        assert complete(slurm, run, job)["Restarts"] == "1"
        assert_two_turns(run)
        assert_same_training(run, launched)


def assert_two_turns(run: Run) -> None:
    """Each rank ran in two processes, and each had a part of the steps."""
    for rank in (0, 1):
        steps = run.steps(rank)
        assert len({step["pid"] for step in steps}) == 2
        assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
