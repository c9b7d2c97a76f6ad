"""Loader processes: the user's data set in them, and their end."""

import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import treadle
from treadle.data.stream import training_stream
from treadle.data.workers import Workers, failure
from treadle.errors import DataError
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


class Ends(NoisyPoints):
    """Its process is ended by a signal, or with an exit code, where sample 13 is read."""

    def __init__(self, how: int) -> None:
        super().__init__()
        self.how = how

    def __getitem__(self, index: int) -> Any:
        if index == 13 and self.how < 0:
            os.kill(os.getpid(), -self.how)
        elif index == 13:
            os._exit(self.how)
        return super().__getitem__(index)


def read_all(loader: DataLoader[Any]) -> None:
    stream = training_stream(loader, name="the train loader")
    try:
        for _ in stream:
            pass
    except RuntimeError as error:
        named = failure(error, "epoch 0, batch 3")
        raise named or error from error
    finally:
        stream.close()


class TestAWorkerThatIsGone:
    @pytest.mark.parametrize(
        "how, words, fix",
        [
            (-signal.SIGKILL, "was ended by SIGKILL", "lower num_workers (2), prefetch_factor (2) or batch_size (4)"),
            (-signal.SIGBUS, "was ended by SIGBUS", "--shm-size"),
            (-signal.SIGSEGV, "was ended by SIGSEGV", "faulthandler"),
            (3, "ended with exit code 3", "num_workers=0"),
        ],
    )
    def test_is_named_with_how_it_ended(self, how: int, words: str, fix: str) -> None:
        """Which, of which loader, at what batch, and what to do."""
        with pytest.raises(DataError) as raised:
            read_all(DataLoader(Ends(how), 4, num_workers=2))
        text = str(raised.value)
        assert text.startswith("worker 1 of 2 (pid ")
        assert f"of the train loader {words}, at epoch 0, batch 3." in text
        assert fix in text
        assert 'ckpt_path="auto"' in text

    def test_of_somebody_elses_loader_stays_torchs_affair(self) -> None:
        """Nothing is claimed of workers that nobody here started."""
        assert failure(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")) is None


class Mistake(Exception):
    pass


class Fails13(NoisyPoints):
    def __getitem__(self, index: int) -> Any:
        if index == 13:
            raise Mistake("a user's mistake")
        return super().__getitem__(index)


class TestAnErrorInTheDataSet:
    def test_stays_the_users_and_says_where_it_came_from(self) -> None:
        """Its type and its traceback in front; one line more: worker, batch and samples."""
        with pytest.raises(Mistake) as raised:
            read_all(DataLoader(Fails13(), 4, num_workers=2))
        text = "".join(traceback.format_exception(Mistake, raised.value, None))
        assert 'raise Mistake("a user\'s mistake")' in text
        assert "raised in worker 1 of 2 (pid " in text
        assert "of the train loader, reading its batch 3: samples [12, 13, 14, 15]" in text


class Waits(NoisyPoints):
    """Sample 13 comes when ``go`` is set."""

    def __init__(self, go: Any) -> None:
        super().__init__()
        self.go = go

    def __getitem__(self, index: int) -> Any:
        if index == 13:
            assert self.go.wait(60)
        return super().__getitem__(index)


class Out:
    """Standard error, which sets an event when treadle has said something."""

    def __init__(self, said: Any) -> None:
        self.said, self.text = said, ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        if "treadle: " in self.text:
            self.said.set()


class TestAWorkerThatIsStuck:
    @pytest.mark.skipif(sys.platform != "linux", reason="what the kernel tells is read from /proc")
    @pytest.mark.parametrize("context", ["fork", "spawn"])
    def test_is_named_with_its_line_and_the_run_goes_on(self, monkeypatch: pytest.MonkeyPatch, context: str) -> None:
        """Who owes which batch, where that process stands, and what to type; then the batch comes."""
        go = multiprocessing.get_context(context).Event()
        out = Out(go)
        monkeypatch.setattr(Workers, "EVERY", 0.1)
        monkeypatch.setattr(sys, "stderr", out)
        loader = DataLoader(Waits(go), 4, num_workers=2, multiprocessing_context=context)
        stream = training_stream(loader, name="the train loader")
        batches = iter(stream)
        for _ in range(3):  # however long the workers take to start
            next(batches)
        monkeypatch.setattr(Workers, "AFTER", 0.3)
        assert len(list(batches)) == 2
        stream.close()
        assert "the train loader has given no batch for " in out.text
        assert "batch 3 is owed by worker 1 of 2 (pid " in out.text
        assert "which is in test_workers.py:" in out.text
        assert "in __getitem__" in out.text
        assert "num_workers=0" in out.text

    def test_does_not_outlive_the_reading(self) -> None:
        """Torch asks it to end by SIGTERM, which a worker leaves to its parent: then it is killed."""
        go = multiprocessing.get_context("fork").Event()
        before = set(multiprocessing.active_children())
        stream = training_stream(DataLoader(Waits(go), 4, num_workers=1, prefetch_factor=4), name="the train loader")
        next(iter(stream))
        stream.close()
        assert set(multiprocessing.active_children()) == before
