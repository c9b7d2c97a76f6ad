"""Metric objects, as torchmetrics and others make them: anything with ``update``, ``compute`` and ``reset``."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import ModuleError, warn


def is_metric(value: object) -> bool:
    return all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset"))


def step_value(metric: Any) -> Any:
    """Its value for the batch at hand: what a call of it returned last, where it keeps that (torchmetrics does);
    else its value over the epoch so far."""
    last = getattr(metric, "_forward_cache", None)
    return metric.compute() if last is None else last


def find(owner: object, metric: object) -> str:
    """The attribute of ``owner`` that ``metric`` is, with dots where it lies deeper; empty if it is none."""
    if isinstance(owner, nn.Module):
        for name, submodule in owner.named_modules():
            if submodule is metric:
                return str(name)
            for attribute, value in vars(submodule).items():
                if value is metric:
                    return f"{name}.{attribute}" if name else attribute
    return ""


def metric_state(metric: Any) -> dict[str, Any]:
    """What it has gathered, as tensors and plain values."""
    states = {name: getattr(metric, name) for name in _names(metric)}
    return {name: _copied(value) for name, value in states.items()}


def load_metric_state(owner: object, attribute: str, state: dict[str, Any], device: torch.device) -> Any:
    """Give the object under ``attribute`` of ``owner`` its state again. Returns it.

    Raises:
        ModuleError: The module has no such attribute any more.
    """
    if not attribute:
        warn(
            "metric",
            "a metric object that is no attribute of the module can't be found again in a resumed run: what it had "
            "gathered in this epoch is lost. Assign it in __init__: self.accuracy = ...",
        )
        return None
    try:
        metric = attrgetter(attribute)(owner)
    except AttributeError:
        raise ModuleError(
            f"the run that was saved logs the metric object {attribute!r}, which {type(owner).__name__} hasn't.",
            why="what it had gathered in the running epoch is part of the checkpoint.",
            fix=f"assign it in __init__ as then, or resume from a checkpoint between two epochs: self.{attribute} = ...",
        ) from None
    for name, value in state.items():
        setattr(metric, name, _moved(value, device))
    return metric


def _names(metric: Any) -> list[str]:
    """The attributes that hold its state: those it declared (torchmetrics' way), or all that are plain."""
    declared = getattr(metric, "_defaults", None)
    if isinstance(declared, dict):
        return [*declared, *(name for name in ("_update_count", "_update_called") if name in vars(metric))]
    own = vars(metric)
    buffers = own.get("_buffers", {}) if isinstance(metric, nn.Module) else {}
    return [*buffers, *(name for name, value in own.items() if not name.startswith("_") and _is_plain(value))]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (Tensor, bool, int, float, str, type(None)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if isinstance(value, (list, tuple)) else value
