"""Rhythms: how often something happens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, final

from treadle.errors import ConfigError

Unit = Literal["steps", "epochs", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "second": ("seconds", 1),
    "min": ("seconds", 60),
    "minute": ("seconds", 60),
    "h": ("seconds", 3600),
    "hour": ("seconds", 3600),
}


@final
@dataclass(frozen=True, init=False)
class Every:
    """A rhythm, in words: ``Every("200 steps")``, ``Every("1 epoch")``, ``Every("30 min")``.

    >>> Every("200 steps")
    Every('200 steps')
    >>> Every("1.5 hours").count
    5400.0

    Raises:
        ConfigError: The text is not a positive number and a unit, or half a step was asked for.
    """

    count: float
    """How many of ``unit`` lie between two events; seconds for every unit of time."""
    unit: Unit

    def __init__(self, rhythm: str) -> None:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)?\s*([a-z]+?)s?\s*", rhythm)
        unit, scale = _UNITS.get(match[2] if match else "", (None, 0))
        count = float(match[1] or 1) * scale if match else 0
        if unit is None or count <= 0 or (unit != "seconds" and count != int(count)):
            raise ConfigError(
                f"Every({rhythm!r}) is not a rhythm.",
                why="a rhythm is a positive number and a unit: steps, epochs, s, min or h; steps and epochs are whole.",
                fix='write for example Every("200 steps"), Every("1 epoch") or Every("30 min").',
            )
        object.__setattr__(self, "count", count if unit == "seconds" else int(count))
        object.__setattr__(self, "unit", unit)

    def __repr__(self) -> str:
        unit = self.unit if self.count != 1 else self.unit[:-1]
        return f"Every('{self.count:g} {unit}')"


def parse_duration(value: str | timedelta | Mapping[str, float]) -> timedelta:
    """A length of time in one of its three forms.

    >>> parse_duration("00:01:30:00") == parse_duration({"hours": 1.5}) == timedelta(minutes=90)
    True

    Args:
        value: ``"DD:HH:MM:SS"``, a ``timedelta``, or its arguments by name.

    Raises:
        ConfigError: None of these, or not above zero.
    """
    match value:
        case timedelta():
            duration = value
        case str() if found := re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip()):
            days, hours, minutes, seconds = map(int, found.groups())
            duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        case Mapping():
            try:
                duration = timedelta(**value)
            except TypeError:
                raise _not_a_duration(value) from None
        case _:
            raise _not_a_duration(value)
    if duration <= timedelta():
        raise _not_a_duration(value)
    return duration


def _not_a_duration(value: object) -> ConfigError:
    return ConfigError(
        f"{value!r} is not a length of time.",
        why="it is days, hours, minutes and seconds, and more than none of them.",
        fix='write "00:12:00:00" for twelve hours, timedelta(hours=12), or {"hours": 12}.',
    )
