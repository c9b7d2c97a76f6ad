"""Checkpoints of PyTorch Lightning: read as they are, or written anew as ours, to go on from."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from treadle.checkpoint import Checkpoint, write
from treadle.checkpoint.foreign import LightningCheckpoint, read_lightning
from treadle.errors import CheckpointError, ConfigError
from treadle.seeding import LARGEST_SEED, capture_rng, isolated_rng, seed_everything

__all__ = ["LightningCheckpoint", "convert", "read_checkpoint"]

_NOT_KEPT = Checkpoint.__optional_keys__ - {"hparams_argument"} | {
    *("pytorch-lightning_version", "loops", "hparams", "hparams_type", "module_arguments"),
    *("datamodule_hparams_name", "datamodule_hparams_type"),
    *("MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin"),
    *("native_amp_scaling_state", "amp_scaling_state"),
}
"""Entries of Lightning's that mean something else to us, or nothing; those of other names are the module's own."""


def read_checkpoint(path: str | PathLike[str], map_location: str | torch.device = "cpu") -> LightningCheckpoint:
    """What is in a ``.ckpt`` file of PyTorch Lightning, 1.0 or later, without executing anything of it.

    Args:
        path: The file.
        map_location: Where its tensors go.

    Raises:
        CheckpointError: It is missing, damaged, not Lightning's, or made to do harm.
    """
    return read_lightning(Path(path), map_location)


def convert(source: str | PathLike[str], target: str | PathLike[str], *, seed: int = 0) -> list[str]:
    """Write ``target``, a checkpoint of ours, from ``source``, one of PyTorch Lightning's.

    A fit with ``ckpt_path=target`` goes on with its weights, optimizers, schedulers, scale of gradients, early stopping
    and counters, at the start of the epoch after the one in which ``source`` was saved.

    Args:
        source: What Lightning wrote.
        target: A new file.
        seed: Of the random numbers from there on, of which Lightning keeps no state.

    Returns:
        Where a fit goes on, and what is not as it would be in a run that never stopped, a sentence each.

    Raises:
        CheckpointError: ``source`` can't be read, or ``target`` is there already.
        ConfigError: ``seed`` is none.
    """
    target = Path(target)
    if target.exists():
        raise CheckpointError(f"{target} is there already.", why="nothing is overwritten.", fix="give a new name.")
    found = read_checkpoint(source)
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed={seed}.", why=f"it is from 0 to {LARGEST_SEED}.", fix="seed=0")
    write(target, _ours(found, seed))
    return list(_to_know(found, seed))


def _ours(found: LightningCheckpoint, seed: int) -> Checkpoint:
    steps = _steps(found)
    ours = cast(Checkpoint, {key: value for key, value in found.weights().items() if key not in _NOT_KEPT})
    ours["hyper_parameters"] = _without_tensors(found.hyper_parameters)
    ours["datamodule_hyper_parameters"] = _without_tensors(found.datamodule_hyper_parameters)
    ours["global_step"] = ours["progress"]["global_step"] = steps
    ours["progress"]["batches"] = found.counter("epoch_loop.batch_progress", "total", "ready") or steps
    ours["progress"]["optimizer_steps"] = [steps] if len(found.optimizer_states) == 1 else []
    if not found.optimizer_states:
        return ours
    with isolated_rng():
        seed_everything(seed)
        ours["rng"] = capture_rng()
    ours["optimizer_states"] = found.optimizer_states
    ours["lr_schedulers"] = found.lr_schedulers
    ours["precision"] = found.precision
    ours["callbacks"] = dict(_early_stopping(found.callbacks))
    # Between two epochs, where nothing else is under way.
    ours["gradients"], ours["metrics"], ours["metric_objects"] = {}, [], {}
    ours["optimization"] = {"weight": None, "waiting": [], "minimized": [], "micro_batch_size": None}
    ours["results"] = {"values": {}, "found_at": {}, "shown": {}}
    ours["loaders"], ours["validation"] = {}, []
    ours["stream"] = {}  # the start of an epoch
    return ours


def _steps(found: LightningCheckpoint) -> int:
    """Training steps that updated weights. Lightning counts the steps of all optimizers together."""
    stepped = found.counter("epoch_loop.state_dict", "_batches_that_stepped")
    ready, completed = (found.counter("epoch_loop.batch_progress", "total", key) for key in ("ready", "completed"))
    if len(found.optimizer_states) < 2 or stepped is None or ready is None or completed is None:
        return found.global_step
    return stepped + (ready - completed)  # saved in a batch's last hook, the batch is not counted yet


def _without_tensors(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not _has_tensor(value)}


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    return any(map(_has_tensor, value)) if isinstance(value, (list, tuple)) else isinstance(value, Tensor)


def _early_stopping(callbacks: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state of each, as ours has it."""
    for key, state in callbacks.items():
        settings = _settings_in(key, "EarlyStopping")
        match settings.get("monitor"), settings.get("mode"), state:
            case str() as monitor, str() as mode, {"wait_count": int() as waited, "best_score": best}:
                score = (
                    float(best) if isinstance(best, float) or (isinstance(best, Tensor) and best.numel() == 1) else None
                )
                stopped = state.get("stopped_epoch")
                yield f"EarlyStopping[{monitor},{mode}]", {
                    "wait_count": waited,
                    "best_score": None if score is None or math.isinf(score) else score,
                    "stopped_epoch": stopped if isinstance(stopped, int) else 0,
                    "stopped_with": None,
                }


