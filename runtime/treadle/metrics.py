"""What ``self.log`` feeds: current values and running reductions, kept on their device until a log point."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from treadle.errors import ConfigError, ModuleError

Number = Tensor | float
ReduceFx = Literal["mean", "sum", "min", "max"]
REDUCTIONS = ("mean", "sum", "min", "max")


@dataclass(frozen=True, eq=False)
class Scope:
    """The hook that is running, as far as logging goes. One object per hook: compared by identity, on the hot path."""

    hook: str
    on_step: bool
    """What ``on_step`` is when ``self.log`` doesn't say."""
    batched: bool
    """A batch is at hand, so a mean over the epoch is weighted by its size."""

    @property
    def on_epoch(self) -> bool:
        return not self.on_step


@cache
def scope_of(hook: str) -> Scope | None:
    """The scope of a hook, by its name; None for hooks in which there is nothing to log to."""
    if hook == "training_step" or hook.startswith(("on_train_batch", "on_before_", "on_after_")):
        return Scope(hook, on_step=True, batched=True)
    if hook in ("validation_step", "test_step") or hook.startswith(("on_validation_batch", "on_test_batch")):
        return Scope(hook, on_step=False, batched=True)
    epoch_hooks = ("epoch_start", "epoch_end", "train_start", "validation_start", "test_start")
    if hook.endswith(epoch_hooks) and "predict" not in hook:
        return Scope(hook, on_step=False, batched=False)
    return None


class SlotState(TypedDict):
    hook: str
    name: str
    options: list[Any]
    value: Number | None
    total: Number | None
    weight: float


class Slot:
    """One metric logged from one hook: its last value, and its reduction over the epoch so far."""

    __slots__ = (
        *("name", "options", "on_step", "on_epoch", "prog_bar", "logger", "reduce_fx", "sync_dist"),
        *("value", "total", "weight"),
    )

    def __init__(self, name: str, options: tuple[Any, ...], on_step: bool, on_epoch: bool) -> None:
        self.name, self.options, self.on_step, self.on_epoch = name, options, on_step, on_epoch
        self.prog_bar, self.logger, _, _, self.reduce_fx, self.sync_dist = options
        self.value: Number | None = None
        self.reset()

    def reset(self) -> None:
        """Start the reduction anew; the last value stays."""
        self.total: Number | None = None
        self.weight = 0.0

    def update(self, value: Number, size: float) -> None:
        if self.on_step and isinstance(value, Tensor):
            value = value.clone()  # the user's tensor may be changed in place before the value is written
        self.value = value
        if not self.on_epoch:
            return
        if isinstance(value, Tensor):
            # Half precision can't count beyond 2048, and sums of float32 lose digits: add up in 64 bits where they exist.
            # A copy, since the user's tensor may be changed in place later.
            value = value.to(_wide(value), copy=True)
        match self.reduce_fx:
            case "mean":
                self.total = value * size if self.total is None else self.total + value * size
                self.weight += size
            case "sum":
                self.total = value if self.total is None else self.total + value
            case "min":
                self.total = value if self.total is None else _least(self.total, value)
            case "max":
                self.total = value if self.total is None else -_least(-self.total, -value)

    def reduced(self) -> Number | None:
        """The reduction over everything logged since the last reset; None if nothing was."""
        if self.total is None:
            return None
        return self.total / self.weight if self.reduce_fx == "mean" else self.total

    @property
    def step_name(self) -> str:
        return f"{self.name}_step" if self.on_epoch else self.name

    @property
    def epoch_name(self) -> str:
        return f"{self.name}_epoch" if self.on_step else self.name


