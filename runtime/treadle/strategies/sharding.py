"""Whole tensors from those that lie in parts on several ranks, and back: a checkpoint is the same from any strategy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import isinf
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from treadle.errors import ConfigError, nearest
from treadle.strategies.stored import StoredTensor, read_into, unread

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Tree = TypeVar("Tree")
Key = TypeVar("Key")
StateDictType = Literal["full", "sharded"]
"""How a strategy that shards saves: ``full``, gathered to one file; ``sharded``, each rank its parts, to files of its own."""


@runtime_checkable
class SavesShards(Protocol):
    """A strategy whose ranks may each save their parts."""

    @property
    def state_dict_type(self) -> StateDictType: ...


def saves_shards(strategy: object) -> bool:
    """Whether each rank of ``strategy`` saves its parts, to files of its own."""
    return isinstance(strategy, SavesShards) and strategy.state_dict_type == "sharded"


def state_dict_type_of(value: str) -> StateDictType:
    """
    Raises:
        ConfigError: There is no such way of saving.
    """
    if value not in ("full", "sharded"):
        raise ConfigError(
            f"state_dict_type={value!r}.",
            why="a checkpoint is one file with all tensors whole (full), or each rank writes its parts (sharded).",
            fix=nearest(str(value), ("full", "sharded")),
        )
    return cast(StateDictType, value)


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether ``value`` is a ``DTensor``: one tensor of all ranks. Imports nothing where there can be none."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh") and hasattr(value, "placements")


def whole(tree: Tree, *, keep: bool = True) -> Tree:
    """``tree``, with each sharded tensor in its dicts, lists and tuples whole and on the host, and each stored one read; all
    else is as it was.

    Collective. One tensor at a time is gathered on the device. A rank that has no use for them passes ``keep=False``: it
    takes part, and has an empty tensor in place of each.
    """
    return _mapped(tree, lambda tensor: _whole(tensor, keep), keep)  # type: ignore[no-any-return]


def _whole(tensor: DTensor, keep: bool) -> Tensor:
    from torch.distributed.tensor import Replicate

    tensor = cast("DTensor", tensor.detach())
    placements = list(tensor.placements)
    for dimension in range(len(placements)):  # one after the other: torch warns of several at once
        placements[dimension] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local().to("cpu", copy=True) if keep else torch.empty(0, dtype=tensor.dtype)


def _mapped(value: Any, whole: Any, keep: bool) -> Any:
    if is_sharded(value):
        return whole(value)
    if isinstance(value, StoredTensor):
        return value.whole() if keep else torch.empty(0, dtype=value.dtype)
    if isinstance(value, dict):
        items = unread(value)
        mapped = {key: _mapped(item, whole, keep) for key, item in items.items()}
        if items is value and all(mapped[key] is item for key, item in items.items()):
            return value
        return mapped if type(items) is dict else type(items)(mapped)
    if isinstance(value, (list, tuple)):
        entries = [_mapped(item, whole, keep) for item in value]
        if all(new is old for new, old in zip(entries, value, strict=True)):
            return value
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def part_like(full: Tensor | StoredTensor, like: Tensor) -> Tensor:
    """This rank's part of ``full``, laid out and on the device as ``like``; ``full`` itself where ``like`` isn't sharded.

    Not collective: every rank has ``full``, of which it reads its part.
    """
    if isinstance(full, StoredTensor):
        return parts_like({"": full}, {"": like})[""]  # type: ignore[no-any-return]
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(full.detach(), like.device_mesh, like.placements, src_data_rank=None)
    return part if part.device == like.device else part.to(like.device)


def parts_like(full: dict[Key, Any], like: Mapping[Key, Any]) -> dict[Key, Any]:
    """:func:`part_like` for each tensor of ``full`` that has the shape of its counterpart; all else is as it is, and read
    if it was stored. What is stored is read together, and of it only the parts."""
    parts: dict[Key, Any] = {}
    stored: list[tuple[StoredTensor, Tensor]] = []
    for key, value in unread(full).items():
        fits = isinstance(value, (Tensor, StoredTensor)) and _same_shape(value, like.get(key))
        if isinstance(value, StoredTensor):
            parts[key] = _empty(value, like[key] if fits else None)
            stored.append((value, parts[key]))
        else:
            parts[key] = part_like(value, like[key]) if fits else value
    read_into(stored)
    return parts


def _empty(stored: StoredTensor, like: Tensor | None) -> Tensor:
    if is_sharded(like):
        return torch.empty_like(like.detach(), dtype=stored.dtype, requires_grad=False)
    return torch.empty(stored.shape, dtype=stored.dtype)


def load_full_state(module: nn.Module, state: dict[str, Any], *, strict: bool = True) -> Any:
    """``module.load_state_dict`` from whole tensors, or stored ones, whatever strategy placed ``module``.

    Returns:
        What it returns: the missing and the unexpected keys.

    Raises:
        RuntimeError: As it does, with each missing and unexpected key, and each shape that differs.
        CheckpointError: What is stored is damaged.
    """
    return module.load_state_dict(parts_like(state, module.state_dict()), strict=strict)


def whole_optimizer_state(optimizer: Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """``optimizer.state_dict()`` of whole tensors, on the host where they were sharded. Collective, as :func:`whole`."""
    return whole(optimizer.state_dict(), keep=keep)


def load_whole_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` from whole tensors, or stored ones, whatever strategy placed the parameters. Not
    collective.

    Raises:
        ValueError: As it does: the parameter groups are others.
        CheckpointError: What is stored is damaged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    of_index = dict(zip(saved, parameters, strict=False))  # load_state_dict says which groups differ
    full = {
        (index, key): value
        for index, values in state["state"].items()
        if isinstance(values, dict)
        for key, value in unread(values).items()
    }
    laid = parts_like(full, {at: of_index.get(at[0]) for at in full})
    states = {
        index: (
            {key: _state_part(laid[index, key], of_index.get(index)) for key in values}
            if isinstance(values, dict)
            else values
        )
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})


def _state_part(value: Any, parameter: Tensor | None) -> Any:
    """Moments have the shape of their parameter and lie as it does; what has another (sums over rows) is on every rank."""
    if not isinstance(value, Tensor) or is_sharded(value) or not is_sharded(parameter) or value.dim() == 0:
        return value
    from torch.distributed.tensor import Replicate, distribute_tensor

    replicated = [Replicate() for _ in parameter.placements]
    return distribute_tensor(value, parameter.device_mesh, replicated, src_data_rank=None)


def state_of(value: Any) -> Any:
    """The state of an object that has ``state_dict``, or a value itself."""
    return value.state_dict() if hasattr(value, "state_dict") else value


def whole_state(value: Any, *, keep: bool = True) -> Any:
    """:func:`state_of` ``value``, of whole tensors. Collective, as :func:`whole`."""
    return whole(state_of(value), keep=keep)


def load_whole_state(target: Any, state: Any, *, strict: bool = True) -> None:
    """Give ``target`` what :func:`whole_state` took, whatever strategy placed it."""
    if isinstance(target, nn.Module):
        load_full_state(target, state, strict=strict)
    elif isinstance(target, Optimizer):
        load_whole_optimizer_state(target, state)
    else:
        target.load_state_dict(whole(state))


def _same_shape(value: Tensor | StoredTensor, other: Any) -> bool:
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
        alike[layout].append(local_part(gradient))
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
            alike[parameter.grad.device].append(local_part(parameter.grad))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for device, parts in alike.items():
        torch._foreach_mul_(parts, factor.to(device))


def clip_to_value(parameters: Iterable[Tensor], bound: float) -> None:
    """Bound each element of the gradients of ``parameters`` in place. Does not sync."""
    for parameter in parameters:
        if parameter.grad is not None:
            local_part(parameter.grad).clamp_(-bound, bound)


def local_part(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor.detach()).to_local() if is_sharded(tensor) else tensor
