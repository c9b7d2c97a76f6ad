"""What ``lightning.pytorch`` holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.lightning.names import ROOT, found

if TYPE_CHECKING:
    from treadle.callbacks import Callback
    from treadle.data import DataModule as LightningDataModule
    from treadle.lightning.module import LightningModule
    from treadle.lightning.pytorch import callbacks, loggers, profilers
    from treadle.lightning.seeding import seed_everything
    from treadle.lightning.trainer import Trainer

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "callbacks",
    "loggers",
    "profilers",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    return found(__name__, name, ROOT)


def __dir__() -> list[str]:
    return __all__
