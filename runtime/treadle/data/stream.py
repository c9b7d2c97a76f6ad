"""A loader's batches, one epoch after another, that can be stopped and continued at any batch."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypedDict

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from treadle.data.sampling import ResumableSampler
from treadle.errors import DataError, warn
from treadle.seeding import Owned, RNGState, capture_owned, capture_rng, restore_owned, restore_rng


class StreamState(TypedDict):
    consumed: int
    """Batches taken in the running epoch; 0 between epochs."""
    start: RNGState | None
    """The generators when the epoch's iterator was made."""
    owned_start: list[Owned]
    owned: list[Owned]
    """Generators that the loader, its samplers and its data set own: at the epoch's start, and now."""
    loader: Any
    """The ``state_dict`` of a loader or an iterable data set that has one."""


class Stream:
    """Reads ``loader`` without changing it: a shallow copy, with its sampler wrapped, does the reading.

    Continuing inside an epoch sets the generators to what they were when the epoch's iterator was made, makes it
    again, skips index lists (a map-style data set reads no sample for it), and leaves it to the caller to set the
    generators of the moment the run was saved. Loaders and iterable data sets with ``state_dict`` and
    ``load_state_dict`` continue by them; any other iterable is replayed, with a warning.

    Args:
        loader: A ``DataLoader`` or any iterable of batches.
        limit: At most so many batches an epoch: a count, or a fraction of the loader's length.
        name: What messages call it.
    """

    def __init__(self, loader: Any, *, limit: int | float = 1.0, name: str = "the loader") -> None:
        if isinstance(loader, type) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
            raise DataError(
                f"{name} is {loader!r}, which can't be iterated.",
                why="training and evaluation read one batch after the other from it.",
                fix="pass a DataLoader, or any object with __iter__.",
            )
        if isinstance(loader, Mapping) or _is_several(loader):
            raise DataError(
                f"{name} is a {type(loader).__name__} of {len(loader)}.",
                why="this version reads from one loader at a time.",
                fix="pass one DataLoader; ConcatDataset and ChainDataset join data sets into one.",
            )
        self.loader, self.name = loader, name
        self.length = _limited_length(loader, limit, name)
        """Batches an epoch; None if the loader can't tell and there is no limit."""
        self.consumed = 0
        self._limit = limit if isinstance(limit, int) else self.length
        self._sampler: ResumableSampler | None = None
        self._reader = self._readable(loader)
        self._start: RNGState | None = None
        self._owned_start: list[Owned] = []
        self._saved: StreamState | None = None
        self._batch: Any = None
        self._size: int | None = None
        self._running: Generator[Any, None, None] | None = None

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch, or those that are left of the one it was loaded into.

        The order is settled when this returns; no batch has been read then.
        """
        saved, self._saved = self._saved, None
        if saved is not None and saved["consumed"]:
            self._running = self._batches(self._continue(saved))
        else:
            if saved is not None and saved["loader"] is not None:
                _state_holder(self.loader).load_state_dict(saved["loader"])
            self.consumed = 0
            self._start, self._owned_start = capture_rng(), self._owned()
            self._running = self._batches(self._made())
        return self._running

    def close(self) -> None:
        """End the worker processes now. Left to the garbage collector, each would be waited for for seconds: it may take
        apart the queue to a worker before the iterator that says goodbye through it."""
        if self._running is not None:
            self._running.close()
        self._running, self._batch = None, None
        if self._reader is not self.loader:
            self._reader.__dict__["_iterator"] = None

    def _made(self) -> Iterator[Any]:
        """The loader's iterator, at the position. Whether it draws a seed for its workers (not if they persist) leaves
        no trace in the generators."""
        if self._sampler is None:
            return iter(self._reader)
        self._sampler.start(self.consumed)
        rng, owned = capture_rng(), capture_owned(self.loader)
        iterator: Iterator[Any] = iter(self._reader)
        restore_rng(rng)
        if self._sampler.draws_at_start:  # any other may have drawn from the loader's generator on purpose
            restore_owned(self.loader, owned)
        return iterator

    def _batches(self, iterator: Iterator[Any]) -> Generator[Any, None, None]:
        sizes = self._sampler.sizes if self._sampler else None
        for batch in islice(iterator, None if self._limit is None else max(0, self._limit - self.consumed)):
            self.consumed += 1
            self._batch = batch
            self._size = sizes.popleft() if sizes else None
            yield batch
        self._batch = None

    def end_epoch(self) -> None:
        """The epoch is over: the next iteration starts a new one."""
        self.consumed = 0

    def batch_size(self) -> int:
        """How many samples are in the batch taken last: as many as its sampler asked for, where that is known.

        Raises:
            DataError: The loader can't tell and the batch's tensors don't agree.
        """
        if self._size is None:
            always_full = getattr(self.loader, "drop_last", False)
            self._size = _agreed_size(self._batch, self.loader.batch_size if always_full else None)
        return self._size

    def state_dict(self) -> StreamState:
        holder = _state_holder(self.loader)
        # What a loader's own state means between two epochs is its own affair; a data set's goes on counting.
        told = holder is not None and (self.consumed > 0 or holder is not self.loader)
        return StreamState(
            consumed=self.consumed,
            start=self._start if self.consumed else None,
            owned_start=self._owned_start if self.consumed else [],
            owned=self._owned(),
            loader=holder.state_dict() if told else None,
        )

    def load_state_dict(self, state: StreamState) -> None:
        self._saved = state
        self.consumed = state["consumed"]
        _restore_each(self._owners(), state["owned"])

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Whatever is read inside leaves no trace in the generators that the loader owns."""
        before = self._owned()
        try:
            yield
        finally:
            _restore_each(self._owners(), before)

    def _continue(self, saved: StreamState) -> Iterator[Any]:
        iterator: Iterator[Any]
        assert saved["start"] is not None
        self.consumed, self._start, self._owned_start = saved["consumed"], saved["start"], saved["owned_start"]
        if self.consumed == self.length:
            return iter(())
        restore_rng(saved["start"])
        _restore_each(self._owners(), saved["owned_start"])
        holder = _state_holder(self.loader)
        if self._sampler is not None:
            iterator = self._made()
        elif holder is not None:
            holder.load_state_dict(saved["loader"])
            iterator = iter(self._reader)
        else:
            warn(
                "replay",
                f"{self.name} can't be entered in the middle, so {self.consumed} batches are read and dropped to get "
                "back to where the run stopped. Give the data set state_dict and load_state_dict to avoid that.",
            )
            iterator = iter(self._reader)
            next(islice(iterator, self.consumed - 1, None), None)
        # Samplers' generators came to where they were by drawing the same again; the data set's did not.
        restore_owned(getattr(self.loader, "dataset", None), saved["owned"][-1] if saved["owned"] else {})
        return iterator

    def _readable(self, loader: Any) -> Any:
        """What is iterated: a copy of a map-style ``DataLoader`` that draws through our sampler, or the loader itself."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return loader
        if _state_holder(loader) is loader:
            return loader
        if not getattr(loader, "in_order", True):
            warn(
                "order", f"{self.name} has in_order=False: batches arrive in a random order, so a resumed run differs."
            )
            return loader
        reader = copy.copy(loader)
        attribute = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._sampler = ResumableSampler(getattr(loader, attribute), seeded=loader.num_workers > 0)
        # DataLoader refuses the assignment once it is made, since it would half work; the whole copy is ours.
        reader.__dict__[attribute] = self._sampler
        reader.__dict__["_iterator"] = None
        return reader

    def _owners(self) -> list[Any]:
        """Objects in this process whose own generators decide what the loader gives."""
        if not isinstance(self.loader, DataLoader):
            return []
        batch_sampler = self.loader.batch_sampler
        dataset = self.loader.dataset if self.loader.num_workers == 0 else None  # workers have copies of it
        return [self.loader, self.loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None), dataset]

    def _owned(self) -> list[Owned]:
        return [capture_owned(owner) for owner in self._owners()]


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell samplers that shuffle by epoch which one it is, as torch's ``DistributedSampler`` asks for."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    for sampler in {id(sampler): sampler for sampler in samplers}.values():  # one may be found in two places
        if (tell := getattr(sampler, "set_epoch", None)) is not None:
            tell(epoch)


def no_batch(name: str, when: str = "") -> DataError:
    """What to raise where a pass over a loader gave nothing."""
    return DataError(
        f"{name} gave no batch{when}.",
        why="it is empty, or a generator, which can be iterated only once.",
        fix="check the data; pass a DataLoader, a list, or an object whose __iter__ starts anew.",
    )


def _restore_each(owners: list[Any], states: list[Owned]) -> None:
    for owner, state in zip(owners, states, strict=True):
        restore_owned(owner, state)


def _state_holder(loader: Any) -> Any:
    """The loader, or its iterable data set in this process, if it can save and load where it stands."""
    candidates = [loader]
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset) and loader.num_workers == 0:
        candidates.append(loader.dataset)
    for candidate in candidates:
        if hasattr(candidate, "state_dict") and hasattr(candidate, "load_state_dict"):
            return candidate
    return None


def _is_several(loader: Any) -> bool:
    """Lists are read as batches; a list of loaders would give loaders for batches."""
    return isinstance(loader, (list, tuple)) and any(isinstance(item, DataLoader) for item in loader)


def _limited_length(loader: Any, limit: int | float, name: str) -> int | None:
    try:
        length = len(loader)
    except TypeError:
        length = None
    if length == 0:
        raise DataError(
            f"{name} has no batches.",
            why="its length is 0: an empty data set, or one smaller than a batch with drop_last=True.",
            fix="check the data, or lower batch_size.",
        )
    if isinstance(limit, int):
        return limit if length is None else min(limit, length)
    if length is None:
        if limit not in (0.0, 1.0):
            raise DataError(
                f"{name} has no length, so it can't be limited to a fraction of {limit}.",
                why="a fraction is of the number of batches.",
                fix="give the limit as a count, for example 100.",
            )
        return 0 if limit == 0 else None
    limited = int(length * limit)
    if limited == 0 and limit > 0:
        raise DataError(
            f"{limit} of the {length} batches of {name} is less than one.",
            why="a limit as a fraction is rounded down.",
            fix="give the limit as a count, for example 1.",
        )
    return limited


def _agreed_size(batch: Any, declared: int | None) -> int:
    sizes = set(_leading_sizes(batch))
    if len(sizes) == 1:
        return sizes.pop()
    if declared is not None and declared in sizes:
        return declared
    raise DataError(
        f"the size of a batch is not known: its tensors have leading sizes {sorted(sizes)}.",
        why="a mean over an epoch is weighted by the size of each batch, and this loader doesn't tell it.",
        fix='self.log("name", value, batch_size=...)',
    )


def _leading_sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.shape[0] if batch.dim() else 1
    elif isinstance(batch, dict):
        for item in batch.values():
            yield from _leading_sizes(item)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _leading_sizes(item)
