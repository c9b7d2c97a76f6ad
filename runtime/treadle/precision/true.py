"""One floating point format for everything: weights, batches, activations, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, final
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from treadle.errors import warn

TrueName = Literal["16-true", "bf16-true", "64-true"]

_FORMATS: dict[TrueName, tuple[torch.dtype, Callable[[nn.Module], nn.Module]]] = {
    # Not Module.to(dtype), which takes complex buffers for real ones and drops half of each number.
    "16-true": (torch.float16, nn.Module.half),
    "bf16-true": (torch.bfloat16, nn.Module.bfloat16),
    "64-true": (torch.float64, nn.Module.double),
}


@final
class TruePrecision:
    """``"16-true"``, ``"bf16-true"`` or ``"64-true"``: floating point weights, buffers and batches get the format, and
    tensors that a step makes have it by default. Complex ones stay as they are.

    Optimizer state has the format of the weights: in 16 bits, updates below a weight's last digit are lost.
    """

    compute: torch.dtype | None = None

    def __init__(self, name: TrueName) -> None:
        self.name: str = name
        self.weights, self._convert = _FORMATS[name]
        self._known: WeakSet[Optimizer] = WeakSet()

    def convert(self, module: nn.Module) -> nn.Module:
        return self._convert(module)

    def autocast(self) -> AbstractContextManager[Any]:
        return default_format(self.weights)

    def backward(self, loss: Tensor, call: Callable[..., Any] = torch.autograd.backward) -> None:
        call(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        pass

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if optimizer not in self._known:
            self._known.add(optimizer)
            _warn_of_eps(optimizer, self.weights)
        return optimizer.step() if closure is None else optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _warn_of_eps(optimizer: Optimizer, dtype: torch.dtype) -> None:
    """Adam divides by a root plus 1e-8, which is 0 in float16. Fused optimizers compute in 32 bits."""
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps > 0 and not group.get("fused") and not torch.tensor(eps, dtype=dtype):
            return warn(
                "eps",
                f"{type(optimizer).__name__} has eps={eps}, which is 0 in {str(dtype).removeprefix('torch.')}: weights with "
                'small gradients become NaN. Set eps=1e-4 or fused=True, or train with precision="bf16-mixed".',
            )


@contextmanager
def default_format(dtype: torch.dtype) -> Iterator[None]:
    """What ``torch.zeros(3)`` makes, inside. Of the whole process, as torch's default is; may be nested."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
