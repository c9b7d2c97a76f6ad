"""Notice a loss that jumps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError, ModuleError, TrainingError, warn
from treadle.metrics import Number, as_floats

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

_CURE = "look at that batch; lower the learning rate, set gradient_clip_val=1.0, or resume from before it."


@final
class SpikeDetection(Callback):
    """Finds the batch whose loss is not finite, or much worse than those before it.

    Losses stay on their device and are read together, at log points and at the end of epochs; up to there training
    goes on. With ``check_every=1`` it ends with the batch at fault, and each step waits for the device.

    Args:
        mode: Whether less or more is better.
        window: A loss is compared with the mean of so many before it, spikes not counted.
        warmup: The first so many are not compared; at least 1.
        atol: Much worse is at least so much worse than the mean; None for whatever ``rtol`` says.
        rtol: And at least so many times the mean worse: with 2, a loss of 3 is a spike after losses of 1. None for
            whatever ``atol`` says.
        finite_only: A loss that is not finite is a spike; else it is left out.
        on_spike: ``stop`` with an error, or ``warn`` and go on.
        check_every: Optimizer steps between two looks. Default: the Trainer's ``log_every_n_steps``.

    Raises:
        ConfigError: A setting out of its range.
        ModuleError: While fitting, ``training_step`` returns no loss.
        TrainingError: While fitting, a spike.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        finite_only: bool = True,
        on_spike: Literal["stop", "warn"] = "stop",
        check_every: int | None = None,
    ) -> None:
        bounds = [bound for bound in (atol, rtol) if bound is not None]
        if mode not in ("min", "max") or on_spike not in ("stop", "warn"):
            raise ConfigError(
                f"SpikeDetection(mode={mode!r}, on_spike={on_spike!r}).",
                why='mode is "min" or "max"; at a spike it stops with an error ("stop") or warns ("warn").',
                fix='SpikeDetection(mode="min", on_spike="stop")',
            )
        if window < 1 or warmup < 1 or (check_every is not None and check_every < 1) or any(b <= 0 for b in bounds):
            raise ConfigError(
                f"SpikeDetection(window={window}, warmup={warmup}, atol={atol}, rtol={rtol}, check_every={check_every}).",
                why="window, warmup and check_every are counts from 1, atol and rtol above 0 or None.",
                fix="SpikeDetection(window=10, warmup=1, rtol=2.0)",
            )
        if not bounds and not finite_only:
            raise ConfigError(
                "SpikeDetection(atol=None, rtol=None, finite_only=False).",
                why="nothing would ever be a spike.",
                fix="SpikeDetection(rtol=2.0)",
            )
        self.mode, self.window, self.warmup, self.on_spike = mode, window, warmup, on_spike
        self.atol, self.rtol, self.finite_only, self.check_every = atol, rtol, finite_only, check_every
        self._start_anew()

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._start_anew()

    def _start_anew(self) -> None:
        self._compared: list[float] = []
        """The window."""
        self._seen, self._skipped = 0, 0
        """Losses read so far, and batches without one."""
        self._unread: list[Tensor] = []
        self._places: list[tuple[int, int, int]] = []
        """Of each of the unread: epoch, batch and step."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        closed = trainer.progress.window == 0
        if (loss := _loss(outputs)) is None:
            self._skipped += 1
        else:
            self._unread.append(loss)
            self._places.append((trainer.current_epoch, batch_idx, trainer.global_step - closed))
        if closed and trainer.global_step % (self.check_every or trainer.log_every_n_steps) == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._skipped and not self._seen:
            warn("spike", "SpikeDetection saw no loss: training_step returned None for every batch.")

    def _check(self, trainer: Trainer) -> None:
        """Read what has come in since the last check."""
        unread: dict[str, Number] = {str(index): loss for index, loss in enumerate(self._unread)}
        places, self._unread, self._places = self._places, [], []
        spikes = []
        for loss, place in zip(as_floats(unread).values(), places, strict=True):
            if (why := self._judge(loss)) is not None:
                spikes.append((loss, place, why))
        if self.on_spike == "stop" and _anywhere(trainer, bool(spikes)):
            raise self._error(spikes)
        if spikes:
            loss, place, why = spikes[0]
            others = f" And {len(spikes) - 1} more since the last check." if len(spikes) > 1 else ""
            warn("spike", f"{_found(loss, place)} {why}{others}")

    def _judge(self, loss: float) -> str | None:
        """Why ``loss`` is a spike; None if it is none, and then it joins the window."""
        self._seen += 1
        if not math.isfinite(loss):
            return "It is not finite." if self.finite_only else None
        if self._compared and self._seen > self.warmup:
            mean = fmean(self._compared)
            worse = loss - mean if self.mode == "min" else mean - loss
            least = max(self.atol or 0.0, (self.rtol or 0.0) * abs(mean))
            if (self.atol or self.rtol) and worse > 0 and worse >= least:
                return f"The {len(self._compared)} before it are {mean:.5g} on average."
        self._compared = [*self._compared, loss][-self.window :]
        return None

    def _error(self, spikes: list[tuple[float, tuple[int, int, int], str]]) -> TrainingError:
        if not spikes:
            return TrainingError("the loss of another rank jumped.", why="all ranks stop together.", fix=_CURE)
        loss, place, why = spikes[0]
        bounds = f"mode={self.mode!r}, window={self.window}, atol={self.atol}, rtol={self.rtol}"
        return TrainingError(_found(loss, place), why=f"{why} SpikeDetection({bounds}) stops there.", fix=_CURE)

    # --- state ---

    @property
    def state_key(self) -> str:
        return f"SpikeDetection[{self.mode},{self.on_spike}]"

    def state_dict(self) -> dict[str, Any]:
        return {
            "compared": list(self._compared),
            "seen": self._seen,
            "unread": list(self._unread),
            "places": [list(place) for place in self._places],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._compared, self._seen = list(state["compared"]), state["seen"]
        self._unread = list(state["unread"])
        self._places = [(epoch, batch, step) for epoch, batch, step in state["places"]]


def _loss(outputs: Any) -> Tensor | None:
    """A copy of the loss, on its device: what the step returned may be overwritten before it is read."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if loss is None and not outputs:  # the batch was skipped, or a module that optimizes manually returned nothing
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ModuleError(
            f"SpikeDetection found no loss in the {type(outputs).__name__} that training_step returned.",
            why='it follows the loss: a tensor with one element, or a dict with it under "loss".',
            fix='return {"loss": loss, ...}',
        )
    return loss.detach().reshape(()).clone()


def _found(loss: float, place: tuple[int, int, int]) -> str:
    epoch, batch, step = place
    return f"the loss is {loss:.5g} in epoch {epoch}, batch {batch} (step {step})."


def _anywhere(trainer: Trainer, spiked: bool) -> bool:
    """Whether it did on any rank: one that stopped alone would leave the others waiting for it."""
    if trainer.world_size == 1:
        return spiked
    fabric = trainer.fabric
    return bool(fabric.all_reduce(torch.tensor(float(spiked), device=fabric.device), "max"))
