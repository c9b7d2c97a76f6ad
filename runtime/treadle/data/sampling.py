"""A loader's index lists, drawn so that they can be drawn again from the middle of an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from treadle.seeding import capture_rng, restore_rng, seed_host

DRAWS_AT_START = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
    list,
    tuple,
    range,
)
"""Samplers that take all they need from the global generators with their first index."""


class ResumableSampler(Sampler[Any]):
    """Wraps a loader's batch sampler (or its sampler, where the loader doesn't batch).

    Samplers draw lazily, and whatever trains in between draws from the same generators; so an epoch's order is settled
    by :meth:`start`, before the loader makes its iterator: the first index list is taken at once, and a sampler of
    unknown kind draws from generators of its own.

    Args:
        wrapped: What the loader had.
        seeded: The lists go to worker processes: each carries a seed, set there before its samples are read.
    """

    def __init__(self, wrapped: Iterable[Any], *, seeded: bool) -> None:
        self.wrapped = wrapped
        self.seeded = seeded
        self.draws_at_start = _draws_at_start(wrapped)
        self.sizes: deque[int | None] = deque()
        """Sizes of the batches that were asked for and not yet taken, oldest first; None for single samples."""
        self._epoch: tuple[int, Iterator[tuple[int, Any] | None]] = (0, iter(()))

    def __len__(self) -> int:
        return len(self.wrapped)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def start(self, skip: int = 0) -> None:
        """Settle the order of an epoch. The first ``skip`` index lists are drawn and dropped, which reads no sample."""
        self.sizes.clear()
        seed = _draw_seed() if self.seeded or not self.draws_at_start else 0
        lists = iter(self.wrapped)
        numbered = islice(enumerate(lists if self.draws_at_start else _in_private(lists, seed)), skip, None)
        self._epoch = seed, chain([next(numbered, None)], numbered)

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch. A loader may ask more than once while it makes its iterator."""
        seed, numbered = self._epoch
        for item in numbered:
            if item is None:  # there was no first one
                return
            number, indices = item
            self.sizes.append(len(indices) if isinstance(indices, (list, tuple)) else None)
            yield Seeded(indices, (seed + number) % 2**63) if self.seeded else indices


class Seeded:
    """Indices on their way to a worker process. Arriving there, they seed its generators and are plain again.

    Unpickling is the one moment in a worker between two batches, whatever the data set does with its indices.
    """

    __slots__ = ("indices", "seed")

    def __init__(self, indices: Any, seed: int) -> None:
        self.indices, self.seed = indices, seed

    def __reduce__(self) -> tuple[Any, ...]:
        return (_arrive, (self.indices, self.seed))


def _arrive(indices: Any, seed: int) -> Any:
    seed_host(seed)
    return indices


def _draws_at_start(sampler: object) -> bool:
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in DRAWS_AT_START


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _in_private(lists: Iterator[Any], seed: int) -> Iterator[Any]:
    """``lists``, each drawn while the global generators are ones that only this iterator uses."""
    outside = capture_rng()
    seed_host(seed)
    while True:
        item = next(lists, None)
        inside = capture_rng()
        restore_rng(outside)
        if item is None:
            return
        yield item
        outside = capture_rng()
        restore_rng(inside)
