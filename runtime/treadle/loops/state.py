"""From a run to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.batches import apply
from treadle.callbacks.base import Callback
from treadle.checkpoint import FORMAT, Checkpoint
from treadle.collectives import Ranks
from treadle.data import DataModule
from treadle.errors import CheckpointError, warn
from treadle.hyperparameters import plain_hyperparameters
from treadle.loggers import Logger
from treadle.loops.fit import FitLoop
from treadle.loops.moments import Resumed
from treadle.loops.run import Run
from treadle.metric_objects import metric_states
from treadle.metrics import SlotState
from treadle.module import Module, class_name, load_weights
from treadle.optim import Optimizers
from treadle.seeding import capture_rng
from treadle.strategies.sharding import load_whole_optimizer_state, parts_like, saves_shards, whole
from treadle.strategies.stored import StoredDict
from treadle.version import __version__


@dataclass
class Parts:
    """Whatever of a run has state."""

    run: Run
    datamodule: DataModule | None
    callbacks: Sequence[Callback]
    optimizers: Optimizers
    loop: FitLoop | None = None
    """While fitting."""


def checkpoint_of(parts: Parts, *, weights_only: bool) -> Checkpoint:
    """The state of the run now, the same from any strategy. Tensors are the live ones: write it before training goes on.

    Collective; on ranks other than 0 it is not whole. With a strategy that saves shards, each rank has its parts.
    """
    run, module = parts.run, parts.run.module
    progress = run.progress
    checkpoint = Checkpoint(
        format=FORMAT,
        treadle_version=__version__,
        epoch=progress.last_epoch,
        global_step=progress.global_step,
        progress=progress.state_dict(),
        state_dict=module.state_dict(),
        hparams_name=class_name(module),
        hyper_parameters=plain_hyperparameters(module),
    )
    if (argument := module.__dict__.get("_hparams_argument")) is not None:
        checkpoint["hparams_argument"] = argument
    if parts.datamodule is not None:
        checkpoint["datamodule_hyper_parameters"] = plain_hyperparameters(parts.datamodule)
        checkpoint["datamodule"] = parts.datamodule.state_dict()
    if not weights_only:
        checkpoint["optimizer_states"] = [o.state_dict() for o in parts.optimizers.optimizers]
        checkpoint["lr_schedulers"] = [s.scheduler.state_dict() for s in parts.optimizers.schedules]
        checkpoint["gradients"] = {}
        checkpoint["precision"] = run.fabric.precision.state_dict()
        checkpoint["callbacks"] = {callback.state_key: callback.state_dict() for callback in parts.callbacks}
        if run.fabric.is_global_zero:
            checkpoint["loggers"] = {key: logger.state_dict() for key, logger in logger_keys(run.loggers)}
        checkpoint["rng"] = capture_rng(run.fabric.device)
        checkpoint["results"] = dict(run.results.state_dict())
        if parts.loop is not None:
            if parts.loop.optimization.has_gradients:
                checkpoint["gradients"] = _gradients(module)
            checkpoint["optimization"] = dict(parts.loop.optimization.state_dict())
            checkpoint["metrics"] = list(parts.loop.book.state_dict())
            checkpoint["metric_objects"] = metric_states(module)
            checkpoint["loaders"] = dict(parts.loop.loaders.asked_at)
            checkpoint["validation"] = [dict(s.state_dict()) for s in parts.loop.loaders.streams.get("val", [])]
            if (stream := parts.loop.loaders.position()) is not None:
                checkpoint["stream"] = dict(stream)
    run.hooks.call(None, "on_save_checkpoint", checkpoint)
    ranks = run.fabric.ranks
    if saves_shards(run.fabric.strategy):  # what is sent to rank 0 below is whole
        small = {name: checkpoint[name] for name in OWN if name in checkpoint and name != "gradients"}  # type: ignore[literal-required]
        checkpoint = cast(Checkpoint, {**checkpoint, **whole(small)})
    else:
        checkpoint = whole(checkpoint, keep=ranks.rank == 0)
    if ranks.size > 1 and not weights_only:
        shared = run.fabric.strategy.in_lockstep or not progress.window  # gradients that are the same on all
        names = [name for name in OWN if name in checkpoint and not (shared and name == "gradients")]
        own = {name: checkpoint[name] for name in names}  # type: ignore[literal-required]
        checkpoint["ranks"] = ranks.gather_objects(cast("dict[str, Any]", apply(own, _on_host)), to=0)
    return checkpoint


OWN = ("rng", "metrics", "metric_objects", "optimization", "stream", "validation", "gradients")
"""What each rank has for itself."""


def of_rank(checkpoint: Checkpoint, ranks: Ranks) -> Checkpoint:
    """``checkpoint`` as this rank left it. One of another number of ranks is as rank 0 left it, with what all of them had
    added up; a window that was open there is lost to the others."""
    saved = checkpoint.get("ranks", [])
    if len(saved) == ranks.size:
        return cast(Checkpoint, {**checkpoint, **saved[ranks.rank]})
    if not saved and ranks.size == 1:
        return checkpoint
    before = len(saved) or 1
    if "rng" in checkpoint:
        warn(
            "ranks",
            f"saved on {before} ranks, and continued on {ranks.size}: with the same number of samples in all ranks' batches "
            "together, each step sees the samples that it would have seen; random numbers (dropout) are others.",
        )
        checkpoint = cast(
            Checkpoint, {**checkpoint, "metrics": merged([rank["metrics"] for rank in saved], checkpoint)}
        )
    return checkpoint if ranks.rank == 0 else cast(Checkpoint, {**checkpoint, "metrics": [], "metric_objects": {}})


def merged(of_ranks: Sequence[Sequence[SlotState]], checkpoint: Checkpoint) -> list[SlotState]:
    """What all ranks had added up in the running epoch, as if one had."""
    if not of_ranks:
        return checkpoint["metrics"]
    together = [SlotState(**slot) for slot in of_ranks[0]]
    for others in of_ranks[1:]:
        for slot, other in zip(together, others, strict=False):
            match slot["total"], other["total"], slot["options"][4]:
                case None, _, _:
                    slot["total"], slot["weight"] = other["total"], other["weight"]
                case _, None, _:
                    pass
                case total, more, "mean" | "sum":
                    slot["total"], slot["weight"] = total + more, slot["weight"] + other["weight"]
                case total, more, kind:
                    slot["total"] = torch.as_tensor(min(total, more) if kind == "min" else max(total, more))
    return together


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def logger_keys(loggers: Sequence[Logger]) -> list[tuple[str, Logger]]:
    """Each logger with the key of its state: a run resumed with other loggers mixes nothing up."""
    return [(f"{index}.{type(logger).__name__}", logger) for index, logger in enumerate(loggers)]


def restore_model(parts: Parts, checkpoint: Checkpoint) -> None:
    """What is needed to evaluate: weights, unless they are to be loaded when the module is placed, the data's state and the
    counters."""
    run = parts.run
    run.module.on_load_checkpoint(checkpoint)  # type: ignore[arg-type]  # what it changes there is what is loaded
    if not loads_when_placed(run.module, checkpoint):
        load_weights(run.module, checkpoint)
    if parts.datamodule is not None and "datamodule" in checkpoint:
        parts.datamodule.load_state_dict(checkpoint["datamodule"])
    run.progress.load_state_dict(checkpoint["progress"])


def loads_when_placed(module: Module, checkpoint: Checkpoint) -> bool:
    """Whether ``module``, which is not placed yet, is to be given its weights afterwards: it has nowhere to load them into
    (the meta device), or they lie in shards, of which each rank then reads its part only."""
    stored = isinstance(checkpoint["state_dict"], StoredDict)
    return stored or any(parameter.is_meta for parameter in module.parameters())


def warn_of_changes(parts: Parts, checkpoint: Checkpoint) -> None:
    """Say which hyperparameters differ from the saved ones: the saved state, an optimizer's learning rate included, wins
    over what they would have started with, and another batch size means other data."""
    saved = {**checkpoint.get("datamodule_hyper_parameters", {}), **checkpoint["hyper_parameters"]}
    now = {**(parts.datamodule.hparams if parts.datamodule is not None else {}), **parts.run.module.hparams}
    changes = [
        f"{name} was {saved[name]!r}, is {now[name]!r}" for name in saved if name in now and now[name] != saved[name]
    ]
    if changes:
        warn(
            "changed",
            f"the run is resumed with other settings than it was saved with: {'; '.join(changes)}. Its saved state wins "
            "where both say something, as an optimizer's learning rate. For a new start, load the weights only: "
            f"{class_name(parts.run.module)}.load_from_checkpoint(path).",
        )


def restore_callbacks(parts: Parts, checkpoint: Checkpoint) -> None:
    """What callbacks know of the run: for continuing it; an evaluation is not their run."""
    module = parts.run.module
    for callback in parts.callbacks:
        callback.on_load_checkpoint(module.trainer, module, dict(checkpoint))
        if (saved := checkpoint.get("callbacks", {}).get(callback.state_key)) is not None:
            callback.load_state_dict(saved)


def restore_for_evaluation(parts: Parts, checkpoint: Checkpoint) -> None:
    """What callbacks bring to an evaluation of a checkpoint, such as averaged weights; their own state stays as it is."""
    module = parts.run.module
    for callback in parts.callbacks:
        callback.on_load_checkpoint(module.trainer, module, dict(checkpoint))


def restore_training(parts: Parts, checkpoint: Checkpoint) -> None:
    """What continuing needs besides: optimizers, schedulers, open gradients, accumulators, the position in the data.

    Raises:
        CheckpointError: It was saved without these, or from a run with other optimizers.
    """
    run, loop, optimizers = parts.run, parts.loop, parts.optimizers
    assert loop is not None
    _require_training_state(checkpoint, optimizers)
    checkpoint = of_rank(checkpoint, run.fabric.ranks)
    for optimizer, saved in zip(optimizers.optimizers, checkpoint["optimizer_states"], strict=True):
        _load_optimizer(optimizer, saved)
        if run.progress.global_step:  # a scheduler may step before the next step, and would warn that none came before
            optimizer.__dict__["_opt_called"] = True
    for schedule, saved in zip(optimizers.schedules, checkpoint["lr_schedulers"], strict=True):
        schedule.scheduler.load_state_dict(saved)
    parameters = dict(run.module.named_parameters())
    for name, gradient in parts_like(checkpoint["gradients"], parameters).items():
        if name in parameters:
            parameters[name].grad = gradient.to(parameters[name].device)
    run.fabric.precision.load_state_dict(checkpoint["precision"])
    loop.optimization.load_state_dict(checkpoint["optimization"])  # type: ignore[arg-type]
    if checkpoint["stream"]:  # else at the start of an epoch, with whatever loaders
        loop.loaders.resume(checkpoint["stream"], checkpoint["validation"])  # type: ignore[arg-type]
    run.results.load_state_dict(checkpoint["results"])  # type: ignore[arg-type]
    spread = (len(checkpoint.get("ranks", [])) or 1) != run.fabric.ranks.size
    loop.resumed = Resumed(checkpoint["rng"], checkpoint["metrics"], checkpoint["metric_objects"], spread)


def _gradients(module: Module) -> dict[str, Any]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _require_training_state(checkpoint: Checkpoint, optimizers: Optimizers) -> None:
    if "stream" not in checkpoint or "rng" not in checkpoint:
        raise CheckpointError(
            "the checkpoint holds weights only.",
            why="continuing a run needs its optimizer, its generators and its position in the data.",
            fix="resume from last.ckpt, or load the weights: MyModule.load_from_checkpoint(path).",
        )
    for what, saved, ours in (
        ("optimizers", checkpoint["optimizer_states"], optimizers.optimizers),
        ("schedulers", checkpoint["lr_schedulers"], optimizers.schedules),
    ):
        if len(saved) != len(ours):
            raise CheckpointError(
                f"the checkpoint has {len(saved)} {what}, configure_optimizers returned {len(ours)}.",
                why="a run continues with what it was started with.",
                fix="return the same as then, or start a new run from the weights: MyModule.load_from_checkpoint(path).",
            )


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    try:
        load_whole_optimizer_state(optimizer, saved)
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint's optimizer state doesn't fit {type(optimizer).__name__}.",
            why=str(error),
            fix="return the same optimizer over the same parameters as when the run was saved.",
        ) from None
