"""What one training step takes, in numbers and in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch

from treadle.estimating.layout import Layout
from treadle.estimating.rehearsal import PASSES, STEP, Measured, Part


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One step of training. Bytes and FLOPs are those of one rank, the one with the most; None where they could not be
    counted, and ``notes`` say why."""

    module: str
    ranks: int
    strategy: str
    precision: str
    accumulate: int
    parameters: int
    """Of the whole module."""
    trainable: int
    """Of them."""
    weights: int
    """Bytes of parameters and buffers."""
    gradients: int
    optimizer: int | None
    """Bytes of its state."""
    activations: int | None
    """Bytes that a backward pass begins with, beyond all the others: what autograd saved, and what the step kept."""
    batch: int
    """Bytes of one batch."""
    gathered: int
    """Bytes of weights and gradients of other ranks, while layers are computed; see :func:`gathered_of`."""
    peak: int | None
    """The most bytes alive at one time, over a whole step."""
    flops: int | None
    """Of forward and backward passes of a step: two for each multiply-add of matrix products, convolutions and attention."""
    notes: tuple[str, ...] = ()
    """What could not be counted, and what is approximate."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {**asdict(self), "notes": list(self.notes)}

    def described(self) -> str:
        """For people: one thing a line."""
        each = "each of " if self.ranks > 1 else ""
        accumulated = f", {self.accumulate} batches a step" if self.accumulate > 1 else ""
        total = None if self.flops is None else self.flops * self.ranks
        of_all = f", {_flops(total)} on all" if self.ranks > 1 and total is not None else ""
        rows = {
            "parameters": f"{self.parameters:,}"
            + (f" ({self.trainable:,} of them trained)" if self.trainable != self.parameters else ""),
            "weights": _bytes(self.weights),
            "gradients": _bytes(self.gradients),
            "optimizer": _bytes(self.optimizer),
            "activations": _bytes(self.activations),
            "batch": _bytes(self.batch),
            **({"gathered": _bytes(self.gathered)} if self.gathered else {}),
            "peak": _bytes(self.peak),
            "FLOPs a step": f"{_flops(self.flops)}{of_all}",
        }
        head = (
            f"{self.module} on {each}{self.ranks} rank{'s' * (self.ranks > 1)}: "
            f"strategy {self.strategy}, precision {self.precision}{accumulated}"
        )
        lines = [f"  {name:<13} {value}" for name, value in rows.items()]
        return "\n".join([head, *lines, *(f"  note: {note}" for note in self.notes)])


def estimate_of(
    measured: Measured, layout: Layout, *, module: str, precision: str, compute: torch.dtype | None, accumulate: int
) -> Estimate:
    """What ``measured`` on one rank becomes on each rank of ``layout``."""
    alone, here = Layout(), layout
    notes = list(measured.problems)
    state = measured.rest_of_state
    held = {key: _held(measured, key) for key in (alone, here)}
    gathered = gathered_of(measured.parts, layout, compute)
    activations = measured.activations
    copies = 0
    if activations is not None and layout.shard > 1:
        copies = measured.copies  # weights are gathered in that format; autocast has nothing to copy
        activations -= copies
    flops = measured.flops
    if flops is not None:
        flops = round(flops * accumulate * _part_of_flops(measured.parts, layout))
    peak = None
    if state is not None and PASSES in measured.peaks:
        passes = held[here] + measured.peaks[PASSES] - held[alone] - copies + gathered
        step = measured.peaks.get(STEP, 0) - held[alone]
        scale = (held[here] - measured.batch) / max(held[alone] - measured.batch, 1)
        peak = max(passes, held[here] + round(step * scale))
    if layout.tensor > 1:
        notes.append("tensor parallel: the layers of the plan are divided, activations are not: an upper bound")
    if layout.shard > 1 and peak is not None:
        notes.append("peak: communication has buffers of its own, and torch frees gathered weights a little later")
    if layout.offloaded:
        notes.append("weights, gradients and optimizer state lie on the host, and are on the device layer by layer")
    return Estimate(
        module=module,
        ranks=layout.ranks,
        strategy=layout.name,
        precision=precision,
        accumulate=accumulate,
        parameters=sum(part.count for part in measured.parts),
        trainable=sum(part.count for part in measured.parts if part.trained),
        weights=_weights(measured, layout),
        gradients=_gradients(measured, layout),
        optimizer=None if state is None else _state(measured, layout),
        activations=activations,
        batch=measured.batch,
        gathered=gathered,
        peak=peak,
        flops=flops,
        notes=tuple(notes),
    )


def gathered_of(parts: list[Part], layout: Layout, compute: torch.dtype | None) -> int:
    """Bytes that are there for a while because layers are computed with weights that are sharded.

    FSDP gathers the weights of a unit before its passes, and prefetches those of the next, so that two are whole at a time;
    what is in no unit stays whole from the forward to the backward pass. In the backward pass the gradient of a unit is
    whole until it is scattered, which takes a copy of it. So: the rest, and twice the largest unit with its gradients.
    Weights and gradients have the format of the forward pass, where the precision has one; the copy that of the weights.
    """
    if layout.shard == 1:
        return 0
    weights: dict[str, int] = defaultdict(int)
    gradients: dict[str, int] = defaultdict(int)
    for part in parts:
        share = 1 / layout.tensor if layout.divides(part.name) else 1
        size = part.weight if compute is None else part.count * compute.itemsize
        weights[part.unit] += round(size * share)
        gradients[part.unit] += round((size + part.weight) * share) if part.gradient else 0
    rest = weights.pop("", 0)
    if not weights:
        return rest + gradients[""]
    return rest + max(2 * weights[unit] + gradients[unit] for unit in weights)


def _weights(measured: Measured, layout: Layout) -> int:
    return measured.buffers + sum(round(part.weight * layout.kept(part.name, part.shape)) for part in measured.parts)


def _gradients(measured: Measured, layout: Layout) -> int:
    return sum(round(part.gradient * layout.kept(part.name, part.shape)) for part in measured.parts)


def _state(measured: Measured, layout: Layout) -> int:
    shaped = sum(round(part.state * layout.kept(part.name, part.shape)) for part in measured.parts)
    return shaped + (measured.rest_of_state or 0)


def _held(measured: Measured, layout: Layout) -> int:
    """Bytes that stay from step to step, and the batch."""
    return _weights(measured, layout) + _gradients(measured, layout) + _state(measured, layout) + measured.batch


def _part_of_flops(parts: list[Part], layout: Layout) -> float:
    """By their parameters: what divides a layer's weights divides its products."""
    divided = sum(part.count for part in parts if layout.divides(part.name))
    return 1 - divided / max(sum(part.count for part in parts), 1) * (1 - 1 / layout.tensor)


def _bytes(size: int | None) -> str:
    if size is None:
        return "not counted"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


def _flops(count: int | None) -> str:
    if count is None:
        return "not counted"
    value, units = float(count), ["", "k", "M", "G", "T", "P", "E"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.4g} {units[0]}FLOP"
