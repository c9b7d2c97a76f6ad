"""Precisions, and the one place that turns their names into objects."""

from __future__ import annotations

from treadle import plugins
from treadle.errors import ConfigError, nearest
from treadle.precision.base import Precision
from treadle.precision.full import FullPrecision

__all__ = ["FullPrecision", "Precision", "precision_for"]


def precision_for(precision: str | int | Precision) -> Precision:
    """The object behind a name such as ``"32-true"``; an object is returned as it is.

    Raises:
        ConfigError: The name is unknown.
    """
    match str(precision) if isinstance(precision, (str, int)) else precision:
        case "32-true" | "32":
            return FullPrecision()
        case str() as name if (provided := plugins.named("treadle.precision", name)) is not None:
            return precision_for(provided())  # a class or function of an installed package
        case str() as name:
            raise ConfigError(
                f"precision={name!r} is unknown.",
                why="this version trains in full precision only, unless an installed package brings more.",
                fix=nearest(name, ["32-true", *plugins.names("treadle.precision")]),
            )
        case own:
            if isinstance(own, type) or not isinstance(own, Precision):
                raise ConfigError(
                    f"precision={own!r} is neither a name nor an object of one.",
                    why="your own has the methods of treadle.precision.Precision.",
                    fix=nearest(str(own), ["32-true"]),
                )
            return own
