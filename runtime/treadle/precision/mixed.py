"""Weights in 32 bits; matrix products and convolutions in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@final
class BFloat16Mixed:
    """``"bf16-mixed"``: ``torch.autocast``. bfloat16 has the range of 32 bits, so losses need no scaling.

    Args:
        device: Where forward passes run; autocast concerns one type of device.
    """

    name = "bf16-mixed"
    compute: torch.dtype | None = torch.bfloat16
    weights: torch.dtype | None = None

    def __init__(self, device: torch.device | str) -> None:
        self._type = torch.device(device).type

    def convert(self, module: nn.Module) -> nn.Module:
        return module

    def autocast(self) -> AbstractContextManager[Any]:
        # A new one each time: an object of torch.autocast remembers one outer state, so one that is entered while it is
        # entered leaves autocast on for good. Making one costs 2 microseconds.
        return torch.autocast(self._type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor, call: Callable[..., Any] = torch.autograd.backward) -> None:
        call(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        pass

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        result = optimizer.step() if closure is None else optimizer.step(closure)
        torch.clear_autocast_cache()  # a step inside of autocast (manual optimization) left copies of the old weights
        return result

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
