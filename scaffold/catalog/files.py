"""YAML files of the user's own, or of a stranger: read within limits, changed atomically and one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from scaffold import placing
from scaffold.errors import SourceError
from scaffold.locking import alone

LARGEST = 1_000_000
"""Bytes."""

_DEEPEST = 10
_MOST_EVENTS = 50_000
_PATIENCE = 10.0
"""Seconds to wait for another process that changes the same file; it needs milliseconds."""

# Texts, lists and mappings, and nothing else: no commit of digits becomes a number, and no tag makes an object.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def parse(content: bytes) -> dict[str, Any]:
    """The YAML mapping in ``content``, whose leaves are all texts; empty for an empty file.

    Raises:
        ValueError: It is something else, or too much; the message says what.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    depth = 0
    try:
        # Before anything is built: a few aliases of aliases can stand for more than any memory holds.
        for number, event in enumerate(yaml.parse(content, Loader=_Loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST or number > _MOST_EVENTS:
                raise ValueError("it is nested too deeply" if depth > _DEEPEST else "it has too many entries")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it uses YAML aliases (*)")
        loader = _Loader(content)
        try:
            document = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "no YAML"
        raise ValueError(f"line {mark.line + 1}: {reason}" if mark else str(reason)) from None
    if document in (None, ""):
        return {}
    if not isinstance(document, dict):
        raise ValueError("it is not a mapping")
    return document


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file of the user's; empty when there is no such file.

    Raises:
        SourceError: It cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return parse(file.read(LARGEST + 1))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise damaged(path, str(reason)) from None


def damaged(path: Path, reason: str) -> SourceError:
    """A file of the user's that is not what it should be."""
    return SourceError(
        f"{path} cannot be read: {reason}.",
        why="it is where scaffold keeps what you decided about templates.",
        fix=f"correct it in an editor, or start anew: mv {path} {path}.old",
    )


@contextmanager
def changing(path: Path, title: str) -> Iterator[dict[str, Any]]:
    """The mapping in a file, to change in the block and write at its end, whole or not at all.

    Args:
        title: A line about the file, for who opens it.

    Raises:
        SourceError: It cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # which may be a link into somebody's folder of settings
        with alone(path.with_name(f".{path.name}.lock"), patience=_PATIENCE):
            document = read(target)
            yield document
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1_000)
            placing.write(target, f"# {title}\n{text}".encode())
    except OSError as error:
        raise SourceError(
            f"Cannot write {path}: {error.strerror or error}.",
            why="it is where scaffold keeps what you decided about templates.",
            fix=f"make {path.parent} writable, or set XDG_CONFIG_HOME to a folder that is.",
        ) from None
