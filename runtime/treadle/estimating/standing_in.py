"""The Trainer, as a step sees it that is only measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

from torch import Tensor

from treadle.module import Module
from treadle.optim import Optimizers, TrainerOptimizer


@final
class StandIn:
    """What a module finds under ``self.trainer``: the first step of a run on one rank. What else there is to ask is asked
    of the Trainer that the module belongs to, if there is one.

    Args:
        trainer: That Trainer.
        backward: Called with each loss of ``manual_backward``, and what else it was given.
        step: Called with an optimizer and its closure or None.
        keeps_gradients: ``zero_grad`` does nothing.
    """

    current_epoch = global_step = global_rank = local_rank = node_rank = 0
    world_size = num_nodes = num_devices = 1
    is_global_zero = training = True
    sanity_checking = False
    estimated_stepping_batches = 1_000  # of any schedule: no learning rate changes what is counted
    logger = None

    def __init__(
        self,
        trainer: Any,
        *,
        backward: Callable[..., None],
        step: Callable[[Any, Any], Any],
        keeps_gradients: bool,
    ) -> None:
        self._trainer, self._backward, self._step, self._keeps = trainer, backward, step, keeps_gradients
        self.loggers: list[Any] = []
        self.own(Optimizers())

    def own(self, found: Optimizers) -> None:
        """The optimizers are there."""
        self.optimizers = list(found.optimizers)
        self.lr_scheduler_configs = found.schedules
        self.wrapped_optimizers = [TrainerOptimizer(o, index, self) for index, o in enumerate(found.optimizers)]

    @property
    def manual_optimization(self) -> StandIn:
        return self

    def backward(self, loss: Tensor, *arguments: Any, **settings: Any) -> None:
        self._backward(loss, *arguments, **settings)

    def step(self, optimizer: TrainerOptimizer, closure: Callable[[], Any] | None, loss: Tensor | None) -> Any:
        if loss is not None:
            self.zero_grad(optimizer, True)
            self._backward(loss, inputs=list(optimizer.parameters()))
        return self._step(optimizer.optimizer, closure)

    def zero_grad(self, optimizer: TrainerOptimizer, set_to_none: bool) -> None:
        if not self._keeps:
            optimizer.optimizer.zero_grad(set_to_none)

    def toggled(self, optimizer: TrainerOptimizer, sync_grad: bool) -> AbstractContextManager[Any]:
        module: Module = self.module
        return module.toggled_optimizer(optimizer)

    module: Any = None
    """The copy that is measured."""

    def print(self, *values: object, **settings: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if self._trainer is None or name.startswith("__"):
            raise AttributeError(f"self.trainer.{name}: an estimate has no Trainer")
        return getattr(self._trainer, name)


@final
class NoBook:
    """Where ``self.log`` leads: nowhere."""

    def log(self, *arguments: Any) -> None:
        pass
