"""What the loops read: the batches of one loader, or of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from treadle.data.combined import CombinedLoader, CombinedState, CombinedStream, is_several
from treadle.data.parallel import Shared
from treadle.data.single import PassState, Stream, length_of, limited, no_batch
from treadle.errors import ConfigError

__all__ = ["Batches", "StreamState", "evaluation_streams", "no_batch", "training_stream"]

StreamState = PassState | CombinedState
"""Where a stream stands: tensors and plain values."""


class Batches(Protocol):
    """One epoch of batches after another, which can be stopped and continued at any batch."""

    loader: Any
    """What is read; several loaders are a :class:`CombinedLoader`."""
    name: str
    """What messages call it."""
    length: int | None
    """Batches an epoch; None if the loader can't tell and there is no limit."""
    consumed: int
    """Batches taken in the running epoch; 0 between epochs."""
    counts: float
    """What the batch taken last counts beside the other ranks' of its round; 0 if it is another's."""
    shared: Shared | None
    """The ranks that read it together; None: this one reads all."""

    @property
    def indices(self) -> list[int] | None:
        """Which samples of the data set are in the batch taken last; None where nobody knows."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch, or those that are left of the one it was loaded into. The order of map-style data
        sets is settled when this returns, and what continues is at its position."""
        ...

    def batch_size(self) -> int:
        """How many samples are in the batch taken last.

        Raises:
            DataError: Nobody can tell.
        """
        ...

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers that shuffle by epoch which one it is."""
        ...

    def end_epoch(self) -> None:
        """The epoch is over: the next iteration starts a new one."""
        ...

    def close(self) -> None:
        """End the worker processes now."""
        ...

    def isolated(self) -> AbstractContextManager[None]:
        """Whatever is read inside leaves no trace in the generators that the loader owns."""
        ...

    def state_dict(self) -> StreamState: ...

    def load_state_dict(self, state: StreamState) -> None:
        """Continue from ``state`` with the next iteration; setting the global generators to what they were when it was
        saved, after that iteration has begun, is the caller's.

        Raises:
            CheckpointError: It is that of other loaders.
        """
        ...


def training_stream(
    loader: Any, *, limit: int | float = 1.0, name: str, in_order: bool = False, shared: Shared | None = None
) -> Batches:
    """What a fit reads from ``loader``.

    A list, tuple or mapping of loaders is read side by side, a shorter one again and again until the longest has ended
    (``max_size_cycle``); a :class:`CombinedLoader` in its own mode. A list in which there is no ``DataLoader`` is one
    loader, its items the batches: to read loaders of one's own side by side, pass a mapping or a ``CombinedLoader``.

    Args:
        loader: What the user passed.
        limit: At most so many batches an epoch: a count, or a fraction of the length.
        name: What messages call it.
        in_order: See :class:`Stream`.
        shared: The ranks that read it together.

    Raises:
        ConfigError: A ``CombinedLoader`` that reads one loader after the other.
        DataError: It can't be iterated, or has no batches.
    """
    if isinstance(loader, CombinedLoader):
        if loader.mode == "sequential":
            raise ConfigError(
                f'{name} is a CombinedLoader with mode="sequential".',
                why="an epoch of training reads its loaders side by side.",
                fix='mode="max_size_cycle"; ConcatDataset joins data sets into one.',
            )
        return CombinedStream(loader, limit=limit, name=name, in_order=in_order, shared=shared)
    if is_several(loader):
        loader = CombinedLoader(loader, "max_size_cycle")
        return CombinedStream(loader, limit=limit, name=name, in_order=in_order, shared=shared)
    return Stream(loader, limit=limit, name=name, in_order=in_order, shared=shared)


def evaluation_streams(
    loader: Any, *, limit: int | float = 1.0, name: str, shared: Shared | None = None
) -> list[Batches]:
    """What an evaluation reads from ``loader``, one after the other.

    Several loaders, told as for :func:`training_stream`, and a :class:`CombinedLoader` with mode ``sequential`` are one
    each, in flattened order; a ``CombinedLoader`` with another mode is one that reads them side by side.

    Args:
        loader: What the user passed.
        limit: At most so many batches of each: a count, or a fraction of the length.
        name: What messages call it.
        shared: The ranks that read it together.

    Raises:
        DataError: One can't be iterated, or has no batches.
    """
    if is_several(loader):
        loader = CombinedLoader(loader, "sequential")
    if not isinstance(loader, CombinedLoader):
        return [Stream(loader, limit=limit, name=name, shared=shared, quiet=True)]
    if loader.mode == "sequential":
        return [
            Stream(
                part,
                limit=_smaller_limit(part, limit, own, f"{name}{key}", shared),
                name=f"{name}{key}",
                shared=shared,
                quiet=True,
            )
            for key, part, own in loader.parts()
        ]
    return [CombinedStream(loader, limit=limit, name=name, shared=shared)]


def _smaller_limit(loader: Any, one: int | float, other: int | float, name: str, shared: Shared | None) -> int | float:
    length = length_of(loader) if shared is None else Stream(loader, name=name, shared=shared).length
    counts = [limited(length, limit, name) for limit in (one, other)]
    return min((count for count in counts if count is not None), default=1.0)
