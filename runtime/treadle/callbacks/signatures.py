"""Methods that would never be called, or can't be called as they are: found before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from treadle.callbacks.base import HOOKS, Callback
from treadle.data import DataModule
from treadle.errors import ModuleError, warn
from treadle.module import Module, overrides

FOREIGN = {
    **{f"{stage}_epoch_end": f"rename it to on_{stage}_epoch_end." for stage in ("validation", "test")},
    "training_epoch_end": "rename it to on_train_epoch_end.",
    **{f"{stage}_step_end": f"do it at the end of {stage}_step." for stage in ("training", "validation", "test")},
    "on_epoch_start": "rename it to on_train_epoch_start.",
    "on_epoch_end": "rename it to on_train_epoch_end.",
    "tbptt_split_batch": "split the batch in training_step, with manual optimization.",
}
"""Methods that PyTorch Lightning calls, or once called, and treadle doesn't, and what to do instead."""

LOADERS = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
CALLED = [
    *["backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step"],
    *["configure_optimizers", "configure_callbacks", "configure_model", "prepare_data", *LOADERS],
    *["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"],
]
"""Methods of a module that are called besides steps and hooks."""
CALLED_OF_DATA = [*["prepare_data", "setup", "teardown", "on_exception", *LOADERS], *CALLED[-3:]]


def check(callbacks: Iterable[Callback], module: Module, datamodule: DataModule | None) -> None:
    """
    Raises:
        ModuleError: A method that looks like a hook and is none, or one that can't be called with what it is given.
    """
    for callback in callbacks:
        _reject_unknown(callback, HOOKS, strict=True)
        for name in HOOKS:
            if overrides(callback, name, Callback):
                _require_callable(callback, name, Callback)
    _reject_unknown(module, [name for name in dir(Module) if name.startswith("on_")], strict=False)
    _reject_foreign(module)
    hooks = [name for name in dir(Module) if name.startswith("on_") or name in ("setup", "teardown")]
    for name in [*hooks, *CALLED]:
        if callable(getattr(Module, name)) and overrides(module, name):
            _require_callable(module, name, Module)
    _warn_of_near_misses(module, [*CALLED, "training_step", "validation_step", "test_step", "predict_step"], Module)
    if datamodule is not None:
        for name in CALLED_OF_DATA:
            if overrides(datamodule, name, DataModule):
                _require_callable(datamodule, name, DataModule)
        _warn_of_near_misses(datamodule, CALLED_OF_DATA, DataModule)


def _require_callable(owner: object, name: str, base: type) -> None:
    """``owner.name`` takes what ``base.name`` does; a hook of an evaluation's batch may leave out the loader's index."""
    method: Callable[..., Any] = getattr(owner, name)
    wanted = [p.name for p in list(inspect.signature(getattr(base, name)).parameters.values())[1:] if _is_positional(p)]
    try:
        signature = inspect.signature(method)
    except ValueError:  # built in
        return
    for given in (wanted, wanted[:-1] if wanted and wanted[-1] == "dataloader_idx" and name in HOOKS else wanted):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        return
    raise ModuleError(
        f"{type(owner).__name__}.{name}{signature} can't be called as it is.",
        why=f"it is given {', '.join(wanted) or 'nothing'}.",
        fix=f"def {name}({', '.join(['self', *wanted])})",
    )


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


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


def _warn_of_near_misses(owner: object, called: list[str], base: type) -> None:
    """A method may have any name; one that is nearly that of a method which isn't overridden is hardly meant."""
    for name in dir(type(owner)):
        if name.startswith("_") or hasattr(base, name) or not callable(getattr(type(owner), name, None)):
            continue
        near = get_close_matches(name, called, n=1, cutoff=0.9)
        if near and not overrides(owner, near[0], base):
            warn(
                "never-called",
                f"{type(owner).__name__}.{name} is called by nothing here; did you mean {near[0]!r}? If not, another "
                "name says so.",
            )
