"""One process, one device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from treadle.strategies.base import Reduction


@final
@dataclass(frozen=True)
class SingleDevice:
    """Every parameter on one device; nothing to communicate."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def place(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(module, name)
        return bound

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce(self, value: Tensor, reduction: Reduction) -> Tensor:
        return value

    def gather(self, value: Tensor, *, sync_grads: bool) -> Tensor:
        return value

    def barrier(self) -> None:
        pass
