"""Data: what a user writes, and the stream that the loops read."""

from treadle.data.module import DataModule
from treadle.data.stream import Stream, StreamState

__all__ = ["DataModule", "Stream", "StreamState"]
