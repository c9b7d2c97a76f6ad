"""What a precision decides."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

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

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``, shape ``()``; a precision that scales losses does it here."""
        ...

    def unscale(self, optimizer: Optimizer) -> None:
        """Before gradients are read (clipping): make them those of the loss itself."""
        ...

    def step(self, optimizer: Optimizer) -> None:
        """Let the optimizer step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
