"""Average the weights over the steps of a run, and evaluate with the average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from treadle.callbacks.base import Callback
from treadle.errors import CheckpointError, ConfigError
from treadle.strategies.sharding import local_part, part_like
from treadle.strategies.stored import unread

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

Rule = Callable[[list[Tensor], list[Tensor], int], None]
"""Changes the averages in place, given them, the weights of now, and how many updates there were before. The first update
takes the weights as they are and asks no rule. Rules of ``torch.optim.swa_utils`` with "multi" in their names, as
``get_ema_multi_avg_fn(0.999)``, are such."""


def equally(averages: list[Tensor], weights: list[Tensor], updates: int) -> None:
    """The mean of all weights so far."""
    torch._foreach_lerp_(averages, weights, 1 / (updates + 1))


@final
@dataclass(frozen=True)
class Exponentially:
    """``average <- decay * average + (1 - decay) * weights``

    Raises:
        ConfigError: ``decay`` is not from 0 to 1.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ConfigError(
                f"decay={self.decay}.",
                why="it is the part of the average that an update keeps, from 0 (nothing) to 1 (all).",
                fix="decay=0.999",
            )

    def __call__(self, averages: list[Tensor], weights: list[Tensor], updates: int) -> None:
        torch._foreach_lerp_(averages, weights, 1 - self.decay)


@final
class Average:
    """The running average of a module's parameters, and with ``use_buffers`` of its floating point buffers.

    Only what the module's ``state_dict`` has is averaged. Nothing is held before the first update.

    Args:
        rule: How to update.
        use_buffers: Average buffers as well, those that are saved and not whole numbers.
    """

    def __init__(self, rule: Rule, *, use_buffers: bool) -> None:
        self.rule, self.use_buffers = rule, use_buffers
        self.updates = 0
        self.swapped = False
        """The module has the average now, and this object the module's own weights."""
        self._names: list[str] = []
        self._tensors: list[Tensor] = []

    def update(self, module: nn.Module) -> None:
        """Take in the weights of now. Tensors may have been replaced since the last update, their names may not."""
        with torch.inference_mode(False), torch.no_grad():
            if self._names:
                # In parts, where they lie in parts: one operation can't mix them with those that lie whole.
                averages, weights = map(local_part, self._tensors), map(local_part, self._weights(module))
                self.rule(list(averages), list(weights), self.updates)
            else:
                self._names = self._averaged(module)
                self._tensors = [weight.clone() for weight in self._weights(module)]
        self.updates += 1

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights and the average, in place."""
        with torch.inference_mode(False), torch.no_grad():
            for average, weight in zip(self._tensors, self._weights(module), strict=True):
                held = weight.clone()
                weight.copy_(average)
                average.copy_(held)
        self.swapped = not self.swapped

    def apply_to(self, module: nn.Module) -> None:
        """Give ``module`` the average for good."""
        with torch.no_grad():
            for weight, average in zip(self._weights(module), self._tensors, strict=True):
                weight.copy_(average)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What this object holds, by the names it has in the module."""
        return dict(zip(self._names, self._tensors, strict=True))

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """``module.state_dict()`` with what this object holds in place of the weights. Empty before the first update."""
        if not self._names:
            return {}
        held = {id(w): average for w, average in zip(self._weights(module), self._tensors, strict=True)}
        return {
            name: held.get(id(value), value.detach() if isinstance(value, Tensor) else value)
            for name, value in module.state_dict(keep_vars=True).items()
        }

    def load_state_dict(self, module: nn.Module, state: dict[str, Any], updates: int) -> None:
        """Go on from ``state``, by names, on the devices and in the formats of ``module``'s weights.

        Raises:
            CheckpointError: It is that of another module.
        """
        state = unread(state)
        self._names = self._averaged(module)
        weights = self._weights(module)
        if misfits := [
            name
            for name, weight in zip(self._names, weights, strict=True)
            if name not in state or state[name].shape != weight.shape
        ]:
            raise CheckpointError(
                f"the checkpoint's averaged weights don't fit {type(module).__name__}.",
                why=f"it has none, or ones of another shape, for {', '.join(misfits)}.",
                fix="make the module as it was saved, or leave the averaging callback out.",
            )
        with torch.inference_mode(False), torch.no_grad():
            self._tensors = [torch.empty_like(weight.detach()) for weight in weights]
            for tensor, name in zip(self._tensors, self._names, strict=True):
                tensor.copy_(part_like(state[name], tensor))
        self.updates = updates

    def _averaged(self, module: nn.Module) -> list[str]:
        """The names of what is averaged; of tensors that are tied, the first."""
        saved = module.state_dict(keep_vars=True)
        named: list[tuple[str, Tensor]] = list(module.named_parameters())
        named += module.named_buffers() if self.use_buffers else ()
        return [name for name, tensor in named if name in saved and (tensor.is_floating_point() or tensor.is_complex())]

    def _weights(self, module: nn.Module) -> list[Tensor]:
        if not self._names:
            return []
        found: Any = attrgetter(*self._names)(module)
        return [found] if len(self._names) == 1 else list(found)


