"""A checkpoint's file, on this machine or in a store: written whole or not at all, read without executing anything."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from treadle.checkpoint import folder
from treadle.checkpoint.foreign import VERSION, refusal, written_by_lightning
from treadle.checkpoint.remote import copy, download, is_remote, require_writable, scratch, upload
from treadle.checkpoint.state import FORMAT, Checkpoint, Weights, plain
from treadle.errors import CheckpointError, ConfigError

DAMAGE = (
    *(RuntimeError, EOFError, ValueError, KeyError, OSError, OverflowError),
    *(BadZipFile, struct.error, zlib.error),
)
"""What reading a damaged file may raise."""


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write to a temporary name, flush to disk, rename: killed at any byte, what lay under ``path`` before is intact.

    In a store (see :func:`~treadle.checkpoint.remote.location`) the same holds: the file is written here, without a name, then
    uploaded, and replaces what was there once all of it has arrived.

    Raises:
        CheckpointError: A value that is neither a tensor nor plain; nothing is written then.
        OSError: The disk is full or read-only, or the store can't be reached or refuses; nothing half written stays.
    """
    write_plain(path, dict(checkpoint))


def write_plain(path: Path, value: Any) -> None:
    """:func:`write`, for any value made of tensors and plain values."""
    content = plain(value, path.stem)
    if is_remote(path):
        with scratch() as local:
            with local.open("wb") as file:
                _save(content, file)
            upload(local, path)
        return
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
    """Make ``folder`` and those above it, if they are not there. In a store, see whether it can be written.

    Raises:
        ConfigError: It can't be made or written.
    """
    if is_remote(folder):
        try:
            require_writable(folder)
        except OSError as error:
            raise ConfigError(
                f"{folder} can't be written.",
                why=f"{error.strerror}.",
                fix="name a bucket that is there, and give its package a key that may write and remove in it.",
            ) from None
        return
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

    A hard link: it stays when ``source`` is deleted. File systems without links get a copy; a store makes one itself.
    """
    if folder.is_sharded_checkpoint(source):
        folder.link(source, path)
        return
    if is_remote(path):
        copy(source, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
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


def exists(path: Path) -> bool:
    """Whether there is a file of that name, or a sharded checkpoint."""
    return path.is_file() or folder.is_sharded_checkpoint(path)


def remove(path: Path) -> None:
    """Remove the file, or the sharded checkpoint, if it is there."""
    folder.remove(path)


@contextmanager
def here(path: Path) -> Iterator[Path]:
    """The file ``path`` as one of this machine: itself, or for one in a store a copy that is there while the block runs.

    Raises:
        CheckpointError: No such file in the store.
        OSError: The store can't be reached, or refuses.
    """
    if not is_remote(path):
        yield path
        return
    _require_file(path)
    with scratch() as local:
        download(path, local)
        yield local


def read(path: Path, map_location: str | torch.device = "cpu", *, known_as: Path | None = None) -> Checkpoint:
    """The checkpoint in ``path``, its tensors on ``map_location``.

    Args:
        known_as: What messages call it, where ``path`` is a copy.

    Raises:
        CheckpointError: No such file, a damaged one, one that holds objects, or one of another program or version.
        OSError: The store that it lies in can't be reached, or refuses.
    """
    return _recognised(read_plain(path, map_location, known_as=known_as), known_as or path)


def read_plain(path: Path, map_location: str | torch.device = "cpu", *, known_as: Path | None = None) -> Any:
    """What :func:`write_plain` wrote, its tensors on ``map_location``.

    Raises:
        CheckpointError: No such file, a damaged one, or one that holds objects.
        OSError: The store that it lies in can't be reached, or refuses.
    """
    if folder.is_sharded_checkpoint(path):
        from treadle.checkpoint.sharded import read_sharded

        rest = read_plain(path / folder.REST, known_as=(known_as or path) / folder.REST)
        return read_sharded(path, rest, map_location)
    with here(path) as file:
        return _read(file, known_as or path, map_location)


def _read(file: Path, path: Path, map_location: str | torch.device) -> Any:
    """Messages call it ``path``."""
    if file == path:
        _require_file(path)
    if file.stat().st_size and not _looks_like_one(file):
        raise CheckpointError(
            f"{path} is not a checkpoint.",
            why="a checkpoint is a zip archive that torch.save wrote, and this file doesn't start like one.",
            fix='give the path of a .ckpt file, or "last" for the newest state of the newest run.',
        )
    try:
        with warnings.catch_warnings():
            _check_sums(file)
            warnings.simplefilter("ignore")  # torch's thoughts on a stranger's pickle; it is refused below
            content = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        if written_by_lightning(file):
            raise refusal(path) from None
        raise CheckpointError(
            f"{path} holds something other than tensors and plain values.",
            why="objects in a file can execute code when they are read, so nothing in it was read.",
            fix="use a checkpoint that treadle wrote; ask where this one comes from.",
        ) from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's trouble, or the network's: the file may be sound
        raise CheckpointError(
            f"{path} is damaged: its {file.stat().st_size:,} bytes are not a whole checkpoint.",
            why=f"reading it says: {_first_line(error)}.",
            fix=f"resume from another checkpoint.{_neighbours(path)}",
        ) from None
    return content


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint file.",
            why=folder.lacks(path) or f"no such file.{_neighbours(path)}",
            fix='give the path of a .ckpt file, or "last" for the newest state of the newest run.',
        )


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
    if isinstance(content, dict) and VERSION in content:
        raise refusal(path)
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
