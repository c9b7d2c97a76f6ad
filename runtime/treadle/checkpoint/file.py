"""A checkpoint's file: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from treadle.checkpoint.state import FORMAT, Checkpoint, Weights, plain
from treadle.errors import CheckpointError, ConfigError

DAMAGE = (
    *(RuntimeError, EOFError, ValueError, KeyError, OSError, OverflowError),
    *(BadZipFile, struct.error, zlib.error),
)
"""What reading a damaged file may raise."""


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write to a temporary name, flush to disk, rename: killed at any byte, what lay under ``path`` before is intact.

    Raises:
        CheckpointError: A value that is neither a tensor nor plain; nothing is written then.
        OSError: The disk is full or read-only; the temporary file is removed.
    """
    write_plain(path, dict(checkpoint))


def write_plain(path: Path, value: Any) -> None:
    """:func:`write`, for any value made of tensors and plain values."""
    content = plain(value, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            _save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _save(content: Any, file: IO[bytes]) -> None:
    with_sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)  # reading checks them
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # A write that failed also leaves torch's zip unfinished, which it reports on top.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        torch.serialization.set_crc32_options(with_sums)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, if they are not there.

    Raises:
        ConfigError: It can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "it is read-only."
    except OSError as error:
        writable, reason = False, f"{error.strerror or error}."
    if not writable:
        raise ConfigError(
            f"{folder} can't be written.", why=reason, fix="default_root_dir=..., a folder that you may write in."
        )


def link(source: Path, path: Path) -> None:
    """Let ``path`` name the file that ``source`` names, at once and without writing it again.

    A hard link: it stays when ``source`` is deleted. File systems without links get a copy.
    """
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    try:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def read(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """The checkpoint in ``path``, its tensors on ``map_location``.

    Raises:
        CheckpointError: No such file, a damaged one, one that holds objects, or one of another program or version.
    """
    return _recognised(read_plain(path, map_location), path)


def read_plain(path: Path, map_location: str | torch.device = "cpu") -> Any:
    """What :func:`write_plain` wrote, its tensors on ``map_location``.

    Raises:
        CheckpointError: No such file, a damaged one, or one that holds objects.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint file.",
            why="there is a folder of that name." if path.is_dir() else f"no such file.{_neighbours(path)}",
            fix='give the path of a .ckpt file, or "last" for the newest state of the newest run.',
        )
    if path.stat().st_size and not _looks_like_one(path):
        raise CheckpointError(
            f"{path} is not a checkpoint.",
            why="a checkpoint is a zip archive that torch.save wrote, and this file doesn't start like one.",
            fix='give the path of a .ckpt file, or "last" for the newest state of the newest run.',
        )
    try:
        with warnings.catch_warnings():
            _check_sums(path)
            warnings.simplefilter("ignore")  # torch's thoughts on a stranger's pickle; it is refused below
            content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds something other than tensors and plain values.",
            why="objects in a file can execute code when they are read, so nothing in it was read.",
            fix="use a checkpoint that treadle wrote; ask where this one comes from.",
        ) from None
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged: its {path.stat().st_size:,} bytes are not a whole checkpoint.",
            why=f"reading it says: {_first_line(error)}.",
            fix=f"resume from another checkpoint.{_neighbours(path)}",
        ) from None
    return content


def _looks_like_one(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _check_sums(path: Path) -> None:
    """Hold each part of the file against its checksum, which ``torch.load`` doesn't: a flipped bit would go unseen."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            # Marked as a folder, a part would be left out of the memory that torch makes for it.
            folders = [part.filename for part in archive.infolist() if part.external_attr & 0x10]
            if part := archive.testzip() or next(iter(folders), None):
                raise BadZipFile(f"{part} is not what was written")


def _recognised(content: Any, path: Path) -> Checkpoint:
    found = content.get("format") if isinstance(content, dict) else None
    if found == FORMAT and Weights.__required_keys__ <= content.keys():
        return cast(Checkpoint, content)
    if isinstance(found, int) and found != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}, this version reads {FORMAT}.",
            why="the layout of the file changed between releases.",
            fix="install the release of treadle that wrote it.",
        )
    raise CheckpointError(
        f"{path} was not written by treadle.",
        why="a checkpoint says its format, and this file doesn't.",
        fix='for bare weights use model.load_state_dict(torch.load(path, weights_only=True)["state_dict"]).',
    )


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _flush_folder(folder: Path) -> None:
    """A rename is durable once the folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _neighbours(path: Path) -> str:
    others = sorted(p.name for p in path.parent.glob("*.ckpt") if p != path)[:5] if path.parent.is_dir() else []
    return f" Beside it: {', '.join(others)}." if others else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
