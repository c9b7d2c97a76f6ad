"""Manual optimization: the module steps its optimizers itself, and the run keeps count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from treadle.errors import ConfigError, ModuleError
from treadle.loops.optimization import OptimizationState, scale_gradients, watched
from treadle.loops.run import Run
from treadle.loops.scheduling import step_schedule
from treadle.loops.settings import Stepping
from treadle.metrics import Logbook, scope_of
from treadle.module import overrides
from treadle.optim import Optimizers, TrainerOptimizer
from treadle.strategies import PreparesBackward


@final
class ManualOptimization:
    """``training_step`` does everything; ``manual_backward`` and the optimizers it gets from ``self.optimizers()`` lead
    here.

    With ``accumulate_grad_batches``, losses are divided by the size of the window, ``step`` acts in its last batch, and
    ``zero_grad`` in its first, or after a step; so a loop that is written for one batch is right for a window.
    """

    def __init__(self, run: Run, book: Logbook, optimizers: Optimizers, settings: Stepping) -> None:
        if settings.micro_batch_size is not None:
            raise ConfigError(
                f"micro_batch_size={settings.micro_batch_size!r}, and {type(run.module).__name__} optimizes manually.",
                why="its training_step steps the optimizers itself, and would do so for each part of a batch.",
                fix="leave it out, and split the batch in training_step: treadle.splitting.MicroBatches(16)(batch).",
            )
        self.run, self.book, self.settings, self.progress = run, book, settings, run.progress
        self.module, self.schedules = run.module, optimizers.schedules
        self.wrapped = [TrainerOptimizer(o, index, self) for index, o in enumerate(optimizers.optimizers)]
        self.counts = 1.0
        """What the batch at hand counts beside the other ranks' of the same step."""
        self.window_is_known = True
        """Batches that end a window are known to, so that no other need communicate."""
        self._alone = run.fabric.world_size == 1
        strategy = run.fabric.strategy
        self._announce = strategy.before_backward if isinstance(strategy, PreparesBackward) else None
        self._training_step = watched(run)
        self._call_backward: Callable[..., Any] = torch.autograd.backward
        if overrides(run.module, "backward"):
            self._call_backward = run.module.backward
        self._scope = scope_of("training_step")
        self._planned, self._closes = 1, True
        self._asked: set[int] = set()
        """The optimizers whose ``step`` was called in this batch."""
        self._waiting: set[int] = set()
        """Those that step when the window closes."""
        self._minimized: set[int] = set()
        """Those of the waiting that step() was given a loss for: their schedulers are ours to step."""
        self._updated = False

    @property
    def has_gradients(self) -> bool:
        return True  # what the module means to do with those that are there, only it knows

    def train(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """
        ::

            training_step(batch), in which optimizers step
            count one step, if any did
        """
        self._planned, self._closes, self._updated = planned, closes, False
        self._asked.clear()
        self.book.scope = self._scope
        self.book.start_step()
        local = not (closes or self._alone or not self.window_is_known)
        with self.run.fabric.no_backward_sync(self.module, local), self.run.fabric.autocast():
            outputs = self._training_step(batch, batch_idx)
        if self.book.size_unknown is not None:
            raise self.book.size_unknown
        self.progress.window = 0 if closes else self.progress.window + 1
        self._count()
        return outputs

    def close_window(self, planned: int, batch_idx: int) -> None:
        """The optimizers that were asked to step in the window do so now, on the gradients that there are."""
        self._planned, self._updated = planned, False
        for optimizer in self.wrapped:
            if optimizer.index in self._waiting:
                self._step(optimizer, None, self.progress.window)
            if optimizer.index in self._minimized:
                self._step_schedules(optimizer)
        self.progress.window = 0
        self._count()

    def _count(self) -> None:
        self.progress.global_step += self._updated

    # --- what the module calls ---

    def backward(self, loss: Tensor, *arguments: Any, **settings: Any) -> None:
        call = self.run.hooks.call
        call(self.book, "on_before_backward", loss)
        self._backward(loss, partial(self._call_backward, *arguments, **settings) if arguments or settings else None)
        call(self.book, "on_after_backward")
        self.book.scope = self._scope

    def step(self, optimizer: TrainerOptimizer, closure: Callable[[], Any] | None, loss: Tensor | None) -> Any:
        if loss is not None:
            return self._minimize(optimizer, loss)
        self._ask(optimizer)
        if not self._closes:
            self._waiting.add(optimizer.index)
            return None if closure is None else closure()
        return self._step(optimizer, closure, self.progress.window + 1)

    def _ask(self, optimizer: TrainerOptimizer) -> None:
        """
        Raises:
            ModuleError: For the second time in a batch, of a window of several.
        """
        if optimizer.index in self._asked and self.settings.accumulate_grad_batches > 1:
            raise ModuleError(
                f"the optimizer {optimizer.index} was to step twice in one batch, with accumulate_grad_batches > 1.",
                why="in a window of batches each optimizer gathers one gradient, and steps once.",
                fix="accumulate_grad_batches=1, or one step() in a batch.",
            )
        self._asked.add(optimizer.index)

    def zero_grad(self, optimizer: TrainerOptimizer, set_to_none: bool) -> None:
        acts = self._closes if optimizer.index in self._asked else self.progress.window == 0
        if acts:
            self.run.hooks.call(self.book, "on_before_zero_grad", optimizer.optimizer)
            self.book.scope = self._scope
            optimizer.optimizer.zero_grad(set_to_none)

    @contextmanager
    def _toggled(self, optimizer: TrainerOptimizer, quiet: AbstractContextManager[Any]) -> Iterator[None]:
        with self.module.toggled_optimizer(optimizer), quiet:
            yield

    def toggled(self, optimizer: TrainerOptimizer, sync_grad: bool) -> AbstractContextManager[Any]:
        fabric = self.run.fabric
        return self._toggled(optimizer, nullcontext() if sync_grad else fabric.no_backward_sync(self.module))

    # --- how ---

    def _minimize(self, optimizer: TrainerOptimizer, loss: Tensor) -> None:
        """Clear, backward, clip, step, schedule: all of one optimizer's part of a batch."""
        if self.progress.window == 0:
            optimizer.zero_grad()
        self._ask(optimizer)
        own = list(optimizer.parameters())
        call = self.run.hooks.call
        call(self.book, "on_before_backward", loss)
        self._backward(loss, partial(torch.autograd.backward, inputs=own))
        call(self.book, "on_after_backward")
        self.book.scope = self._scope
        if not self._closes:
            self._waiting.add(optimizer.index)
            self._minimized.add(optimizer.index)
            return
        self._step(optimizer, None, self.progress.window + 1)
        self._step_schedules(optimizer)

    def _step_schedules(self, optimizer: TrainerOptimizer) -> None:
        self._minimized.discard(optimizer.index)
        for schedule in self.schedules:
            belongs = getattr(schedule.scheduler, "optimizer", None) is optimizer.optimizer
            count = self.progress.optimizer_steps[optimizer.index]
            if belongs and schedule.interval == "step" and count % schedule.frequency == 0:
                step_schedule(schedule, self.run)

    def _backward(self, loss: Tensor, call: Callable[..., Any] | None) -> None:
        share = loss / self._planned if self._planned > 1 else loss
        if self.counts != 1.0:
            share = share * self.counts
        if self._announce is not None:
            self._announce(share)
        self.run.fabric.precision.backward(share, call or self._call_backward)

    def _step(self, optimizer: TrainerOptimizer, closure: Callable[[], Any] | None, window: int) -> Any:
        """The real step, on the gradients of ``window`` batches."""
        precision = self.run.fabric.precision

        def finished() -> Any:
            loss = closure() if closure is not None else None
            if window != self._planned:  # of a loader without length, or cut short
                scale_gradients(optimizer.optimizer, self._planned / window)
            self._finish_gradients(optimizer)
            return loss

        if closure is None:
            finished()
            result = precision.step(optimizer.optimizer)
        else:
            result = precision.step(optimizer.optimizer, finished)
        self._waiting.discard(optimizer.index)
        self.progress.optimizer_steps[optimizer.index] += 1
        self._updated = True
        self.book.scope = self._scope
        return result

    def _finish_gradients(self, optimizer: TrainerOptimizer) -> None:
        clips = self.settings.gradient_clip_val is not None or overrides(self.module, "configure_gradient_clipping")
        listeners = self.run.hooks["on_before_optimizer_step"]
        if clips or listeners:
            self.run.fabric.precision.unscale(optimizer.optimizer)
        self.run.hooks.call(self.book, "on_before_optimizer_step", optimizer.optimizer)
        if clips:
            self.module.configure_gradient_clipping(
                optimizer.optimizer, self.settings.gradient_clip_val, self.settings.gradient_clip_algorithm
            )

    def state_dict(self) -> OptimizationState:
        return OptimizationState(
            weight=None, waiting=sorted(self._waiting), minimized=sorted(self._minimized), micro_batch_size=None
        )

    def load_state_dict(self, state: OptimizationState) -> None:
        self._waiting, self._minimized = set(state["waiting"]), set(state["minimized"])
