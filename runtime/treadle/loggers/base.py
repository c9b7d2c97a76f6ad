"""What a logger does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable


@runtime_checkable
class Logger(Protocol):
    """Takes rows of metrics. Called on rank 0 only."""

    @property
    def log_dir(self) -> Path | None:
        """The run's folder; None for a logger that writes elsewhere."""
        ...

    def start_run(self) -> None:
        """A fit begins that continues nothing: what it logs is kept apart from what an earlier fit logged."""
        ...

    def resume_in(self, folder: Path) -> None:
        """The run continues in ``folder``, which an earlier process made. Called before anything is logged."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_hyperparams(self, params: Mapping[str, Any]) -> None: ...

    def save(self) -> None:
        """All rows so far are durable when this returns. Called before each checkpoint."""
        ...

    def finalize(self, status: Literal["success", "failed"]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What it takes to drop, in a resumed run, the rows that came after a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
