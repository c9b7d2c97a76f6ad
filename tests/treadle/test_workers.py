"""Loader processes: the user's data set in them, and their end."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import treadle
from treadle.testing import Classifier, NoisyPoints


def fit(loader: DataLoader[Any], tmp_path: Path, *callbacks: treadle.Callback) -> Classifier:
    model = Classifier()
    trainer = treadle.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
    )
    trainer.fit(model, loader)
    return model


class Fails(treadle.Callback):
    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        raise ValueError("a user's mistake")


class TestWorkerProcesses:
    @pytest.mark.parametrize("persistent", [False, True])
    def test_have_ended_when_the_fit_has(self, tmp_path: Path, persistent: bool) -> None:
        """Nobody waits for the garbage collector, which takes seconds for each of them."""
        loader = DataLoader(NoisyPoints(), 4, num_workers=2, persistent_workers=persistent)
        before = set(multiprocessing.active_children())  # another test's own, perhaps
        fit(loader, tmp_path)
        assert set(multiprocessing.active_children()) == before

    @pytest.mark.parametrize("persistent", [False, True])
    def test_have_ended_when_the_fit_failed(self, tmp_path: Path, persistent: bool) -> None:
        loader = DataLoader(NoisyPoints(), 4, num_workers=2, persistent_workers=persistent)
        before = set(multiprocessing.active_children())
        with pytest.raises(ValueError, match="a user's mistake"):
            fit(loader, tmp_path, Fails())
        assert set(multiprocessing.active_children()) == before


class WorksOnItself(NoisyPoints):
    """Reads through ``get_worker_info().dataset``, as user code in a ``worker_init_fn`` does, and in whole batches."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        info = get_worker_info()
        assert type(indices) is list
        assert info is None or type(info.dataset) is WorksOnItself
        return [self[index] for index in indices]


class TestTheDataSetInAWorker:
    @pytest.mark.parametrize("context", ["fork", "spawn"])
    def test_is_the_users_own_object(self, tmp_path: Path, context: str) -> None:
        """Nothing is wrapped around it, and its ``__getitems__`` gets a plain list."""
        loader = DataLoader(WorksOnItself(), 4, num_workers=1, multiprocessing_context=context, persistent_workers=True)
        assert len(fit(loader, tmp_path).seen) == 10

    def test_draws_differently_for_each_batch_and_epoch(self, tmp_path: Path) -> None:
        """Each batch has a seed of its own, whichever worker reads it."""
        loader = DataLoader(Noise(), 4, num_workers=2)
        batches: list[torch.Tensor] = []
        fit(loader, tmp_path, Keep(batches))
        noise = torch.cat(batches).flatten().tolist()
        assert len(set(noise)) == len(noise)


class Noise(NoisyPoints):
    def __init__(self) -> None:
        super().__init__(noise=1.0)
        self.points = torch.zeros_like(self.points)


class Keep(treadle.Callback):
    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch[1])
