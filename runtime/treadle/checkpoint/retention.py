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
        """Whether ``name`` is kept: the names that make room for it, or None."""
        if self.k == 0:
            return None
        self.kept.pop(name, None)
        evicted = []
        if self.k > 0 and len(self.kept) >= self.k:
            worst = max(self.kept, key=self._badness)  # of equals the first, which is the oldest
            if self._badness(name, score) > self._badness(worst) or (
                score is not None and self._badness(name, score) == self._badness(worst)
            ):
                return None
            evicted = [worst]
            del self.kept[worst]
        self.kept[name] = score
        return evicted

    @property
    def best(self) -> str | None:
        """The best by score; of equals the first; without scores the newest."""
        if not self.kept:
            return None
        if all(score is None for score in self.kept.values()):
            return next(reversed(self.kept))
        return min(self.kept, key=self._badness)

    def _badness(self, name: str, score: float | None = None) -> float:
        score = self.kept.get(name) if score is None else score
        if score is None:
            return 0.0
        return math.inf if math.isnan(score) else score if self.mode == "min" else -score

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = dict(state["kept"])
