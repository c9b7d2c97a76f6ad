"""Where a checkpoint lies: a file of this machine, or an object in a store that fsspec reaches by a URL.

``s3://bucket/run/last.ckpt`` takes the extra ``treadle[remote]`` and the store's own package (s3fs, gcsfs, adlfs, ...). Keys,
endpoints and other settings are fsspec's and the store's: ``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ``FSSPEC_S3_KEY`` and the like in
the environment, or a file in ``~/.config/fsspec``. They are never part of the URL.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast, final

from treadle.errors import ConfigError, TreadleError

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Stores in which an upload replaces the object once it is whole, and which have no folders. All others are treated as file
systems: written under another name, then renamed."""
PARTIAL = ".partial"
_PROBE = ".writable"


@final
@dataclass(frozen=True, slots=True)
class StorePath:
    """The part of ``pathlib.Path``'s interface that checkpoints need, for a URL. What it says of the store is true now:
    nothing is remembered from earlier calls.

    Every method that asks the store raises OSError, with the URL and the reason, where it can't be reached or refuses. So a
    file that can't be seen is never taken for one that isn't there.
    """

    url: str
    """Without a slash at the end."""

    # --- names: nothing is asked ---

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self._parts[1].rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> StorePath:
        """Of a bucket it is itself."""
        return StorePath(self.url.rpartition("/")[0]) if "/" in self._parts[1].lstrip("/") else self

    def with_name(self, name: str) -> StorePath:
        return self.parent / name

    def resolve(self) -> StorePath:
        """Without ``..`` in it."""
        protocol, rest = self._parts
        return StorePath(f"{protocol}://{posixpath.normpath(rest)}")

    def is_relative_to(self, folder: StorePath) -> bool:
        return self == folder or self.url.startswith(f"{folder.url}/")

    @property
    def _parts(self) -> tuple[str, str]:
        protocol, _, rest = self.url.partition("://")
        return protocol, rest

    # --- the store ---

    @property
    def replaces_whole(self) -> bool:
        """An upload is seen when all of it is there, and not before."""
        return self._parts[0] in OBJECT_STORES

    def opened(self) -> tuple[Any, str]:
        """fsspec's file system, and what it calls this path."""
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        fs, inside = url_to_fs(self.url, **({"use_listings_cache": False} if self.replaces_whole else {}))
        return fs, str(fs._strip_protocol(inside))

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """In an object store: there is something below it."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        # Not fsspec's exists() and isfile(), which say no to any error.
        with in_words(self):
            fs, inside = self.opened()
            try:
                return str(fs.info(inside)["type"])
            except FileNotFoundError:
                return None

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """What lies directly in this folder under such a name."""
        with in_words(self):
            fs, inside = self.opened()
            try:
                names = [str(found).rstrip("/").rpartition("/")[2] for found in fs.ls(inside, detail=False)]
            except FileNotFoundError:
                names = []
        return (self / name for name in sorted(names) if fnmatchcase(name, pattern) and name != self.name)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """In an object store there is nothing to do. A bucket is never made: its name may be mistyped."""
        if not self.replaces_whole:
            with in_words(self):
                fs, inside = self.opened()
                fs.makedirs(inside, exist_ok=exist_ok)

    def unlink(self, missing_ok: bool = False) -> None:
        with in_words(self):
            fs, inside = self.opened()
            try:
                fs.info(inside)  # a store may call it a success to remove nothing
                fs.rm_file(inside)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def replace(self, path: StorePath) -> StorePath:
        with in_words(self):
            fs, inside = self.opened()
            fs.mv(inside, path.opened()[1])
        return path

    def read_text(self, encoding: str = "utf-8") -> str:
        with in_words(self):
            fs, inside = self.opened()
            return bytes(fs.cat_file(inside)).decode(encoding)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        with in_words(self):
            fs, inside = self.opened()
            fs.pipe_file(inside, text.encode(encoding))


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a URL of a store rather than a path of this machine. Asks nobody."""
    return "://" in str(path) and not str(path).startswith(("file://", "local://"))


def location(path: str | os.PathLike[str]) -> Path:
    """Where ``path`` points: a ``pathlib.Path``, or for a URL a :class:`StorePath`, which has the methods that matter.

    Raises:
        ConfigError: A URL with a password in it, of an unknown kind of store, or of one whose package is not installed.
    """
    text = str(path)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    if not is_remote(text):
        if mistyped := re.match(rf"({'|'.join(OBJECT_STORES)}):/*(.*)", text):
            raise ConfigError(
                f"{text} has one slash too few.",
                why="the URL of a store has two; pathlib.Path leaves one of them away.",
                fix=f'give it as text: "{mistyped[1]}://{mistyped[2]}".',
            )
        return Path(path)
    if re.search(r"://[^/]*:[^/]*@", text):
        raise ConfigError(
            f"{_without_secrets(text)} came with a password in it.",
            why="the path is printed, and written into checkpoints.",
            fix="put the password into the environment or into a file in ~/.config/fsspec, and leave it out of the URL.",
        )
    _require_package(text)
    return cast(Path, StorePath(text.rstrip("/")))


