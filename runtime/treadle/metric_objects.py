"""Metric objects, as torchmetrics and others make them: anything with ``update``, ``compute`` and ``reset``."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import ModuleError, warn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def is_metric(value: object) -> bool:
    return all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset"))


def has_step_value(metric: Any) -> bool:
    """Whether it keeps its value for the batch at hand."""
    return getattr(metric, "_forward_cache", None) is not None


def step_value(metric: Any) -> Any:
    """Its value for the batch at hand: what a call of it returned last, where it keeps that (torchmetrics does);
    else its value over the epoch so far."""
    last = getattr(metric, "_forward_cache", None)
    return metric.compute() if last is None else last


def find(owner: object, metric: object) -> str:
    """The attribute of ``owner`` that ``metric`` is, with dots where it lies deeper; empty if it is none."""
    return next((path for path, found in _metrics_of(owner) if found is metric), "")


def found_again(owner: object, attribute: str) -> Any:
    """The object under ``attribute`` of ``owner``, as :func:`find` said in another process; None where it was none."""
    if not attribute:
        warn(
            "metric",
            "a metric object that is no attribute of the module can't be found again in a resumed run: what it had "
            "gathered in this epoch is lost. Assign it in __init__: self.accuracy = ...",
        )
        return None
    return _at(owner, attribute)


def metric_states(owner: object) -> dict[str, dict[str, Any]]:
    """What each metric object of ``owner`` has gathered, by its attribute: tensors and plain values."""
    return {path: _state(metric) for path, metric in _metrics_of(owner)}


def load_metric_states(owner: object, states: dict[str, dict[str, Any]], device: torch.device) -> None:
    """Give each its state again.

    Raises:
        ModuleError: The module hasn't one of them any more.
    """
    for path, state in states.items():
        metric = _at(owner, path)
        for name, value in state.items():
            setattr(metric, name, _moved(value, device))


def _metrics_of(owner: object) -> Iterator[tuple[str, Any]]:
    if not isinstance(owner, nn.Module):
        return
    for path, module in owner.named_modules():
        if path and is_metric(module):
            yield path, module
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE and not isinstance(value, (type, nn.Module)) and is_metric(value):
                yield f"{path}.{name}" if path else name, value


def _at(owner: object, path: str) -> Any:
    try:
        return attrgetter(path)(owner)
    except AttributeError:
        raise ModuleError(
            f"the run that was saved has the metric object {path!r}, which {type(owner).__name__} hasn't.",
            why="what it had gathered in the running epoch is part of the checkpoint.",
            fix=f"assign it in __init__ as then: self.{path} = ...",
        ) from None


def _state(metric: Any) -> dict[str, Any]:
    """The attributes that hold it: those it declared (torchmetrics' way), or all that are plain."""
    own = vars(metric)
    declared = getattr(metric, "_defaults", None)
    if isinstance(declared, dict):
        names = [*declared, *(name for name in ("_update_count", "_update_called") if name in own)]
    else:
        names = [name for name in own if name not in _OF_EVERY_MODULE and _is_plain(own[name])]
        names += metric._buffers if isinstance(metric, nn.Module) else ()
        if unsaved := [name for name in own if type(own[name]).__name__ in ("ndarray", "deque")]:
            warn(
                "metric",
                f"{', '.join(unsaved)} of {type(metric).__name__} can't be saved: a run resumed inside an epoch starts "
                "without. Keep what it gathers in tensors, numbers, lists or dicts.",
            )
    return {name: _copied(getattr(metric, name)) for name in names}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (Tensor, bool, int, float, str, type(None)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple, set) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if type(value) in (list, tuple, set) else value
