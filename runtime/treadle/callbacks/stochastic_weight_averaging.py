"""Stochastic weight averaging: end a run with the mean of the weights of its last epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from treadle.callbacks.base import Callback
from treadle.callbacks.weight_averaging import Average, equally
from treadle.collectives import Ranks
from treadle.data.parallel import Shared
from treadle.data.stream import training_stream
from treadle.errors import ConfigError, ModuleError, warn
from treadle.optim import Schedule
from treadle.seeding import isolated_rng, seed_everything
from treadle.strategies.sharding import load_full_state

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

SEED = 0
"""Of the pass for BatchNorm: a finished run that is resumed has other generators by then, and is to end the same."""


@final
class StochasticWeightAveraging(Callback):
    """From an epoch on, anneals the learning rate to a constant and averages the weights at the end of each epoch. At the
    end of training the module's weights become the average, and BatchNorm's statistics are computed anew.

    ::

        at the start of epoch s: swa_lrs in place of the run's schedulers
        at the end of each epoch from s on:
            average <- average + (weights - average) / n
        at the end of training:
            weights <- average
            statistics of BatchNorm <- their mean over one pass through the training data, without gradients

    Until then the run trains, validates and saves with its own weights: a ``ModelCheckpoint`` holds these, and the average
    in the state of the callbacks. A checkpoint that ``trainer.save_checkpoint`` writes after the fit has the averaged
    weights, and, for a run that is prolonged, those that training goes on from. Once begun, averaging goes on in a resumed
    run, whatever ``max_epochs`` is by then.

    Args:
        swa_lrs: The learning rate to anneal to: one, or one for each parameter group.
        swa_epoch_start: The first epoch to average, counted from 1; or, from 0.0 to 1.0, that part of ``max_epochs``.
        annealing_epochs: Epochs in which the learning rate gets to ``swa_lrs``; 0 for at once.
        annealing_strategy: Along a cosine or a line.
        avg_fn: The new average, of the average, the weights (for each tensor) and the number of updates so far. Default:
            the mean.
        inputs_of: What the module's ``forward`` takes, given a batch on the device; for BatchNorm. Default: the first
            item of a tuple or list, or the batch itself.

    Raises:
        ConfigError: An argument out of its range; while fitting: not exactly one optimizer, manual optimization, or a
            fraction of epochs whose number nothing bounds.
        ModuleError: ``forward`` doesn't take what ``inputs_of`` gives.

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        inputs_of: Callable[[Any], Any] | None = None,
    ) -> None:
        self.swa_lrs, self.swa_epoch_start = swa_lrs, swa_epoch_start
        self.annealing_epochs, self.annealing_strategy = annealing_epochs, annealing_strategy
        self.avg_fn, self.inputs_of = avg_fn, inputs_of or first_item
        self._check_settings()
        self._begin()

    def _check_settings(self) -> None:
        rates = self.swa_lrs if isinstance(self.swa_lrs, (list, tuple)) else [self.swa_lrs]
        start, annealing = self.swa_epoch_start, self.annealing_epochs
        wrong = {
            "swa_lrs": not rates or not all(isinstance(rate, (int, float)) and rate > 0 for rate in rates),
            "swa_epoch_start": not (0 <= start <= 1 if isinstance(start, float) else start >= 1),
            "annealing_epochs": not isinstance(annealing, int) or annealing < 0,
            "annealing_strategy": self.annealing_strategy not in ("cos", "linear"),
        }
        if named := [f"{name}={getattr(self, name)!r}" for name, is_wrong in wrong.items() if is_wrong]:
            raise ConfigError(
                f"StochasticWeightAveraging({', '.join(named)}).",
                why="swa_lrs are above 0; swa_epoch_start is a whole number from 1, or a part of max_epochs from 0.0 to 1.0; "
                'annealing_epochs is a whole number from 0; annealing_strategy is "cos" or "linear".',
                fix="StochasticWeightAveraging(swa_lrs=1e-2)",
            )

    def _begin(self) -> None:
        self._average = Average(self._rule, use_buffers=False)
        self._annealing = False
        """The learning rate is this callback's."""
        self._own: dict[str, Any] = {}
        """The state that training would go on from, once the module has the average."""
        self._loaded: dict[str, Any] | None = None
        self._breaks_off = False
        """The fit ends inside an epoch, which goes on when it is resumed."""

    def _rule(self, averages: list[Tensor], weights: list[Tensor], updates: int) -> None:
        if self.avg_fn is None:
            return equally(averages, weights, updates)
        for average, weight in zip(averages, weights, strict=True):
            average.copy_(self.avg_fn(average, weight, updates))
        return None

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:
            return self._loaded
        return {
            "annealing": self._annealing,
            "average": self._average.tensors,
            "updates": self._average.updates,
            "own": self._own,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._begin()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if len(trainer.optimizers) != 1 or not module.automatic_optimization:
            raise ConfigError(
                f"StochasticWeightAveraging with {len(trainer.optimizers)} optimizers, "
                f"automatic_optimization={module.automatic_optimization}.",
                why="it takes over the learning rate of the one optimizer that the Trainer steps.",
                fix="give one optimizer several parameter groups, or use WeightAveraging, which leaves it alone.",
            )
        start, epochs = self._start(trainer), trainer.duration.epochs
        if start >= epochs and not trainer.fast_dev_run:
            warn("swa", f"averaging starts in epoch {start + 1} of {epochs:g}, so it never does.")
        state, self._loaded = self._loaded, None
        if state is None:
            return
        if state["annealing"]:
            self._anneal(trainer)
        if state["average"]:
            self._average.load_state_dict(module, state["average"], state["updates"])
        if state["own"]:
            load_full_state(module, state["own"], strict=module.strict_loading)

    # --- averaging ---

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if not self._annealing and trainer.current_epoch >= self._start(trainer):
            self._anneal(trainer)

    def _start(self, trainer: Trainer) -> int:
        """The index of the first epoch to average."""
        start, epochs = self.swa_epoch_start, trainer.duration.epochs
        if isinstance(start, float):
            if epochs == float("inf"):
                raise ConfigError(
                    f"swa_epoch_start={start} in a run without max_epochs.",
                    why="it is a part of them.",
                    fix="Trainer(max_epochs=...), or swa_epoch_start=10, in epochs",
                )
            start = int(start * epochs)
        return max(start - 1, 0)

    def _anneal(self, trainer: Trainer) -> None:
        """From now on the only scheduler is one that goes to ``swa_lrs``."""
        (optimizer,) = trainer.optimizers
        groups = len(optimizer.param_groups)
        rates = self.swa_lrs if isinstance(self.swa_lrs, (list, tuple)) else [self.swa_lrs] * groups
        if len(rates) != groups:
            raise ConfigError(
                f"swa_lrs={self.swa_lrs} for an optimizer with {groups} parameter groups.",
                why="it is one learning rate for all, or one for each.",
                fix="swa_lrs=1e-2",
            )
        scheduler = SWALR(optimizer, rates, self.annealing_epochs, self.annealing_strategy)  # type: ignore[arg-type]
        trainer.lr_scheduler_configs[:] = [Schedule(scheduler=scheduler, interval="epoch")]
        self._annealing = True

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._breaks_off = False

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        self._breaks_off = final

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._annealing and not self._breaks_off:
            self._average.update(module)

    # --- the end ---

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._average.updates:
            state = module.state_dict()
            self._own = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()}
            self._average.apply_to(module)
            self._renew_statistics(trainer, module)

    def _renew_statistics(self, trainer: Trainer, module: Module) -> None:
        """BatchNorm's running mean and variance, of the weights of now. Layers in eval mode keep theirs."""
        layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        length = trainer.num_training_batches
        batches = training_stream(
            trainer.train_dataloader,
            limit=1.0 if isinstance(length, float) else length,
            name="the train loader",
            in_order=bool(trainer.limits.overfit),
            shared=Shared.of(trainer.strategy.share, trainer.fabric.ranks) if trainer.deals_out else None,
        )
        with isolated_rng(trainer.fabric.device), batches.isolated(), torch.no_grad(), trainer.fabric.autocast():
            seed_everything(SEED)
            try:
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # the mean of all batches
                for batch in batches:
                    trainer.fabric.ranks.repeats = batches.counts == 0.0
                    if batches.counts or trainer.strategy.in_lockstep:
                        self._forward(module, trainer.to_device(batch))
                if trainer.world_size > 1:
                    for layer in layers:
                        _combine(layer, trainer.fabric.ranks)
            finally:
                trainer.fabric.ranks.repeats = False
                batches.close()
                for layer, momentum in zip(layers, momenta, strict=True):
                    layer.momentum = momentum

    def _forward(self, module: nn.Module, batch: Any) -> None:
        try:
            module(self.inputs_of(batch))
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            raise ModuleError(
                f"{type(module).__name__}.forward doesn't take what inputs_of gives of a batch.",
                why=f"BatchNorm's statistics of the averaged weights come from passing the training data through it: {error}",
                fix="StochasticWeightAveraging(..., inputs_of=lambda batch: batch[1]), then fit again with "
                'ckpt_path="last": what was trained is not trained again.',
            ) from error


def _combine(layer: _BatchNorm, ranks: Ranks) -> None:
    """Let the statistics of ``layer`` be those of what all ranks have seen."""
    mean, variance, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert variance is not None
    assert count is not None
    weight = count.to(torch.float64)
    total = ranks.reduce(weight, "sum")
    first = ranks.reduce(mean.double() * weight, "sum") / total
    second = ranks.reduce((variance.double() + mean.double().square()) * weight, "sum") / total
    mean.copy_(first)
    variance.copy_(second - first.square())
    count.copy_(total)


def first_item(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) else batch
