"""Accumulate gradients over another number of batches as training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer


@final
class GradientAccumulationScheduler(Callback):
    """Changes ``accumulate_grad_batches`` at the start of given epochs::

        GradientAccumulationScheduler({4: 2, 8: 4})  # 1 batch a step, from epoch 4 on 2, from epoch 8 on 4

    Args:
        scheduling: From which epoch on, counted from 0, over how many batches.

    Raises:
        ConfigError: Not epochs and numbers of batches; while fitting, a Trainer that has another number itself.
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not isinstance(scheduling, Mapping) or not scheduling:
            raise _not_a_schedule(scheduling, "it maps epochs to numbers of batches.")
        for epoch, batches in scheduling.items():
            if not _whole(epoch, at_least=0):
                raise _not_a_schedule(scheduling, f"{epoch!r} is not an epoch: they are counted from 0.")
            if not _whole(batches, at_least=1):
                raise _not_a_schedule(scheduling, f"{batches!r} is not a number of batches: a step takes one or more.")
        self.scheduling = {0: 1, **scheduling}
        self._applies = False

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Over how many batches gradients are accumulated in ``epoch``."""
        return self.scheduling[max(start for start in self.scheduling if start <= epoch)]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"GradientAccumulationScheduler with Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}).",
                why="both say over how many batches gradients are accumulated.",
                fix=f"GradientAccumulationScheduler({{0: {trainer.accumulate_grad_batches}, ...}}), and leave the other out.",
            )
        self._applies = True
        # Known to configure_optimizers too, for schedules over all steps of the run.
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(0)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._applies:
            trainer.accumulate_grad_batches, self._applies = 1, False


def _whole(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _not_a_schedule(scheduling: object, why: str) -> ConfigError:
    return ConfigError(
        f"GradientAccumulationScheduler({scheduling!r}).", why=why, fix="GradientAccumulationScheduler({0: 1, 4: 2})"
    )
