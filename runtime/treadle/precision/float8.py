"""Linear layers in 8 bits, by torchao; other products in bfloat16; weights in 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from treadle.errors import ConfigError, nearest

Recipe = Literal["rowwise", "rowwise_with_gw_hp", "tensorwise"]


@final
class Float8:
    """``"float8"``: each ``nn.Linear`` whose two sizes are multiples of 16 multiplies in float8; its weight stays what it
    is, under the same name. The rest is ``"bf16-mixed"``. Needs ``treadle[float8]``, and pays only when compiled.

    Args:
        device: Where forward passes run.
        recipe: How numbers are scaled into 8 bits: per row, per row with the weights' gradients in bfloat16, or per
            tensor (fastest, least exact).
        emulate: Compute what float8 would give, slowly, on any device: for tests.

    Raises:
        ConfigError: The recipe is unknown, or the device has no float8.
    """

    name = "float8"
    compute: torch.dtype | None = torch.bfloat16
    weights: torch.dtype | None = None

    def __init__(self, device: torch.device | str, *, recipe: Recipe = "rowwise", emulate: bool = False) -> None:
        if recipe not in get_args(Recipe):
            raise ConfigError(
                f"recipe={recipe!r} is unknown.",
                why="a recipe says how numbers are scaled into 8 bits.",
                fix=nearest(str(recipe), get_args(Recipe)),
            )
        device = torch.device(device)
        if not emulate and (lacks := _lacks_float8(device)) is not None:
            raise ConfigError(
                f'precision="float8" on {lacks}.',
                why="float8 needs a GPU of compute capability 8.9 (Ada, Hopper) or later.",
                fix='precision="bf16-mixed"',
            )
        self._type, self._recipe, self._emulate = device.type, recipe, emulate

    def convert(self, module: nn.Module) -> nn.Module:
        """Exchange the linear layers, in place; a module that is one itself comes back as another.

        Raises:
            ConfigError: torchao is not installed, or no layer can be exchanged.
        """
        if not any(map(_fits, module.modules())):
            sizes = [f"{m.in_features}x{m.out_features}" for m in module.modules() if isinstance(m, nn.Linear)]
            raise ConfigError(
                f'precision="float8", and no layer of {type(module).__name__} can be in float8'
                + (f": its linear layers are {', '.join(sizes[:5])}." if sizes else ": it has no linear layer."),
                why="these are nn.Linear layers whose two sizes are multiples of 16.",
                fix='precision="bf16-mixed", or sizes that are multiples of 16.',
            )
        try:
            from torchao.float8 import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
                Float8LinearConfig,
                convert_to_float8_training,
            )
        except ImportError as error:
            raise ConfigError(
                'precision="float8" without torchao.',
                why=f"it exchanges the linear layers ({error}).",
                fix='pip install "treadle[float8]"',
            ) from None
        config = replace(Float8LinearConfig.from_recipe_name(self._recipe), emulate=self._emulate)
        converted: nn.Module = convert_to_float8_training(module, config=config, module_filter_fn=_fits)
        return converted

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._type, dtype=torch.bfloat16)  # a new one: see bf16-mixed

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


def _fits(layer: nn.Module, _: str = "") -> bool:
    """A layer that the hardware can multiply in 8 bits. Those exchanged before are no ``nn.Linear`` exactly."""
    return type(layer) is nn.Linear and layer.in_features % 16 == 0 and layer.out_features % 16 == 0


def _lacks_float8(device: torch.device) -> str | None:
    """The name of a device without float8; None for one with it."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 9) else f"{torch.cuda.get_device_name(device)}, {capability[0]}.{capability[1]}"
