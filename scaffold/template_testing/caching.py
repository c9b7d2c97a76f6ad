"""Which stages went well before, with everything that their result depends on. Only what went well is remembered."""

from __future__ import annotations

import contextlib
import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from scaffold import settings

_KEPT = 60 * 24 * 3600.0
"""Seconds after which a result that nobody asked for is dropped."""


class Cache:
    """Empty files, named by what they stand for.

    Args:
        use: False remembers nothing, and knows nothing.
    """

    def __init__(self, use: bool) -> None:
        self._folder = settings.cache_folder() / "template-test"
        self._use = use
        if use:
            self._drop_old()

    def has(self, *parts: Any) -> bool:
        if not (self._use and self._file(parts).is_file()):
            return False
        with contextlib.suppress(OSError):
            self._file(parts).touch()  # asked for, so kept
        return True

    def add(self, *parts: Any) -> None:
        """A cache that cannot be written is none, and no error."""
        if self._use:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file(parts).touch()

    def _file(self, parts: tuple[Any, ...]) -> Path:
        return self._folder / sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()

    def _drop_old(self) -> None:
        with contextlib.suppress(OSError):
            for file in self._folder.iterdir():
                if file.stat().st_mtime < time.time() - _KEPT:
                    file.unlink(missing_ok=True)