def _settings_in(key: str, callback: str) -> dict[str, Any]:
    """Those that the key of a callback's state ends with, as ``EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}``."""
    if len(key) > 500 or not (written := re.fullmatch(rf"{callback}(\{{.*\}})", key)):
        return {}
    try:
        settings = ast.literal_eval(written[1])
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _to_know(found: LightningCheckpoint, seed: int) -> Iterator[str]:
    if found.optimizer_states:
        yield f"A fit goes on from it at the start of epoch {found.next_epoch}, after step {_steps(found)}."
    else:
        yield "It holds weights and hyperparameters only: to load them or to evaluate, not for a fit to go on from."
    if omissions := found.omissions(of=found.entries.keys() | {at.split("[")[0] for at in found.left_out}):
        yield omissions
    lost = sorted(found.hyper_parameters.keys() - _without_tensors(found.hyper_parameters).keys())
    if lost:
        yield f"Hyperparameters that are tensors are not kept: {', '.join(lost)}. Pass them when the module is made."
    if not found.optimizer_states:
        return
    epoch = found.next_epoch
    match found.epoch_is_whole:
        case None:
            yield f"PyTorch Lightning {found.lightning_version} doesn't say whether epoch {epoch - 1} was over; {epoch} is next."
        case False:
            yield (
                f"It was saved inside epoch {epoch - 1}, and Lightning keeps no position in the data: the rest of that epoch "
                f"is left out, epoch {epoch} is next. A scheduler that steps at an epoch's end has not stepped for it."
            )
    completed = found.counter("epoch_progress", "current", "completed")
    if any("num_bad_epochs" in state for state in found.lr_schedulers) and (completed is None or completed < epoch):
        yield (
            f"Lightning saves before ReduceLROnPlateau has seen the metric of the epoch: that of epoch {epoch - 1} is lost "
            "to it."
        )
    if (steps := _steps(found)) != found.global_step:
        yield f"global_step is {steps}, batches that stepped; Lightning counted {found.global_step}, the steps of all optimizers."
    if dropped := sorted(found.callbacks.keys() - {key for key in found.callbacks if key.startswith("EarlyStopping")}):
        yield f"The state of these callbacks is not carried over: {', '.join(re.split(r'[{]', key)[0] for key in dropped)}."
    yield f"Lightning keeps no state of generators: shuffling and dropout go on from seed {seed}."
