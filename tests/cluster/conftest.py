"""One small project, and the run of it that all others must equal: two processes that the command line itself starts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from .runs import Run

collect_ignore = ["project"]
"""Programs that tests run."""

NewRun = Callable[[], Run]


@pytest.fixture(scope="session")
def new_run(tmp_path_factory: pytest.TempPathFactory) -> NewRun:
    return lambda: Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def launched(new_run: NewRun) -> Run:
    """The run on two processes that the command line starts, done."""
    run = new_run()
    run.complete([sys.executable, *run.module("--trainer.devices", "2")])
    return run


@pytest.fixture(scope="session")
def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run"]
