"""Path patterns: ``**`` for any number of folders, ``*``, ``?`` and ``[...]`` inside a name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ANY = {"*": "[^/]*", "?": "[^/]"}
_CLASS = re.compile(r"\[!?[^]]+\]")


def matches(path: str, pattern: str) -> bool:
    """Is ``path``, relative and with slashes, one that ``pattern`` names? A folder's name stands for all below it.

    >>> matches(".github/workflows/ci.yml", ".github/**"), matches("src/a/b.py", "src/*.py")
    (True, False)
    >>> matches("docs/index.md", "docs/"), matches("a/b/test_c.py", "**/test_*.py"), matches("test_c.py", "**/test_*.py")
    (True, True, True)
    """
    segments = pattern.strip("/").split("/")
    expression = "".join("(?:[^/]+/)*" if segment == "**" else f"{_name(segment)}/" for segment in segments)
    return re.match(expression, f"{path}/") is not None


def excluded(path: str, patterns: Iterable[str]) -> bool:
    """Does Copier leave ``path`` out? Patterns are those of a .gitignore: the last one that matches decides.

    >>> excluded("a/__pycache__/b.pyc", ["__pycache__"]), excluded("a/b.pyc", ["*.py[co]", "!b.pyc"])
    (True, False)
    """
    out = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        anchored = "/" in bare.rstrip("/")
        if matches(path, bare.rstrip("/") if anchored else f"**/{bare.rstrip('/')}"):
            out = not pattern.startswith("!")
    return out


def _name(segment: str) -> str:
    """The expression for one name, which no slash is part of."""
    parts = re.split(r"(\*|\?|\[!?[^]]+\])", segment)
    return "".join(
        _ANY.get(part) or (part.replace("[!", "[^") if _CLASS.fullmatch(part) else re.escape(part)) for part in parts
    )
