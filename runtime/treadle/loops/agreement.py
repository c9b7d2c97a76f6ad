"""What ranks must do alike inside an epoch, though each sees something else: stop, and look at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

import torch

from treadle.collectives import Ranks


@final
class Agreement:
    """Lets all ranks stop after the same batch, and tell the same time.

    A message every batch would cost more than a small step does. So there is one about once a second, after a number of
    batches that rank 0 finds from how long they take; the first come after every batch. On one rank there is none, and
    everything holds at once.

    Args:
        ranks: All of them.
        wishes: Asked at each message: whether this rank is asked to stop, and the number of the signal that asked for it,
            or 0.
    """

    SECONDS = 1.0

    def __init__(self, ranks: Ranks, wishes: Callable[[], tuple[bool, int]]) -> None:
        self._ranks, self._wishes = ranks, wishes
        self._every, self._left = 1, 1
        self._at = self._now = time.monotonic()
        self.stops, self.signal = False, 0

    def now(self) -> float:
        """Seconds on a monotonic clock; of several ranks, rank 0's at the last message."""
        return time.monotonic() if self._ranks.size == 1 else self._now

    def after_batch(self) -> None:
        """Collective, when it is time."""
        if self._ranks.size > 1:
            self._left -= 1
            if self._left:
                return
        self.reach()

    def reach(self) -> None:
        """Agree now. Collective."""
        stops, signal = self._wishes()
        if self._ranks.size == 1:
            self.stops, self.signal = stops, signal
            return
        first = self._ranks.rank == 0
        every, now = (self._pace(), time.monotonic()) if first else (0, float("-inf"))
        told = torch.tensor([float(stops), float(signal), float(every), now], dtype=torch.float64)
        stopped, self_signal, pace, self._now = self._ranks.reduce(told, "max").tolist()
        self.stops, self.signal = bool(stopped), int(self_signal)
        self._every = self._left = int(pace)

    def _pace(self) -> int:
        """Batches until the next message: at most twice as many as until this one."""
        passed = time.monotonic() - self._at
        self._at += passed
        return max(1, min(2 * self._every, round(self._every * self.SECONDS / max(passed, 1e-6))))
