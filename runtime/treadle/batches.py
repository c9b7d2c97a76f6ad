"""Batches: tuples, lists, mappings, dataclasses and tensors in one another."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def move(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """``batch`` with every tensor in its tuples, lists, mappings and dataclasses on ``device``, and objects that have
    ``.to``.

    Copies from pinned memory don't block. What lies on the device already is not copied.

    Args:
        dtype: The format that floating point tensors are given; None: they stay what they are.
    """
    if isinstance(batch, Tensor):
        wanted = dtype if dtype is not None and batch.is_floating_point() else batch.dtype
        if batch.device == device and batch.dtype == wanted:
            return batch
        return batch.to(device, wanted, non_blocking=True)
    kind = type(batch)
    if kind is tuple or kind is list:
        return kind([move(item, device, dtype) for item in batch])
    if kind is dict:
        return {key: move(item, device, dtype) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*[move(item, device, dtype) for item in batch])
    if isinstance(batch, (str, bytes, int, float)) or batch is None:
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    moved: Any = None
    if isinstance(batch, MutableMapping):  # OrderedDict, UserDict: of its own type, with what else it keeps
        moved = copy.copy(batch)
        for key, item in batch.items():
            moved[key] = move(item, device, dtype)
    elif is_dataclass(batch) and not isinstance(batch, type):
        moved = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(moved, field.name, move(getattr(batch, field.name), device, dtype))
    return batch if moved is None else moved


def apply(data: Any, function: Callable[[Tensor], Any]) -> Any:
    """``data`` with ``function`` applied to each tensor in its tuples, lists and dicts."""
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, dict):
        return {key: apply(item, function) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        items = [apply(item, function) for item in data]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    return data
