"""treadle: a lean training runtime for PyTorch.

Write a ``Module`` and a ``DataModule``, hand them to a ``Trainer``; killed anywhere, a run continues bit for bit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from treadle.version import __version__

if TYPE_CHECKING:
    from treadle.callbacks import Callback
    from treadle.data import DataModule
    from treadle.fabric import Fabric
    from treadle.module import Module
    from treadle.schedule import Every
    from treadle.seeding import seed_everything
    from treadle.trainer import Trainer

__all__ = ["Callback", "DataModule", "Every", "Fabric", "Module", "Trainer", "__version__", "seed_everything"]

_HOMES = {
    "Callback": "callbacks",
    "DataModule": "data",
    "Every": "schedule",
    "Fabric": "fabric",
    "Module": "module",
    "Trainer": "trainer",
    "seed_everything": "seeding",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"treadle.{_HOMES[name]}"), name)
        return value
    ours = {"LightningModule": "Module", "LightningDataModule": "DataModule"}.get(name)
    hint = f"its name here is {ours}" if ours else f"there are {', '.join(__all__)}"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}")


def __dir__() -> list[str]:
    return __all__
