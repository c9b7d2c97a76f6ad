"""What a checkpoint holds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, TypedDict

import torch
from torch import Tensor

from treadle.checkpoint.lineage import Lineage
from treadle.errors import CheckpointError
from treadle.progress import ProgressState
from treadle.seeding import RNGState

FORMAT = 1


class Weights(TypedDict):
    """What every checkpoint holds. Leaves are tensors, numbers, strings, lists and dicts."""

    format: int
    treadle_version: str
    epoch: int
    global_step: int
    progress: ProgressState
    state_dict: dict[str, Tensor]
    hparams_name: str
    hyper_parameters: dict[str, Any]


class Checkpoint(Weights, total=False):
    """And what continuing the run takes besides."""

    hparams_argument: str
    """The argument of ``__init__`` that was all hyperparameters in one."""
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    gradients: dict[str, Tensor]
    """Those that wait for a step, of an accumulation window that is still open; else empty."""
    optimization: dict[str, Any]
    precision: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]
    loggers: dict[str, dict[str, Any]]
    datamodule: dict[str, Any]
    datamodule_hyper_parameters: dict[str, Any]
    metrics: list[Any]
    """Accumulators of ``self.log`` in the running epoch."""
    metric_objects: dict[str, Any]
    """What the module's metric objects have gathered, by attribute."""
    loaders: dict[str, RNGState]
    """The generators when loaders were asked for, by kind."""
    results: dict[str, Any]
    """The newest value of every metric."""
    stream: dict[str, Any]
    """Where the training data stands."""
    validation: list[dict[str, Any]]
    """The generators that the validation loaders own."""
    rng: RNGState
    lineage: Lineage
    ranks: list[dict[str, Any]]
    """Of several ranks: what each had for itself in place of the above, by rank: generators, accumulators, gradients."""


_LEAVES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_MAPPINGS = (dict, OrderedDict, Counter)


def plain(value: Any, at: str) -> Any:
    """``value`` with everything in it a type that ``torch.load(..., weights_only=True)`` reads.

    Numpy's scalars become Python's. Tensors are not copied.

    Raises:
        CheckpointError: Something else; it names the key.
    """
    kind = type(value)
    if isinstance(value, Tensor) or kind in _LEAVES:
        return value
    if kind in _MAPPINGS:
        items = {plain(key, f"{at} (a key)"): plain(item, f"{at}[{key!r}]") for key, item in value.items()}
        return items if kind is dict else kind(items)
    if kind is list or kind is tuple:
        return kind([plain(item, f"{at}[{index}]") for index, item in enumerate(value)])
    if kind is set:
        return {plain(item, at) for item in value}
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise CheckpointError(
        f"{at} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint can't hold.",
        why="checkpoints are read without executing anything, so they hold tensors and plain values only.",
        fix="save it as numbers, strings, lists, dicts or tensors (torch.from_numpy for arrays), and build it again on loading.",
    )
