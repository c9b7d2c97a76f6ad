"""Memory that runs out: the error stays what it is, and says what to lower."""

import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import treadle
from treadle.data.machine import host_memory, size
from treadle.loops.faults import explained
from treadle.testing import Classifier, NoisyPoints

TOO_MUCH = 1 << 60


class Greedy(Classifier):
    """Asks for more memory than any machine has, in its third training step, its validation or its prediction."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.where == "train" and batch_idx == 2:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.where == "validate":
            torch.empty(TOO_MUCH, dtype=torch.uint8)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.empty(TOO_MUCH, dtype=torch.uint8)


class Explains(treadle.Callback):
    """Does what the Trainer does with an error, whether it has done so or not."""

    micro_batch_size: Any = None

    def __init__(self, instead: BaseException | None = None) -> None:
        self.instead = instead
        self.text = ""

    def on_exception(self, trainer: treadle.Trainer, module: treadle.Module, error: BaseException) -> None:
        run, loaders = trainer._run, trainer._loaders
        assert run is not None
        assert loaders is not None
        error = self.instead or RuntimeError(str(error))
        same = explained(error, run, loaders, self.micro_batch_size)
        assert same is error
        self.text = "".join(traceback.format_exception(type(same), same, None))


@pytest.fixture
def told(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., str]:
    def tell(where: str, micro_batch_size: Any = None, instead: BaseException | None = None) -> str:
        explains = Explains(instead)
        explains.micro_batch_size = micro_batch_size
        trainer, loader = make_bare(callbacks=[explains]), DataLoader(NoisyPoints(), 4)
        call = trainer.predict if where == "predict" else partial(trainer.fit, val_dataloaders=loader)
        with pytest.raises(RuntimeError):
            call(Greedy(where), loader)
        return explains.text

    return tell


class TestMemoryOfTheHost:
    def test_that_a_step_lacks_says_how_much_and_what_to_lower(self, told: Callable[..., str]) -> None:
        """Asked for, free, where, how large a batch, and the flags to type."""
        text = told("train")
        assert "1048576.0 TiB asked for" in text
        assert "the host has" in text
        assert "epoch 0, batch 2, batch_size=4" in text
        assert "--trainer.micro_batch_size auto" in text
        assert "--data.batch_size 2" in text
        assert "--trainer.precision bf16-mixed" in text

    def test_that_a_smaller_part_lacks_names_a_smaller_one(self, told: Callable[..., str]) -> None:
        """Who splits batches already is told the next size."""
        assert "--trainer.micro_batch_size 2 " in told("train", 4)

    @pytest.mark.parametrize("where", ["validate", "predict"])
    def test_that_an_evaluation_lacks_speaks_of_its_batch(self, told: Callable[..., str], where: str) -> None:
        """Micro-batches are of training alone, so they are not offered."""
        text = told(where)
        assert "batch 0 of the " in text
        assert "--data.batch_size 2" in text
        assert "micro_batch_size" not in text


class TestMemoryOfADevice:
    def test_is_still_torchs_own_error(self, told: Callable[..., str]) -> None:
        """``except torch.OutOfMemoryError`` goes on working."""
        text = told(
            "train", instead=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
        )
        assert "OutOfMemoryError: CUDA out of memory" in text
        assert "20.00 GiB asked for" in text


class TestWhatIsLeft:
    @pytest.mark.skipif(sys.platform != "linux", reason="told by /proc")
    def test_is_less_than_all(self) -> None:
        """The host's memory, or the container's."""
        room = host_memory()
        assert room is not None
        assert 0 < room.free < room.total

    def test_is_said_in_units_that_one_reads(self) -> None:
        """Not in bytes."""
        assert size(20 * 2**30) == "20.0 GiB"
