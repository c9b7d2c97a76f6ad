"""Strategies, and the one place that turns their names into objects."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from treadle import plugins
from treadle.collectives import Reduction
from treadle.errors import ConfigError, nearest
from treadle.strategies.base import FollowsFreezing, PreparesBackward, Share, Strategy
from treadle.strategies.single import SingleDevice

if TYPE_CHECKING:
    from treadle.strategies.ddp import DDP
    from treadle.strategies.fsdp import FSDP
    from treadle.strategies.mesh import Mesh

__all__ = [
    "DDP",
    "FSDP",
    "FollowsFreezing",
    "Mesh",
    "PreparesBackward",
    "Reduction",
    "Share",
    "SingleDevice",
    "Strategy",
    "strategy_for",
]

NAMES = ("auto", "single", "ddp", "ddp_find_unused_parameters_true", "fsdp", "fsdp_cpu_offload", "mesh")
STARTS = {"ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
"""Names that also say how the ranks are started."""
_HOMES = {"DDP": "ddp", "FSDP": "fsdp", "Mesh": "mesh"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # each imports the part of torch that it builds on when it is used
        return getattr(importlib.import_module(f"treadle.strategies.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")


def strategy_for(strategy: str | Strategy, size: int) -> Strategy:
    """The object behind a name such as ``"ddp"``, for ``size`` ranks; an object is returned as it is.

    Raises:
        ConfigError: The name is unknown.
    """
    match strategy:
        case "auto":
            return strategy_for("ddp" if size > 1 else "single", size)
        case "single" | "single_device":
            return SingleDevice()
        case "ddp" | "ddp_spawn" | "ddp_fork" | "ddp_notebook":
            from treadle.strategies.ddp import DDP

            return DDP()
        case "ddp_find_unused_parameters_true":
            from treadle.strategies.ddp import DDP

            return DDP(find_unused_parameters=True)
        case "fsdp" | "fsdp_cpu_offload":
            from treadle.strategies.fsdp import FSDP

            return FSDP(cpu_offload=strategy == "fsdp_cpu_offload")
        case "mesh":
            raise ConfigError(
                'strategy="mesh" says nothing of its dimensions.',
                why="a mesh is data x shard x tensor ranks.",
                fix="strategy=treadle.strategies.Mesh(data=2, shard=2), in a config class_path and init_args.",
            )
        case str() as name if (provided := plugins.named("treadle.strategies", name)) is not None:
            return strategy_for(provided(), size)  # a class or function of an installed package
        case str() as name:
            known = [*NAMES, *STARTS, *plugins.names("treadle.strategies")]
            raise ConfigError(
                f"strategy={name!r} is unknown.",
                why=f"known strategies are {', '.join(known)}.",
                fix=nearest(name, known),
            )
        case own:
            if isinstance(own, type) or not isinstance(own, Strategy):
                raise ConfigError(
                    f"strategy={own!r} is neither a name nor an object of one.",
                    why="your own has the methods of treadle.strategies.Strategy.",
                    fix=nearest(str(own), NAMES),
                )
            return own
