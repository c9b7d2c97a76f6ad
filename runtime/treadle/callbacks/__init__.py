"""Callbacks: what happens around training without touching the model. One file each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from treadle.callbacks.base import Callback

if TYPE_CHECKING:
    from treadle.callbacks.early_stopping import EarlyStopping
    from treadle.callbacks.model_checkpoint import ModelCheckpoint
    from treadle.callbacks.progress_bar import RichProgressBar

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint", "RichProgressBar"]

_HOMES = {"EarlyStopping": "early_stopping", "ModelCheckpoint": "model_checkpoint", "RichProgressBar": "progress_bar"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"treadle.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this release has {', '.join(__all__)}")
