"""What a precision decides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class Precision(Protocol):
    """In which floating point formats weights, activations and gradients are. One file per precision."""

    @property
    def name(self) -> str:
        """As users write it: ``"32-true"``."""
        ...

    def convert(self, module: nn.Module) -> nn.Module:
        """Give the module's parameters and buffers their format, in place."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Around each forward pass."""
        ...

    def backward(self, loss: Tensor, call: Callable[..., Any] = torch.autograd.backward) -> None:
        """Accumulate gradients of ``loss``, shape ``()``, by ``call(loss)``; a precision that scales losses does it
        here."""
        ...

    def unscale(self, optimizer: Optimizer) -> None:
        """Before gradients are read (clipping): make them those of the loss itself. May be called again before the step."""
        ...

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Let the optimizer step. Returns what it returns."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
