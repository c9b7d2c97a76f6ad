"""Tensors that every rank starts from: on the device, drawn if they had none, and those of rank 0."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from treadle.collectives import Ranks
from treadle.errors import ConfigError

INITIALIZERS = ("reset_parameters", "_reset_parameters", "init_weights")
"""Methods without arguments by which a module draws its own parameters and buffers, first one first."""


@final
class Starting:
    """Gives the submodules of one module their tensors, each after its children, as their constructors would have drawn
    them: the weights are those of a module that was made on the device, from the same seed."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        # Weak: whole tensors that were sharded since must not stay. Keys of the first are on the meta device.
        self._made: WeakValueDictionary[Tensor, Tensor] = WeakValueDictionary()
        self._started: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()

    def start(self, module: nn.Module, name: str, ancestors: Sequence[nn.Module]) -> None:
        """The tensors of ``module`` alone, not its children's: on the device, and rank 0's. Those on the ``meta`` device
        are drawn by its ``reset_parameters``, or by ``_init_weights(module)`` of one of its ``ancestors``.

        Raises:
            ConfigError: There is neither.
        """
        parameters, buffers = dict(module.named_parameters(recurse=False)), dict(module.named_buffers(recurse=False))
        missing = [key for key, tensor in {**parameters, **buffers}.items() if tensor.is_meta]
        # torchmetrics has no such argument; what it applies to again is there already.
        alone = {"recurse": False} if "recurse" in signature(module._apply).parameters else {}
        module._apply(self._on_device, **alone)
        for key, parameter in parameters.items():
            if parameter.is_meta:  # torch makes a new one of it; where it is tied, that must be the same one
                module._parameters[key] = self._made.setdefault(parameter, module._parameters[key])  # type: ignore[arg-type, assignment]
        if missing:
            self._draw(module, name, missing, ancestors)
        new = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t not in self._started]
        self._started.update(dict.fromkeys(new, True))
        if self._ranks.size > 1:
            for tensor in new:
                _send(tensor)

    def _on_device(self, tensor: Tensor) -> Tensor:
        device = self._ranks.device
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    def _draw(self, module: nn.Module, name: str, missing: list[str], ancestors: Sequence[nn.Module]) -> None:
        draw = _initializer(module, ancestors)
        if draw is None:
            raise ConfigError(
                f"{name or type(module).__name__} has {', '.join(missing)} on the meta device, and no reset_parameters.",
                why="nothing says which values these begin with.",
                fix=f"give {type(module).__name__} a method reset_parameters(self) that sets them, and call it at the end "
                "of its __init__.",
            )
        tied = [(tensor, tensor.clone()) for tensor in module.parameters(recurse=False) if tensor in self._started]
        with torch.no_grad():
            draw()
            for tensor, value in tied:  # the module it was made for has drawn it
                tensor.copy_(value)


def _send(tensor: Tensor) -> None:
    """From rank 0 to all, as bytes: not every backend knows every dtype."""
    import torch.distributed as dist

    if tensor.numel():
        sent = tensor.detach().contiguous()
        dist.broadcast(sent.reshape(-1).view(torch.uint8), 0)
        if sent.data_ptr() != tensor.data_ptr():
            with torch.no_grad():
                tensor.copy_(sent)


def _initializer(module: nn.Module, ancestors: Sequence[nn.Module]) -> Callable[[], Any] | None:
    for name in INITIALIZERS:
        if callable(own := getattr(module, name, None)):
            return own  # type: ignore[no-any-return]
    for ancestor in reversed(ancestors):
        if callable(theirs := getattr(ancestor, "_init_weights", None)):
            return partial(theirs, module)
    return None
