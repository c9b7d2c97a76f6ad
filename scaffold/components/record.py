"""What was added: one small file for each component, ``.scaffold/components/KIND-NAME.json``, written and removed with it.

It holds the hash of each file as it was written, so that a newer scaffold, whose components read differently, still
knows the files of an older one. One file each, so that two branches that add components merge without a conflict.
Nothing else reads it, and code never does: a project whose records are lost has lost the hashes, no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath

from scaffold import __version__, guard
from scaffold.errors import ProjectError, UnsafeTemplate

_FOLDER = PurePosixPath(".scaffold/components")


def path_of(kind: str, name: str) -> str:
    """Where the record of a component lies, relative to the project."""
    return str(_FOLDER / f"{kind}-{name}.json")


def text_of(kind: str, name: str, files: Mapping[str, str]) -> str:
    """The record of a component that consists of ``files``."""
    hashes = {path: digest(text) for path, text in sorted(files.items())}
    return json.dumps({"kind": kind, "name": name, "scaffold": __version__, "sha256": hashes}, indent=2) + "\n"


def digest(text: str) -> str:
    """The hash of a text, whatever its line ends: git may change them."""
    return sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def digest_of(path: Path) -> str | None:
    """The hash of a file; None for what is not a readable text file."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return digest(path.read_bytes().decode())
    except (UnicodeDecodeError, OSError):
        return None


def hashes(root: Path, kind: str, name: str) -> dict[str, str] | None:
    """The hash of each file of a component as it was added; None when there is no record of it.

    Raises:
        ProjectError: The record makes no sense.
    """
    file = root / path_of(kind, name)
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["sha256"]
        if not all(isinstance(hash_, str) for hash_ in found.values()):
            raise ValueError("a hash is a text")
        for path in found:
            guard.check_path(PurePosixPath(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsafeTemplate) as error:
        raise ProjectError(
            f"{path_of(kind, name)} cannot be read: {str(error).splitlines()[0]}",
            why="it says which files the component has.",
            fix=f"take it back from git: git checkout HEAD -- {path_of(kind, name)}",
        ) from None
    return dict(found)


def known(root: Path) -> list[tuple[str, str]]:
    """Kind and name of each component that was added."""
    files = sorted((root / _FOLDER).glob("*-*.json"))
    return [(kind, name) for kind, _, name in (file.stem.rpartition("-") for file in files)]
