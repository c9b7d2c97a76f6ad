"""A checkpoint of several ranks in which each has written its own parts, and nothing was gathered.

Tensors that were sharded lie in files of torch's distributed checkpoint (``shards.py``), all else in one file of tensors and
plain values, as any other checkpoint. What these are on disk: ``folder.py``.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch

from treadle.checkpoint.file import write_plain
from treadle.checkpoint.folder import REST, begin, is_sharded_checkpoint, link, name, remove, tidy
from treadle.checkpoint.state import plain
from treadle.collectives import Ranks, everywhere
from treadle.errors import CheckpointError
from treadle.strategies.sharding import is_sharded
from treadle.strategies.stored import StoredDict, StoredTensor, unread

if TYPE_CHECKING:
    from treadle.checkpoint.shards import Shards, Table

__all__ = [
    "finish",
    "is_sharded_checkpoint",
    "link",
    "parted",
    "read_sharded",
    "remove",
    "tidy",
    "write_sharded",
    "write_unnamed",
]

FORMAT = 1
Value = TypeVar("Value")
At = tuple[Any, ...]
"""The keys and indices that lead to a value in nested dicts and lists."""


class Rest(TypedDict):
    """What the file beside the shards holds."""

    format: int
    content: Any
    """The checkpoint, with None in place of each tensor that is in the shards."""
    sharded: dict[At, str]
    """Where these stand, and what the shards call them."""
    table: Table
    sizes: dict[str, int]
    """Of the other files, in bytes."""
    index_sum: int
    """CRC-32 of torch's own index."""


def write_sharded(path: Path, checkpoint: Mapping[str, Any], ranks: Ranks) -> None:
    """Write ``checkpoint``, each rank the parts that it has of sharded tensors, and rank 0 all that is not sharded. Killed at
    any byte, what lay under ``path`` before is intact. Collective: it is there when this returns.

    Args:
        path: In a folder that all ranks see.
        checkpoint: On each rank with the same sharded tensors.
        ranks: All that hold parts.

    Raises:
        CheckpointError: A value that is neither a tensor nor plain, or a folder that not all ranks see; on every rank.
        OSError: A rank can't write; on every rank.
    """
    data = write_unnamed(path, checkpoint, ranks)
    _on_rank_zero(ranks, lambda: name(path, data))


def write_unnamed(path: Path, checkpoint: Mapping[str, Any], ranks: Ranks) -> Path:
    """All of :func:`write_sharded` except for the name: returns the folder, which ``link(folder, path)`` on rank 0 lets
    ``path`` name, and other paths beside it too. The next one that is written for ``path`` removes it if nothing does.
    """
    from treadle.checkpoint.shards import write_shards

    rest, places, tensors = parted(dict(checkpoint), lambda value, _: is_sharded(value))
    data = _on_rank_zero(ranks, lambda: (plain(rest, path.stem), begin(path))[1])
    try:
        table = write_shards(data, tensors, ranks)
        _on_rank_zero(ranks, lambda: finish(data, rest, places, table))
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(data, ignore_errors=True)
        raise
    return data


def finish(data: Path, rest: Any, places: dict[At, str], table: Table) -> None:
    """The shards in ``data`` are on disk: write the rest."""
    from treadle.checkpoint.shards import INDEX

    files = {INDEX, *(piece["file"] for entry in table.values() for piece in entry["pieces"])}
    if missing := sorted(file for file in files if not (data / file).is_file()):
        raise CheckpointError(
            f"{data.parent} is not the same folder on all ranks: rank 0 lacks {missing[0]}, which another rank wrote.",
            why="all ranks write to one folder, which every machine must have mounted.",
            fix='dirpath=... on a shared file system, or state_dict_type="full".',
        )
    write_plain(
        data / REST,
        Rest(
            format=FORMAT,
            content=rest,
            sharded=places,
            table=table,
            sizes={file: (data / file).stat().st_size for file in sorted(files)},
            index_sum=zlib.crc32((data / INDEX).read_bytes()),
        ),
    )


