"""Hooks, resolved once: from their names to tuples of what is to be called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.callbacks.base import HOOKS, Callback
from treadle.errors import ModuleError
from treadle.metrics import Logbook, scope_of
from treadle.module import Module, overrides

if TYPE_CHECKING:
    from treadle.profilers import Profiler
    from treadle.trainer import Trainer

FOREIGN = {
    **{f"{stage}_epoch_end": f"rename it to on_{stage}_epoch_end." for stage in ("validation", "test")},
    "training_epoch_end": "rename it to on_train_epoch_end.",
    **{f"{stage}_step_end": f"do it at the end of {stage}_step." for stage in ("training", "validation", "test")},
    "on_epoch_start": "rename it to on_train_epoch_start.",
    "on_epoch_end": "rename it to on_train_epoch_end.",
    "tbptt_split_batch": "split the batch in training_step, with manual optimization.",
}
"""Methods that PyTorch Lightning calls, or once called, and treadle doesn't, and what to do instead."""

Listeners = tuple[Callable[..., Any], ...]


class Hooks(dict[str, Listeners]):
    """For each hook what is to be called, callbacks first, then the module; what nobody overrides is empty.

    Callbacks' listeners are bound to the trainer and the module, so that a loop calls all of them alike.

    Raises:
        ModuleError: A method that looks like a hook and is none.
    """

    @classmethod
    def of(
        cls, trainer: Trainer, callbacks: Sequence[Callback], module: Module, profiler: Profiler | None = None
    ) -> Hooks:
        for callback in callbacks:
            _reject_unknown(callback, HOOKS, strict=True)
        _reject_unknown(module, [name for name in dir(Module) if name.startswith("on_")], strict=False)
        _reject_foreign(module)
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
            ready(partial(getattr(c, name), trainer, module), c, "Callback") for c in chosen if _overridden(c, name)
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


def _overridden(callback: Callback, name: str) -> bool:
    found = getattr(callback, name)
    return getattr(found, "__func__", found) is not getattr(Callback, name)


def _reject_unknown(owner: object, known: Iterable[str], *, strict: bool) -> None:
    """A misspelled hook must fail here, not be silently never called. A module may have ``on_`` methods of its own,
    so only one that is nearly a hook is rejected there."""
    known = set(known)
    for name in dir(type(owner)):
        if not name.startswith("on_") or name in known or not callable(getattr(type(owner), name)):
            continue
        near = get_close_matches(name, known, n=1, cutoff=0.6 if strict else 0.85)
        if strict or near:
            raise ModuleError(
                f"{type(owner).__name__}.{name} is not a hook.",
                why="methods whose names start with 'on_' are called by the loops, and no loop calls this one.",
                fix=f"rename it to {near[0]!r}." if near else "drop the 'on_' prefix.",
            )


def _reject_foreign(module: Module) -> None:
    """A module that was written for PyTorch Lightning must not run with some of its methods never called."""
    for name, instead in FOREIGN.items():
        if callable(getattr(module, name, None)):
            raise ModuleError(
                f"{type(module).__name__}.{name} would never be called.",
                why="releases of PyTorch Lightning had this hook, and treadle has not.",
                fix=instead,
            )
