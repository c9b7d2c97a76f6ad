"""A Trainer that writes below the test's own folder and shows nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models here are so small that threads only get into each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., treadle.Trainer]:
    """One epoch, no progress bar; everything else as a user gets it."""

    def make(**settings: Any) -> treadle.Trainer:
        return treadle.Trainer(
            **{"default_root_dir": tmp_path, "enable_progress_bar": False, "max_epochs": 1, **settings}
        )

    return make


@pytest.fixture
def make_bare(make_trainer: Callable[..., treadle.Trainer]) -> Callable[..., treadle.Trainer]:
    """The same, writing nothing to disk."""

    def make(**settings: Any) -> treadle.Trainer:
        return make_trainer(**{"logger": False, "enable_checkpointing": False, **settings})

    return make
