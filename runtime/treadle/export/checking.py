"""Whether a written file computes what the module does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from treadle.errors import ModuleError
from treadle.estimating.copying import reason
from treadle.export.example import Example
from treadle.export.loading import Exported
from treadle.export.manifest import TensorSpec
from treadle.module import class_name


@dataclass(frozen=True)
class Tolerance:
    """``abs(found - expected) <= atol + rtol * abs(expected)``, for every element; integers and bools are equal."""

    atol: float
    rtol: float

    def __str__(self) -> str:
        return f"{self.atol:g} + {self.rtol:g} * |value|"


@dataclass(frozen=True)
class Checked:
    """What was compared."""

    batch_sizes: tuple[int, ...]
    """Empty where the inputs have no batch, or one of a fixed size."""
    largest_difference: float
    """Over all elements of all outputs."""


def try_out(module: nn.Module, example: Example) -> None:
    """Run ``forward`` once: of its own mistakes torch's tracer would speak in terms of symbols.

    Raises:
        ModuleError: It fails.
    """
    _expected(module, example, " for the example")


def check(exported: Exported, module: nn.Module, example: Example, tolerance: Tolerance) -> Checked:
    """Compare both for the example and, where the batch may have any size, for one sample and for one more than there are.

    Args:
        module: In eval mode. What ``forward`` changes in it stays changed.

    Raises:
        ModuleError: They differ by more than ``tolerance``, in shape or in type; or the file fails where the module
            doesn't.
    """
    sizes = [] if example.batch_size is None else sorted({1, example.batch_size, example.batch_size + 1})
    largest = 0.0
    for inputs in [example.of_size(size) for size in sizes] or [example]:
        where = f" for a batch of {inputs.batch_size}" if inputs.batch_size is not None else ""
        expected = _expected(module, inputs, where)
        try:
            found = exported(*inputs.copied().tensors)
        except Exception as error:
            raise ModuleError(
                f"the exported {class_name(module)} fails{where}, and the module doesn't.",
                why=f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}.",
                fix="a forward that treats some sizes differently is exported for one of them: dynamic_batch=False.",
            ) from error
        for spec, ours, theirs in zip(exported.manifest.outputs, expected, found, strict=True):
            difference = _compared(spec, ours, theirs, tolerance)
            if isinstance(difference, str):
                raise _differs(module, inputs, f"{difference}{where}", tolerance)
            largest = max(largest, difference)
    return Checked(tuple(sizes), largest)


def _expected(module: nn.Module, inputs: Example, where: str) -> tuple[Tensor, ...]:
    given = inputs.copied()
    try:
        with torch.no_grad():
            results = tree_leaves(module(*given.args, **given.kwargs))
    except Exception as error:
        raise ModuleError(
            f"forward of {class_name(module)} fails{where}.",
            why=f"{reason(error).rstrip('.')}.",
            fix="is the example what forward takes? If it is only this size of the batch: dynamic_batch=False.",
        ) from error
    return tuple(result.clone() for result in results if isinstance(result, Tensor))


def _compared(spec: TensorSpec, ours: Tensor, theirs: Tensor, tolerance: Tolerance) -> float | str:
    """The largest difference; in words, where it is more than ``tolerance``."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        kinds = [f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in (ours, theirs)]
        return f"{spec.name!r} is {kinds[1]} in place of {kinds[0]}"
    if ours.numel() == 0:
        return 0.0
    if ours.dtype.is_floating_point or ours.dtype.is_complex:
        wide = torch.complex128 if ours.dtype.is_complex else torch.float64
        ours, theirs = ours.to(wide), theirs.to(wide)
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # infinities too, whose difference is no number
        differences = torch.where(same, 0.0, (theirs - ours).abs().nan_to_num(nan=torch.inf))
        excess = differences - torch.where(same, 0.0, tolerance.atol + tolerance.rtol * ours.abs())
        beyond = ~same & ~(excess <= 0)
    else:
        beyond = ours != theirs
        differences = (theirs.to(torch.float64) - ours.to(torch.float64)).abs()
    largest = float(differences.max())
    if not beyond.any():
        return largest
    at = int(torch.where(beyond, differences, -1.0).argmax())
    place = [int(index) for index in torch.unravel_index(torch.tensor(at), ours.shape)]
    values = (theirs.flatten()[at].item(), ours.flatten()[at].item())
    return (
        f"{spec.name!r} differs by up to {largest:.3g}, in {int(beyond.sum()):,} of {ours.numel():,} elements: "
        f"at {place} it is {values[0]:.6g} in place of {values[1]:.6g},"
    )


def _differs(module: nn.Module, inputs: Example, what: str, tolerance: Tolerance) -> ModuleError:
    first, second = (_expected(module, inputs, "") for _ in range(2))
    changes = any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))
    name = class_name(module)
    if changes:
        return ModuleError(
            f"the exported {name} computes something else: {what}.",
            why=f"so does {name} itself: called twice with the same inputs, in eval mode, it gives two results.",
            fix="draw random numbers and count calls in training only: if self.training.",
        )
    return ModuleError(
        f"the exported {name} computes something else: {what}.",
        why=f"allowed is {tolerance}. Nothing was written.",
        fix="--atol and --rtol (export(..., atol=, rtol=)) if that is close enough for you; else look for sizes, "
        "numbers and conditions in forward that hold for the example alone.",
    )
