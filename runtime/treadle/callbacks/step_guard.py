"""Callbacks that decide whether an optimizer step is taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch.optim import Optimizer

if TYPE_CHECKING:
    from treadle.callbacks.base import Callback
    from treadle.module import Module
    from treadle.trainer import Trainer


@runtime_checkable
class GuardsSteps(Protocol):
    """A callback that automatic optimization asks before each step. Those that don't guard cost nothing."""

    @property
    def guards_steps(self) -> bool:
        """Whether it is to be asked. Read once, when a fit starts."""
        ...

    def before_window(self, trainer: Trainer, module: Module) -> None:
        """The first batch of an accumulation window is about to be trained on; of one batch, where nothing accumulates."""
        ...

    def after_backward(self, trainer: Trainer, outputs: Any, batch_idx: int) -> None:
        """A batch was trained on, all its parts.

        Args:
            outputs: What ``training_step`` returned.
        """
        ...

    def allows_step(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> bool:
        """Whether to step on the gradients that there are, those of all ranks, not unscaled and not clipped; else they are
        dropped, and nothing counts a step. Must be the same on all ranks."""
        ...


def guards_among(callbacks: Iterable[Callback]) -> tuple[GuardsSteps, ...]:
    """Those that are to be asked."""
    return tuple(callback for callback in callbacks if isinstance(callback, GuardsSteps) and callback.guards_steps)
