"""Which files a template means: ``docs/*.md``, ``.github/**``, ``**/ci.yml``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def matches(path: str, globs: Iterable[str]) -> bool:
    """Whether ``path``, with slashes, is one of those that ``globs`` mean. A folder means all in it.

    >>> matches(".github/workflows/ci.yml", [".github/**"])
    True
    >>> matches("docs/a/b.md", ["docs/*.md"])
    False
    >>> matches("a/ci.yml", ["**/ci.yml"]), matches("ci.yml", ["**/ci.yml"]), matches(".github/x", [".github"])
    (True, True, True)
    """
    return any(_compiled(glob).fullmatch(path) for glob in globs)


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob.strip("/")))
    return re.compile(f"{text}(?:/.*)?", re.DOTALL)
