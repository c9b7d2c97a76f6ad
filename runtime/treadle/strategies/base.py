"""What a strategy decides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Reduction = Literal["mean", "sum", "min", "max"]


@runtime_checkable
class Strategy(Protocol):
    """Where parameters live and how gradients meet. One file per strategy; on several ranks, every method is
    collective: all ranks call it."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def place(self, module: nn.Module) -> nn.Module:
        """Move, wrap or shard ``module``; what comes back is called, and its parameters go to the optimizers."""
        ...

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """``module.name`` of a placed module, called so that gradients meet in the backward pass after it."""
        ...

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, backward does not communicate (gradient accumulation)."""
        ...

    def reduce(self, value: Tensor, reduction: Reduction) -> Tensor:
        """``value`` over all ranks, same shape, on ``device``."""
        ...

    def gather(self, value: Tensor, *, sync_grads: bool) -> Tensor:
        """``value`` of every rank, stacked in a new first dimension; as it is on one rank. With ``sync_grads``,
        gradients flow back to each rank."""
        ...

    def barrier(self) -> None: ...
