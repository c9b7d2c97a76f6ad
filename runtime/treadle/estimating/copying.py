"""Copies without memory, and what goes wrong with them."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from treadle.errors import ModuleError


def copied(module: nn.Module, like: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose parameters and buffers, and other tensors that are attributes, are ``like(tensor)``.

    Raises:
        ModuleError: It holds what can't be copied, or lazy layers.
    """
    made: dict[int, Any] = {}
    attributes = (value for submodule in module.modules() for value in vars(submodule).values())
    for tensor in chain(module.parameters(), module.buffers(), (v for v in attributes if isinstance(v, Tensor))):
        if is_lazy(tensor):
            raise ModuleError(
                f"{type(module).__name__} has a lazy layer, without a shape so far.",
                why="nothing can be counted before its first forward pass.",
                fix="give the layer its sizes, or run a batch through the module first.",
            )
        if id(tensor) not in made:
            made[id(tensor)] = like(tensor)
    try:
        return copy.deepcopy(module, made)
    except Exception as error:
        raise ModuleError(
            f"{type(module).__name__} can't be copied: {type(error).__name__}: {error}.",
            why="what is measured is a copy of it without memory, so that it stays as it is.",
            fix="keep what can't be copied (locks, files, generators) out of the module, or give it a __deepcopy__.",
        ) from error


def empty(tensor: Tensor, device: str) -> Tensor:
    """One of the same shape, layout and kind."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def reason(error: Exception) -> str:
    """What failed and where, in the user's code if it is there."""
    match type(error).__name__:
        case "DataDependentOutputException":
            what = "the value of a tensor is read"
        case "DynamicOutputShapeException":
            what = "the shape of a result depends on values"
        case name:
            what = f"{name}: {str(error).strip().splitlines()[0] if str(error).strip() else 'without a message'}"
    torchs, ours = Path(torch.__file__).parent, Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(torchs) and not Path(frame.filename).is_relative_to(ours)
    ]
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    if not own:
        return what
    return f"{what}, in {own[-1].filename}:{own[-1].lineno}" + (f" ({own[-1].line})" if own[-1].line else "")