def _require_package(url: str) -> None:
    try:
        from fsspec import get_filesystem_class  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            f"{url} is not on this machine.",
            why="stores are reached through fsspec, which is not installed.",
            fix='pip install "treadle[remote]", and the package for the store: s3fs for s3://, gcsfs for gs://, adlfs for az://.',
        ) from None
    try:
        get_filesystem_class(url.partition("://")[0].rpartition("::")[2])
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url} can't be reached.",
            why=f"fsspec says: {_first_line(error)}",
            fix="install the package that it names." if isinstance(error, ImportError) else "s3://bucket/folder",
        ) from None


@contextmanager
def in_words(path: Path | StorePath) -> Iterator[None]:
    """In the block, an error of any store's package becomes an OSError that says in a sentence what was wrong with
    ``path``. Ours, and mistakes in code, stay what they are."""
    try:
        yield
    except TreadleError:
        raise
    except Exception as error:
        ours = type(error).__module__ == "builtins" and not isinstance(error, (OSError, NotImplementedError))
        if ours or not is_remote(str(path)):
            raise
        said = _first_line(error)
        if isinstance(error, FileNotFoundError) and path.name in said:
            said = "there is no such object"
        raise OSError(_number(error), f"the store says: {said}", str(path)) from None


def _number(error: Exception) -> int:
    """Its errno: stores' packages raise Python's errors without one."""
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT
    if isinstance(error, PermissionError):
        return errno.EACCES
    return (error.errno if isinstance(error, OSError) else None) or errno.EIO


def _first_line(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, NotImplementedError):
        said = said or "it can't do this"
    return _without_secrets((said or str(error) or type(error).__name__).strip().splitlines()[0].rstrip("."))


def _without_secrets(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


# --- whole files ---


@contextmanager
def scratch() -> Iterator[Path]:
    """The path of an empty file of this machine, for the time of the block. Where the system allows it has no name, so that a process that is
    killed leaves none behind."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile() as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        with tempfile.TemporaryDirectory(prefix="treadle-") as folder:
            yield Path(folder) / "checkpoint"


def download(path: Path, local: Path) -> None:
    """Let ``local`` be a copy of ``path``.

    Raises:
        OSError: The store can't be reached, refuses, or hasn't got it.
    """
    with in_words(path):
        fs, inside = _store(path).opened()
        fs.get_file(inside, str(local))


def upload(local: Path, path: Path) -> None:
    """Let ``path`` be a copy of ``local``, whole or not at all.

    Raises:
        OSError: The store can't be reached, refuses, or has not got all of it; what lay there before does still.
    """
    _publish(_store(path), lambda fs, inside: fs.put_file(str(local), inside), local.stat().st_size)


def copy(source: Path, path: Path) -> None:
    """Let ``path`` be a copy of ``source``, made by the store, which both lie in. One that can't copy gets it from here.

    Raises:
        OSError: As :func:`upload`.
    """

    def make(fs: Any, inside: str) -> None:
        try:
            fs.cp_file(name, inside)
        except NotImplementedError:
            with scratch() as local:
                fs.get_file(name, str(local))
                fs.put_file(str(local), inside)

    with in_words(source):
        fs, name = _store(source).opened()
        size = int(fs.info(name)["size"])
    _publish(_store(path), make, size)


def require_writable(folder: Path) -> None:
    """Make ``folder``, and write and remove a file of no bytes in it: nothing else tells what a key may do.

    Raises:
        OSError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"{_PROBE}-{os.getpid()}"
    probe.write_text("", encoding="utf-8")
    probe.unlink()


def _publish(path: StorePath, make: Callable[[Any, str], None], size: int) -> None:
    with in_words(path):
        fs, inside = path.opened()
        if path.replaces_whole:
            make(fs, inside)
            _require_size(fs, inside, size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}").opened()[1]
        try:
            make(fs, partial)
            _require_size(fs, partial, size)
            fs.mv(partial, inside)
        except BaseException:
            with suppress(Exception):  # what went wrong first is told
                fs.rm_file(partial)
            raise


def _require_size(fs: Any, inside: str, size: int) -> None:
    """Packages of stores send a checksum with the bytes, which the store holds them against; this is on top."""
    found = fs.info(inside)["size"]
    if found != size:
        raise OSError(errno.EIO, f"it has {found:,} bytes of {size:,}")


def _store(path: Path) -> StorePath:
    assert is_remote(path)
    return cast(StorePath, path)
