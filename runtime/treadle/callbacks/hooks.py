"""Hooks, resolved once: from their names to tuples of what is to be called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.callbacks.base import HOOKS, Callback
from treadle.errors import ModuleError
from treadle.metrics import Logbook, scope_of
from treadle.module import Module, overrides

if TYPE_CHECKING:
    from treadle.trainer import Trainer

_STEPS = "do it in on_before_optimizer_step or on_before_zero_grad."
_BATCHES = "do it in the step, or give batches a .to method of their own."
_MODES = "do it in on_validation_start, on_test_start or on_predict_start."
FOREIGN = {
    **dict.fromkeys(("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "backward"), _STEPS),
    **dict.fromkeys(("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"), _BATCHES),
    **{f"on_{stage}_model_eval": _MODES for stage in ("validation", "test", "predict")},
    **{f"on_{stage}_model_train": _MODES for stage in ("validation", "test", "predict")},
    **{f"{stage}_epoch_end": f"rename it to on_{stage}_epoch_end." for stage in ("validation", "test")},
    "training_epoch_end": "rename it to on_train_epoch_end.",
    "on_validation_model_zero_grad": _MODES,
    "lr_scheduler_step": "return the scheduler with interval, frequency and monitor from configure_optimizers.",
    "configure_callbacks": "Trainer(callbacks=[...])",
    "configure_model": "make the layers in __init__.",
}
"""Methods that PyTorch Lightning calls and treadle doesn't, and what to do instead."""

Listeners = tuple[Callable[..., Any], ...]


class Hooks(dict[str, Listeners]):
    """For each hook what is to be called, callbacks first, then the module; what nobody overrides is empty.

    Callbacks' listeners are bound to the trainer and the module, so that a loop calls all of them alike.

    Raises:
        ModuleError: A method that looks like a hook and is none.
    """

    @classmethod
    def of(cls, trainer: Trainer, callbacks: Sequence[Callback], module: Module) -> Hooks:
        for callback in callbacks:
            _reject_unknown(callback, HOOKS, strict=True)
        _reject_unknown(module, [name for name in dir(Module) if name.startswith("on_")], strict=False)
        _reject_foreign(module)
        return cls({name: _listeners(name, trainer, callbacks, module) for name in HOOKS})

    def call(self, book: Logbook | None, name: str, *arguments: Any) -> None:
        """Call every listener of ``name``; what they log goes to ``book``."""
        if listeners := self[name]:
            if book is not None:
                book.scope = scope_of(name)
            for listener in listeners:
                listener(*arguments)


def _listeners(name: str, trainer: Trainer, callbacks: Sequence[Callback], module: Module) -> Listeners:
    def bound(chosen: Iterable[Callback]) -> list[Callable[..., Any]]:
        return [partial(getattr(c, name), trainer, module) for c in chosen if _overridden(c, name)]

    own = [getattr(module, name)] if overrides(module, name) else []
    if name == "on_train_epoch_end":
        early = [c for c in callbacks if not c.after_module]
        return (*bound(early), *own, *bound(c for c in callbacks if c.after_module))
    return (*bound(callbacks), *own)


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
                why="PyTorch Lightning has this hook, and this version of treadle has not.",
                fix=instead,
            )
    if getattr(module, "automatic_optimization", True) is False:
        raise ModuleError(
            f"{type(module).__name__} has automatic_optimization = False.",
            why="this version of treadle steps the optimizer itself, with the loss that training_step returns.",
            fix="return the loss, or write the loop yourself with treadle.Fabric.",
        )
