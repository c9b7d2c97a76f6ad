"""From a sharded checkpoint to one file, and back: in one process, with the memory of the state and of one tensor more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from treadle.checkpoint.file import exists, read_plain, write_plain
from treadle.checkpoint.folder import begin, is_sharded_checkpoint, name
from treadle.checkpoint.sharded import At, finish, parted
from treadle.checkpoint.state import Checkpoint, plain
from treadle.errors import CheckpointError, ConfigError
from treadle.strategies.sharding import whole

_IN_SHARDS = {"state_dict", "optimizer_states", "gradients", "callbacks"}
"""Of what the runtime keeps in a checkpoint; all else of it is small, and read by every rank."""


def consolidate(source: Path, target: Path) -> None:
    """Write the sharded checkpoint ``source`` to one file, the same as if it had been saved so.

    Raises:
        CheckpointError: ``source`` is no sharded checkpoint or damaged; there is a ``target`` already.
        OSError: The disk is full or can't be written.
    """
    if exists(source) and not is_sharded_checkpoint(source):
        raise CheckpointError(
            f"{source} is one file already.",
            why="consolidate makes one file of a sharded checkpoint.",
            fix=f"use it as it is, or: python -m treadle.checkpoint shard {source} {target}",
        )
    _require_new(target)
    write_plain(target, whole(read_plain(source)))


def shard(source: Path, target: Path, pieces: int) -> None:
    """Write the checkpoint ``source`` in the form that ``pieces`` ranks would give it, to be read by any number of them:
    its tensors of numbers in parts along their first dimension.

    Raises:
        ConfigError: ``pieces`` is less than 1.
        CheckpointError: ``source`` is no checkpoint or damaged; there is a ``target`` already.
        OSError: The disk is full or can't be written.
    """
    from treadle.checkpoint.shards import write_in_pieces

    if pieces < 1:
        raise ConfigError(f"pieces={pieces}.", why="a tensor is in one piece or more.", fix="pieces=2")
    content = whole(read_plain(source))
    _require_new(target)
    rest, places, tensors = parted(content, _goes)
    plain(rest, target.stem)
    data = begin(target)
    try:
        finish(data, rest, places, write_in_pieces(data, tensors, pieces))
        name(target, data)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise


def _goes(value: Any, at: At) -> bool:
    numbers = isinstance(value, Tensor) and value.dim() > 0 and (value.is_floating_point() or value.is_complex())
    return numbers and (at[0] in _IN_SHARDS or at[0] not in Checkpoint.__annotations__)


def _require_new(target: Path) -> None:
    if exists(target) or target.is_dir() or target.is_symlink():
        raise CheckpointError(
            f"there is a {target} already.",
            why="nothing is overwritten here.",
            fix="give another name, or remove it first.",
        )