def read_sharded(path: Path, rest: Any, device: str | torch.device = "cpu") -> Any:
    """The checkpoint in ``path``. Its sharded tensors are read when they are asked for: dicts that have some are
    :class:`~treadle.strategies.stored.StoredDict`.

    Args:
        path: The checkpoint.
        rest: What the file of the rest holds.
        device: Where tensors that are read whole go.

    Raises:
        CheckpointError: A file is missing or has another size than was written, or what is there was not written by
            treadle.
    """
    from treadle.checkpoint.shards import Shards

    if not isinstance(rest, dict) or not Rest.__required_keys__ <= rest.keys() or rest["format"] != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this version of treadle.",
            why=f"its {REST} doesn't say what a sharded checkpoint's does.",
            fix="install the release of treadle that wrote it.",
        )
    _require_files(path, rest)
    source = Shards(path.resolve(), rest["table"], path)  # the folder as it is now: the link may change
    try:
        return _with_stored(rest["content"], dict(rest["sharded"]), source, rest["table"], device)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{REST} contradicts itself: {error}") from None


def _require_files(path: Path, rest: Mapping[str, Any]) -> None:
    from treadle.checkpoint.shards import INDEX

    for file, size in rest["sizes"].items():
        if Path(file).name != file:
            raise _damaged(path, f"{REST} names {file!r}, which is not in the folder")
        if not (path / file).is_file():
            raise _damaged(path, f"{file} is missing")
        if (found := (path / file).stat().st_size) != size:
            raise _damaged(path, f"{file} has {found:,} bytes, and {size:,} were written")
    if not (path / INDEX).is_file() or zlib.crc32((path / INDEX).read_bytes()) != rest["index_sum"]:
        raise _damaged(path, f"{INDEX} has other bytes than were written")


def parted(tree: Any, goes: Callable[[Any, At], bool]) -> tuple[Any, dict[At, str], dict[str, Any]]:
    """``tree`` with None in place of the values that ``goes(value, where it is)`` says go; where these were, with a name for
    each; and they by their names."""
    places: dict[At, str] = {}
    gone: dict[str, Any] = {}

    def visit(value: Any, at: At) -> Any:
        if goes(value, at):
            label = ".".join(map(str, at))
            while label in gone:  # keys may have dots in them
                label += "_"
            places[at], gone[label] = label, value
            return None
        if isinstance(value, StoredTensor):
            return value.whole()
        if isinstance(value, dict):
            value = unread(value)
            items = {key: visit(item, (*at, key)) for key, item in value.items()}
            return items if type(value) is dict else type(value)(items)
        if type(value) in (list, tuple):
            return type(value)(visit(item, (*at, index)) for index, item in enumerate(value))
        return value

    return visit(tree, ()), places, gone


def _with_stored(
    tree: Any, places: dict[At, str], source: Shards, table: Table, device: str | torch.device, at: At = ()
) -> Any:
    """The reverse."""
    if (name := places.get(at)) is not None:
        return StoredTensor(name, torch.Size(table[name]["shape"]), table[name]["dtype"], source, device)
    if isinstance(tree, dict):
        items = {key: _with_stored(item, places, source, table, device, (*at, key)) for key, item in tree.items()}
        if any(isinstance(item, StoredTensor) for item in items.values()):
            return StoredDict(items, type(tree))
        return items if type(tree) is dict else type(tree)(items)
    if isinstance(tree, (list, tuple)):  # their items are read now
        items_ = [_with_stored(item, places, source, table, device, (*at, index)) for index, item in enumerate(tree)]
        return type(tree)(item.whole() if isinstance(item, StoredTensor) else item for item in items_)
    return tree


def _on_rank_zero(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """What ``work`` returns there, on all ranks, or what it raises."""

    def attempt() -> tuple[Any, OSError | None]:
        try:
            return work(), None
        except OSError as error:
            return None, error

    result, error = ranks.from_rank_zero(attempt)
    if error is not None:
        raise everywhere(error)
    value: Value = result
    return value


def _damaged(path: Path, what: str) -> CheckpointError:
    others = sorted(p.name for p in path.parent.glob("*.ckpt") if p.name != path.name)[:5]
    beside = f" Beside it: {', '.join(others)}." if others else ""
    return CheckpointError(
        f"{path} is damaged: {what}.",
        why="a sharded checkpoint is whole only with all of its files as they were written.",
        fix=f"resume from another checkpoint.{beside}",
    )
