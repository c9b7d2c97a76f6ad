"""Ranks in a grid: data x shard x tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast, final

from torch import nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError, nearest
from treadle.precision import Precision
from treadle.strategies.base import Share
from treadle.strategies.fsdp import Sharder
from treadle.strategies.sharding import StateDictType, state_dict_type_of
from treadle.strategies.wrapping import Classes, Policy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle

DIMENSIONS = ("data", "shard", "tensor")
Size = int | Literal["auto"]
Style = Literal["colwise", "colwise_gather", "rowwise", "sequence"]
STYLES: tuple[Style, ...] = ("colwise", "colwise_gather", "rowwise", "sequence")


@final
class Mesh:
    """``data`` x ``shard`` x ``tensor`` ranks: every ``shard`` ranks hold the weights in parts (FSDP), ``data`` times over
    (HSDP); each part is split over ``tensor`` ranks, which compute their part of a layer on the same batch.

    Args:
        data: Replicas of the weights. One of the three may be ``"auto"`` or -1: what the others leave of the ranks.
        shard: Ranks that hold a replica in parts.
        tensor: Ranks that split layers; best those of one node.
        plan: How, by the submodules' names or patterns of them; the first that matches counts::

                {"blocks.*.attention.[qkv]": "colwise", "blocks.*.attention.out": "rowwise", "head": "colwise_gather"}

            ``colwise``: each rank has some of the outputs; ``colwise_gather``: and they are put together; ``rowwise``:
            each has some of the inputs, as ``colwise`` leaves them, and the outputs are added up; ``sequence``: a norm
            whose input is split along dimension 1. Or an object of ``torch.distributed.tensor.parallel.ParallelStyle``.
            A module that reshapes to heads must leave their number to -1: a rank has its part of them.
        wrap, reshard_after_forward, cpu_offload, activation_checkpointing, state_dict_type: As for
            :class:`~treadle.strategies.FSDP`.

    Raises:
        ConfigError: A size is none; several are ``"auto"``; a style is unknown; so is the ``state_dict_type``.
    """

    name = "mesh"
    in_lockstep = True

    def __init__(
        self,
        *,
        data: Size = 1,
        shard: Size = 1,
        tensor: Size = 1,
        plan: Mapping[str, Style | ParallelStyle] | None = None,
        wrap: Classes | None = None,
        reshard_after_forward: bool | int = True,
        cpu_offload: bool = False,
        activation_checkpointing: bool | Classes | Policy | None = None,
        state_dict_type: StateDictType = "full",
    ) -> None:
        self.sizes: dict[str, Size] = {"data": data, "shard": shard, "tensor": tensor}
        self.plan = dict(plan or {})
        self.share = Share()
        self.state_dict_type = state_dict_type_of(state_dict_type)
        self._check()
        self._sharder = Sharder(
            wrap=wrap,
            reshard_after_forward=reshard_after_forward,
            cpu_offload=cpu_offload,
            activation_checkpointing=activation_checkpointing,
        )
        self._mesh: DeviceMesh | None = None
        self._group: object = None

    def _check(self) -> None:
        for name, size in self.sizes.items():
            if size not in ("auto", -1) and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ConfigError(
                    f"{name}={size!r} is no number of ranks.",
                    why="each dimension of the mesh has one rank or more.",
                    fix=f"{name}=1, or 'auto' for what the others leave.",
                )
        if len(left := [name for name, size in self.sizes.items() if size in ("auto", -1)]) > 1:
            raise ConfigError(
                f"{' and '.join(left)} are both 'auto'.",
                why="only one can be what the others leave of the ranks.",
                fix=f"{left[0]}=1",
            )
        for pattern, style in self.plan.items():
            if isinstance(style, str) and style not in STYLES:
                raise ConfigError(
                    f"plan: {pattern!r} has the style {style!r}.",
                    why=f"there are {', '.join(STYLES)}, and torch's ParallelStyle objects.",
                    fix=nearest(style, STYLES),
                )

    def start(self, ranks: Ranks, precision: Precision) -> None:
        data, shard, tensor = sizes = sizes_for(self.sizes, ranks.size)
        if tensor > 1 and not self.plan:
            raise ConfigError(
                f"tensor={tensor} without a plan.",
                why="only the module's author knows which of its layers can be split.",
                fix="plan={'blocks.*.up': 'colwise', 'blocks.*.down': 'rowwise'}, or tensor=1",
            )
        mesh = self._made(ranks.device.type, sizes)
        index = ranks.rank // tensor
        # Ranks of one tensor index read different data; of one data and shard index, the same.
        self.share = Share(index, data * shard, self._sharing.get_group() if tensor > 1 else None)
        self._tensor = tensor
        self._sharder.start(ranks, precision, mesh["data", "shard"] if data > 1 else mesh["shard"])

    def _made(self, device: str, sizes: tuple[int, int, int]) -> DeviceMesh:
        """Two meshes of the same ranks are different to torch: one for as long as the process group is open."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        if self._mesh is None or self._group is not dist.group.WORLD or self._mesh.shape != sizes:
            self._mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
            self._sharing = self._mesh["data", "shard"]._flatten("data_shard")
            self._group = dist.group.WORLD
        return self._mesh

    def place(self, module: nn.Module) -> nn.Module:
        """Returns ``module``.

        Raises:
            ConfigError: As FSDP's; the plan names what is not in it, or can't be split.
        """
        styles = planned(module, self.plan)

        def split(submodule: nn.Module, name: str) -> None:
            if submodule in styles:
                _parallelize(submodule, name, styles[submodule], cast("DeviceMesh", self._mesh)["tensor"])

        return self._sharder.place(module, self.name, split if self._tensor > 1 else None, (self._tensor, self.plan))

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        return self._sharder.method(module, name)

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients accumulate whole, and ``parameter.grad`` stays None until a pass outside."""
        return self._sharder.local_gradients(module)


def sizes_for(sizes: Mapping[str, Size], ranks: int) -> tuple[int, int, int]:
    """How many ranks each dimension has, of ``ranks``.

    Raises:
        ConfigError: They don't multiply to it.
    """
    known = {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}
    product = prod(known.values())
    found = {name: known.get(name, ranks // product) for name in DIMENSIONS}
    if prod(found.values()) == ranks:
        return found["data"], found["shard"], found["tensor"]
    asked = " x ".join(f"{name}={sizes[name]}" for name in DIMENSIONS)
    raise ConfigError(
        f"a mesh of {asked} on {ranks} ranks.",
        why=f"the three multiply to the number of ranks; these make {product}"
        + ("." if len(known) == len(DIMENSIONS) else f", of which {ranks} is no multiple."),
        fix=_fitting(found, ranks),
    )


def _fitting(sizes: Mapping[str, int], ranks: int) -> str:
    """One dimension changed, or ``tensor`` as near as it can be and the rest sharded."""
    for name in ("shard", "data", "tensor"):
        others = prod(size for other, size in sizes.items() if other != name)
        if others and ranks % others == 0:
            return f"{name}={ranks // others}"
    tensor = max(size for size in range(1, max(sizes["tensor"], 1) + 1) if ranks % size == 0)
    return f"data=1, shard={ranks // tensor}, tensor={tensor}"


def planned(module: nn.Module, plan: Mapping[str, Style | ParallelStyle]) -> dict[nn.Module, Style | ParallelStyle]:
    """The submodules that ``plan`` names, each with its style.

    Raises:
        ConfigError: A pattern names none, or one that the style can't split.
    """
    names = {name: submodule for name, submodule in module.named_modules() if name}
    found: dict[nn.Module, Style | ParallelStyle] = {}
    for pattern, style in plan.items():
        matching = {name: sub for name, sub in names.items() if fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(
                f"plan: {pattern!r} names no submodule of {type(module).__name__}.",
                why="it is a name as in module.named_modules(), or a pattern of them.",
                fix=nearest(
                    pattern, [name for name, sub in names.items() if isinstance(sub, (nn.Linear, nn.Embedding))]
                ),
            )
        for name, submodule in matching.items():
            if style in ("colwise", "colwise_gather", "rowwise") and not isinstance(
                submodule, (nn.Linear, nn.Embedding)
            ):
                within = [other for other, sub in names.items() if isinstance(sub, nn.Linear)]
                raise ConfigError(
                    f"plan: {name} is a {type(submodule).__name__}, and {style!r} splits Linear and Embedding.",
                    why="only of these is it known along which dimension.",
                    fix=nearest(name, within) if within else "leave it out of the plan.",
                )
            found.setdefault(submodule, style)
    return found


def _parallelize(module: nn.Module, name: str, style: Style | ParallelStyle, mesh: DeviceMesh) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    if style in ("colwise", "colwise_gather", "rowwise"):
        rows, columns = cast(nn.Linear | nn.Embedding, module).weight.shape
        # A Linear's weight is (outputs, inputs), an Embedding's (inputs, outputs).
        by_rows = isinstance(module, nn.Linear) == (style != "rowwise")
        if (length := rows if by_rows else columns) % mesh.size():
            raise ConfigError(
                f"plan: {name} is {style}, and its {length} features don't divide by tensor={mesh.size()}.",
                why="each rank has as many of them.",
                fix=f"a multiple of {mesh.size()}, or another number of tensor ranks.",
            )
    parallelize_module(module, mesh, _style(style, module), src_data_rank=None)  # every rank has the same weights


def _style(style: Style | ParallelStyle, module: nn.Module) -> ParallelStyle:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    match style:
        case "colwise":
            return ColwiseParallel()
        case "colwise_gather":
            return ColwiseParallel(output_layouts=Replicate())
        case "rowwise" if isinstance(module, nn.Embedding):
            return RowwiseParallel(input_layouts=Replicate())  # tokens, of which every rank has all
        case "rowwise":
            return RowwiseParallel()
        case "sequence":
            return SequenceParallel()
        case own:
            return own
