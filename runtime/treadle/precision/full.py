"""32-bit floating point everywhere: torch's default."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@final
class FullPrecision:
    """``"32-true"``: weights, activations and gradients are what the module made them, 32 bits by default."""

    name = "32-true"
    compute: torch.dtype | None = None
    weights: torch.dtype | None = None

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def convert(self, module: nn.Module) -> nn.Module:
        return module

    def autocast(self) -> AbstractContextManager[Any]:
        return self._nothing

    def backward(self, loss: Tensor, call: Callable[..., Any] = torch.autograd.backward) -> None:
        call(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        pass

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        return optimizer.step() if closure is None else optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
