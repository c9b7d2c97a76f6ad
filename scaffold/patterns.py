"""Which files a template means: ``docs/*.md``, ``.github/**``, ``**/ci.yml``."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache


def matches(path: str, globs: Iterable[str]) -> bool:
    """Whether ``path``, with slashes, is one of those that ``globs`` mean. A folder means all in it.

    >>> matches(".github/workflows/ci.yml", [".github/**"])
    True
    >>> matches("docs/a/b.md", ["docs/*.md"])
    False
    >>> matches("a/ci.yml", ["**/ci.yml"]), matches("ci.yml", ["**/ci.yml"]), matches(".github/x", [".github"])
    (True, True, True)
    >>> matches("a/b/c.py", ["a/**/c.py"]), matches("a/c.py", ["a/**/c.py"]), matches("a", ["a/**"])
    (True, True, False)
    >>> matches("a" * 200, ["*a" * 50 + "b"])
    False
    """
    parts = tuple(path.split("/"))
    return any(_matches(parts, tuple(glob.strip("/").split("/"))) for glob in globs)


def _matches(parts: tuple[str, ...], globs: tuple[str, ...]) -> bool:
    @cache
    def from_here(part: int, glob: int) -> bool:
        if glob == len(globs):
            return True  # it meant the folder, if anything is left
        if part == len(parts):
            return False
        if globs[glob] == "**":
            return glob == len(globs) - 1 or from_here(part, glob + 1) or from_here(part + 1, glob)
        return fnmatchcase(parts[part], globs[glob]) and from_here(part + 1, glob + 1)

    return from_here(0, 0)
