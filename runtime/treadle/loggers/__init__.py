"""Loggers: where rows of metrics go."""

from typing import Any

from treadle.loggers.base import Logger
from treadle.loggers.csv import CSVLogger

__all__ = ["CSVLogger", "Logger"]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this release has {', '.join(__all__)}")
