"""Checkpoints: one typed dict of tensors and plain values, and the file it lies in."""

from treadle.checkpoint.file import link, read, write, write_plain
from treadle.checkpoint.state import FORMAT, Checkpoint, plain

__all__ = ["FORMAT", "Checkpoint", "link", "plain", "read", "write", "write_plain"]
