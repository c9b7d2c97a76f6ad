"""Checkpoints: one typed dict of tensors and plain values, and the file it lies in."""

from treadle.checkpoint.file import exists, here, link, make_folder, read, remove, write, write_plain
from treadle.checkpoint.state import FORMAT, Checkpoint, plain

__all__ = [
    "FORMAT",
    "Checkpoint",
    "exists",
    "here",
    "link",
    "make_folder",
    "plain",
    "read",
    "remove",
    "write",
    "write_plain",
]
