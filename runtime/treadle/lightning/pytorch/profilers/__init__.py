"""What ``lightning.pytorch.profilers`` holds: ``treadle.profilers``."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import found, names_in


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for a star import
        return sorted(names_in("treadle.profilers"))
    return found(__name__, name, names_in("treadle.profilers"))


def __dir__() -> list[str]:
    return sorted(names_in("treadle.profilers"))
