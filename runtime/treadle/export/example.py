"""Inputs of ``forward`` to export with: given, the module's own, or those of the first batch of its data."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from treadle.batches import apply, move
from treadle.data import DataModule, evaluation_streams
from treadle.errors import ConfigError
from treadle.estimating.copying import reason
from treadle.loops.calling import bind
from treadle.module import Module, class_name, overrides

_STEPS = (
    ("predict_dataloader", "predict", "predict_step"),
    ("val_dataloader", "validate", "validation_step"),
    ("train_dataloader", "fit", "training_step"),
)
"""A loader, the stage whose ``setup`` it needs, and the step that takes its batches."""


@dataclass(frozen=True)
class Example:
    """Arguments of ``forward``; every leaf in their tuples, lists and dicts is a tensor on the CPU, each its own."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_size: int | None
    """The first dimension of the first tensor, and of every other that has the same; None where it is fixed."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tree_leaves((self.args, self.kwargs)))

    def is_batched(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and tensor.size(0) == self.batch_size

    def of_size(self, batch_size: int) -> Example:
        """With so many samples: the first ones, and these again if there are not enough."""
        assert self.batch_size is not None
        chosen = torch.arange(batch_size) % self.batch_size
        args, kwargs = apply(
            (self.args, self.kwargs), lambda tensor: tensor[chosen] if self.is_batched(tensor) else tensor.clone()
        )
        return Example(args, kwargs, batch_size)

    def copied(self) -> Example:
        """For a ``forward`` that writes into its inputs."""
        args, kwargs = apply((self.args, self.kwargs), Tensor.clone)
        return Example(args, kwargs, self.batch_size)


def example_of(module: nn.Module, given: Any, data: Any, *, dynamic_batch: bool) -> Example:
    """``given``; else the module's ``example_input_array``; else what the module's own step gives to ``forward`` for the
    first batch of ``data``, a DataModule, or of the module's own loaders: for prediction, else validation, else training.

    Args:
        module: May be changed by its steps: a copy. They and the loaders may draw random numbers.
        given: A tensor, a tuple of arguments, or a dict of them by name. None: look for one.
        dynamic_batch: The first dimension may have any size.

    Raises:
        ConfigError: There is none, or it isn't made of tensors.
    """
    if given is None:
        given = getattr(module, "example_input_array", None)
    if given is not None:
        args, kwargs = _arguments(module, given)
    elif isinstance(module, Module):
        args, kwargs = _from_data(module, data)
    else:
        raise _no_example(module, ["a module that is no treadle.Module has no loaders and no steps"])
    for leaf in tree_leaves((args, kwargs)):
        if not isinstance(leaf, Tensor):
            raise ConfigError(
                f"forward of {class_name(module)} is given a {type(leaf).__name__} in its example.",
                why="what is exported is a function of tensors.",
                fix="give tensors alone, in tuples, lists and dicts; forward's other arguments keep their defaults.",
            )
    args, kwargs = apply((args, kwargs), lambda tensor: tensor.detach().cpu().clone())
    first = next((leaf for leaf in tree_leaves((args, kwargs)) if leaf.dim() > 0), None)
    return Example(args, kwargs, first.size(0) if dynamic_batch and first is not None else None)


def _arguments(module: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, dict):
        names = inspect.signature(module.forward).parameters
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(
                f"the example has {unknown[0]!r}, which forward of {class_name(module)} doesn't take.",
                why=f"a dict is of arguments by name, and they are {', '.join(names)}.",
                fix="for one argument that is a dict, give a tuple: example=({...},).",
            )
        return (), given
    return (tuple(given), {}) if isinstance(given, (tuple, list)) else ((given,), {})


def _from_data(module: Module, data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tried: list[str] = []
    with torch.no_grad(), _unlogged():
        if isinstance(data, DataModule):
            data.prepare_data()
        for loader, stage, step in _STEPS:
            owner = data if isinstance(data, DataModule) else module
            if not overrides(owner, loader, DataModule if isinstance(data, DataModule) else Module):
                continue
            if step != "predict_step" and not overrides(module, step):
                continue
            owner.setup(stage)
            with _captured(module) as capture:
                try:
                    batch = _prepared(_first_batch(getattr(owner, loader)(), loader), module, data)
                    bind(getattr(module, step), signature_of=getattr(module, step))(batch, 0)
                    tried.append(f"{step} doesn't call self(...)")
                except _Seen:
                    assert capture.inputs is not None
                    return capture.inputs
                except Exception as error:  # noqa: BLE001 - users' code: the next loader may do
                    tried.append(f"{step} of {loader}'s first batch: {reason(error)}")
    raise _no_example(module, tried or ["there is no loader for prediction, validation or training"])


class _Seen(BaseException):
    """``forward`` was called, and went well: nothing after it is needed. No user's ``except Exception`` keeps it."""


@dataclass
class _Capture:
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.inputs = (args, kwargs)
        raise _Seen


@contextmanager
def _captured(module: nn.Module) -> Iterator[_Capture]:
    capture = _Capture()
    handle = module.register_forward_hook(capture, with_kwargs=True)
    try:
        yield capture
    finally:
        handle.remove()


@contextmanager
def _unlogged() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"treadle\[log\]")  # before forward; nobody is to see it
        yield


def _first_batch(loader: Any, name: str) -> Any:
    streams = evaluation_streams(loader, name=name)
    try:
        return next(iter(chain.from_iterable(streams)))
    finally:
        for stream in streams:
            stream.close()


def _prepared(batch: Any, module: Module, data: Any) -> Any:
    """As it comes to a step: the hooks around its transfer are the data module's where it has them."""
    for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        hook: Callable[..., Any] = getattr(module, name)
        if isinstance(data, DataModule) and overrides(data, name, DataModule):
            hook = getattr(data, name)
        device = [torch.device("cpu")] if name == "transfer_batch_to_device" else []
        batch = hook(batch, *device, 0)
    return move(batch, torch.device("cpu"))


def _no_example(module: nn.Module, tried: list[str]) -> ConfigError:
    return ConfigError(
        f"there is no example of what forward of {class_name(module)} takes.",
        why=f"{'; '.join(tried)}.",
        fix="self.example_input_array = torch.zeros(1, ...) in __init__, or export(..., example=...).",
    )