class Logbook:
    """Takes what ``self.log`` is given in one stage (training, validation, test) and hands out rows.

    Args:
        batch_size: Size of the batch at hand; asked only when a mean needs it.
        sync: Reduces a value over all ranks; asked at log points, for values logged with ``sync_dist``.
    """

    def __init__(self, batch_size: Callable[[], int], sync: Callable[[Tensor, Any], Tensor]) -> None:
        self.scope: Scope | None = None
        self._batch_size = batch_size
        self._sync = sync
        self._slots: dict[tuple[Scope, str], Slot] = {}
        self._fresh: set[Slot] = set()

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None) -> None:
        scope = self.scope
        slot = self._slots.get((scope, name))  # type: ignore[arg-type]
        if slot is None:
            slot = self._open(name, options)
        elif slot.options != options:
            raise ConfigError(
                f"self.log({name!r}) was called twice in one hook with different settings.",
                why="one metric has one meaning: on_step, on_epoch, reduce_fx and the rest stay as first given.",
                fix="give every call the same settings, or log under another name.",
            )
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise _not_a_number(name, value)
            value = value.detach()
            if value.dim():
                value = value.reshape(())
        elif not isinstance(value, (int, float)):
            if not isinstance(value, Real):  # numpy's scalars
                raise _not_a_number(name, value)
            value = float(value)
        size = 1.0
        if slot.on_epoch and scope is not None and scope.batched and slot.reduce_fx == "mean":
            size = batch_size if batch_size is not None else self._batch_size()
        slot.update(value, size)
        if slot.on_step:
            self._fresh.add(slot)

    def _open(self, name: str, options: tuple[Any, ...]) -> Slot:
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"self.log({name!r}, ...).", why="a metric has a name.", fix='self.log("train_loss", loss)'
            )
        scope = self.scope
        if scope is None:
            raise ModuleError(
                f"self.log({name!r}) was called where nothing can be logged.",
                why="setup, configure_*, on_fit_*, on_*_end of a whole run and predict hooks have no row to write to.",
                fix="log in a step, or in a hook of a batch or an epoch.",
            )
        _, _, on_step, on_epoch, reduce_fx, _ = options
        if reduce_fx not in REDUCTIONS:
            raise ConfigError(
                f"self.log({name!r}, reduce_fx={reduce_fx!r}) is unknown.",
                why=f"a metric is reduced over an epoch by one of {REDUCTIONS}.",
                fix='self.log(..., reduce_fx="mean")',
            )
        on_step = scope.on_step if on_step is None else on_step
        on_epoch = scope.on_epoch if on_epoch is None else on_epoch
        if not on_step and not on_epoch:
            raise ConfigError(
                f"self.log({name!r}, on_step=False, on_epoch=False) logs nothing.",
                why="a metric is written on steps, over the epoch, or both.",
                fix="leave one of them out.",
            )
        if not scope.batched and on_step:
            raise ConfigError(
                f"self.log({name!r}, on_step=True) in {scope.hook}.",
                why="this hook runs once an epoch; there is no step to log.",
                fix="leave on_step out here.",
            )
        slot = self._slots[scope, name] = Slot(name, options, on_step, on_epoch)
        return slot

    def take_step_row(self) -> dict[str, Number]:
        """The last value of everything that was logged on steps, for the loggers, since the last call."""
        fresh, self._fresh = self._fresh, set()
        return {slot.step_name: slot.value for slot in self._slots.values() if slot in fresh and slot.logger}  # type: ignore[misc]

    def step_values(self, *, of: Literal["prog_bar"] | None = None) -> dict[str, Number]:
        """The last value of everything that is logged on steps."""
        return {
            slot.step_name: slot.value
            for slot in self._slots.values()
            if slot.on_step and slot.value is not None and (of is None or getattr(slot, of))
        }

    def epoch_values(self, *, of: Literal["logger", "prog_bar"] | None = None) -> dict[str, Number]:
        """The reductions over the epoch so far."""
        return {
            slot.epoch_name: self._synced(slot, value)
            for slot in self._slots.values()
            if slot.on_epoch and (value := slot.reduced()) is not None
            if of is None or getattr(slot, of)
        }

    def callback_values(self) -> dict[str, Number]:
        """The reductions, under each name that callbacks may know them by: ``loss_epoch`` is ``loss`` too."""
        values = self.epoch_values()
        plain = {slot.name: values[slot.epoch_name] for slot in self._slots.values() if slot.epoch_name in values}
        return {**values, **plain}

    def reset(self) -> None:
        """The epoch is over: every reduction starts anew."""
        for slot in self._slots.values():
            slot.reset()

    def _synced(self, slot: Slot, value: Number) -> Number:
        if not slot.sync_dist:
            return value
        return self._sync(torch.as_tensor(value), slot.reduce_fx)

    def state_dict(self) -> list[SlotState]:
        """Everything needed to continue inside an epoch."""
        return [
            SlotState(
                hook=scope.hook,
                name=name,
                options=list(slot.options),
                value=slot.value if slot in self._fresh else None,
                total=slot.total,
                weight=slot.weight,
            )
            for (scope, name), slot in self._slots.items()
        ]

    def load_state_dict(self, state: Iterable[SlotState], device: torch.device) -> None:
        self._slots, self._fresh = {}, set()
        for saved in state:
            self.scope = scope_of(saved["hook"])
            slot = self._open(saved["name"], tuple(saved["options"]))
            slot.value, slot.total = _to(saved["value"], device), _to(saved["total"], device)
            slot.weight = saved["weight"]
            if slot.value is not None:
                self._fresh.add(slot)
        self.scope = None


def as_floats(values: dict[str, Number]) -> dict[str, float]:
    """The values as Python floats, fetched from each device in one copy. Syncs."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[name] = value.to(_wide(value))
    fetched: dict[str, float] = {}
    for tensors in by_device.values():
        fetched.update(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {name: fetched[name] if name in fetched else float(value) for name, value in values.items()}


def _wide(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def _to(value: Number | None, device: torch.device) -> Number | None:
    return value.to(device) if isinstance(value, Tensor) else value


def _least(a: Number, b: Number) -> Number:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    return min(a, b)


def _not_a_number(name: str, value: Any) -> ModuleError:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f" {value!r}"
    return ModuleError(
        f"self.log({name!r}) was given a {type(value).__name__}{shape}.",
        why="a metric is one number: a float, or a tensor with one element.",
        fix="reduce it first, for example value.mean(), or log several names with self.log_dict.",
    )
