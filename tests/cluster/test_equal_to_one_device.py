"""What all the other files compare with is itself right: two processes of 8 samples each are one of 16."""

from __future__ import annotations

import sys

import torch

from .conftest import NewRun
from .runs import STEPS, Run


class TestTwoProcesses:
    def test_train_as_one_device_does_at_the_same_global_batch(self, new_run: NewRun, launched: Run) -> None:
        """The weights to rounding, and the validation loss of all samples, though one rank has more of them. Each sample
        was read by one of the ranks, in the step in which the one device read it."""
        alone = new_run()
        alone.complete([sys.executable, *alone.module("--data.batch_size", "16")])
        found, expected = launched.last(), alone.last()
        assert found["global_step"] == expected["global_step"] == STEPS
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses(launched), losses(alone), rtol=1e-4, atol=1e-5)
        for one, other, whole in zip(launched.steps(0), launched.steps(1), alone.steps(0), strict=True):
            assert sorted(one["samples"] + other["samples"]) == sorted(whole["samples"])


def losses(run: Run) -> list[float]:
    """Of validation, after each epoch."""
    names, *rows = (row.split(",") for row in run.rows())
    column = names.index("val_loss")
    return [float(row[column]) for row in rows if row[column]]
