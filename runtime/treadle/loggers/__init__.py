"""Loggers: where rows of metrics go."""

from treadle.loggers.base import Logger
from treadle.loggers.csv import CSVLogger

__all__ = ["CSVLogger", "Logger"]
