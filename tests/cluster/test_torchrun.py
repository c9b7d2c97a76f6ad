"""Under torchrun, on one machine: the same command, and nobody has to do anything when a worker dies."""

from __future__ import annotations

import os
import signal

from .conftest import NewRun
from .runs import STEPS, Run, assert_equal, assert_same_training


class TestUnderTorchrun:
    def test_it_is_the_run_that_the_command_line_starts_itself(
        self, new_run: NewRun, launched: Run, torchrun: list[str]
    ) -> None:
        run = new_run()
        run.complete([*torchrun, "--standalone", "--nproc-per-node", "2", *run.module()])
        assert_same_training(run, launched)


class TestAWorkerThatIsKilled:
    def test_is_started_again_with_the_others_and_the_run_resumes_by_itself(
        self, new_run: NewRun, launched: Run, torchrun: list[str]
    ) -> None:
        """`kill -9` of rank 1 in the middle. The agent starts all again, with the same command; the run goes on from its
        last checkpoint, and ends as if nothing had happened."""
        run = new_run()
        elastic = [*torchrun, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
        process = run.start([*elastic, *run.module("--model.sleep", "0.1")])
        run.wait_for(step=10)
        os.kill(run.steps(rank=1)[-1]["pid"], signal.SIGKILL)
        run.finish(process)

        found, expected = run.last(), launched.last()
        assert found["global_step"] == STEPS
        assert_equal(found["state_dict"], expected["state_dict"])
        assert_equal(found["optimizer_states"], expected["optimizer_states"])
        assert run.rows() == launched.rows()
        for rank in (0, 1):
            steps = run.steps(rank)
            first, second = (
                [step["step"] for step in steps if step["pid"] == pid] for pid in (steps[0]["pid"], steps[-1]["pid"])
            )
            assert first == list(range(1, first[-1] + 1))
            assert second == list(range(second[0], STEPS + 1))
            assert 1 < second[0] <= first[-1] + 1, "from a checkpoint: neither anew nor past what was done"
            seen = {step["step"]: step["samples"] for step in steps}
            assert seen == {step["step"]: step["samples"] for step in launched.steps(rank)}
