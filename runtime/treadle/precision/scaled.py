"""Weights in 32 bits; matrix products and convolutions in float16, with losses scaled into its range."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from treadle.errors import CheckpointError, ConfigError


@final
class Float16Mixed:
    """``"16-mixed"``: ``torch.autocast`` and ``torch.amp.GradScaler``.

    Gradients are those of the loss times a scale, until ``unscale`` or ``step``. A step whose gradients have an infinity
    or a NaN is left out, and the scale halved; it doubles after ``growth_interval`` steps without any.

    The scale moves in the first ``backward`` after a step rather than in the step: with several optimizers, the gradients
    of all that step on one batch have the same scale, and it moves once. Gradients that still wait for their step then
    (of an optimizer that steps more rarely, or whose step was left out by hand after ``unscale``) get the new scale.

    Args:
        device: Where forward passes run; autocast concerns one type of device.
        init_scale: What losses are multiplied with at first.
        growth_interval: In steps.
    """

    name = "16-mixed"
    compute: torch.dtype | None = torch.float16
    weights: torch.dtype | None = None

    def __init__(self, device: torch.device | str, *, init_scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self._device = torch.device(device)
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=init_scale, growth_interval=growth_interval)
        self._known: WeakSet[Optimizer] = WeakSet()
        self._unscaled: set[Optimizer] = set()
        """Since the scale moved; those that stepped are among them."""
        self._stepped: set[Optimizer] = set()
        self._ran = True
        """The last step called the optimizer's ..."""
        self._found: Tensor | None = None
        """... which was told by this to move nothing, if it isn't 0: only fused optimizers can be."""

    def convert(self, module: nn.Module) -> nn.Module:
        """
        Raises:
            ConfigError: Weights are in float16 already.
        """
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dtype == torch.float16:
                raise ConfigError(
                    f'precision="16-mixed", and {type(module).__name__}.{name} is in float16.',
                    why="mixed precision keeps weights in 32 bits: scaled gradients of 16 bits can't be unscaled.",
                    fix='precision="16-true", or module.float()',
                )
        return module

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, dtype=torch.float16)  # a new one: see bf16-mixed

    def backward(self, loss: Tensor, call: Callable[..., Any] = torch.autograd.backward) -> None:
        self._move_scale()
        call(self._scaler.scale(loss))

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, once, and note on the device whether all are finite. Does not sync.

        Raises:
            ConfigError: The optimizer is one that evaluates the loss itself, as LBFGS.
        """
        if optimizer not in self._known:
            self._get_to_know(optimizer)
        if optimizer not in self._unscaled and _has_gradients(optimizer):
            self._scaler.unscale_(optimizer)
            self._unscaled.add(optimizer)

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Step if all gradients are finite. ``closure``, which computes them, is called first, once. Waits for the device,
        except for fused optimizers. Returns what ``closure`` does.

        Raises:
            ConfigError: The optimizer is one that evaluates the loss itself, as LBFGS.
        """
        if optimizer not in self._known:
            self._get_to_know(optimizer)
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self.unscale(optimizer)
        if optimizer not in self._unscaled:
            optimizer.step()  # there are no gradients
        elif optimizer not in self._stepped:
            self._ran, self._found = False, None
            self._scaler.step(optimizer)
            self._stepped.add(optimizer)
        elif not self.skipped:
            optimizer.step()  # again, on gradients that are unscaled and known to be finite
        torch.clear_autocast_cache()  # a step inside of autocast (manual optimization) left copies of the old weights
        return result

    @property
    def skipped(self) -> bool:
        """The last step was left out. Reading it waits for the device after the step of a fused optimizer, and costs
        nothing after others."""
        return not self._ran or (self._found is not None and bool(self._found))

    def state_dict(self) -> dict[str, Any]:
        """Numbers only. Moves the scale if a step asks for it, so gradients that wait belong to what this returns when
        they are read after it."""
        self._move_scale()
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of another precision, which is empty: the scale starts anew.

        Raises:
            CheckpointError: It is not the state of a scale.
        """
        self._move_scale()
        if not state:
            return
        if missing := self._scaler.state_dict().keys() - state.keys():
            raise CheckpointError(
                f"the checkpoint's precision state lacks {', '.join(sorted(missing))}; it has {sorted(state)}.",
                why='the run was saved with another precision than "16-mixed".',
                fix="resume it with its own precision, or start from its weights.",
            )
        self._scaler.load_state_dict(state)

    def _get_to_know(self, optimizer: Optimizer) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f'{type(optimizer).__name__} with precision="16-mixed".',
                why="it evaluates the loss several times in a step, and a step with infinite gradients must be left out.",
                fix='precision="bf16-mixed" or "32-true", or an optimizer such as AdamW.',
            )
        optimizer.register_step_pre_hook(self._note_step)
        self._known.add(optimizer)

    def _note_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._ran, self._found = True, getattr(optimizer, "found_inf", None)

    def _move_scale(self) -> None:
        """By what was found since it moved last."""
        if not self._unscaled:
            return
        waiting = [o for o in self._known if o not in self._stepped]
        before = self._scale() if waiting else None
        self._scaler.update()
        if before is not None:
            after = self._scale()
            for optimizer in waiting:
                _multiply_gradients(optimizer, after if optimizer in self._unscaled else after / before)
        self._unscaled.clear()
        self._stepped.clear()

    def _scale(self) -> Tensor:
        scale: Tensor = self._scaler.scale(torch.ones((), device=self._device))
        return scale


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _multiply_gradients(optimizer: Optimizer, factor: Tensor) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.mul_(factor.to(p.grad.device))
