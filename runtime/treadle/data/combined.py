"""Several loaders read as one: side by side, or one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, final, get_args

from torch.utils.data import DataLoader

from treadle.data.parallel import Shared
from treadle.data.single import (
    PassState,
    Stream,
    is_at_end,
    length_of,
    limited,
    no_batch,
    require_iterable,
    size_unknown,
)
from treadle.errors import CheckpointError, ConfigError, DataError, nearest

if TYPE_CHECKING:
    from treadle.data.stream import StreamState

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
Limits = int | float | Sequence[int | float] | None
_END = object()


@final
class CombinedLoader:
    """Reads a collection of loaders; its batches are such collections of batches.

    The collection is a list, tuple, named tuple or mapping, and may hold others: every mapping and every list or tuple
    with a ``DataLoader`` in it is one; any other list in it is a loader, its items the batches. Batches of a mapping
    come as a dict. Iterating gives ``(batch, batch_idx, dataloader_idx)``.

    Args:
        iterables: The loaders.
        mode: How far to go: ``min_size`` to the end of the shortest; ``max_size_cycle`` to the end of the longest,
            starting a shorter one again as often as needed; ``max_size`` to the end of the longest, with None for the
            batch of one that has ended; ``sequential`` reads one after the other, and a batch is one loader's.

    Raises:
        ConfigError: An unknown mode, or a ``CombinedLoader`` among the loaders.
        DataError: There is no loader, or one that can't be iterated.
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in get_args(Mode):
            raise ConfigError(
                f"CombinedLoader(mode={mode!r}).",
                why=f"it is one of {', '.join(get_args(Mode))}.",
                fix=nearest(str(mode), get_args(Mode)),
            )
        self.mode = mode
        self._iterables = iterables
        self._loaders: list[Any] = []
        self._keys: list[str] = []
        self._shape = self._number(iterables, "", outermost=True)
        if not self._loaders:
            raise DataError(
                f"CombinedLoader({iterables!r}) has no loader.",
                why="it reads from those that it is given.",
                fix='CombinedLoader({"a": loader, "b": another})',
            )
        self._limits: list[int | float] | None = None

    @property
    def iterables(self) -> Any:
        """The loaders, in their collection."""
        return self._iterables

    @property
    def flattened(self) -> list[Any]:
        """The loaders, in order. Assign a list of as many to read from those."""
        return list(self._loaders)

    @flattened.setter
    def flattened(self, loaders: Sequence[Any]) -> None:
        self._require_one_each("flattened", loaders)
        for key, loader in zip(self._keys, loaders, strict=True):
            require_iterable(loader, f"loader{key}")
        self._loaders = list(loaders)
        self._iterables = _filled(self._shape, self._loaders)

    @property
    def limits(self) -> list[int | float] | None:
        """At most so many batches of each loader: counts (int) or fractions (float), one each. Assign one for all of
        them, or None."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        if isinstance(limits, (int, float)):
            limits = [limits] * len(self._loaders)
        if limits is not None:
            self._require_one_each("limits", limits)
            for limit in limits:
                fraction = isinstance(limit, float) and 0 <= limit <= 1
                if not fraction and (type(limit) is not int or limit < 0):
                    raise ConfigError(
                        f"CombinedLoader.limits = {limits!r}.",
                        why="a limit is a count (int) or a fraction from 0.0 to 1.0 (float).",
                        fix="limits = 10, or limits = [10, 0.5]",
                    )
        self._limits = None if limits is None else list(limits)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        parts = [_Part(loader, limit, f"loader{key}") for key, loader, limit in self.parts()]
        if self.mode == "sequential":
            for number, part in enumerate(parts):
                yield from ((batch, index, number) for index, batch in enumerate(part))
            return
        steps = _side_by_side(
            self.mode, parts, [iter(part) for part in parts], [False] * len(parts), lambda n: iter(parts[n])
        )
        yield from ((self.collected(batches), index, 0) for index, batches in enumerate(steps))

    def __len__(self) -> int:
        """
        Raises:
            TypeError: A loader whose end matters has no length.
        """
        lengths = [limited(length_of(loader), limit, f"loader{key}") for key, loader, limit in self.parts()]
        length = combined_length(self.mode, lengths)
        if length is None:
            unknown = [key for key, length in zip(self._keys, lengths, strict=True) if length is None]
            raise TypeError(
                f"this CombinedLoader has no length: loader{unknown[0]} can't tell how many batches it has. Give it "
                "__len__, or give limits, as counts."
            )
        return length

    def parts(self) -> list[tuple[str, Any, int | float]]:
        """For each loader where it lies in the collection, as ``['a'][0]``; the loader; and its limit."""
        return list(zip(self._keys, self._loaders, self._limits or [1.0] * len(self._loaders), strict=True))

    def collected(self, batches: Sequence[Any]) -> Any:
        """``batches``, one of each loader, in a collection as the one of the loaders."""
        return _filled(self._shape, batches)

    def _number(self, part: Any, key: str, *, outermost: bool = False) -> Any:
        """The shape of the collection: the same, with its loader's number in the place of each. Takes the loaders down."""
        if isinstance(part, Mapping):
            return {name: self._number(item, f"{key}[{name!r}]") for name, item in part.items()}
        if isinstance(part, (list, tuple)) and (outermost or is_several(part)):
            return _like(part, [self._number(item, f"{key}[{index}]") for index, item in enumerate(part)])
        if isinstance(part, CombinedLoader):
            raise ConfigError(
                "a CombinedLoader in a CombinedLoader.",
                why="all loaders of one are read in the same mode.",
                fix="put its loaders there as a list or dict.",
            )
        require_iterable(part, f"loader{key}")
        self._loaders.append(part)
        self._keys.append(key)
        return len(self._loaders) - 1

    def _require_one_each(self, name: str, values: Sequence[Any]) -> None:
        if len(values) != len(self._loaders):
            raise ConfigError(
                f"{len(values)} {name} for the {len(self._loaders)} loaders of a CombinedLoader.",
                why="there is one for each.",
                fix=f"give {len(self._loaders)}, in the order of flattened.",
            )


