"""One process, one device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

from torch import nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError
from treadle.precision import Precision
from treadle.strategies.base import Share


@final
class SingleDevice:
    """Every parameter on one device; nothing to communicate."""

    name = "single"
    share = Share()
    in_lockstep = False

    def start(self, ranks: Ranks, precision: Precision) -> None:
        if ranks.size > 1:
            raise ConfigError(
                f"strategy='single' with {ranks.size} ranks ({ranks.world.environment}).",
                why="each would train a model of its own.",
                fix='strategy="ddp", or devices=1',
            )
        self._device = ranks.device

    def place(self, module: nn.Module) -> nn.Module:
        return module.to(self._device)

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(module, name)
        return bound

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()
