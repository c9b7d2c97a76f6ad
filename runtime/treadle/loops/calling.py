"""A user's step, called with as many arguments as it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from treadle.errors import ModuleError

Step = Callable[[Any, int], Any]


def bind(step: Callable[..., Any], *, signature_of: Callable[..., Any], loader: int | None = None) -> Step:
    """``step`` to be called with a batch and its index.

    Args:
        step: What is called.
        signature_of: Whose signature counts, where ``step`` is wrapped.
        loader: The index of the loader, where there are several: the step must take it.

    Raises:
        ModuleError: The step doesn't take what it needs, or asks for what is never passed.
    """
    name = getattr(signature_of, "__name__", "step")
    parameters = list(inspect.signature(signature_of).parameters.values())
    if parameters and parameters[0].name == "dataloader_iter":
        raise ModuleError(
            f"{name}(dataloader_iter) asks for the loader's iterator.",
            why="a step is given one batch, so that a run can be stopped and resumed between any two.",
            fix=f"def {name}(self, batch, batch_idx)",
        )
    given = ["batch", "batch_idx"] if loader is None else ["batch", "batch_idx", "dataloader_idx"]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    wanted = _wanted(names, given, many)
    required = [p.name for p in parameters if p.default is p.empty and p.name in names]
    if len(required) > 3 or (loader is None and len(required) == 3 and "dataloader_idx" not in required[2:]):
        raise ModuleError(
            f"{name} takes {', '.join(required)}.",
            why="a step is called with the batch, its index and the index of its loader.",
            fix=f"def {name}(self, batch, batch_idx)",
        )
    if loader is not None and "dataloader_idx" not in wanted:
        raise ModuleError(
            f"{name} takes no dataloader_idx.",
            why="there are several loaders, and it is told from which of them a batch is.",
            fix=f"def {name}(self, batch, batch_idx, dataloader_idx)",
        )
    index = 0 if loader is None else loader
    match wanted:
        case ["batch"]:
            return lambda batch, _: step(batch)
        case ["batch", "batch_idx"]:
            return step
        case ["batch", "dataloader_idx"]:
            return lambda batch, _: step(batch, index)
        case _:
            return lambda batch, batch_idx: step(batch, batch_idx, index)


def _wanted(names: list[str], given: list[str], many: bool) -> list[str]:
    """Which of the arguments there are a step takes: by their names where it uses these, else by their places."""
    if many:
        return given
    if len(names) == 2 and names[1] == "dataloader_idx":
        return ["batch", "dataloader_idx"]
    if len(names) >= 3 and names[2] == "dataloader_idx":
        return ["batch", "batch_idx", "dataloader_idx"]
    return given[: len(names)]
