"""A loader's index lists, drawn so that they can be drawn again from the middle of an epoch."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from operator import length_hint
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from treadle.errors import warn
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

    Of several ranks, each takes one of every ``count`` lists: the same samples are in a step however many there are, and
    with workers their augmentation is, too. The last round may have fewer lists than ranks; a rank without one takes
    another's, which doesn't count.

    Args:
        wrapped: What the loader had.
        seeded: The lists go to worker processes: each carries a seed, set there before its samples are read.
        index: Of this rank among those that share the loader.
        count: Of them.
        drop_last: Leave out a last round that is not whole.
        generator: The loader's own, if it has one.
        quiet: Draw nothing that isn't needed: a validation more or less must not change what is drawn after it.
    """

    def __init__(
        self,
        wrapped: Iterable[Any],
        *,
        seeded: bool,
        index: int = 0,
        count: int = 1,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        quiet: bool = False,
    ) -> None:
        self.wrapped = wrapped
        self.seeded, self.generator, self.quiet = seeded, generator, quiet
        self.index, self.count, self.drop_last = index, count, drop_last
        self.draws_at_start = _draws_at_start(wrapped)
        self.asked: deque[tuple[Any, float]] = deque()
        """Indices of the batches that were asked for and not yet taken, oldest first; each with what it counts beside the
        other ranks' of its round: 1 unless they are of different sizes, 0 if it is another's."""
        self._at_once = False
        self._epoch: tuple[int, Iterator[tuple[int, Any] | None]] = (0, iter(()))

    def __len__(self) -> int:
        lists = len(self.wrapped)  # type: ignore[arg-type]
        return lists // self.count if self.drop_last else -(-lists // self.count)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def draw_at_once(self) -> bool:
        """From now on, take all lists of an epoch at its start. Returns whether it can: only if it has a length."""
        self._at_once = length_hint(self.wrapped, -1) >= 0
        return self._at_once

    def start(self, skip: int = 0) -> int:
        """Settle the order of an epoch. The first ``skip`` index lists are drawn and dropped, which reads no sample.
        Returns a seed for whatever else the epoch draws."""
        self.asked.clear()
        # torch's iterator draws a seed for its workers before its order: so that ours is the order of a plain loop.
        drawn = self.seeded or not self.draws_at_start or not self.quiet
        seed = _draw_seed(self.generator) if drawn else 0
        dropped, lists = skip * self.count, iter(self.wrapped)
        if self.draws_at_start:
            lists = islice(lists, dropped, None)
        else:
            lists = _in_private(lists, seed, dropped)
        if self._at_once:
            lists = iter(list(islice(lists, max(0, length_hint(self.wrapped) - dropped))))
        numbered = enumerate(lists, dropped)
        self._epoch = seed, chain([next(numbered, None)], numbered)
        return seed

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch. A loader may ask more than once while it makes its iterator."""
        seed, numbered = self._epoch
        if self.count > 1:
            yield from self._own(seed, numbered)
            return
        for item in numbered:
            if item is None:  # there was no first one
                return
            number, indices = item
            self.asked.append((indices, 1.0))
            yield Seeded(indices, (seed + number) % 2**63) if self.seeded else indices

    def _own(self, seed: int, numbered: Iterator[tuple[int, Any] | None]) -> Iterator[Any]:
        """This rank's of each round of lists."""
        while items := [item for item in islice(numbered, self.count) if item is not None]:
            if self.drop_last and len(items) < self.count:
                return
            number, indices = items[min(self.index, len(items) - 1)]
            sizes: list[int] = [len(each) if isinstance(each, (list, tuple)) else 1 for _, each in items]
            every = sum(size for size in sizes)
            share = self.count * sizes[self.index] / every if self.index < len(items) and every else 0.0
            self.asked.append((indices, share))
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


def unshuffled(loader: DataLoader[Any], name: str) -> Any:
    """What ``loader`` takes its index lists from, in the order of its data set where that is in our hands: torch's
    samplers are replaced in a copy, with a warning if they shuffle; anybody else's is kept, with a warning."""
    given: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    batches = given if type(given) is BatchSampler else None
    sampler = given if batches is None else batches.sampler
    ordered = _ordered(sampler)
    if ordered is sampler:
        return given
    if ordered is None:
        warn(
            "overfit",
            f"{name} has a sampler of its own, {type(sampler).__name__}, which is kept: if it shuffles, each epoch has "
            "other batches.",
        )
        return given
    warn(
        "overfit",
        f"{name} shuffles; overfitting, it is read in the order of its data set, the same batches in each epoch. Your "
        "loader is not changed. To say so yourself: shuffle=False.",
    )
    if batches is None:
        return ordered
    batches = copy.copy(batches)
    batches.sampler = ordered
    return batches


def _ordered(sampler: Any) -> Any:
    """The samples of one of torch's samplers without the shuffling: itself if it doesn't shuffle, None if it is
    somebody else's."""
    kind = type(sampler)
    if kind in (SequentialSampler, list, tuple, range):
        return sampler
    if kind is RandomSampler:
        return SequentialSampler(sampler.data_source)
    if kind is WeightedRandomSampler:
        return range(len(sampler.weights))
    if kind is SubsetRandomSampler:
        return sorted(sampler.indices)
    if kind is DistributedSampler:
        if not sampler.shuffle:
            return sampler
        ordered = copy.copy(sampler)
        ordered.shuffle = False
        return ordered
    return None


def _draws_at_start(sampler: object) -> bool:
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in DRAWS_AT_START


def _draw_seed(generator: torch.Generator | None) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def _in_private(lists: Iterator[Any], seed: int, dropped: int) -> Iterator[Any]:
    """``lists`` without the first ``dropped``, each drawn while the global generators are ones that only this iterator
    uses; those that are dropped in one go, since changing generators costs more than drawing."""
    outside = capture_rng()
    seed_host(seed)
    next(islice(lists, dropped, dropped), None)
    while True:
        item = next(lists, None)
        inside = capture_rng()
        restore_rng(outside)
        if item is None:
            return
        yield item
        outside = capture_rng()
        restore_rng(inside)
