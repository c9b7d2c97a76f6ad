"""No profiling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import final


@final
class PassThroughProfiler:
    """Notes nothing. It is there so that a module's own spans stay in its code when nobody profiles."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        pass

    def teardown(self, stage: str) -> None:
        pass

    def start(self, name: str) -> None:
        pass

    def stop(self, name: str) -> None:
        pass

    def profile(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def summary(self) -> str:
        return ""
