"""The record of all runs: a line when one begins, a line when it ends."""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, final


@final
class RecordOfRuns:
    """A logger. It keeps the newest of each metric in memory, and writes them when the run ends."""

    def __init__(self) -> None:
        self.path = Path(os.environ.get("ACME_RECORD", "runs/acme-runs.jsonl"))
        self._newest: dict[str, float] = {}
        self._step = 0
        self._running = False

    @property
    def log_dir(self) -> Path | None:
        return None  # its file is of all runs

    def start_run(self) -> None:
        self._begin("begin")

    def resume_in(self, folder: Path) -> None:
        self._begin("resume", folder=str(folder))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._newest.update(metrics)
        self._step = step

    def log_hyperparams(self, params: Mapping[str, Any]) -> None: ...

    def save(self) -> None: ...

    def finalize(self, status: Literal["success", "failed"]) -> None:
        if self._running:
            self._write(event="end", status=status, step=self._step, metrics=self._newest)
        self._running = False

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def _begin(self, event: str, **more: str) -> None:
        self._newest, self._step, self._running = {}, 0, True
        self._write(event=event, user=getpass.getuser(), host=platform.node(), **more)

    def _write(self, **line: object) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": datetime.now(timezone.utc).isoformat(), **line}) + "\n")
