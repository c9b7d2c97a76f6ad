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

    @property
    def compute(self) -> torch.dtype | None:
        """The format of forward passes where it isn't that of the weights (mixed precision); else None. A strategy that
        gathers weights may gather them in it."""
        ...

    @property
    def weights(self) -> torch.dtype | None:
        """The format that floating point weights, buffers and batches are given; None: they stay what they are."""
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
        """Before gradients are read (clipping): make them those of the loss itself. May be called again before the step,
        and a ``backward`` may still come between."""
        ...

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Let the optimizer step. Returns what it returns."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class SkipsSteps(Protocol):
    """A precision that leaves out steps whose gradients are not finite."""

    @property
    def skipped(self) -> bool:
        """The last step was left out. Reading it may wait for the device."""
        ...
