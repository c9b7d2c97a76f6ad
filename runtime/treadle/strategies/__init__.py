"""Strategies, and the one place that turns their names into objects."""

from __future__ import annotations

import torch

from treadle import plugins
from treadle.errors import ConfigError, nearest
from treadle.strategies.base import Reduction, Strategy
from treadle.strategies.single import SingleDevice

__all__ = ["Reduction", "SingleDevice", "Strategy", "strategy_for"]


def strategy_for(strategy: str | Strategy, device: torch.device) -> Strategy:
    """The object behind a name such as ``"single"``; an object is returned as it is.

    Raises:
        ConfigError: The name is unknown.
    """
    match strategy:
        case "auto" | "single" | "single_device":
            return SingleDevice(device)
        case str() as name if (provided := plugins.named("treadle.strategies", name)) is not None:
            return strategy_for(provided(device), device)  # a class or function of an installed package
        case str() as name:
            raise ConfigError(
                f"strategy={name!r} is unknown.",
                why="this version trains on one device only, unless an installed package brings more.",
                fix=nearest(name, ["auto", "single", *plugins.names("treadle.strategies")]),
            )
        case own:
            if isinstance(own, type) or not isinstance(own, Strategy):
                raise ConfigError(
                    f"strategy={own!r} is neither a name nor an object of one.",
                    why="your own has the methods of treadle.strategies.Strategy.",
                    fix=nearest(str(own), ["auto", "single"]),
                )
            return own
