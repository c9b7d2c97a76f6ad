"""One loader, read by several ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from treadle.collectives import Ranks
from treadle.seeding import Owned, RNGState, capture_rng, restore_rng

if TYPE_CHECKING:
    from treadle.strategies import Share


@final
@dataclass(frozen=True)
class Shared:
    """Which part of a loader's batches this rank reads: of those drawn in rank 0's order, every ``count``-th."""

    index: int
    count: int
    ranks: Ranks

    @classmethod
    def of(cls, share: Share, ranks: Ranks) -> Shared | None:
        """None where one rank reads all."""
        return cls(share.index, share.count, ranks) if ranks.size > 1 else None

    def begin(self, owned: list[Owned]) -> tuple[RNGState, list[Owned]]:
        """Rank 0's generators, those of this process set to them, and those that its loader owns."""
        start, owned = self.ranks.broadcast((capture_rng(), owned))
        restore_rng(start)
        return start, owned

    def all_have(self, one: bool) -> bool:
        """Whether every rank has a batch."""
        return bool(self.ranks.reduce(torch.tensor(int(one)), "min"))


@final
class ShardedLoader:
    """What ``Fabric.setup_dataloaders`` returns: each iteration is an epoch of this rank's batches."""

    def __init__(self, loader: Any, shared: Shared | None, to_device: Callable[[Any], Any] | None) -> None:
        from treadle.data.single import Stream

        self._stream = Stream(loader, shared=shared)
        self._to_device = to_device
        self._epoch = 0

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch, or those that are left of the one it was loaded into. The order is settled when this
        returns: generators that were saved are to be set after it, before the first batch."""
        self._stream.set_epoch(self._epoch)
        return self._rest(iter(self._stream))

    def _rest(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch if self._to_device is None else self._to_device(batch)
        self._stream.end_epoch()
        self._epoch += 1

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        if self._stream.length is None:
            raise TypeError(f"{type(self._stream.loader).__name__} has no length")
        return self._stream.length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream.loader, name)

    @property
    def counts(self) -> float:
        """What the batch taken last counts beside the other ranks': 1, its share of a ragged round, or 0 for one that is
        another rank's."""
        return self._stream.counts

    def set_epoch(self, epoch: int) -> None:
        """What a sampler that shuffles by epoch is told with the next iteration; by itself it counts from 0."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: tensors and plain values; the same on all ranks."""
        return {"epoch": self._epoch, "stream": dict(self._stream.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there with the next iteration. The generators of the moment it was saved are the caller's to set."""
        self._epoch = state["epoch"]
        self._stream.load_state_dict(state["stream"])
