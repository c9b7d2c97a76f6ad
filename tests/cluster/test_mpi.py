"""Under Open MPI."""

from __future__ import annotations

import sys

import pytest

from .conftest import NewRun
from .runs import Run, assert_same_training, need


@pytest.fixture(scope="session", autouse=True)
def _open_mpi() -> None:
    need("mpirun", packages="openmpi-bin")


class TestUnderMpirun:
    def test_two_processes_are_two_ranks(self, new_run: NewRun, launched: Run) -> None:
        run = new_run()
        mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "--mca", "oob_tcp_if_include", "lo"]
        run.complete([*mpirun, sys.executable, *run.module()])
        assert_same_training(run, launched)
