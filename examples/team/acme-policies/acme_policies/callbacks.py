"""Two rules: one for the numbers, one for the time."""

from __future__ import annotations

from typing import Any, final

from treadle.callbacks import Callback, Timer
from treadle.errors import ConfigError
from treadle.module import Module
from treadle.trainer import Trainer

FORBIDDEN = "16-true"
HOURS = 24


@final
class AllowedPrecision(Callback):
    """Refuses a run before it begins."""

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit" and trainer.fabric.precision.name == FORBIDDEN:
            raise ConfigError(
                f"Acme does not train in {FORBIDDEN}.",
                why="weights in float16 lose the small updates at the end of a run.",
                fix="precision=16-mixed or bf16-true",
            )


@final
class TimeLimit(Callback):
    """Ends a fit after a day of training, what its predecessors trained included.

    It holds a Timer instead of being one, so that a project may use ``max_time``, which is a Timer too.
    """

    def __init__(self, hours: float = HOURS) -> None:
        self._timer = Timer({"hours": hours})

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._timer.setup(trainer, module, stage)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._timer.on_train_start(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._timer.on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._timer.on_train_epoch_end(trainer, module)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._timer.on_train_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return self._timer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._timer.load_state_dict(state)
