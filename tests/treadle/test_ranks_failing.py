"""What one rank does and the others don't: an error that says so, on all of them, and no rank that waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_training import Net, Numbered, trainer_for
from ranks import on_trainer_ranks
from torch.utils.data import DataLoader


def rank() -> int:
    return torch.distributed.get_rank()


class OtherKeys(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log(f"of_{self.trainer.global_rank}", 1.0, on_epoch=True)
        return super().training_step(batch, batch_idx)


class OtherStepKeys(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank:
            self.log("odd", 1.0, sync_dist=True)
        return super().training_step(batch, batch_idx)


class OtherValidationKeys(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("fine", 1.0)
        if self.trainer.global_rank:
            self.log("odd", 1.0)


class NoneOnOne(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if self.trainer.global_rank and batch_idx == 1 else loss


class RaisesOnOne(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank and batch_idx == 1:
            raise ValueError("broken sample")
        return super().training_step(batch, batch_idx)


class WithHparams(Net):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()


def tried(work: Callable[[Path], Any], folder: Path) -> tuple[str, str]:
    try:
        work(folder)
    except Exception as error:  # noqa: BLE001  # whatever it was, the test looks at it
        return type(error).__name__, str(error)
    return "", ""


def fit(module_class: Callable[[], Any], strategy: str = "ddp", **settings: Any) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        settings.setdefault("logger", False)
        made = {key: value() if callable(value) else value for key, value in settings.items()}
        trainer_for(folder, strategy, enable_checkpointing=False, **made).fit(
            module_class(), DataLoader(Numbered(), 8), DataLoader(Numbered(20), 8)
        )

    return work


CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "other keys": (fit(OtherKeys), "ModuleError", "of_1"),
    "other keys of steps": (fit(OtherStepKeys), "ModuleError", "odd"),
    "other keys in validation": (fit(OtherValidationKeys, num_sanity_val_steps=0), "ModuleError", "odd"),
    "other max_epochs": (fit(Net, max_epochs=lambda: 1 + rank()), "ConfigError", "max_epochs"),
    "other hparams": (fit(lambda: WithHparams(rank())), "ConfigError", "width"),
    "other parameters": (fit(lambda: Net(norm=bool(rank()))), "Error", ""),
}


@pytest.mark.parametrize("name", CASES)
class TestRanksThatDiffer:
    def test_end_with_an_error_that_says_what_differs(self, tmp_path: Path, name: str) -> None:
        work, kind, said = CASES[name]
        for error, message in on_trainer_ranks(2, tried, work, tmp_path, timeout=40):
            assert error.endswith(kind), (error, message)
            assert said in message


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("module", [NoneOnOne, RaisesOnOne])
class TestOneRankLeavesTheStep:
    def test_ends_all(self, tmp_path: Path, strategy: str, module: Any) -> None:
        """The others find the connection closed, or say what they miss."""
        found = on_trainer_ranks(2, tried, fit(module, strategy), tmp_path, timeout=40)
        assert all(error for error, _ in found), found
