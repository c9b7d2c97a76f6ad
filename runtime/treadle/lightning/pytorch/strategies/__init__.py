"""What ``lightning.pytorch.strategies`` holds: ``treadle.strategies``."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import found, names_in


def __getattr__(name: str) -> Any:
    return found(__name__, name, names_in("treadle.strategies"))


def __dir__() -> list[str]:
    return sorted(names_in("treadle.strategies"))
