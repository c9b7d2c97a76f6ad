"""Profilers: where the time of a run goes. One file each, and the one place that turns their names into objects."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from treadle.errors import ConfigError, nearest
from treadle.profilers.base import BATCH_ACTIONS, Profiler
from treadle.profilers.passthrough import PassThroughProfiler

if TYPE_CHECKING:
    from treadle.profilers.advanced import AdvancedProfiler
    from treadle.profilers.pytorch import PyTorchProfiler
    from treadle.profilers.simple import SimpleProfiler

__all__ = [
    "BATCH_ACTIONS",
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "SimpleProfiler",
    "profiler_for",
]

_HOMES = {"AdvancedProfiler": "advanced", "PyTorchProfiler": "pytorch", "SimpleProfiler": "simple"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"treadle.profilers.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this release has {', '.join(__all__)}")


def profiler_for(profiler: str | Profiler | None) -> Profiler | None:
    """The object behind ``"simple"``, ``"advanced"`` or ``"pytorch"``; an object is returned as it is.

    Raises:
        ConfigError: The name is unknown, or the object is no profiler.
    """
    known = ["simple", "advanced", "pytorch"]
    match profiler:
        case None:
            return None
        case "simple":
            from treadle.profilers.simple import SimpleProfiler

            return SimpleProfiler()
        case "advanced":
            from treadle.profilers.advanced import AdvancedProfiler

            return AdvancedProfiler()
        case "pytorch":
            from treadle.profilers.pytorch import PyTorchProfiler

            return PyTorchProfiler()
        case str() as name:
            raise ConfigError(
                f"profiler={name!r} is unknown.",
                why=f"known profilers are {', '.join(known)}, or an object of your own.",
                fix=nearest(name, known),
            )
        case own:
            if isinstance(own, type) or not isinstance(own, Profiler):
                raise ConfigError(
                    f"profiler={own!r} is neither a name nor an object of a profiler.",
                    why="a profiler has the methods of treadle.profilers.Profiler.",
                    fix=f"profiler={own.__name__}()" if isinstance(own, type) else 'profiler="simple"',
                )
            return own
