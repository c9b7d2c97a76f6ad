"""From a batch to an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.errors import ConfigError, ModuleError, TrainingError, nearest, warn
from treadle.loops.run import Run, takes_index
from treadle.loops.settings import Stepping
from treadle.metrics import Logbook, scope_of
from treadle.optim import Optimizers, Schedule


@final
class AutomaticOptimization:
    """Forward, backward, and at the end of a window an optimizer step. All that can be decided before the first batch
    is decided here, so that a step costs little more than its own arithmetic."""

    def __init__(self, run: Run, book: Logbook, optimizers: Optimizers, settings: Stepping) -> None:
        if len(optimizers.optimizers) > 1:
            raise ModuleError(
                f"configure_optimizers returned {len(optimizers.optimizers)} optimizers.",
                why="in automatic optimization one loss moves one optimizer.",
                fix="give one optimizer several parameter groups.",
            )
        if not optimizers.optimizers:
            warn("no-optimizer", "configure_optimizers returned None: training_step runs, and nothing is optimized.")
        self.run, self.book, self.settings, self.progress = run, book, settings, run.progress
        self.optimizer: Optimizer | None = optimizers.optimizers[0] if optimizers.optimizers else None
        self.schedules = optimizers.schedules
        self.parameters = (
            [p for group in self.optimizer.param_groups for p in group["params"]] if self.optimizer else []
        )
        self._step_schedules = [s for s in self.schedules if s.interval == "step"]
        self._training_step = run.fabric.method(run.module, "training_step")
        self._takes_index = takes_index(run.module.training_step)
        self._accumulates = settings.accumulate_grad_batches > 1
        self._autocast = run.fabric.autocast
        self._backward = run.fabric.precision.backward
        self._step = run.fabric.precision.step
        self._scope = scope_of("training_step")
        hooks = run.hooks
        self._before_zero_grad = hooks["on_before_zero_grad"]
        self._before_backward, self._after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
        self._before_step = hooks["on_before_optimizer_step"]

    def train(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """Train on one batch.

        ::

            loss <- training_step(batch)
            clear the gradients, if the window starts
            gradients <- gradients + d(loss / size of the window)
            step, if the window ends

        Args:
            planned: The number of batches in this window; 1 if that can't be known yet.
            closes: The window ends with this batch.

        Returns:
            What ``training_step`` returned.
        """
        self.book.scope = self._scope
        with self._autocast():
            outputs = self._training_step(batch, batch_idx) if self._takes_index else self._training_step(batch)
        loss = self._loss(outputs) if self.optimizer is not None else None
        if loss is not None:
            if self.progress.window == 0:
                self.zero_grad()
            if self._accumulates and not closes:
                with self.run.fabric.no_backward_sync(self.run.module):
                    self.backward(loss / planned)
            else:
                self.backward(loss / planned if planned > 1 else loss)
            self.progress.window += 1
        if closes:
            self.close_window(planned)
        return outputs

    def zero_grad(self) -> None:
        assert self.optimizer is not None
        if self._before_zero_grad:
            self.run.hooks.call(self.book, "on_before_zero_grad", self.optimizer)
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        if self._before_backward:
            self.run.hooks.call(self.book, "on_before_backward", loss)
        self._backward(loss)
        if self._after_backward:
            self.run.hooks.call(self.book, "on_after_backward")

    def close_window(self, planned: int) -> None:
        """Step, unless every batch of the window was skipped."""
        if self.optimizer is None:
            self.progress.global_step += 1
            return
        if not self.progress.window:
            return
        if self.progress.window != planned:
            # The window turned out shorter or longer than its losses were divided by.
            for gradient in [p.grad for p in self.parameters if p.grad is not None]:
                gradient.mul_(planned / self.progress.window)
        if self._before_step:
            self.run.hooks.call(self.book, "on_before_optimizer_step", self.optimizer)
        if self.settings.gradient_clip_val is not None:
            self.clip(self.settings.gradient_clip_val)
        self._step(self.optimizer)
        self.progress.window = 0
        self.progress.global_step += 1
        for schedule in self._step_schedules:
            if self.progress.global_step % schedule.frequency == 0:
                step_schedule(schedule, self.run)

    def clip(self, bound: float) -> None:
        by_norm = self.settings.gradient_clip_algorithm == "norm"
        self.run.fabric.clip_gradients(
            self.parameters,
            max_norm=bound if by_norm else None,
            clip_val=None if by_norm else bound,
            optimizer=self.optimizer,
        )

    def step_epoch_schedules(self, *, on_plateau: bool) -> None:
        """Step the schedulers that count epochs: those that follow a metric, or the others."""
        for schedule in self.schedules:
            due = schedule.interval == "epoch" and (self.progress.epoch + 1) % schedule.frequency == 0
            if due and schedule.on_plateau == on_plateau:
                step_schedule(schedule, self.run)

    def _loss(self, outputs: Any) -> Tensor | None:
        loss = outputs
        if not isinstance(outputs, Tensor):
            if outputs is None:
                return None
            if isinstance(outputs, Mapping) and "loss" in outputs:
                loss = outputs["loss"]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise _unusable_loss(outputs, loss)
        if self.settings.detect_anomaly and not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {self.progress.epoch}, batch {self.progress.batch}.",
                why="detect_anomaly=True stops at the first loss that is not finite.",
                fix="look at that batch; lower the learning rate, or set gradient_clip_val=1.0.",
            )
        return loss


def step_schedule(schedule: Schedule, run: Run) -> None:
    """Step one learning rate scheduler, with its metric if it follows one."""
    if not schedule.on_plateau:
        return schedule.scheduler.step()  # type: ignore[call-arg]
    assert schedule.monitor is not None
    known = {**run.results.tensors(), **(run.book.callback_values() if run.book else {})}
    if schedule.monitor in known:
        return schedule.scheduler.step(float(known[schedule.monitor]))  # type: ignore[arg-type]
    if schedule.strict:
        raise ConfigError(
            f"a ReduceLROnPlateau follows {schedule.monitor!r}, which is not logged.",
            why=f"known when it should have stepped: {', '.join(sorted(known)) or 'nothing'}.",
            fix=nearest(schedule.monitor, sorted(known)) if known else f'self.log("{schedule.monitor}", ...)',
        )


def _unusable_loss(outputs: Any, loss: Any) -> ModuleError:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return ModuleError(
            "the loss doesn't depend on any parameter.",
            why="training_step returned a tensor without a gradient: detached, or computed under no_grad.",
            fix="return the loss itself, not loss.detach() or loss.item().",
        )
    if isinstance(loss, Tensor):
        return ModuleError(
            f"training_step returned a loss of shape {tuple(loss.shape)}.",
            why="a loss is one number, a tensor of shape ().",
            fix="return loss.mean()",
        )
    keys = f" with the keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    return ModuleError(
        f"training_step returned {type(outputs).__name__}{keys}.",
        why='it returns the loss as a tensor, a dict with it under "loss", or None to skip the batch.',
        fix="return loss",
    )