class WeightAveraging(Callback):
    """Averages the weights after optimizer steps; validation, tests and predictions run with the average.

    It is state of the run beside the weights, never in place of them. A checkpoint's ``state_dict`` has the raw weights,
    also when it is saved in the middle of a validation; the average lies under a key of its own,
    ``checkpoint["average"]["state_dict"]``, and can be loaded by ``module.load_state_dict``. So a checkpoint is good with
    and without the callback.

    The average is swapped in for an evaluation's hooks from the callbacks' ``on_validation_start`` on, and out again in
    their ``on_validation_end``; callbacks come before the module, whose own ``on_validation_end`` sees the raw weights.
    An exception in between puts the raw weights back. Before the first update nothing is swapped. After a fit the module
    has the raw weights: :meth:`apply_to` gives it the average for good.

    Override :meth:`should_update` to choose when to update.

    Args:
        avg: How to update: see :data:`Rule`. Default: the mean of all weights so far.
        use_buffers: Average buffers with floating point numbers as well, such as BatchNorm's statistics; False: an
            evaluation takes the ones of now. Other buffers are always those of now.

    Raises:
        ConfigError: While fitting: there is another one in the Trainer.
    """

    checkpoint_key: ClassVar[str] = "average"
    """Where a checkpoint has the average."""

    def __init__(self, avg: Rule = equally, *, use_buffers: bool = True) -> None:
        self._average = Average(avg, use_buffers=use_buffers)
        self._of: Module | None = None
        """The module whose weights are averaged."""
        self._saved: dict[str, Any] | None = None
        """Loaded, and waiting for the module to be where it will run."""
        self._seen = 0
        """Optimizer steps looked at."""
        self._breaks_off = False
        """The fit ends inside an epoch, which goes on when it is resumed."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update now.

        Args:
            step_idx: After an optimizer step: its index, from 0.
            epoch_idx: At the end of an epoch: its index, from 0.
        """
        return step_idx is not None

    @property
    def updates(self) -> int:
        """How many there were."""
        return self._average.updates if self._saved is None else int(self._saved["updates"])

    def apply_to(self, module: Module) -> None:
        """Give ``module`` the average for good, for example to export it after a fit.

        Raises:
            ConfigError: There is none yet.
        """
        self._make_ready(module)
        if not self._average.updates:
            raise ConfigError(
                f"{type(self).__name__} has no average to give.",
                why="it was not updated: no fit has run, or none has come to where the updates start.",
                fix="fit first, or read it from a checkpoint: "
                f'module.load_state_dict(checkpoint["{self.checkpoint_key}"]["state_dict"])',
            )
        self._average.apply_to(module)

    # --- which run ---

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if sum(isinstance(callback, WeightAveraging) for callback in trainer.callbacks) > 1:
            raise ConfigError(
                "two callbacks that average the weights.",
                why="an evaluation runs with one average.",
                fix="keep one of them.",
            )
        if stage == "fit" or module is not self._of:
            self._forget()
        self._of = module

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        average, kept = self._average, self._average.state_dict(module)
        if average.swapped:
            kept, checkpoint["state_dict"] = checkpoint["state_dict"], kept
        if kept:
            checkpoint[self.checkpoint_key] = {"state_dict": kept, "updates": average.updates}
        elif self._saved is not None:
            checkpoint[self.checkpoint_key] = self._saved

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        self._forget()
        self._saved = checkpoint.get(self.checkpoint_key)

    def _forget(self) -> None:
        self._average = Average(self._average.rule, use_buffers=self._average.use_buffers)
        self._saved = None

    def _make_ready(self, module: Module) -> None:
        if self._saved is not None:
            self._average.load_state_dict(module, self._saved["state_dict"], int(self._saved["updates"]))
            self._saved = None

    # --- updating ---

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._make_ready(module)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._seen, self._breaks_off = trainer.global_step, False

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        self._breaks_off = final

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow_step(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._follow_step(trainer, module)
        if not self._breaks_off and self.should_update(epoch_idx=trainer.current_epoch):
            self._average.update(module)

    def _follow_step(self, trainer: Trainer, module: Module) -> None:
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            if self.should_update(step_idx=self._seen - 1):
                self._average.update(module)

    # --- evaluating ---

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._follow_step(trainer, module)  # at an epoch's end, one of what was left of an accumulation window
        self._swap_in(module)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._swap_in(module)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._swap_in(module)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._swap_out(module)

    def on_validation_interrupted(self, trainer: Trainer, module: Module) -> None:
        self._swap_out(module)

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._swap_out(module)

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self._swap_out(module)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self._swap_out(module)

    def _swap_in(self, module: Module) -> None:
        self._make_ready(module)
        if self._average.updates:
            self._average.swap(module)

    def _swap_out(self, module: Module) -> None:
        if self._average.swapped:
            self._average.swap(module)


@final
class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average of the weights: :class:`WeightAveraging`, updated after every
    ``update_every_n_steps``-th optimizer step. A checkpoint has it under ``checkpoint["ema"]["state_dict"]``.

    Args:
        decay: The part of the average that an update keeps, from 0 to 1.
        update_every_n_steps: Update once in so many optimizer steps; at least 1.
        update_starting_at_step: No update before the step with that index, from 0.
        update_starting_at_epoch: No update before the epoch with that index, from 0.
        use_buffers: As in :class:`WeightAveraging`.

    Raises:
        ConfigError: An argument out of its range.

    Source:
        Polyak and Juditsky 1992, doi:10.1137/0330046, with exponential weights.
    """

    checkpoint_key = "ema"

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        *,
        use_buffers: bool = True,
    ) -> None:
        super().__init__(Exponentially(decay), use_buffers=use_buffers)
        starts = (update_starting_at_step or 0, update_starting_at_epoch or 0)
        if update_every_n_steps < 1 or min(starts) < 0:
            raise ConfigError(
                f"EMAWeightAveraging(update_every_n_steps={update_every_n_steps}, "
                f"update_starting_at_step={update_starting_at_step}, update_starting_at_epoch={update_starting_at_epoch}).",
                why="updates come once in 1 or more steps, and start at a step and an epoch from 0.",
                fix="EMAWeightAveraging(update_every_n_steps=1)",
            )
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        self.update_starting_at_step, self.update_starting_at_epoch = starts
        self._epoch = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None or step_idx < self.update_starting_at_step or self._epoch < self.update_starting_at_epoch:
            return False
        return step_idx % self.update_every_n_steps == 0

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self._epoch = trainer.current_epoch
