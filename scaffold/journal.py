"""What an update does to a work tree, written down in the git folder while it does it, and kept until the next commit: so
that the next call can finish it, or undo it. And whose turn it is: two updates in one repository come one after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from scaffold import locking
from scaffold.errors import UpdateError
from scaffold.merging import Repository

PATIENCE = 300.0
"""Seconds to wait for another update in the same repository."""


@dataclass(frozen=True, kw_only=True)
class Journal:
    """Of the last update of one project."""

    state: Literal["applying", "written", "applied", "undoing"]
    """``written``: all files are, and the index is not in place yet."""

    head: str
    """The commit on top of which it is done."""

    tree: str
    """What the index holds afterwards, conflicts aside."""

    paths: tuple[str, ...]
    """Touched files, from the top of the repository."""

    stages: str
    """What ``update-index --index-info`` is told of the conflicts."""

    @classmethod
    def read(cls, repository: Repository) -> Journal | None:
        """The journal; None if there is none."""
        told = _read(repository)
        try:
            return cls(**{**told, "paths": tuple(told["paths"])})
        except (TypeError, KeyError):
            return None

    def write(self, repository: Repository) -> None:
        """Replace the journal, on the disk when this returns."""
        file = _file(repository)
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as out:
            json.dump(asdict(self), out)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)

    @classmethod
    def drop(cls, repository: Repository) -> None:
        """Nothing is to be finished or undone any more."""
        own_index(repository).unlink(missing_ok=True)
        _file(repository).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _file(repository).parent.rmdir()


def interrupted(repository: Repository) -> bool:
    """Whether an update, or the undoing of one, was killed before its end."""
    return _read(repository).get("state") in ("applying", "written", "undoing")


def own_index(repository: Repository) -> Path:
    """Where the index lies that an update works on."""
    return _file(repository).with_name(f"index{_suffix(repository)}")


def own_lock(repository: Repository) -> Path:
    """Where git locks that index."""
    return own_index(repository).with_name(f"index{_suffix(repository)}.lock")


@contextmanager
def alone(repository: Repository) -> Iterator[None]:
    """Only one scaffold at a time changes the repository. Whoever is killed lets go.

    Raises:
        UpdateError: Another one has been at it for minutes.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(
                locking.alone(repository.git_dir, patience=PATIENCE)
            )  # the folder: no file is left behind
        except TimeoutError:
            raise UpdateError(
                f"Another scaffold is at work in {repository.top}.",
                why=f"it has been for {PATIENCE:.0f} s, and two would undo each other's work.",
                fix="wait until it is done, or see what it is: ps aux | grep scaffold",
            ) from None
        yield


def _file(repository: Repository) -> Path:
    return repository.git_dir / "scaffold" / f"update{_suffix(repository)}.json"


def _suffix(repository: Repository) -> str:
    """One for each project in the repository."""
    return f"-{sha256(repository.prefix.encode()).hexdigest()[:12]}" if repository.prefix else ""


def _read(repository: Repository) -> dict[str, Any]:
    try:
        told = json.loads(_file(repository).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it was cut off by a crash of the machine
        return {}
    return told if isinstance(told, dict) else {}
