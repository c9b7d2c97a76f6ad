"""What ``lightning.pytorch.loggers`` holds: ``treadle.loggers``."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import found, names_in


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for a star import
        return sorted(names_in("treadle.loggers"))
    return found(__name__, name, names_in("treadle.loggers"))


def __dir__() -> list[str]:
    return sorted(names_in("treadle.loggers"))
