"""What a strategy decides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from treadle.collectives import Ranks
from treadle.precision import Precision

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Share:
    """Which part of the data a rank reads: batches ``index``, ``index + count``, ... of the loader's."""

    index: int = 0
    count: int = 1
    group: ProcessGroup | None = None
    """The ranks that read the others; None: all."""


@runtime_checkable
class Strategy(Protocol):
    """Where parameters live and how gradients meet. One file per strategy; every method is collective: all ranks call
    it. An object of one holds its settings until ``start``."""

    @property
    def name(self) -> str:
        """As users write it: ``"ddp"``."""
        ...

    @property
    def share(self) -> Share:
        """The part of the data that this rank reads. Gradients are the mean over all parts."""
        ...

    @property
    def in_lockstep(self) -> bool:
        """A forward pass communicates, so that all ranks must run equally many, in evaluation too."""
        ...

    def start(self, ranks: Ranks, precision: Precision) -> None:
        """The ranks have met. Called before anything is placed, and again with those of another run.

        Raises:
            ConfigError: The settings don't fit the number of ranks.
        """
        ...

    def place(self, module: nn.Module) -> nn.Module:
        """Move, wrap or shard ``module``, the same weights on all ranks; what comes back is called, and ``module``'s own
        parameters go to the optimizers."""
        ...

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """``module.name`` of a module that was placed, called so that gradients meet in the backward pass after it."""
        ...

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Around a forward and a backward pass that only accumulates on this rank."""
        ...


@runtime_checkable
class PreparesBackward(Protocol):
    """A strategy that must be told of a backward pass inside of a step (manual optimization)."""

    def before_backward(self, loss: Tensor) -> None: ...


@runtime_checkable
class FollowsFreezing(Protocol):
    """A strategy that must be told when other parameters are trained than before."""

    def refresh(self, module: nn.Module) -> None: ...
