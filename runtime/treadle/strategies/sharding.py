"""Whole tensors from those that lie in parts on several ranks, and back: a checkpoint is the same from any strategy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import isinf
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Tree = TypeVar("Tree")


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether ``value`` is a ``DTensor``: one tensor of all ranks. Imports nothing where there can be none."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh") and hasattr(value, "placements")


def whole(tree: Tree, *, keep: bool = True) -> Tree:
    """``tree``, with each sharded tensor in its dicts, lists and tuples whole and on the host; all else is as it was.

    Collective. One tensor at a time is gathered on the device. A rank that has no use for them passes ``keep=False``: it
    takes part, and has an empty tensor in place of each.
    """
    return _mapped(tree, lambda tensor: _whole(tensor, keep))  # type: ignore[no-any-return]


def _whole(tensor: DTensor, keep: bool) -> Tensor:
    from torch.distributed.tensor import Replicate

    tensor = cast("DTensor", tensor.detach())
    placements = list(tensor.placements)
    for dimension in range(len(placements)):  # one after the other: torch warns of several at once
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local().to("cpu", copy=True) if keep else torch.empty(0, dtype=tensor.dtype)


def _mapped(value: Any, whole: Any) -> Any:
    if is_sharded(value):
        return whole(value)
    if isinstance(value, dict):
        mapped = {key: _mapped(item, whole) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(mapped)
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, whole) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def part_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``full``, laid out and on the device as ``like``; ``full`` itself where ``like`` isn't sharded.

    Not collective: every rank has ``full``, of which it reads its part.
    """
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(full.detach(), like.device_mesh, like.placements, src_data_rank=None)
    return part if part.device == like.device else part.to(like.device)


def load_full_state(module: nn.Module, state: dict[str, Any], *, strict: bool = True) -> Any:
    """``module.load_state_dict`` from whole tensors, whatever strategy placed ``module``.

    Returns:
        What it returns: the missing and the unexpected keys.

    Raises:
        RuntimeError: As it does, with each missing and unexpected key, and each shape that differs.
    """
    own = module.state_dict()
    parts = {
        key: part_like(value, own[key]) if isinstance(value, Tensor) and _same_shape(value, own.get(key)) else value
        for key, value in state.items()
    }
    return module.load_state_dict(parts, strict=strict)


def whole_optimizer_state(optimizer: Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """``optimizer.state_dict()`` of whole tensors, on the host where they were sharded. Collective, as :func:`whole`."""
    return whole(optimizer.state_dict(), keep=keep)


def load_whole_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` from whole tensors, whatever strategy placed the parameters. Not collective.

    Raises:
        ValueError: As it does: the parameter groups are others.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    of_index = dict(zip(saved, parameters, strict=False))  # load_state_dict says which groups differ
    parts = {
        index: (
            {key: _state_part(value, of_index.get(index)) for key, value in values.items()}
            if isinstance(values, dict)
            else values
        )
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _state_part(value: Any, parameter: Tensor | None) -> Any:
    """Moments have the shape of their parameter and lie as it does; what has another (sums over rows) is on every rank."""
    if not isinstance(value, Tensor) or not is_sharded(parameter) or value.dim() == 0:
        return value
    if _same_shape(value, parameter):
        return part_like(value, parameter)
    from torch.distributed.tensor import Replicate, distribute_tensor

    replicated = [Replicate() for _ in parameter.placements]
    return distribute_tensor(value, parameter.device_mesh, replicated, src_data_rank=None)


def whole_state(value: Any, *, keep: bool = True) -> Any:
    """The state of an object that has ``state_dict``, or a value itself, of whole tensors. Collective, as :func:`whole`."""
    return whole(value.state_dict() if hasattr(value, "state_dict") else value, keep=keep)


def load_whole_state(target: Any, state: Any, *, strict: bool = True) -> None:
    """Give ``target`` what :func:`whole_state` took, whatever strategy placed it."""
    if isinstance(target, nn.Module):
        load_full_state(target, state, strict=strict)
    elif isinstance(target, Optimizer):
        load_whole_optimizer_state(target, state)
    else:
        target.load_state_dict(state)


def _same_shape(value: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and value.shape == other.shape


def total_norm(gradients: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The joint norm of ``gradients``, shape ``()``: a plain tensor, the same on every rank. Collective if some are
    sharded.

    torch's own stops at tensors of several meshes, as a tensor parallel module has, and calls one operation for each.
    """
    from torch.nn.utils import get_total_norm

    alike: dict[tuple[DeviceMesh, tuple[Placement, ...]] | None, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        layout = (gradient.device_mesh, tuple(gradient.placements)) if is_sharded(gradient) else None
        alike[layout].append(_local(gradient))
    norms = []
    for layout, parts in alike.items():
        norm = get_total_norm([part for part in parts if part.numel()] or [parts[0].new_zeros(1)], norm_type)
        norms.append(norm if layout is None else _over_parts(norm, *layout, norm_type))
    if len(norms) == 1:
        return norms[0]
    return get_total_norm([norm.to(norms[0].device) for norm in norms], norm_type)


def _over_parts(norm: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...], norm_type: float) -> Tensor:
    """The norm of what lies in parts along some dimensions of ``mesh``, from that of this rank's part."""
    import torch.distributed as dist

    largest = isinf(norm_type)
    total = norm.float() if norm.dtype.itemsize < 4 else norm.clone()
    total = total if largest else total**norm_type
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=mesh.get_group(dimension))
    return total if largest else total ** (1 / norm_type)


def clip_to_norm(parameters: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients of ``parameters`` in place, so that their joint norm, which is ``norm``, is at most
    ``max_norm``. Does not sync."""
    alike: dict[torch.device, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            alike[parameter.grad.device].append(_local(parameter.grad))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for device, parts in alike.items():
        torch._foreach_mul_(parts, factor.to(device))


def clip_to_value(parameters: Iterable[Tensor], bound: float) -> None:
    """Bound each element of the gradients of ``parameters`` in place. Does not sync."""
    for parameter in parameters:
        if parameter.grad is not None:
            _local(parameter.grad).clamp_(-bound, bound)


def _local(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor.detach()).to_local() if is_sharded(tensor) else tensor