@final
class CombinedState(TypedDict):
    """Where an epoch over several loaders stands."""

    mode: str
    consumed: int
    """Batches taken in the running epoch; 0 between epochs."""
    ended: list[bool]
    """Which loaders have come to their end in it."""
    streams: list[PassState]


@final
class CombinedStream:
    """Reads the loaders of a :class:`CombinedLoader` side by side, each through a :class:`Stream` of its own.

    A loader that starts again in the middle of an epoch is shuffled anew, from the generators as they are then; that is
    what its stream remembers. Samplers that share a generator of their own take all they need from it when a pass
    begins, so that what one drew does not depend on how far another has come.

    Args:
        loader: The loaders; its mode is not ``sequential``.
        limit: At most so many batches an epoch: a count, or a fraction of the combined length.
        name: What messages call it.
        in_order: See :class:`Stream`.
        shared: See :class:`Stream`. In the last round of a loader, a rank without a batch reads another's again.

    Raises:
        DataError: A loader has no batches, or there is no length to take a fraction of.
    """

    counts = 1.0
    """Every batch counts the same: what is from several loaders has no one size."""
    indices: list[int] | None = None
    """Not known: the samples of a batch are from several data sets."""

    def __init__(
        self,
        loader: CombinedLoader,
        *,
        limit: int | float = 1.0,
        name: str = "the loader",
        in_order: bool = False,
        shared: Shared | None = None,
    ) -> None:
        assert loader.mode != "sequential"
        self.loader, self.name, self.shared = loader, name, shared
        self.streams = [
            Stream(part, limit=own, name=f"{name}{key}", in_order=in_order, shared=shared)
            for key, part, own in loader.parts()
        ]
        for stream in self.streams:
            if stream.length == 0:
                raise no_batch(stream.name, ": its limit is 0")
        self.length = limited(combined_length(loader.mode, [stream.length for stream in self.streams]), limit, name)
        """Batches an epoch; None if the loaders can't tell and there is no limit."""
        self.consumed = 0
        self._ended = [False] * len(self.streams)
        self._loaded = False
        self._running: Generator[Any, None, None] | None = None
        owned = Counter(generator for stream in self.streams for generator in stream.generators())
        for stream in self.streams:
            if any(owned[generator] > 1 for generator in stream.generators()):
                stream.draw_at_once()

    def __iter__(self) -> Iterator[Any]:
        """As of :class:`Stream`."""
        inside, self._loaded = self._loaded and self.consumed > 0, False
        iterators: list[Iterator[Any]] = [iter(()) for _ in self.streams]
        if inside and is_at_end(self):
            self._running = self._batches(iterators)  # there is nothing to read; the next epoch goes on from it
            return self._running
        if not inside:
            self.consumed = 0
            self._ended = [False] * len(self.streams)
        for number, stream in enumerate(self.streams):
            if not self._is_missing(number):
                iterators[number] = iter(stream)
        self._running = self._batches(iterators)
        return self._running

    def close(self) -> None:
        """End the worker processes of all loaders now."""
        if self._running is not None:
            self._running.close()
        self._running = None
        for stream in self.streams:
            stream.close()

    def end_epoch(self) -> None:
        """The epoch is over: the next iteration starts a new one."""
        self.consumed = 0
        for stream in self.streams:
            stream.end_epoch()

    def set_epoch(self, epoch: int) -> None:
        """As of :class:`Stream`, for each loader."""
        for stream in self.streams:
            stream.set_epoch(epoch)

    def batch_size(self) -> int:
        """How many samples are in each part of the batch taken last.

        Raises:
            DataError: A part can't tell, or they don't agree.
        """
        sizes = {
            stream.name: stream.batch_size()
            for number, stream in enumerate(self.streams)
            if not self._is_missing(number)
        }
        if len(set(sizes.values())) != 1:
            raise size_unknown("; ".join(f"{size} of {name}" for name, size in sizes.items()))
        return next(iter(sizes.values()))

    def state_dict(self) -> CombinedState:
        return CombinedState(
            mode=self.loader.mode,
            consumed=self.consumed,
            ended=list(self._ended),
            streams=[stream.state_dict() for stream in self.streams],
        )

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from ``state`` with the next iteration.

        Raises:
            CheckpointError: It is that of other loaders, or of another mode.
        """
        now = f"{len(self.streams)} loaders in mode {self.loader.mode}"
        then = f"{len(state['streams'])} loaders in mode {state['mode']}" if "streams" in state else "one loader"
        if "streams" not in state or then != now:
            raise CheckpointError(
                f"{self.name} is {now}, and the checkpoint was saved with {then}.",
                why="a run goes on in the middle of its data only if they are read in the same way.",
                fix="pass loaders as then, or start a new run from the weights: MyModule.load_from_checkpoint(path).",
            )
        self._loaded = True
        self.consumed, self._ended = state["consumed"], list(state["ended"])
        for stream, part in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(part)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Whatever is read inside leaves no trace in the generators that the loaders own."""
        with ExitStack() as stack:
            for stream in self.streams:
                stack.enter_context(stream.isolated())
            yield

    def _batches(self, iterators: list[Iterator[Any]]) -> Generator[Any, None, None]:
        steps = _side_by_side(self.loader.mode, self.streams, iterators, self._ended, self._again)
        for batches in islice(steps, None if self.length is None else max(0, self.length - self.consumed)):
            self.consumed += 1
            yield self.loader.collected(batches)

    def _again(self, number: int) -> Iterator[Any]:
        self.streams[number].end_epoch()
        return iter(self.streams[number])

    def _is_missing(self, number: int) -> bool:
        """Whether a loader has no part in batches any more."""
        return self.loader.mode == "max_size" and self._ended[number]


