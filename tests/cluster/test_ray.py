"""Under Ray Train: a function on each of two workers, in a process group that Ray has opened."""

from __future__ import annotations

import importlib.util
import sys
import tempfile

import pytest

from .conftest import NewRun
from .runs import PROJECT, Run, assert_same_training, need

ALONE = [
    "unshare",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    'ip link set lo up && exec "$@"',
    "sh",
]
"""On a machine with loopback alone, so that Ray meets nobody and listens to nobody; its many processes end with the first."""

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "200",  # as other tests may run beside this
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture(scope="session", autouse=True)
def _ray() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip('needs Ray (pip install "ray[train]")')
    need("unshare", "ip", packages="util-linux, iproute2", root=True)


class TestTwoWorkersOfRay:
    def test_are_two_ranks(self, new_run: NewRun, launched: Run) -> None:
        run = new_run()
        with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: sockets lie in it
            command = [*ALONE, sys.executable, str(PROJECT / "ray_job.py"), folder, *run.arguments()]
            run.complete(command, timeout=240, HOME=folder, **SETTINGS)
        assert_same_training(run, launched)
