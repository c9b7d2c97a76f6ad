"""What ``lightning.pytorch.utilities`` holds: little that is here."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import UTILITIES, found


def __getattr__(name: str) -> Any:
    return found(__name__, name, UTILITIES)


def __dir__() -> list[str]:
    return sorted(UTILITIES)
