"""One loader's batches, one epoch after another, that can be stopped and continued at any batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from treadle.data.parallel import Shared
from treadle.data.sampling import ResumableSampler, unshuffled
from treadle.data.starting import prepared
from treadle.data.workers import Workers
from treadle.errors import CheckpointError, DataError, warn
from treadle.seeding import Owned, RNGState, capture_owned, capture_rng, restore_owned, restore_rng

if TYPE_CHECKING:
    from treadle.data.stream import StreamState


@final
class PassState(TypedDict):
    """Where a pass over one loader stands."""

    consumed: int
    """Batches taken in the running epoch; 0 between epochs."""
    start: RNGState | None
    """The generators when the epoch's iterator was made."""
    owned_start: list[Owned]
    owned: list[Owned]
    """Generators that the loader, its samplers and its data set own: at the epoch's start, and now."""
    loader: Any
    """The ``state_dict`` of a loader or an iterable data set that has one."""


@final
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
        in_order: Read a map-style data set in its own order, whatever torch's samplers would do; samplers of other
            kinds are kept. Either is said in a warning.
        shared: The ranks that read it together; None: this one reads all.
        quiet: For an evaluation; see :class:`ResumableSampler`.

    Raises:
        DataError: It can't be iterated, has no batches, or has no length to take a fraction of.
    """

    def __init__(
        self,
        loader: Any,
        *,
        limit: int | float = 1.0,
        name: str = "the loader",
        in_order: bool = False,
        shared: Shared | None = None,
        quiet: bool = False,
    ) -> None:
        require_iterable(loader, name)
        self.loader, self.name, self.shared, self._quiet = loader, name, shared, quiet
        self.counts = 1.0
        """What the batch taken last counts beside the other ranks' of its round: 1, unless they are of different sizes; 0
        if it is another's, read so that all ranks have one."""
        self.consumed = 0
        self._sampler: ResumableSampler | None = None
        self._shares = False
        self._reader = self._readable(loader, in_order)
        if _state_holder(loader) is not loader:
            self._reader = prepared(self._reader, loader)
        self._workers = Workers(self._reader, name, None if self._sampler is None else self._sampler.asked)
        length = length_of(self._reader)
        if self.shared is not None and self._sampler is None:
            length = -(-length // self.shared.count) if length is not None and _is_list(loader) else None
        self.length = limited(length, limit, name)
        """Batches an epoch; None if the loader can't tell and there is no limit."""
        self._start: RNGState | None = None
        self._owned_start: list[Owned] = []
        self._saved: PassState | None = None
        """Loaded, and not continued from yet."""
        self._batch: Any = None
        self._asked: Any = None
        self._size: int | None = None
        self._running: Generator[Any, None, None] | None = None

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch, or those that are left of the one it was loaded into.

        The order of a map-style data set is settled when this returns, and what continues is at its position; no batch
        of the rest has been read then.
        """
        saved, self._saved = self._saved, None
        if saved is not None and is_at_end(self):
            self._saved = saved  # there is nothing to read; the next epoch goes on from it
            self._running = self._batches()
        elif saved is not None and saved["consumed"]:
            self._running = self._batches(partial(iter, self._continued(saved)))
        else:
            self.consumed = 0
            self._running = self._fresh(saved["loader"] if saved is not None else None)
        return self._running

    def close(self) -> None:
        """End the worker processes now. Left to the garbage collector, each would be waited for for seconds: it may take
        apart the queue to a worker before the iterator that says goodbye through it."""
        if self._running is not None:
            self._running.close()
        self._running, self._batch = None, None
        if self._reader is not self.loader:
            self._reader.__dict__["_iterator"] = None

    def end_epoch(self) -> None:
        """The epoch is over: the next iteration starts a new one."""
        self.consumed = 0
        if self._saved is not None:
            told = _state_holder(self.loader) is not self.loader  # as between any two epochs
            self._saved = PassState(
                consumed=0,
                start=None,
                owned_start=[],
                owned=self._saved["owned"],
                loader=self._saved["loader"] if told else None,
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers that shuffle by epoch which one it is, as torch's ``DistributedSampler`` asks for."""
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        samplers = [getattr(self.loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
        for sampler in {id(sampler): sampler for sampler in samplers}.values():  # one may be found in two places
            if (tell := getattr(sampler, "set_epoch", None)) is not None:
                tell(epoch)

    def batch_size(self) -> int:
        """How many samples are in the batch taken last: as many as its sampler asked for, where that is known.

        Raises:
            DataError: The loader can't tell and the batch's tensors don't agree.
        """
        if self._size is None:
            if isinstance(self._asked, (list, tuple)):
                self._size = len(self._asked)
            else:
                always_full = getattr(self.loader, "drop_last", False)
                self._size = _agreed_size(self._batch, self.loader.batch_size if always_full else None)
        return self._size

    @property
    def indices(self) -> list[int] | None:
        """Which samples of the data set are in the batch taken last; None where nobody knows: iterable data sets,
        loaders of other kinds, and samplers that give something else than numbers."""
        asked = self._asked if isinstance(self._asked, (list, tuple)) else [self._asked]
        try:
            return [index(item) for item in asked]
        except TypeError:
            return None

    def generators(self) -> set[int]:
        """Identities of the generators that decide what the loader gives, and are its own."""
        return {id(getattr(owner, name)) for owner in self._owners() for name in capture_owned(owner)}

    def draw_at_once(self) -> None:
        """Take all index lists of an epoch when it begins: for loaders that share a generator with others, which must not
        draw from it in between."""
        self._shares = True
        if self._sampler is not None and not self._sampler.draw_at_once():
            warn(
                "order",
                f"{self.name} shares a generator with another loader, and its sampler has no length: a resumed run "
                "differs. Give each a generator of its own.",
            )

    def state_dict(self) -> PassState:
        if self._saved is not None:
            return self._saved
        holder = _state_holder(self.loader)
        # What a loader's own state means between two epochs is its own affair; a data set's goes on counting.
        told = holder is not None and (self.consumed > 0 or holder is not self.loader)
        return PassState(
            consumed=self.consumed,
            start=self._start if self.consumed else None,
            owned_start=self._owned_start if self.consumed else [],
            owned=self._owned(),
            loader=holder.state_dict() if told else None,
        )

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from ``state`` with the next iteration.

        Raises:
            CheckpointError: It is that of another kind of loader.
        """
        if "streams" in state or len(state["owned"]) != len(self._owners()):
            raise CheckpointError(
                f"{self.name} is not the kind of loader that the checkpoint was saved with.",
                why="a run goes on in the middle of its data only if they are read in the same way.",
                fix="pass the same kind of loaders as then, or start a new run from the weights: "
                "MyModule.load_from_checkpoint(path).",
            )
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

    def _fresh(self, loaded: Any) -> Generator[Any, None, None]:
        """A new epoch, of a loader that may have been told by ``loaded`` where it stands."""
        holder = _state_holder(self.loader)
        if loaded is not None:
            holder.load_state_dict(loaded)
        if self._sampler is not None:
            return self._batches(partial(iter, self._begun()))
        # A loader whose order is not settled by us may draw with its first batch, and no other may draw between the start
        # that is remembered and that: it begins when it is read. A data set that counts its samples may stand at its
        # end, if it was not asked for more than it has; then it begins once more.
        counts = holder is not None and holder is not self.loader
        return self._batches(*[self._begun] * (2 if counts else 1))

    def _batches(self, *begins: Callable[[], Iterator[Any]]) -> Generator[Any, None, None]:
        """Those of the first that gives any."""
        queue = None if self._sampler is None else self._sampler.asked
        for begin in begins:
            batches = begin()
            if self._sampler is None and self.shared is not None:
                batches = self._together(batches, self.shared)
            for batch in islice(batches, None if self.length is None else max(0, self.length - self.consumed)):
                self.consumed += 1
                self._batch = batch
                self._asked, self.counts = queue.popleft() if queue else (None, self.counts)
                self._size = None
                yield batch
            if self.consumed:
                break
        self._batch = None

    def _together(self, batches: Iterator[Any], shared: Shared) -> Iterator[Any]:
        """``batches`` of a loader without a sampler: a list is dealt out; of any other there are as many as every rank
        has, since a step needs all of them."""
        if _is_list(self.loader):
            while items := list(islice(batches, shared.count)):
                self.counts = _share_of(items, shared)
                yield items[min(shared.index, len(items) - 1)]
            return
        end = object()
        batch = next(batches, end)
        while shared.all_have(batch is not end):
            yield batch
            batch = next(batches, end)
        if batch is not end:
            warn(
                "uneven",
                f"{self.name} gave rank {shared.index} more batches than another rank: the rest of them is left out, "
                "since each step needs one from every rank.",
            )

    def _begun(self) -> Iterator[Any]:
        if self.shared is None:
            self._start, self._owned_start = capture_rng(), self._owned()
            return self._made()
        own = capture_rng()
        self._start, self._owned_start = self.shared.begin(self._owned())
        _restore_each(self._owners(), self._owned_start)
        iterator = self._made()
        if self.shared.index:  # ranks of rank 0's share go on from there, as it does
            restore_rng(own)
        return iterator

    def _made(self) -> Iterator[Any]:
        """The loader's iterator, at the position. The seed that it draws for its workers (not if they persist) comes from a
        generator made for that, so that it leaves no trace in the others; what workers are asked to read ahead does."""
        if self._sampler is None:
            return self._workers.read()
        seed = self._sampler.start(self.consumed)
        rng, own = capture_rng(), self._reader.generator
        self._reader.generator = torch.Generator().manual_seed(seed)
        try:
            iterator = self._workers.read(self.consumed)
        finally:
            self._reader.generator = own
        restore_rng(rng)
        return iterator

    def _continued(self, saved: PassState) -> Iterator[Any]:
        iterator: Iterator[Any]
        assert saved["start"] is not None
        self.consumed, self._start, self._owned_start = saved["consumed"], saved["start"], saved["owned_start"]
        restore_rng(saved["start"])
        _restore_each(self._owners(), saved["owned_start"])
        holder = _state_holder(self.loader)
        if self._sampler is not None:
            iterator = self._made()
        elif holder is not None:
            holder.load_state_dict(saved["loader"])
            iterator = self._workers.read()
        else:
            warn(
                "replay",
                f"{self.name} can't be entered in the middle, so {self.consumed} batches are read and dropped to get "
                "back to where the run stopped. Give the data set state_dict and load_state_dict to avoid that.",
            )
            iterator = self._workers.read()
            rounds = self.consumed * (self.shared.count if self.shared is not None and _is_list(self.loader) else 1)
            next(islice(iterator, rounds - 1, None), None)
        if self._shares:
            _restore_each(self._owners(), saved["owned"])
        else:
            # Samplers' generators came to where they were by drawing the same again; the data set's did not.
            restore_owned(getattr(self.loader, "dataset", None), saved["owned"][-1] if saved["owned"] else {})
        return iterator

    def _readable(self, loader: Any, in_order: bool) -> Any:
        """What is iterated: a copy of a map-style ``DataLoader`` that draws through our sampler, or the loader itself."""
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            if self.shared is not None and not _is_list(loader):
                _tell_of_whole(self.name)
            return loader
        if self.shared is not None and _shares_itself(loader):
            self.shared = None
        if _state_holder(loader) is loader:
            if self.shared is not None:
                _tell_of_whole(self.name)
            if in_order:
                warn("overfit", f"{self.name} has a state of its own, so it is read as it is, shuffled or not.")
            return loader
        if not getattr(loader, "in_order", True):
            warn(
                "order", f"{self.name} has in_order=False: batches arrive in a random order, so a resumed run differs."
            )
            if self.shared is not None:
                _tell_of_whole(self.name)
            return loader
        reader = copy.copy(loader)
        attribute = "sampler" if loader.batch_sampler is None else "batch_sampler"
        drawn = unshuffled(loader, self.name) if in_order else getattr(loader, attribute)
        self._sampler = ResumableSampler(
            drawn,
            seeded=loader.num_workers > 0,
            index=self.shared.index if self.shared else 0,
            count=self.shared.count if self.shared else 1,
            drop_last=bool(getattr(loader, "drop_last", False)),
            generator=getattr(loader, "generator", None),
            quiet=self._quiet,
        )
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


def _is_list(loader: Any) -> bool:
    """Batches that lie in memory, which can be dealt out."""
    return isinstance(loader, (list, tuple))


def _share_of(items: list[Any], shared: Shared) -> float:
    """What this rank's of ``items`` counts beside the others' of the round: by their sizes, where all are known."""
    if shared.index >= len(items):
        return 0.0
    sizes = [set(_leading_sizes(item)) for item in items]
    if any(len(size) != 1 for size in sizes):
        return shared.count / len(items)
    numbers = [size.pop() for size in sizes]
    return shared.count * numbers[shared.index] / max(1, sum(numbers))


def _shares_itself(loader: Any) -> bool:
    """Whether the user's sampler gives each rank a part of its own, as torch's ``DistributedSampler`` does."""
    return any(
        hasattr(sampler, "num_replicas") and hasattr(sampler, "rank")
        for sampler in (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    )


def _tell_of_whole(name: str) -> None:
    warn(
        "whole",
        f"{name} is read whole by every rank: only a DataLoader over a map-style data set and a list of batches are dealt "
        "out. Let its __iter__ leave out what is for other ranks (torch.distributed.get_rank()), and mute this.",
    )


def require_iterable(loader: Any, name: str) -> None:
    """
    Raises:
        DataError: ``loader`` is not an object that can be iterated.
    """
    if isinstance(loader, type) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise DataError(
            f"{name} is {loader!r}, which can't be iterated.",
            why="training and evaluation read one batch after the other from it.",
            fix="pass a DataLoader, or any object with __iter__.",
        )


def is_at_end(stream: Any) -> bool:
    """Whether there is nothing left to read in the epoch that a stream is in."""
    return stream.length is not None and 0 < stream.length <= stream.consumed


def length_of(loader: Any) -> int | None:
    """Batches in one pass over ``loader``; None if it can't tell."""
    try:
        return len(loader)
    except TypeError:
        return None


def limited(length: int | None, limit: int | float, name: str) -> int | None:
    """How many of ``length`` batches are used: at most ``limit``, a count or a fraction. None if that is not known.

    Raises:
        DataError: There are none, or not one of them is left.
    """
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
    left = int(length * limit)
    if left == 0 and limit > 0:
        raise DataError(
            f"{limit} of the {length} batches of {name} is less than one.",
            why="a limit as a fraction is rounded down.",
            fix="give the limit as a count, for example 1.",
        )
    return left


def no_batch(name: str, when: str = "") -> DataError:
    """What to raise where a pass over a loader gave nothing."""
    return DataError(
        f"{name} gave no batch{when}.",
        why="it is empty, or a generator, which can be iterated only once.",
        fix="check the data; pass a DataLoader, a list, or an object whose __iter__ starts anew.",
    )


def size_unknown(what: str) -> DataError:
    """What to raise where the size of a batch is asked for and can't be known."""
    return DataError(
        f"the size of a batch is not known: {what}.",
        why="a mean over an epoch is weighted by the size of each batch, and this loader doesn't tell it.",
        fix='self.log("name", value, batch_size=...)',
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


def _agreed_size(batch: Any, declared: int | None) -> int:
    sizes = set(_leading_sizes(batch))
    if len(sizes) == 1:
        return sizes.pop()
    if declared is not None and declared in sizes:
        return declared
    raise size_unknown(f"its tensors have leading sizes {sorted(sizes)}")


def _leading_sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.shape[0] if batch.dim() else 1
    elif isinstance(batch, dict):
        for item in batch.values():
            yield from _leading_sizes(item)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _leading_sizes(item)
