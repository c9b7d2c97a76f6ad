"""What makes a loss a spike, and where it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.errors import ModuleError
from treadle.strategies.sharding import is_sharded


class Place(NamedTuple):
    """Of a batch."""

    epoch: int
    batch: int
    step: int


class Spike(NamedTuple):
    loss: float
    place: Place
    why: str

    def __str__(self) -> str:
        epoch, batch, step = self.place
        return f"the loss is {self.loss:.5g} in epoch {epoch}, batch {batch} (step {step})."


@dataclass(kw_only=True)
class Judge:
    """Compares each loss with the mean of those before it; see :class:`SpikeDetection` for the settings."""

    mode: Literal["min", "max"]
    window: int
    warmup: int
    atol: float | None
    rtol: float | None
    finite_only: bool
    compared: list[float] = field(default_factory=list)
    """The window: losses that were no spikes."""
    seen: int = 0
    """Losses so far."""

    def judge(self, loss: float) -> str | None:
        """Why ``loss`` is a spike; None if it is none, and then it joins the window."""
        self.seen += 1
        if not math.isfinite(loss):
            return "It is not finite." if self.finite_only else None
        if self.compared and self.seen > self.warmup:
            mean = fmean(self.compared)
            worse = loss - mean if self.mode == "min" else mean - loss
            least = max(self.atol or 0.0, (self.rtol or 0.0) * abs(mean))
            if (self.atol or self.rtol) and worse > 0 and worse >= least:
                return f"The {len(self.compared)} before it are {mean:.5g} on average."
        self.compared = [*self.compared, loss][-self.window :]
        return None

    def spikes(self, losses: Iterable[float], places: Iterable[Place]) -> list[Spike]:
        """Those of ``losses`` that are, in order."""
        judged = ((loss, place, self.judge(loss)) for loss, place in zip(losses, places, strict=True))
        return [Spike(loss, place, why) for loss, place, why in judged if why is not None]

    @property
    def bounds(self) -> str:
        return f"mode={self.mode!r}, window={self.window}, atol={self.atol}, rtol={self.rtol}"


def loss_in(outputs: Any) -> Tensor | None:
    """A copy of the loss, on its device: what the step returned may be overwritten before it is read. None: there is none.

    Raises:
        ModuleError: The step returned something else.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if loss is None and not outputs:  # the batch was skipped, or a module that optimizes manually returned nothing
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ModuleError(
            f"SpikeDetection found no loss in the {type(outputs).__name__} that training_step returned.",
            why='it follows the loss: a tensor with one element, or a dict with it under "loss".',
            fix='return {"loss": loss, ...}',
        )
    return loss.detach().reshape(()).clone()


def largest_gradient(optimizer: Optimizer) -> Tensor | None:
    """:func:`largest` of this rank's gradients."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return largest([parameter.grad for parameter in parameters if parameter.grad is not None])


def largest(tensors: Iterable[Tensor]) -> Tensor | None:
    """The largest magnitude in ``tensors``, of sharded ones in this rank's parts, shape ``()``; NaN or infinite if one of
    them is. None: there is nothing in them. Does not sync."""
    local = [tensor.detach() for tensor in tensors]
    local = [tensor.to_local() if is_sharded(tensor) else tensor for tensor in local]
    local = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in local]
    local = [tensor for tensor in local if tensor.numel()]
    if not local:
        return None
    # Not the 2-norm: squares of large finite numbers are infinite in 32 bits.
    norms = torch._foreach_norm(local, float("inf"))
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).max()
