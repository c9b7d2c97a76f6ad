"""What ``lightning.pytorch.cli`` holds: nothing that is here; the command line is ``treadle.cli``."""

from __future__ import annotations

from typing import Any

from treadle.lightning.names import found


def __getattr__(name: str) -> Any:
    return found(__name__, name, {})


def __dir__() -> list[str]:
    return sorted({})
