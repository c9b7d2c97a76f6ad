"""What ``lightning.fabric`` holds."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import FABRIC, found


def __getattr__(name: str) -> Any:
    return found(__name__, name, FABRIC)


def __dir__() -> list[str]:
    return sorted(FABRIC)