def is_several(loader: Any) -> bool:
    """Whether ``loader`` is a collection of loaders: a mapping; or a list or tuple in which an item is, or begins with, a
    ``DataLoader``, which a batch never is. Any other list is one loader, its items the batches."""
    if isinstance(loader, (list, tuple)):
        return any(map(_begins_with_loader, loader))
    return isinstance(loader, Mapping)


def _begins_with_loader(item: Any) -> bool:
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, (list, tuple)):
        return bool(item) and _begins_with_loader(item[0])
    return isinstance(item, (DataLoader, CombinedLoader))


def combined_length(mode: Mode, lengths: Sequence[int | None]) -> int | None:
    """Batches of several loaders of ``lengths``; None if it can't be known before they end."""
    known = [length for length in lengths if length is not None]
    if len(known) != len(lengths):
        return None
    if mode == "sequential":
        return sum(known)
    return min(known) if mode == "min_size" else max(known)


class _Source(Protocol):
    """What can be read again and again, and counts what it gave since it was last begun."""

    name: str
    consumed: int

    def __iter__(self) -> Iterator[Any]: ...


class _Part:
    """A loader that is read as it is, for who iterates a ``CombinedLoader``."""

    def __init__(self, loader: Iterable[Any], limit: int | float, name: str) -> None:
        self.loader, self.name = loader, name
        self.limit = limited(length_of(loader), limit, name)
        self.consumed = 0

    def __iter__(self) -> Iterator[Any]:
        self.consumed = 0
        for batch in islice(self.loader, self.limit):
            self.consumed += 1
            yield batch


def _side_by_side(
    mode: Mode,
    sources: Sequence[_Source],
    iterators: list[Iterator[Any]],
    ended: list[bool],
    again: Callable[[int], Iterator[Any]],
) -> Iterator[list[Any]]:
    """One batch of each source, until as many have ended as ``mode`` says.

    Whether the epoch goes on is known before a source that has ended is read again, so none begins only to be dropped.

    Args:
        mode: Which batches there are once a source has ended.
        sources: What to read.
        iterators: Of the sources, those that are running; changed in place.
        ended: Which sources have come to their end in this epoch; changed in place.
        again: Begins the source of that number again.

    Raises:
        DataError: A source gave nothing.
    """
    while True:
        batches: list[Any] = [None] * len(sources)
        for number, source in enumerate(sources):
            if ended[number]:
                continue
            batch = next(iterators[number], _END)
            if batch is not _END:
                batches[number] = batch
                continue
            if not source.consumed:
                raise no_batch(source.name)
            ended[number] = True
            if mode == "min_size":
                return
        if all(ended):
            return
        if mode == "max_size_cycle":
            for number, source in enumerate(sources):
                if ended[number]:
                    batches[number] = next(iterators[number], _END)
                    if batches[number] is _END:
                        iterators[number] = again(number)
                        batches[number] = next(iterators[number], _END)
                    if batches[number] is _END:
                        raise no_batch(source.name, " when it began again")
        yield batches


def _filled(shape: Any, values: Sequence[Any]) -> Any:
    if isinstance(shape, dict):
        return {name: _filled(item, values) for name, item in shape.items()}
    if isinstance(shape, (list, tuple)):
        return _like(shape, [_filled(item, values) for item in shape])
    return values[shape]


def _like(container: Any, items: list[Any]) -> Any:
    """``items`` in a list, a tuple, or a named tuple, as ``container`` is one."""
    if isinstance(container, list):
        return items
    return type(container)(*items) if hasattr(container, "_fields") else tuple(items)
