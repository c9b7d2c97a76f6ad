"""Moments that a run goes back to: the one it was saved at, and the one before a validation that was broken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from treadle.collectives import Ranks
from treadle.data.stream import Batches, StreamState
from treadle.loops.run import Run
from treadle.metric_objects import load_metric_states, metric_states
from treadle.metrics import Logbook, SlotState
from treadle.seeding import RNGState, capture_rng, restore_rng, seed_host


@dataclass(frozen=True)
class Resumed:
    """The moment a run was saved."""

    rng: RNGState
    metrics: Sequence[SlotState]
    metric_objects: dict[str, dict[str, Any]]
    spread: bool = False
    """Saved on another number of ranks: each has yet to get random numbers of its own."""

    def restore(self, book: Logbook, run: Run) -> None:
        """Put generators and accumulators back, whatever hooks have drawn and logged since."""
        restore_rng(self.rng)
        if self.spread:
            spread_rng(run.fabric.ranks, run.fabric.strategy.share.index, run.fabric.device)
        book.load_state_dict(self.metrics, run.fabric.device)
        load_metric_states(run.module, self.metric_objects, run.fabric.device)


@dataclass(frozen=True)
class BeforeValidation:
    """What a validation moves, as it was before."""

    rng: RNGState
    streams: Sequence[StreamState]
    metric_objects: dict[str, dict[str, Any]]
    loggers: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, run: Run, streams: Sequence[Batches]) -> BeforeValidation:
        return cls(
            rng=capture_rng(run.fabric.device),
            streams=[stream.state_dict() for stream in streams],
            metric_objects=metric_states(run.module),
            loggers=[logger.state_dict() for logger in run.own_loggers],
        )

    def restore(self, run: Run, streams: Sequence[Batches]) -> None:
        for stream, state in zip(streams, self.streams, strict=True):
            stream.close()
            stream.load_state_dict(state)
        load_metric_states(run.module, self.metric_objects, run.fabric.device)
        for logger, before in zip(run.own_loggers, self.loggers, strict=True):
            if logger.state_dict() != before:  # rows of single batches
                logger.load_state_dict(before)
        restore_rng(self.rng)


def spread_rng(ranks: Ranks, index: int, device: torch.device) -> None:
    """Give each rank random numbers of its own, which follow from rank 0's and from ``index``, that of its share of the
    data: ranks of one share draw the same. Collective."""
    if ranks.size == 1:
        return
    start = ranks.broadcast(capture_rng(device))
    if ranks.rank:
        restore_rng({**start, "device": {str(device): rng for rng in start["device"].values()}})
    if index:
        seed = int(torch.empty((), dtype=torch.int64).random_(2**48)) + index
        torch.manual_seed(seed)
        seed_host(seed)
