"""The engine: places a model, runs it, steps it. Usable alone, in anybody's own loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from treadle.devices import device_for
from treadle.errors import ConfigError
from treadle.precision import Precision, precision_for
from treadle.strategies import Reduction, Strategy, strategy_for

ClipAlgorithm = Literal["norm", "value"]


class Fabric:
    """Device, strategy and precision behind a few calls. A plain loop adopts it line by line::

        fabric = Fabric()
        model, optimizer = fabric.setup(model, optimizer)
        for batch in loader:
            with fabric.autocast():
                loss = loss_of(model, fabric.to_device(batch))
            fabric.backward(loss)
            fabric.clip_gradients(model, max_norm=1.0)
            fabric.step(optimizer)
            optimizer.zero_grad()

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        devices: How many; this version uses one.
        strategy: ``auto`` or ``single``, or your own ``Strategy``.
        precision: ``32-true``, or your own ``Precision``.

    Raises:
        ConfigError: An unknown name, or a device that this machine doesn't have.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int | str = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
    ) -> None:
        if devices not in (1, "1", "auto"):
            raise ConfigError(
                f"devices={devices!r}: this version trains on one device.",
                why="the strategies for several devices are not part of this release.",
                fix="devices=1",
            )
        self.strategy = strategy_for(strategy, device_for(accelerator))
        self.precision = precision_for(precision)

    @property
    def device(self) -> torch.device:
        return self.strategy.device

    @property
    def global_rank(self) -> int:
        return self.strategy.rank

    @property
    def world_size(self) -> int:
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.strategy.rank == 0

    def setup(self, module: nn.Module, *optimizers: Optimizer) -> Any:
        """Place ``module`` on the device in its format. Returns it, or ``(module, *optimizers)`` when given some."""
        placed = self.strategy.place(self.precision.convert(module))
        return (placed, *optimizers) if optimizers else placed

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """``module.name`` of a module that was set up, to be called in place of its forward."""
        return self.strategy.method(module, name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass: the precision's formats."""
        return self.precision.autocast()

    def to_device(self, batch: Any) -> Any:
        """``batch`` with every tensor in its tuples, lists, mappings and dataclasses on the device, and objects that have
        ``.to``.

        Copies from pinned memory don't block. What lies on the device already is not copied.
        """
        return move(batch, self.device)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``, shape ``()``."""
        self.precision.backward(loss)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Inside, backward only accumulates on this rank."""
        return self.strategy.local_gradients(module) if enabled else nullcontext()

    def clip_gradients(
        self,
        parameters: nn.Module | Iterable[Tensor],
        *,
        max_norm: float | None = None,
        clip_val: float | None = None,
        optimizer: Optimizer | None = None,
    ) -> Tensor | None:
        """Bound the gradients in place: their joint L2 norm by ``max_norm``, or each element by ``clip_val``.

        Pass ``optimizer`` when the precision scales losses. Does not sync.

        Returns:
            The norm before clipping, shape ``()``, with ``max_norm``; else None.

        Raises:
            ConfigError: Not exactly one of the two bounds.
        """
        if (max_norm is None) == (clip_val is None):
            raise ConfigError(
                f"clip_gradients(max_norm={max_norm}, clip_val={clip_val}) names not exactly one bound.",
                why="gradients are clipped by their joint norm or by their elements' values.",
                fix="pass max_norm=1.0 or clip_val=0.5.",
            )
        if optimizer is not None:
            self.precision.unscale(optimizer)
        parameters = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
        if clip_val is not None:
            clip_grad_value_(parameters, clip_val)
            return None
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        clip_grads_with_norm_(parameters, max_norm, norm)  # type: ignore[arg-type]
        return norm

    def step(self, optimizer: Optimizer) -> None:
        self.precision.step(optimizer)

    def all_reduce(self, value: Tensor, reduction: Reduction = "mean") -> Tensor:
        """``value`` reduced over all ranks, same shape."""
        return self.strategy.reduce(value, reduction)

    def all_gather(self, data: Any, *, sync_grads: bool = False) -> Any:
        """``data``, with each tensor in it from every rank, stacked in a new first dimension; as it is on one rank."""
        return apply(data, lambda tensor: self.strategy.gather(tensor, sync_grads=sync_grads))

    def barrier(self) -> None:
        self.strategy.barrier()

    @contextmanager
    def init_module(self) -> Iterator[None]:
        """Modules made inside have their parameters on the device from the start."""
        with self.device:
            yield

    def print(self, *values: object, **settings: Any) -> None:
        """Print once, on rank 0. ``settings`` are those of the built-in."""
        if self.is_global_zero:
            print(*values, **{"flush": True, **settings})


def move(batch: Any, device: torch.device) -> Any:
    """See :meth:`Fabric.to_device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True) if batch.device != device else batch
    kind = type(batch)
    if kind is tuple or kind is list:
        return kind([move(item, device) for item in batch])
    if kind is dict:
        return {key: move(item, device) for key, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*[move(item, device) for item in batch])
    if isinstance(batch, (str, bytes, int, float)) or batch is None:
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    moved: Any = None
    if isinstance(batch, MutableMapping):  # OrderedDict, UserDict: of its own type, with what else it keeps
        moved = copy.copy(batch)
        for key, item in batch.items():
            moved[key] = move(item, device)
    elif is_dataclass(batch) and not isinstance(batch, type):
        moved = copy.copy(batch)
        for field in fields(batch):
            object.__setattr__(moved, field.name, move(getattr(batch, field.name), device))
    return batch if moved is None else moved


def apply(data: Any, function: Callable[[Tensor], Any]) -> Any:
    """``data`` with ``function`` applied to each tensor in its tuples, lists and dicts."""
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, dict):
        return {key: apply(item, function) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        items = [apply(item, function) for item in data]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    return data
