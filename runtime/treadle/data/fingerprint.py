"""Which data a run sees: enough to notice that they changed under a resumed run, without reading a sample."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset, TensorDataset

_SAMPLED = 2**20
"""Elements of a tensor that are looked at, spread over it."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A data set, or a ``DataModule``, that can say which data it holds."""

    def fingerprint(self) -> str:
        """Changes when the data do: a version, a hash of file names and sizes."""
        ...


def fingerprint(loader: Any, datamodule: Any = None) -> str | None:
    """What ``datamodule`` says of its data, if it has a ``fingerprint()``; else, of what ``loader`` reads, the data set's own
    ``fingerprint()``; else its length, and of tensors a hash (of those with more than two million elements, of a part of
    these).

    None for what has neither, as an iterable data set.
    """
    if _says(datamodule):
        return str(datamodule.fingerprint())
    parts = [part for data in _data_sets(loader) if (part := _of(data)) is not None]
    return "; ".join(parts) or None


def _data_sets(loader: Any) -> Iterable[Any]:
    if isinstance(loader, Mapping):
        return [data for item in loader.values() for data in _data_sets(item)]
    if isinstance(loader, (list, tuple)):
        return [data for item in loader for data in _data_sets(item)]
    inner = getattr(loader, "iterables", None)  # a CombinedLoader
    if inner is not None:
        return _data_sets(inner)
    return [loader.dataset if isinstance(loader, DataLoader) else loader]


def _of(data: Any) -> str | None:
    if _says(data):
        return str(data.fingerprint())
    match data:
        case Subset():
            indices = torch.as_tensor(list(data.indices), dtype=torch.int64)
            return f"{len(indices)} ({_hash([indices])}) of {_of(data.dataset)}"
        case ConcatDataset():
            return " + ".join(str(_of(part)) for part in data.datasets)
        case StackDataset():
            parts = data.datasets.values() if isinstance(data.datasets, dict) else data.datasets
            return " | ".join(str(_of(part)) for part in parts)
        case TensorDataset():
            return f"{len(data)} samples ({_hash(data.tensors)})"
        case Dataset() if isinstance(data, Sized):
            return f"{len(data)} samples"
    return None


def _says(data: Any) -> bool:
    return isinstance(data, HasFingerprint) and callable(data.fingerprint)


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        flat = tensor.detach().to_dense().reshape(-1)
        looked_at = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous()
        digest.update(ctypes.string_at(looked_at.data_ptr(), looked_at.numel() * looked_at.element_size()))
    return digest.hexdigest()
