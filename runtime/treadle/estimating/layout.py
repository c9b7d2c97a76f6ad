"""How weights, gradients and optimizer state are divided among ranks."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import TYPE_CHECKING, Any

from treadle.errors import ConfigError
from treadle.strategies import SingleDevice, strategy_for

if TYPE_CHECKING:
    from treadle.strategies import FSDP, Mesh, Strategy
    from treadle.strategies.wrapping import Classes, Policy


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh of ``data`` x ``shard`` x ``tensor`` ranks.

    Raises:
        ConfigError: A dimension is less than 1.
    """

    name: str = "mesh"
    """The strategy, as users write it."""
    data: int = 1
    """Ranks that hold the same."""
    shard: int = 1
    """Ranks that each hold a part of the first dimension of every parameter, as FSDP does."""
    tensor: int = 1
    """Ranks that each compute a part of the layers in ``plan``."""
    plan: tuple[str, ...] = ()
    """Names of the layers that ``tensor`` divides; ``*`` stands for anything."""
    wrap: Classes | None = None
    """As for FSDP: the layers whose weights are gathered together."""
    activation_checkpointing: Classes | bool | Policy | None = None
    """As for FSDP: the layers that compute their activations again."""
    offloaded: bool = False
    """Weights, gradients and optimizer state lie on the host between their uses."""

    def __post_init__(self) -> None:
        for name, size in {"data": self.data, "shard": self.shard, "tensor": self.tensor}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(
                    f"a mesh with {name}={size!r}.", why="each dimension is a number of ranks.", fix=f"{name}=1"
                )

    @property
    def ranks(self) -> int:
        return self.data * self.shard * self.tensor

    @property
    def keeps_gradients(self) -> bool:
        """Their memory stays from step to step: with DDP they are views of its buckets."""
        return self.data > 1 and self.shard == 1

    def kept(self, name: str, shape: tuple[int, ...]) -> float:
        """The part of a parameter that lies on the rank with the most of it.

        >>> Layout(shard=4).kept("layer.weight", (10, 8))
        0.3
        >>> Layout(shard=2, tensor=2, plan=("blocks.*.up",)).kept("blocks.0.up.weight", (10, 8))
        0.25
        """
        part = 1.0 / (self.tensor if self.divides(name) else 1)
        if self.shard > 1 and shape and shape[0]:
            part *= ceil(shape[0] / self.shard) / shape[0]
        return part

    def divides(self, name: str) -> bool:
        """Whether the tensor dimension divides the parameter ``name``."""
        layer = name.rpartition(".")[0]
        return self.tensor > 1 and any(fnmatchcase(layer, pattern) for pattern in self.plan)


def layout_of(strategy: str | Strategy | Layout, ranks: int) -> Layout:
    """How ``strategy`` divides on ``ranks`` ranks.

    Raises:
        ConfigError: It doesn't fit that many, or nobody can say how it divides.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise ConfigError(f"ranks={ranks!r}.", why="a run has at least one rank.", fix="ranks=1")
    layout = strategy if isinstance(strategy, Layout) else _layout_of(strategy, ranks)
    if layout.ranks == ranks:
        return layout
    if layout.name == "single":
        raise ConfigError(
            f"strategy='single' with {ranks} ranks.", why="each would train a model of its own.", fix='strategy="ddp"'
        )
    raise ConfigError(
        f"a mesh of {layout.data} x {layout.shard} x {layout.tensor} (data x shard x tensor) on {ranks} ranks.",
        why=f"that is a mesh of {layout.ranks}.",
        fix=f"ranks={layout.ranks}",
    )


def _layout_of(strategy: str | Strategy, ranks: int) -> Layout:
    from treadle.strategies.fsdp import FSDP
    from treadle.strategies.mesh import Mesh, sizes_for

    chosen = strategy_for(strategy, ranks)
    if isinstance(chosen, Mesh):
        data, shard, tensor = sizes_for(chosen.sizes, ranks)
        plan = tuple(name for name, style in chosen.plan.items() if style != "sequence")  # which divides no weights
        return Layout(data=data, shard=shard, tensor=tensor, plan=plan, **_sharding(chosen))
    if isinstance(chosen, FSDP):
        return Layout(name=chosen.name, shard=ranks, **_sharding(chosen))
    if isinstance(chosen, SingleDevice):
        return Layout(name=chosen.name)
    if chosen.name == "ddp":
        return Layout(name=chosen.name, data=ranks)
    raise ConfigError(
        f"strategy={strategy!r}: how it divides weights among ranks is not known.",
        why="estimates are of single, ddp, fsdp and a mesh.",
        fix="strategy=treadle.estimating.Layout(data=2, shard=4), with the sizes that it has.",
    )


def _sharding(strategy: FSDP | Mesh) -> dict[str, Any]:
    settings = strategy._sharder
    return {
        "wrap": settings.wrap,
        "activation_checkpointing": settings.activation_checkpointing,
        "offloaded": settings.cpu_offload,
    }
