"""A call of the Trainer in processes that are started for it: from a notebook, ranks can't run the script again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.batches import apply
from treadle.callbacks import ModelCheckpoint
from treadle.loops.state import checkpoint_of
from treadle.module import Module, load_weights
from treadle.seeding import RNGState, capture_rng, restore_rng

if TYPE_CHECKING:
    from treadle.fabric import Fabric
    from treadle.trainer import Trainer


def run_elsewhere(trainer: Trainer, function: str, module: Module, *arguments: Any) -> Any:
    """``trainer.function(module, *arguments)`` on new ranks, and what came of it here: the weights in ``module``, counters,
    metrics and what callbacks know in ``trainer``. Optimizers stay behind.

    Returns:
        What it returned on rank 0.
    """
    result, state, folders = trainer.fabric.launch(_run, trainer, function, module, arguments, capture_rng())
    load_weights(module, state, strict=True)
    trainer.progress.load_state_dict(state["progress"])
    trainer._results.load_state_dict(state["results"])
    trainer._log_dir = state["log_dir"]
    for callback in trainer.callbacks:
        if (saved := state["callbacks"].get(callback.state_key)) is not None:
            callback.load_state_dict(saved)
    for callback, folder in zip(trainer.checkpoint_callbacks, folders, strict=True):
        callback._folder = folder
    return result


def _run(
    fabric: Fabric, trainer: Trainer, function: str, module: Module, arguments: tuple[Any, ...], rng: RNGState
) -> Any:
    """In each of the new processes, which go on with this one's random numbers."""
    trainer.fabric = fabric
    restore_rng(rng)
    result = getattr(trainer, function)(module, *arguments)
    assert trainer._parts is not None
    state = dict(checkpoint_of(trainer._parts, weights_only=False))
    kept = {
        name: state.get(name, {}) for name in ("state_dict", "progress", "results", "callbacks", "hyper_parameters")
    }
    folders = [callback._folder for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return apply(result, _on_host), apply({**kept, "log_dir": trainer.log_dir}, _on_host), folders


def _on_host(tensor: Any) -> Any:
    return tensor.detach().cpu()
