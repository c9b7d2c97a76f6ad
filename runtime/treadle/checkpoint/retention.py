"""Which checkpoints to keep. Knows names and scores, touches no file."""

from __future__ import annotations

import math
from typing import Any, Literal, final


@final
class Retention:
    """The ``k`` best by score, or without scores the ``k`` newest. -1 keeps all, 0 none.

    >>> keep = Retention(2, "min")
    >>> [keep.admit(name, score) for name, score in [("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 9.0)]]
    [[], [], ['a'], None]
    >>> keep.best
    'b'
    """

    def __init__(self, k: int, mode: Literal["min", "max"]) -> None:
        self.k, self.mode = k, mode
        self.kept: dict[str, float | None] = {}
        """Names and scores, in the order of admission."""

    def admit(self, name: str, score: float | None) -> list[str] | None:
        """Whether ``name`` is kept: the names that make room for it, or None. Of two states with one name, the better is
        kept."""
        if self.k == 0:
            return None
        full = len(self.kept) == self.k
        rival = name if name in self.kept else self.worst if full else None
        if rival is not None and self.k > 0 and score is not None and not self._badness(score) < self._rank(rival):
            return None
        if rival is not None:
            del self.kept[rival]
        self.kept[name] = score
        return [] if rival in (None, name) else [rival]

    @property
    def best(self) -> str | None:
        """The best by score; of equals the first; without scores the newest."""
        if not self.kept:
            return None
        if all(score is None for score in self.kept.values()):
            return next(reversed(self.kept))
        return min(self.kept, key=self._rank)

    @property
    def worst(self) -> str | None:
        """The worst by score; of equals the first, which is the oldest; so without scores the oldest."""
        return max(self.kept, key=self._rank) if self.kept else None

    def _rank(self, name: str) -> float:
        return self._badness(self.kept[name])

    def _badness(self, score: float | None) -> float:
        if score is None:
            return 0.0
        return math.inf if math.isnan(score) else score if self.mode == "min" else -score

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was kept; with a smaller ``k`` than then, the best of it."""
        self.kept = dict(state["kept"])
        while (worst := self.worst) is not None and 0 <= self.k < len(self.kept):
            del self.kept[worst]
