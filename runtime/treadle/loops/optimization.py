"""From a batch to an optimizer step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypedDict, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.callbacks.hooks import profiled
from treadle.callbacks.step_guard import guards_among
from treadle.errors import ConfigError, ModuleError, TrainingError, warn
from treadle.loops.calling import Step, bind
from treadle.loops.micro_batches import InParts
from treadle.loops.run import Run
from treadle.loops.scheduling import step_schedules
from treadle.loops.settings import Stepping
from treadle.metrics import Logbook, Number, scope_of
from treadle.module import overrides
from treadle.optim import Optimizers, TrainerOptimizer


class OptimizationState(TypedDict):
    weight: Number | None
    """The sum of the weights of the batches in an open window; None if they have none."""
    waiting: list[int]
    """Manual optimization: the optimizers that step when the window closes ..."""
    minimized: list[int]
    """... and those of them whose schedulers step then, too."""
    micro_batch_size: int | None
    """That was found, with ``auto``."""


class Optimization(Protocol):
    """What the fit loop asks of either way to optimize."""

    wrapped: list[TrainerOptimizer]
    counts: float
    window_is_known: bool

    @property
    def has_gradients(self) -> bool:
        """Gradients wait for a step: a checkpoint must hold them."""
        ...

    def train(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """Train on one batch.

        Args:
            planned: The number of batches in this accumulation window; 1 if that can't be known yet.
            closes: The window ends with this batch.

        Returns:
            What ``training_step`` returned.
        """
        ...

    def close_window(self, planned: int, batch_idx: int) -> None:
        """The epoch ended inside a window: step on what there is."""
        ...

    def state_dict(self) -> OptimizationState: ...

    def load_state_dict(self, state: OptimizationState) -> None: ...


@final
class AutomaticOptimization:
    """Forward, backward, and at the end of a window an optimizer step. All that can be decided before the first batch
    is decided here, so that a step costs little more than its own arithmetic."""

    def __init__(
        self, run: Run, book: Logbook, optimizers: Optimizers, settings: Stepping, *, check_finite: bool = False
    ) -> None:
        if len(optimizers.optimizers) > 1:
            raise ModuleError(
                f"configure_optimizers returned {len(optimizers.optimizers)} optimizers.",
                why="in automatic optimization one loss moves one optimizer.",
                fix="give one optimizer several parameter groups, or set self.automatic_optimization = False.",
            )
        if not optimizers.optimizers:
            warn("no-optimizer", "configure_optimizers returned None: training_step runs, and nothing is optimized.")
        self.run, self.book, self.settings, self.progress = run, book, settings, run.progress
        self.module, self.check_finite = run.module, check_finite
        self.wrapped = [TrainerOptimizer(o, index, self) for index, o in enumerate(optimizers.optimizers)]
        self.optimizer: Optimizer | None = optimizers.optimizers[0] if optimizers.optimizers else None
        self.schedules = optimizers.schedules
        self.weight: Number | None = None
        self._training_step = watched(run)
        self.counts = 1.0
        """What the batch at hand counts beside the other ranks' of the same step."""
        self.window_is_known = True
        """Batches that end a window are known to, so that no other need communicate."""
        self._share_of_data = run.fabric.strategy.share
        self._alone = run.fabric.world_size == 1
        self._autocast = run.fabric.autocast
        self._backward = run.fabric.precision.backward
        if overrides(run.module, "backward"):
            self._backward = partial(run.fabric.precision.backward, call=run.module.backward)
        self._step, self._unscale = run.fabric.precision.step, run.fabric.precision.unscale
        self._needs_closure = self.optimizer is not None and needs_closure(self.optimizer)
        self._with_closure = self._needs_closure or (
            self.optimizer is not None and overrides(run.module, "optimizer_step")
        )
        self._own_zero_grad = overrides(run.module, "optimizer_zero_grad")
        self._own_clipping = overrides(run.module, "configure_gradient_clipping")
        self._scope = scope_of("training_step")
        hooks = run.hooks
        self._before_zero_grad = hooks["on_before_zero_grad"]
        # Where nobody looks at them there, gradients go before the forward pass, and take no memory beside it.
        self._clears_early = not (self._before_zero_grad or self._own_zero_grad or self._with_closure)
        self._before_backward, self._after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
        self._before_step = hooks["on_before_optimizer_step"]
        self._guards = guards_among(run.module.trainer.callbacks)
        if self._guards and self._with_closure:
            raise _guarded_closure(self._guards[0], run.module, self.optimizer)
        self._stepped = False
        self._weighs: bool | None = None
        """Whether batches have weights: all of them or none."""
        self._parts: InParts | None = None
        self._accumulate: Callable[[Any, int, int, bool], Any] = self.accumulate_whole
        if settings.micro_batch_size is not None:
            self._accumulate = self._parts = InParts(self, run, book, settings.micro_batch_size)
        if self._needs_closure and settings.accumulate_grad_batches > 1:
            raise _closure_and_window(self.optimizer)

    @property
    def has_gradients(self) -> bool:
        return self.progress.window > 0

    def train(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """
        ::

            loss <- training_step(batch)
            clear the gradients, if the window starts
            gradients <- gradients + d(loss / size of the window)
            step, if the window ends
        """
        if closes and self._with_closure:
            return self.train_by_closure(batch, batch_idx, planned)
        if self._guards and self.progress.window == 0:
            for guard in self._guards:
                guard.before_window(self.module.trainer, self.module)
        outputs = self.accumulate(batch, batch_idx, planned, closes)
        for guard in self._guards:
            guard.after_backward(self.module.trainer, outputs, batch_idx)
        if closes:
            self.close_window(planned, batch_idx)
        return outputs

    def accumulate(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """Forward and backward; of several ranks, the gradients meet in the window's last."""
        if closes or self._alone or not self.window_is_known:
            return self._accumulate(batch, batch_idx, planned, closes)
        with self.run.fabric.no_backward_sync(self.module):
            return self._accumulate(batch, batch_idx, planned, closes)

    def accumulate_whole(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """Forward and backward on a batch as it is, or on a part of one."""
        book, progress = self.book, self.progress
        book.scope = self._scope
        book.start_step()
        if self._clears_early and progress.window == 0 and self.optimizer is not None:
            self.optimizer.zero_grad()
        with self._autocast():
            outputs = self._training_step(batch, batch_idx)
        weight = None if isinstance(outputs, Tensor) else _weight_of(outputs)
        if weight is not None:
            book.weigh(weight)
        if book.size_unknown is not None:
            raise book.size_unknown
        loss = self._loss(outputs) if self.optimizer is not None else None
        if not self._alone and loss is None and self.optimizer is not None:
            raise _skipped_by_one_rank(self.run.fabric.global_rank)
        if loss is None or (self._alone and not isinstance(weight, Tensor) and weight == 0.0):
            return outputs  # a batch that counts nothing is skipped
        if progress.window == 0:
            if not self._clears_early:
                self.zero_grad(None, batch_idx=batch_idx)
            self.weight = None
        self.backward(self._share(loss, weight, planned, closes))
        progress.window += 1
        return outputs

    def rehearse(self, batch: Any, batch_idx: int) -> None:
        """Forward and backward that no hook, no other rank and no counter takes notice of."""
        step = self.module.training_step  # not the strategy's: a pass that breaks off must not keep others waiting
        with self._autocast():
            outputs = bind(step, signature_of=step)(batch, batch_idx)
        if self.optimizer is not None and (loss := self._loss(outputs)) is not None:
            backward = self._backward
            if not self._alone and not overrides(self.module, "backward"):  # nor what listens to gradients as they come
                trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
                grad = partial(torch.autograd.grad, inputs=trained, allow_unused=True)
                backward = partial(self.run.fabric.precision.backward, call=grad)
            backward(loss)

    def train_by_closure(self, batch: Any, batch_idx: int, planned: int) -> Any:
        """The step of a module that overrides ``optimizer_step``, or of an optimizer that evaluates its loss itself:
        everything up to the step is a function for it to call."""
        outputs: Any = None
        calls = 0
        before = self.progress.window

        def closure() -> Tensor | None:
            nonlocal outputs, calls
            if calls and before:
                raise _closure_and_window(self.optimizer)
            calls += 1
            if not before:
                self.progress.window = 0
            self.book.muted = calls > 1
            outputs = self.accumulate(batch, batch_idx, planned, closes=True)
            if not self.progress.window:
                if self._needs_closure:
                    raise _skipped_with_closure(self.optimizer)
                self.zero_grad(None, batch_idx=batch_idx)  # a step without gradients moves nothing
                return None
            self.finish_gradients(planned)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            if loss is None:  # skipped: the step is on what the window's other batches gave
                return None
            detached: Tensor = loss.detach()
            return detached

        try:
            self.step_by_closure(closure, batch_idx)
        finally:
            self.book.muted = False
        if not calls:
            raise ModuleError(
                f"{type(self.module).__name__}.optimizer_step never called its closure.",
                why="the closure computes the gradients: forward, backward, hooks and clipping.",
                fix="optimizer.step(closure=optimizer_closure)",
            )
        return outputs

    def step_by_closure(self, closure: Callable[[], Any], batch_idx: int) -> None:
        self._stepped = False
        if overrides(self.module, "optimizer_step"):
            self.module.optimizer_step(self.progress.epoch, batch_idx, self.wrapped[0], closure)
        else:
            self.step(self.wrapped[0], closure, None)
        trained, self.progress.window = self.progress.window, 0
        if trained and self._stepped:
            self.count_step()

    def close_window(self, planned: int, batch_idx: int) -> None:
        """Step, unless every batch of the window was skipped."""
        if self.optimizer is None:
            self.progress.global_step += 1
            return None
        if not self.progress.window:
            return None
        if self._with_closure:  # the epoch ended inside a window: what is left to compute is little
            return self.step_by_closure(lambda: self.finish_gradients(planned), batch_idx)
        if self._guards and not self.may_step(self.optimizer):
            self.optimizer.zero_grad()
            self.progress.window = 0
            return None
        self.finish_gradients(planned)
        self._step(self.optimizer)
        self.progress.window = 0
        self.count_step()

    def may_step(self, optimizer: Optimizer) -> bool:
        allowed = [guard.allows_step(self.module.trainer, self.module, optimizer) for guard in self._guards]
        return all(allowed)

    def finish_gradients(self, planned: int) -> None:
        """Everything between the last backward and the step."""
        assert self.optimizer is not None
        if (factor := self._correction(planned)) is not None:
            scale_gradients(self.optimizer, factor)
        clips = self.settings.gradient_clip_val is not None or self._own_clipping
        if self._before_step or clips:
            self._unscale(self.optimizer)
        if self._before_step:
            self.run.hooks.call(self.book, "on_before_optimizer_step", self.optimizer)
        if clips:
            self.module.configure_gradient_clipping(
                self.optimizer, self.settings.gradient_clip_val, self.settings.gradient_clip_algorithm
            )

    def count_step(self) -> None:
        self.progress.global_step += 1
        self.progress.optimizer_steps[0] += 1
        if self.schedules:
            step_schedules(self.schedules, self.run, interval="step", on_plateau=False)

    # --- the optimizer, as an overridden optimizer_step sees it ---

    def step(self, optimizer: TrainerOptimizer, closure: Callable[[], Any] | None, loss: Tensor | None) -> Any:
        if loss is not None:
            raise _only_manual(self.module, "optimizer.step(loss)")
        self._stepped = True
        return self._step(optimizer.optimizer, closure)

    def zero_grad(
        self, optimizer: TrainerOptimizer | None, set_to_none: bool = True, *, batch_idx: int | None = None
    ) -> None:
        assert self.optimizer is not None
        if optimizer is not None:
            return self.optimizer.zero_grad(set_to_none)
        if self._before_zero_grad:
            self.run.hooks.call(self.book, "on_before_zero_grad", self.optimizer)
        if self._own_zero_grad:
            self.module.optimizer_zero_grad(self.progress.epoch, batch_idx or 0, self.optimizer)
        else:
            self.optimizer.zero_grad()

    def toggled(self, optimizer: TrainerOptimizer, sync_grad: bool) -> AbstractContextManager[Any]:
        return nullcontext()  # there is one optimizer

    def backward(self, loss: Tensor) -> None:
        if self._before_backward:
            self.run.hooks.call(self.book, "on_before_backward", loss)
        self._backward(loss)
        if self._after_backward:
            self.run.hooks.call(self.book, "on_after_backward")

    # --- what each batch's loss contributes ---

    def weight_of(self, outputs: Any) -> Number | None:
        """What a training step said its batch counts."""
        return _weight_of(outputs)

    def _share(self, loss: Tensor, weight: Number | None, planned: int, closes: bool) -> Tensor:
        """The loss to differentiate: divided by the planned size of its window, or weighted by what the step said."""
        if self._weighs is None:
            self._weighs = weight is not None
        elif self._weighs != (weight is not None):
            raise _mixed_weights()
        if weight is None:
            loss = loss / planned if planned > 1 else loss
            return loss if self.counts == 1.0 else loss * self.counts
        if self.counts == 0.0:
            weight = weight * 0.0  # a batch of another rank
        if closes and not self.progress.window and self._alone:
            self.weight = 1.0  # the only batch of its step: its mean is the step's
            return loss * (weight > 0) if isinstance(weight, Tensor) else loss
        self.weight = weight if self.weight is None else self.weight + weight
        return loss * weight

    def _correction(self, planned: int) -> Number | None:
        """What the gathered gradients are to be multiplied with; None for nothing."""
        if self.weight is None:
            # The window turned out shorter or longer than its losses were divided by.
            return None if self.progress.window == planned else planned / self.progress.window
        total, ranks = self.weight, self._share_of_data.count
        if not self._alone:
            device = self.run.fabric.device
            total = self.run.fabric.ranks.reduce(
                torch.as_tensor(total, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64),
                "sum",
                self._share_of_data.group,
            )
        if isinstance(total, Tensor):
            return torch.where(total > 0, ranks / total, 0.0)
        return None if total == ranks else ranks / total if total > 0 else 0.0

    def _loss(self, outputs: Any) -> Tensor | None:
        loss = outputs
        if not isinstance(outputs, Tensor):
            if outputs is None:
                return None
            if isinstance(outputs, Mapping) and "loss" in outputs:
                loss = outputs["loss"]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise _unusable_loss(outputs, loss)
        if self.check_finite and not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {self.progress.epoch}, batch {self.progress.batch}.",
                why="detect_anomaly=True stops at the first loss that is not finite.",
                fix="look at that batch; lower the learning rate, or set gradient_clip_val=1.0.",
            )
        return loss

    def state_dict(self) -> OptimizationState:
        return OptimizationState(
            weight=self.weight if self.progress.window else None,
            waiting=[],
            minimized=[],
            micro_batch_size=self._parts.found if self._parts is not None else None,
        )

    def load_state_dict(self, state: OptimizationState) -> None:
        self.weight = state["weight"]
        if self._parts is not None:
            self._parts.resume(state.get("micro_batch_size"))


def watched(run: Run) -> Step:
    """The module's ``training_step``, under the eyes of the profiler if there is one."""
    step = bind(run.fabric.method(run.module, "training_step"), signature_of=run.module.training_step)
    if run.profiler is None:
        return step
    return profiled(run.profiler, f"[Module]{type(run.module).__name__}.training_step", step)


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its ``step`` can't be called without one, as that of LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def scale_gradients(optimizer: Optimizer, factor: Number) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def _weight_of(outputs: Any) -> Number | None:
    """What a training step said its batch counts."""
    if not isinstance(outputs, Mapping) or (weight := outputs.get("weight")) is None:
        return None
    if isinstance(weight, Tensor) and weight.numel() == 1:
        # Sums of weights must not overflow or round; on the way to the gradient torch is back in the loss's format.
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        return weight.detach().reshape(()).to(wide)
    if isinstance(weight, (int, float)) and weight >= 0:
        return float(weight)
    raise ModuleError(
        f'training_step returned {weight!r} for "weight".',
        why="it says how much the batch counts beside others: a number that is not negative, or a tensor with one.",
        fix='{"loss": loss, "weight": tokens.numel()}, or another name for what you mean.',
    )


def _skipped_by_one_rank(rank: int) -> ModuleError:
    return ModuleError(
        f"training_step returned None on rank {rank}.",
        why="a step needs a gradient from every rank; one that leaves a batch out would keep the others waiting.",
        fix='return {"loss": loss, "weight": 0.0} for a batch that is not to count, and a weight for every other.',
    )


def _mixed_weights() -> ModuleError:
    return ModuleError(
        "some batches have a weight, and others have none.",
        why="gradients of a step and means over an epoch are weighted by it.",
        fix='return {"loss": loss, "weight": ...} from every training_step, or from none.',
    )


def _closure_and_window(optimizer: Optimizer | None) -> ModuleError:
    return ModuleError(
        f"{type(optimizer).__name__} evaluates the loss of a step more than once, with accumulate_grad_batches > 1.",
        why="only the window's last batch can be computed again; the gradients of the others would be wrong then.",
        fix="accumulate_grad_batches=1, and a larger batch_size.",
    )


def _guarded_closure(guard: object, module: object, optimizer: Optimizer | None) -> ConfigError:
    closes = optimizer is not None and needs_closure(optimizer)
    whose = f"{type(optimizer).__name__} evaluates its loss" if closes else f"{type(module).__name__} steps by itself"
    return ConfigError(
        f"{type(guard).__name__} may leave a step out, and {whose} (optimizer_step).",
        why="gradients are computed inside of the step there, where it is too late to leave it out.",
        fix='SpikeDetection(on_spike="stop"); or another optimizer, and a scheduler in place of optimizer_step.',
    )


def _skipped_with_closure(optimizer: Optimizer | None) -> ModuleError:
    return ModuleError(
        f"training_step returned None, and {type(optimizer).__name__} is in the middle of a step.",
        why="it needs the loss of each batch.",
        fix="return a loss for every batch, or leave such batches out in the data set.",
    )


def _only_manual(module: object, what: str) -> ModuleError:
    return ModuleError(
        f"{type(module).__name__} called {what} in automatic optimization.",
        why="there the Trainer does it, with the loss that training_step returns.",
        fix="set self.automatic_optimization = False in __init__, or leave the call out.",
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
