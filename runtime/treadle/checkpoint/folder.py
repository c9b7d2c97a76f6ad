"""A sharded checkpoint on disk: ``name.ckpt`` is a symbolic link to a hidden folder beside it, which has the files.

So it is replaced, and given a second name, as one file is: at once. A folder that no link beside it names is garbage.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from treadle.checkpoint.remote import is_remote
from treadle.errors import ConfigError

REST = "rest.pt"
"""What lies in no shard, and where the shards are. Written last: without it there is no checkpoint."""
SUFFIX = ".shards"
_PARTIAL = ".partial"


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether ``path`` is one, by its link or its folder."""
    return not is_remote(path) and (path / REST).is_file()


def lacks(path: Path) -> str:
    """Why ``path``, which is no file, is no sharded checkpoint either; empty if there is nothing of that name."""
    data = _named_by(path)
    if data is not None and not data.is_dir():
        return f"the link is there, and the folder that it names, {data.name}, is not: move, or copy (cp -rL), both together."
    if data is not None:
        return f"of its files {REST}, which says what the others hold, is not there."
    return "there is a folder of that name." if not is_remote(path) and path.is_dir() else ""


def begin(path: Path) -> Path:
    """A new folder, for what ``path`` is to name. Those that were begun for it and never finished are removed.

    Raises:
        ConfigError: ``path`` is in a store.
    """
    if is_remote(path):
        raise ConfigError(
            f"{path} can't be a sharded checkpoint.",
            why="its ranks write to one folder of a file system that all of them see, and this is a store.",
            fix='state_dict_type="full", or a dirpath on a shared file system.',
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unnamed(path.parent, f".{path.name}.*")
    data = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    data.mkdir()
    return data


def name(path: Path, data: Path) -> None:
    """Let ``path`` name ``data``, whose files are on disk, in place of what it named before. Killed at any moment, it is
    one of the two."""
    flush(data)
    flush(path.parent)
    before = _named_by(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(data.name)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)
    if before is not None:
        _release(before)


def link(source: Path, path: Path) -> None:
    """Let ``path`` name the checkpoint that ``source`` names: the same folder, or where they lie in different ones, a folder
    of links to its files (of copies, on a file system without)."""
    data = source.resolve()
    if data.suffix != SUFFIX or data.parent != path.parent.resolve():
        copied = begin(path)
        try:
            for file in data.iterdir():
                try:
                    os.link(file, copied / file.name)
                except OSError:
                    shutil.copyfile(file, copied / file.name)
                    flush(copied / file.name)
        except BaseException:
            shutil.rmtree(copied, ignore_errors=True)
            raise
        data = copied
    name(path, data)


def remove(path: Path) -> None:
    """Remove the checkpoint ``path``, sharded or not, if it is there."""
    data = _named_by(path)
    if is_sharded_checkpoint(path) and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if data is not None:
        _release(data)


def tidy(folder: Path) -> None:
    """Remove what killed processes had half written or half removed. Nobody else may be writing to ``folder``."""
    if not is_remote(folder):
        _remove_unnamed(folder, ".*")


def _remove_unnamed(folder: Path, pattern: str) -> None:
    for half in folder.glob(f"{pattern}{_PARTIAL}"):
        if half.is_symlink():
            half.unlink(missing_ok=True)
    if found := [data for data in folder.glob(f"{pattern}{SUFFIX}") if data.is_dir()]:
        named = _named_in(folder)
        for data in found:
            if data.name not in named:
                shutil.rmtree(data, ignore_errors=True)


def _release(data: Path) -> None:
    if data.name not in _named_in(data.parent):
        shutil.rmtree(data, ignore_errors=True)


def _named_by(path: Path) -> Path | None:
    """The folder of shards that the link ``path`` names."""
    target = path.readlink() if not is_remote(path) and path.is_symlink() else None
    return None if target is None or target.suffix != SUFFIX or target.name != str(target) else path.parent / target


def _named_in(folder: Path) -> set[str]:
    return {str(entry.readlink()) for entry in folder.iterdir() if entry.is_symlink() and entry.suffix != _PARTIAL}


def flush(path: Path) -> None:
    """To disk: a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
