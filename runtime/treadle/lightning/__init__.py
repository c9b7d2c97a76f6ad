"""PyTorch Lightning's names for what treadle has, for code in which only the import changes::

    import lightning as L                     import treadle.lightning as L
    import pytorch_lightning as pl            import treadle.lightning as pl
    from lightning.pytorch.callbacks import   from treadle.lightning.pytorch.callbacks import

``read_checkpoint`` reads its checkpoints, and ``python -m treadle.lightning convert`` makes ours of them.

Old names live here and nowhere else. One that has no equivalent is an error that says what to use instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.lightning.names import ROOT, found

if TYPE_CHECKING:
    from treadle.callbacks import Callback
    from treadle.data import DataModule as LightningDataModule
    from treadle.fabric import Fabric
    from treadle.lightning import pytorch
    from treadle.lightning.checkpoints import read_checkpoint
    from treadle.lightning.module import LightningModule
    from treadle.lightning.pytorch import callbacks, loggers, profilers
    from treadle.lightning.seeding import seed_everything
    from treadle.lightning.trainer import Trainer

__all__ = [
    "Callback",
    "Fabric",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "callbacks",
    "loggers",
    "profilers",
    "pytorch",
    "read_checkpoint",
    "seed_everything",
]

# pytorch_lightning has callbacks, loggers and so on at its top, lightning has them in lightning.pytorch: found in both.
__path__ = [*__path__, str(Path(__path__[0]) / "pytorch")]


def __getattr__(name: str) -> Any:
    return found(__name__, name, ROOT)


def __dir__() -> list[str]:
    return __all__
