"""Shards by torch's distributed checkpoint (DCP): written by all ranks together, read by each alone.

DCP pickles what is no tensor, and its index. Here it is given tensors only, and the index is a table of plain values: its
own is written too, for torch's tools, and never read.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypedDict, cast, final

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from treadle.checkpoint.file import DAMAGE
from treadle.collectives import Ranks
from treadle.errors import CheckpointError

INDEX = ".metadata"
"""DCP's own."""
_FILE = re.compile(r"__\d+_\d+\.distcp")


class Piece(TypedDict):
    """A box of a tensor, and the bytes that hold it."""

    offsets: list[int]
    sizes: list[int]
    file: str
    start: int
    length: int
    sum: int
    """CRC-32 of the bytes."""


class Entry(TypedDict):
    """One tensor."""

    shape: list[int]
    dtype: torch.dtype
    pieces: list[Piece]


Table = dict[str, Entry]


def write_shards(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> Table:
    """Write ``tensors`` of all ranks, each its own parts of them, and flush them to disk. Collective.

    Returns:
        What lies where, on rank 0; empty on the others.

    Raises:
        OSError: A rank could not write; on all of them.
    """
    writer = _Writer(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of being alone
            save(
                dict(tensors),
                storage_writer=writer,
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=ranks.size == 1,
            )
    except CheckpointException as error:  # a BaseException
        raise _first(error) from error
    sums = ranks.gather_objects(writer.sums, to=0)
    return writer.table({at: crc for of_rank in sums for at, crc in of_rank.items()}) if ranks.rank == 0 else {}


def write_in_pieces(folder: Path, tensors: Mapping[str, Tensor], count: int) -> Table:
    """Write whole ``tensors`` as ``count`` ranks would that have them in parts along their first dimension.

    Raises:
        OSError: The disk is full or can't be written.
    """
    writer, planner = _Writer(folder), _PiecesPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans = [writer.prepare_local_plan(SavePlan(_items(tensors, rank, count))) for rank in range(count)]
    plans, metadata = planner.create_global_plan(plans)
    results = [writer.write_data(plan, planner).wait() for plan in writer.prepare_global_plan(plans)]
    writer.finish(metadata, results)
    return writer.table(writer.sums)


def _items(tensors: Mapping[str, Tensor], rank: int, count: int) -> list[WriteItem]:
    items = []
    for name, tensor in tensors.items():
        rows = -(-len(tensor) // count)
        start = min(rank * rows, len(tensor))
        stop = min(start + rows, len(tensor))
        if start == stop and rank:
            continue
        offsets, sizes = torch.Size([start, *[0] * (tensor.dim() - 1)]), torch.Size([stop - start, *tensor.shape[1:]])
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(offsets, sizes),
            properties=TensorProperties.create_from_tensor(tensor),
            size=tensor.size(),
        )
        items.append(WriteItem(index=MetadataIndex(name, offsets), type=WriteItemType.SHARD, tensor_data=data))
    return items


class _PiecesPlanner(DefaultSavePlanner):
    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        whole: Tensor = self.state_dict[write_item.index.fqn]
        return whole.detach()[chunk.offsets[0] : chunk.offsets[0] + chunk.sizes[0]]


class _Writer(FileSystemWriter):
    """Notes the sums of what this rank wrote, and on rank 0 where all of it lies."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sums: dict[tuple[str, int], int] = {}
        """By file and where in it the bytes start."""
        self._metadata: Metadata | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            written = super().write_data(plan, planner)
        except RuntimeError as error:
            # A write that failed also leaves torch's zip unfinished, which it reports on top.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        for result in written.value():
            at = result.storage_data
            self.sums[at.relative_path, at.offset] = zlib.crc32(
                _bytes(Path(self.path), at.relative_path, at.offset, at.length)
            )
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self._metadata = metadata

    def table(self, sums: Mapping[tuple[str, int], int]) -> Table:
        assert self._metadata is not None
        found: Table = {}
        for name, tensor in self._metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            found[name] = Entry(shape=list(tensor.size), dtype=tensor.properties.dtype, pieces=[])
            for chunk in tensor.chunks:
                at = self._metadata.storage_data[MetadataIndex(name, chunk.offsets)]
                found[name]["pieces"].append(
                    Piece(
                        offsets=list(chunk.offsets),
                        sizes=list(chunk.sizes),
                        file=at.relative_path,
                        start=at.offset,
                        length=at.length,
                        sum=sums[at.relative_path, at.offset],
                    )
                )
        return found


@final
class Shards:
    """What :func:`write_shards` wrote, as a source of stored tensors.

    Args:
        folder: Where it lies.
        table: What it returned. A stranger may have written it.
        path: What messages call it.

    Raises:
        CheckpointError: The table names what can't be in the folder.
    """

    def __init__(self, folder: Path, table: Table, path: Path) -> None:
        self._folder, self._table, self._path = folder, table, path
        try:
            self._metadata = _metadata(table)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise self._damaged(error) from None

    def read(self, wanted: Mapping[str, Tensor]) -> None:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of being alone
                load(
                    dict(wanted),
                    storage_reader=_Reader(self._folder, self._metadata),
                    planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                    no_dist=True,
                )
        except CheckpointException as error:  # a BaseException
            first = _first(error)
            if not isinstance(first, Exception):
                raise first from None
            raise self._damaged(first) from None
        except (*DAMAGE, AssertionError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"{self._path} is damaged: a part of it is not what was written.",
            why=f"reading it says: {(str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')}.",
            fix="resume from another checkpoint.",
        )


class _Reader(FileSystemReader):
    """Takes its index from a table of plain values, and only tensors from files."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in sorted(plan.items, key=lambda item: self._place(item.storage_index)):
            piece: Piece = self.storage_data[item.storage_index]
            content = _bytes(Path(self.path), piece["file"], piece["start"], piece["length"])
            if zlib.crc32(content) != piece["sum"]:
                raise ValueError(f"{piece['file']} has other bytes than were written")
            part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(part, Tensor) or list(part.shape) != piece["sizes"]:
                raise ValueError(f"{piece['file']} holds something other than the tensor that it should")
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _place(self, index: MetadataIndex) -> tuple[str, int]:
        return self.storage_data[index]["file"], self.storage_data[index]["start"]


def _metadata(table: Table) -> Metadata:
    """The index that DCP plans by.

    Raises:
        ValueError: A file out of the folder, or pieces that don't make up the tensor.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, Piece] = {}
    for name, entry in table.items():
        shape, pieces = torch.Size(entry["shape"]), entry["pieces"]
        for piece in pieces:
            if not _FILE.fullmatch(piece["file"]):
                raise ValueError(f"{piece['file']!r} is no name of a shard")
            ends = [start + size for start, size in zip(piece["offsets"], piece["sizes"], strict=True)]
            if min(*piece["offsets"], *piece["sizes"], piece["start"], piece["length"]) < 0 or any(
                end > length for end, length in zip(ends, shape, strict=True)
            ):
                raise ValueError(f"{name} has a piece that lies outside of it")
            places[MetadataIndex(name, piece["offsets"])] = piece
        chunks = [ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["sizes"])) for piece in pieces]
        if sum(prod(chunk.sizes) for chunk in chunks) != prod(shape):
            raise ValueError(f"the pieces of {name} don't make up the tensor")
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype=entry["dtype"]), shape, chunks)
    return Metadata(cast(Any, tensors), storage_data=places)


def _bytes(folder: Path, file: str, start: int, length: int) -> bytes:
    with (folder / file).open("rb") as opened:
        opened.seek(start)
        return opened.read(length)


def _first(error: CheckpointException) -> BaseException:
    """What the first rank that failed raised."""
    raised: Sequence[Any] = [error.failures[rank] for rank in sorted(error.failures)]
    found = raised[0][0] if isinstance(raised[0], tuple) else raised[0]
    return found if isinstance(found, BaseException) else error
