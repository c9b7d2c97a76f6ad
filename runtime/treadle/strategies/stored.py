"""Tensors that still lie in files: read when they are asked for, whole or only this rank's part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor


class Source(Protocol):
    """Where tensors are stored, by name."""

    def read(self, wanted: Mapping[str, Tensor]) -> None:
        """Fill each tensor with what is stored under its name; of a sharded one (a ``DTensor``), this rank's part, and only
        that is read. Not collective.

        Raises:
            CheckpointError: What lies there is damaged.
        """
        ...


@final
@dataclass(frozen=True)
class StoredTensor:
    """One of them."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    source: Source = field(repr=False)
    device: str | torch.device = "cpu"
    """Where :meth:`whole` brings it."""

    def whole(self) -> Tensor:
        """All of it, read now."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.source.read({self.name: tensor})
        return tensor.to(self.device)


def read_into(wanted: Iterable[tuple[StoredTensor, Tensor]]) -> None:
    """Fill each second with what the first says is stored, with as few calls of their sources as can be."""
    rounds: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
    sources: dict[int, Source] = {}
    for stored, tensor in wanted:
        sources[id(stored.source)] = stored.source
        batches = rounds[id(stored.source)]
        batch = next((batch for batch in batches if stored.name not in batch), None)
        if batch is None:
            batches.append(batch := {})
        batch[stored.name] = tensor
    for key, batches in rounds.items():
        for batch in batches:
            sources[key].read(batch)


@final
class StoredDict(dict[Any, Any]):
    """A dict of which some values are stored: whoever asks for one gets it whole, read at that moment. So code that knows
    dicts of tensors works, and no rank holds more than the one it asked for.

    Args:
        values: Some of them a :class:`StoredTensor`.
        kind: What it was saved as.
    """

    def __init__(self, values: Mapping[Any, Any], kind: type[dict[Any, Any]] = dict) -> None:
        dict.__init__(self, values)
        self.kind = kind

    def __getitem__(self, key: Any) -> Any:
        value = dict.__getitem__(self, key)
        return value.whole() if isinstance(value, StoredTensor) else value

    def __iter__(self) -> Iterator[Any]:  # a Python method, so that dict(self) asks for the values by the one above
        return dict.__iter__(self)

    # dict's own take values as they lie there; these ask for them by __getitem__.
    get = Mapping.get  # type: ignore[assignment]
    items = Mapping.items  # type: ignore[assignment]
    values = Mapping.values  # type: ignore[assignment]
    pop = MutableMapping.pop
    popitem = MutableMapping.popitem
    setdefault = MutableMapping.setdefault
    __eq__ = Mapping.__eq__

    def __repr__(self) -> str:
        return repr(self.unread())

    def copy(self) -> dict[Any, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def unread(self) -> dict[Any, Any]:
        """What it was saved as, with each stored value as a :class:`StoredTensor`."""
        return self.kind((key, dict.__getitem__(self, key)) for key in self)


def unread(values: dict[Any, Any]) -> dict[Any, Any]:
    """``values``, of which nothing is read by looking at it."""
    return values.unread() if isinstance(values, StoredDict) else values
