"""Checkpoints: one typed dict of tensors and plain values, and the file it lies in."""

from treadle.checkpoint.file import link, make_folder, read, write, write_plain
from treadle.checkpoint.state import FORMAT, Checkpoint, plain

__all__ = ["FORMAT", "Checkpoint", "link", "make_folder", "plain", "read", "write", "write_plain"]
