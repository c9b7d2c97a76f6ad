"""Hooks, resolved once: from their names to tuples of what is to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.callbacks.base import HOOKS, Callback
from treadle.metrics import Logbook, scope_of
from treadle.module import Module, overrides

if TYPE_CHECKING:
    from treadle.profilers import Profiler
    from treadle.trainer import Trainer

Listeners = tuple[Callable[..., Any], ...]


class Hooks(dict[str, Listeners]):
    """For each hook what is to be called, callbacks first, then the module; what nobody overrides is empty.

    Callbacks' listeners are bound to the trainer and the module, so that a loop calls all of them alike.
    """

    @classmethod
    def of(
        cls, trainer: Trainer, callbacks: Sequence[Callback], module: Module, profiler: Profiler | None = None
    ) -> Hooks:
        return cls({name: _listeners(name, trainer, callbacks, module, profiler) for name in HOOKS})

    def call(self, book: Logbook | None, name: str, *arguments: Any) -> None:
        """Call every listener of ``name``; what they log goes to ``book``."""
        if listeners := self[name]:
            if book is not None:
                book.scope = scope_of(name)
            for listener in listeners:
                listener(*arguments)


def _listeners(
    name: str, trainer: Trainer, callbacks: Sequence[Callback], module: Module, profiler: Profiler | None
) -> Listeners:
    places = 3 if name.endswith("_batch_start") else 4 if name.endswith("_batch_end") else 0
    places = 0 if name.startswith("on_train_") else places

    def ready(listener: Callable[..., Any], owner: object, kind: str) -> Callable[..., Any]:
        if places:
            listener = _with_loader(listener, places)
        return listener if profiler is None else profiled(profiler, f"[{kind}]{type(owner).__name__}.{name}", listener)

    def bound(chosen: Iterable[Callback]) -> list[Callable[..., Any]]:
        return [
            ready(partial(getattr(c, name), trainer, module), c, "Callback")
            for c in chosen
            if overrides(c, name, Callback)
        ]

    own = [ready(getattr(module, name), module, "Module")] if overrides(module, name) else []
    if name == "on_train_epoch_end":
        early = [c for c in callbacks if not c.after_module]
        return (*bound(early), *own, *bound(c for c in callbacks if c.after_module))
    return (*bound(callbacks), *own)


def profiled(profiler: Profiler, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` under the eyes of a profiler."""

    def timed(*arguments: Any) -> Any:
        with profiler.profile(name):
            return function(*arguments)

    return timed


def _with_loader(listener: Callable[..., Any], places: int) -> Callable[..., Any]:
    """``listener`` of an evaluation's batch, which may leave out its last argument, the index of the loader."""
    parameters = inspect.signature(listener).parameters.values()
    taken = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if taken >= places or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return listener
    return lambda *arguments: listener(*arguments[:-1])
