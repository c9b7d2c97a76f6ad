"""A callback from functions, without a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from treadle.callbacks.base import HOOKS, Callback
from treadle.errors import ConfigError, nearest


@final
class LambdaCallback(Callback):
    """Calls a function of yours in a hook::

        LambdaCallback(on_train_epoch_end=lambda trainer, module: print(trainer.current_epoch))

    Args:
        hooks: For any hook of ``Callback`` the function that is called in it, with the arguments that the method has.
            None is no function.

    Raises:
        ConfigError: There is no such hook, or it is given something that can't be called.
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ConfigError(
                    f"LambdaCallback({name}=...): there is no such hook.",
                    why="functions are called in the hooks of treadle.Callback, by their names.",
                    fix=nearest(name, HOOKS),
                )
            if function is None:
                continue
            if not callable(function):
                raise ConfigError(
                    f"LambdaCallback({name}={function!r}).",
                    why=f"{name} calls it, and it can't be called.",
                    fix=f"{name}=lambda trainer, module, *rest: ...",
                )
            setattr(self, name, function)
