"""Data: what a user writes, and the streams that the loops read."""

from treadle.data.combined import CombinedLoader, CombinedStream
from treadle.data.module import DataModule
from treadle.data.single import Stream
from treadle.data.stream import Batches, StreamState, evaluation_streams, training_stream

__all__ = [
    "Batches",
    "CombinedLoader",
    "CombinedStream",
    "DataModule",
    "Stream",
    "StreamState",
    "evaluation_streams",
    "training_stream",
]
