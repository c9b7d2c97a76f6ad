"""What ``self.log`` feeds: current values and running reductions, kept on their device until a log point."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from treadle.errors import ConfigError, DataError, ModuleError
from treadle.metric_objects import find, found_again, has_step_value, is_metric, step_value

Number = Tensor | float
ReduceFx = Literal["mean", "sum", "min", "max"]
REDUCTIONS = ("mean", "sum", "min", "max")


@dataclass(frozen=True, eq=False)
class Scope:
    """The hook that is running, as far as logging goes. One object per hook (and loader, where an evaluation reads
    several): compared by identity, on the hot path."""

    hook: str
    on_step: bool
    """What ``on_step`` is when ``self.log`` doesn't say."""
    batched: bool
    """A batch is at hand, so a mean over the epoch is weighted by its size."""
    loader: int | None = None
    """The index of the loader, where an evaluation reads several."""

    @property
    def on_epoch(self) -> bool:
        return not self.on_step


def scope_of(hook: str, loader: int | None = None) -> Scope | None:
    """The scope of a hook, by its name; None for hooks in which there is nothing to log to."""
    return _scope(hook, loader)  # a cache tells a default from the same value given


@cache
def _scope(hook: str, loader: int | None) -> Scope | None:
    if hook == "training_step" or hook.startswith(("on_train_batch", "on_before_", "on_after_")):
        return Scope(hook, on_step=True, batched=True)
    if hook in ("validation_step", "test_step") or hook.startswith(("on_validation_batch", "on_test_batch")):
        return Scope(hook, on_step=False, batched=True, loader=loader)
    epoch_hooks = ("epoch_start", "epoch_end", "train_start", "validation_start", "test_start")
    if hook.endswith(epoch_hooks) and "predict" not in hook:
        return Scope(hook, on_step=False, batched=False)
    return None


class Options(NamedTuple):
    """How a metric is logged, as the call says; the same in every call."""

    prog_bar: bool = False
    logger: bool | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    reduce_fx: Any = "mean"
    sync_dist: bool | None = None
    """None: over an epoch yes, on a step no."""
    add_dataloader_idx: bool = True
    rank_zero_only: bool = False

    def by_name(self) -> Options:
        """With the name of the reduction, where a function stands for it: ``torch.max`` is ``"max"``."""
        names = {
            function: name for name in REDUCTIONS for function in (getattr(torch, name), getattr(builtins, name, None))
        }
        name = names.get(self.reduce_fx, self.reduce_fx) if callable(self.reduce_fx) else self.reduce_fx
        return self._replace(reduce_fx=name)


class SlotState(TypedDict):
    hook: str
    loader: int | None
    name: str
    options: list[Any]
    value: Number | None
    fresh: bool
    """Logged since the last row."""
    total: Number | None
    weight: Number
    metric: str | None
    """Of a metric object that has gathered something: the attribute of the module that it is."""


class Slot:
    """One metric logged from one hook: its last value, and its reduction over the epoch so far."""

    __slots__ = (
        *("name", "options", "on_step", "on_epoch", "prog_bar", "logger", "reduce_fx", "rank_zero_only"),
        *("syncs_epoch", "syncs_steps"),
        *("loader", "seen_by", "value", "logged_in", "total", "weight", "metric", "gathered", "agreed"),
    )

    def __init__(self, name: str, options: Options, on_step: bool, on_epoch: bool, loader: int | None) -> None:
        self.name, self.options, self.on_step, self.on_epoch, self.loader = name, options, on_step, on_epoch, loader
        self.prog_bar, self.logger = options.prog_bar, options.logger is not False
        self.reduce_fx = options.reduce_fx
        self.syncs_epoch = options.sync_dist is not False and not options.rank_zero_only
        self.syncs_steps = bool(options.sync_dist)
        self.rank_zero_only = options.rank_zero_only
        self.seen_by: set[int | None] = set()
        """The loaders that log it."""
        self.value: Number | None = None
        self.logged_in = -1  # the step, as the book counts them
        self.metric: Any = None
        self.reset()

    def reset(self) -> None:
        """Start the reduction anew; the last value stays."""
        self.total: Number | None = None
        self.weight: Number = 0.0
        self.agreed: Number | None = None  # the reduction over all ranks, until something more is logged
        self.gathered = False  # whether the metric object has anything to tell
        if self.metric is not None:
            self.metric.reset()

    def update(self, value: Number, size: float) -> None:
        if self.on_step and isinstance(value, Tensor):
            value = value.clone()  # the user's tensor may be changed in place before the value is written
        self.value = value
        if not self.on_epoch:
            return
        self.agreed = None
        if isinstance(value, Tensor):
            # Half precision can't count beyond 2048, and sums of float32 lose digits: add up in 64 bits where they exist.
            # A copy, since the user's tensor may be changed in place later.
            value = value.to(_wide(value), copy=True)
        match self.reduce_fx:
            case "mean":
                self.total = value * size if self.total is None else self.total + value * size
                self.weight = self.weight + size
            case "sum":
                self.total = value if self.total is None else self.total + value
            case "min":
                self.total = value if self.total is None else _least(self.total, value)
            case "max":
                self.total = value if self.total is None else -_least(-self.total, -value)

    def current(self) -> Number | None:
        """The value of the step at hand."""
        if self.metric is None:
            return self.value
        return self._number(step_value(self.metric)) if self.gathered else None

    def reduced(self) -> Number | None:
        """The reduction over everything logged since the last reset, over all ranks once they have agreed on it; None if
        nothing was. Never communicates."""
        if self.agreed is not None:
            return self.agreed
        if self.metric is not None:
            return self._number(self.metric.compute()) if self.gathered else None
        return self.finished(self.total, self.weight)

    def finished(self, total: Number | None, weight: Number) -> Number | None:
        """The reduction, from what it has added up."""
        if total is None or self.reduce_fx != "mean":
            return total
        return total / weight if isinstance(weight, Tensor) or weight else math.nan  # of batches that count nothing

    def _number(self, value: Any) -> Number:
        """What a metric object says, if it is one number."""
        if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
            return value  # type: ignore[return-value]
        raise _not_a_number(self.name, value)

    @property
    def _suffix(self) -> str:
        return "" if self.loader is None else f"/dataloader_idx_{self.loader}"

    @property
    def plain_name(self) -> str:
        return f"{self.name}{self._suffix}"

    @property
    def step_name(self) -> str:
        return f"{self.name}_step{self._suffix}" if self.on_epoch else self.plain_name

    @property
    def epoch_name(self) -> str:
        return f"{self.name}_epoch{self._suffix}" if self.on_step else self.plain_name


class Logbook:
    """Takes what ``self.log`` is given in one stage (training, validation, test) and hands out rows.

    Args:
        batch_size: Size of the batch at hand; asked only when a mean needs it.
        owner: The module whose attributes metric objects are.
    """

    def __init__(self, batch_size: Callable[[], int], owner: object = None) -> None:
        self.scope: Scope | None = None
        self.epoch_is_over = False
        """Until the next starts, reductions stand for what they reduce."""
        self.batch_size = batch_size
        self._owner = owner
        self._slots: dict[tuple[Scope, str], Slot] = {}
        self._fresh: dict[Slot, None] = {}
        self.outer: Logbook | None = None
        """Of the stage around this one: of training, while it is validated."""
        self.alone = True
        """No other rank logs."""
        self.empty = False
        """This rank sees no batch of a loader of the stage."""
        self.muted = False
        """What is logged now was logged before: a closure runs again."""
        self.repeated = False
        """Since the last reset, something was: a rank without a batch of its own repeats another's."""
        self._step = 0
        self._by_size: list[tuple[Slot, Number, float]] = []
        self.size_unknown: DataError | None = None
        """The step at hand logged a mean over the epoch, and nobody knows the size of its batch."""

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: float | Tensor | None) -> None:
        if self.muted:
            self.repeated = True
            return None
        scope = self.scope
        try:
            slot = self._slots.get((scope, name))  # type: ignore[arg-type]
        except TypeError:  # not hashable, so not a name
            slot = None
        if slot is None:
            slot = self._open(name, Options(*options).by_name())
        elif slot.options != options and slot.options != Options(*options).by_name():
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
            if is_metric(value) and not isinstance(value, type):
                return self._log_metric(slot, value)
            if not isinstance(value, Real):  # numpy's scalars
                raise _not_a_number(name, value)
            value = float(value)
        size: Any = 1.0
        if slot.on_epoch and slot.reduce_fx == "mean" and scope is not None and scope.batched:
            if batch_size is None:
                size = self._size()
                if scope.on_step:
                    self._by_size.append((slot, value, size))
            elif isinstance(batch_size, Tensor) or (isinstance(batch_size, (int, float)) and batch_size >= 0):
                size = batch_size
            else:
                raise _not_a_size(name, batch_size)
        slot.update(value, size)
        if slot.on_step:
            self._fresh[slot] = None
            slot.logged_in = self._step

    def _size(self) -> float:
        """Of the batch at hand. A training step may still say what it weighs, where nobody knows its size."""
        try:
            return self.batch_size()
        except DataError as error:
            if self.scope is None or self.scope.hook != "training_step":
                raise
            self.size_unknown = error
            return 0.0

    def _log_metric(self, slot: Slot, metric: Any) -> None:
        """The object keeps its own running state; it is asked for its value when one is needed, and reset with the
        epoch."""
        if slot.metric is not metric:
            self._require_own(slot, metric)
            slot.metric = metric
        slot.gathered, slot.agreed = True, None
        if slot.on_step:
            self._fresh[slot] = None
            slot.logged_in = self._step

    def _require_own(self, slot: Slot, metric: Any) -> None:
        """An object gathers for one loader of one stage; a second one would mix into it, and reset it."""
        here = [other for other in self.slots() if other.metric is metric and other.loader != slot.loader]
        there = [other for other in self.outer.slots() if other.metric is metric] if self.outer else []
        if here or there:
            raise ConfigError(
                f"self.log({slot.name!r}) was given a metric object that another loader or stage logs too.",
                why="it gathers what it is updated with, and is reset when its stage is over.",
                fix="make one for each: self.train_accuracy, self.val_accuracy, or a ModuleList of them.",
            )

    def start_step(self) -> None:
        """Another training batch begins."""
        self._by_size.clear()
        self.size_unknown = None
        self._step += 1

    def is_fresh(self, name: str) -> bool:
        """Whether ``name`` was logged in the step at hand."""
        return any(s.logged_in == self._step and name in (s.step_name, s.plain_name) for s in self.slots())

    def weigh(self, weight: Number) -> None:
        """The training step at hand says what its batch weighs: means over the epoch that took its size take that."""
        for slot, value, size in self._by_size:
            wide = value.to(_wide(value)) if isinstance(value, Tensor) else value
            slot.total = slot.total + wide * (weight - size)  # type: ignore[operator]
            slot.weight = slot.weight + (weight - size)
        self._by_size.clear()
        self.size_unknown = None

    def _open(self, name: str, options: Options) -> Slot:
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
        if options.reduce_fx not in REDUCTIONS:
            raise ConfigError(
                f"self.log({name!r}, reduce_fx={options.reduce_fx!r}) is unknown.",
                why=f"a metric is reduced over an epoch by one of {REDUCTIONS}.",
                fix='self.log(..., reduce_fx="mean")',
            )
        on_step = scope.on_step if options.on_step is None else options.on_step
        on_epoch = scope.on_epoch if options.on_epoch is None else options.on_epoch
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
        if options.sync_dist and options.rank_zero_only:
            raise ConfigError(
                f"self.log({name!r}, sync_dist=True, rank_zero_only=True).",
                why="a reduction over all ranks needs all of them.",
                fix="leave one of them out.",
            )
        shared = scope if options.add_dataloader_idx else scope_of(scope.hook)
        assert shared is not None
        slot = self._slots.get((shared, name))
        if slot is None:  # else another loader opened it: one reduction over all of them
            slot = self._slots[shared, name] = Slot(name, options, on_step, on_epoch, shared.loader)
        slot.seen_by.add(scope.loader)
        self._slots[scope, name] = slot
        return slot

    def slots(self) -> Iterable[Slot]:
        return dict.fromkeys(self._slots.values())

    def fresh(self) -> Iterable[Slot]:
        """Those logged on steps since the last row."""
        return list(self._fresh)

    def _current(self, slot: Slot) -> Number | None:
        """The value of the step at hand; None of a metric object that would ask the other ranks for it."""
        return (
            None if slot.metric is not None and not self.alone and not has_step_value(slot.metric) else slot.current()
        )

    def _reduced(self, slot: Slot) -> Number | None:
        """The reduction over the epoch so far; None of a metric object that would ask the other ranks for it."""
        return None if slot.metric is not None and not self.alone and slot.agreed is None else slot.reduced()

    def take_step_row(self) -> dict[str, Number]:
        """The last value of everything that was logged on steps, for the loggers, since the last call."""
        fresh, self._fresh = self._fresh, {}
        return {
            slot.step_name: value for slot in fresh if slot.logger and (value := self._current(slot)) is not None
        }  # fmt: skip

    def step_values(self, *, of: Literal["prog_bar"] | None = None) -> dict[str, Number]:
        """The last value of everything that is logged on steps."""
        return {
            slot.step_name: value
            for slot in self.slots()
            if slot.on_step and (of is None or getattr(slot, of)) and (value := self._current(slot)) is not None
        }

    def newest(self) -> dict[str, Number]:
        """The last value of everything logged on steps, under each name that callbacks may know it by: until the epoch
        is over, ``loss`` is ``loss_step``."""
        values = self.step_values()
        if not self.epoch_is_over:
            running = [slot for slot in self.slots() if slot.total is not None or slot.gathered]
            values.update({slot.plain_name: values[slot.step_name] for slot in running if slot.step_name in values})
        return values

    def epoch_values(
        self, *, of: Literal["logger", "prog_bar"] | None = None, loader: int | None = None
    ) -> dict[str, Number]:
        """The reductions over the epoch so far; with ``loader``, without those of other loaders."""
        return {
            slot.epoch_name: value
            for slot in self.slots()
            if slot.on_epoch
            if of is None or getattr(slot, of)
            if loader is None or None in slot.seen_by or loader in slot.seen_by
            if (value := self._reduced(slot)) is not None
        }

    def callback_values(self) -> dict[str, Number]:
        """The reductions, under each name that callbacks may know them by: ``loss_epoch`` is ``loss`` too."""
        values = self.epoch_values()
        plain = {slot.plain_name: values[slot.epoch_name] for slot in self.slots() if slot.epoch_name in values}
        return {**values, **plain}

    def reset(self) -> None:
        """Another epoch: every reduction starts anew."""
        self.epoch_is_over = self.repeated = False
        for slot in self.slots():
            slot.reset()

    def state_dict(self) -> list[SlotState]:
        """Everything needed to continue inside an epoch."""
        return [
            SlotState(
                hook=scope.hook,
                loader=scope.loader,
                name=name,
                options=list(slot.options),
                value=slot.value,
                fresh=slot in self._fresh,
                total=slot.total,
                weight=slot.weight,
                metric=find(self._owner, slot.metric) if slot.gathered else None,
            )
            for (scope, name), slot in self._slots.items()
        ]

    def open_like(self, others: Iterable[SlotState]) -> None:
        """Open what another rank logged, and this one, which saw no batch, did not: nothing is in it."""
        before = self.scope
        for other in others:
            self.scope = scope_of(other["hook"], other["loader"])
            if (self.scope, other["name"]) not in self._slots:
                slot = self._open(other["name"], Options(*other["options"]))
                if other["metric"] is not None:
                    slot.metric = found_again(self._owner, other["metric"])
        self.scope = before

    def load_state_dict(self, state: Iterable[SlotState], device: torch.device) -> None:
        self._slots, self._fresh = {}, {}
        for saved in state:
            self.scope = scope_of(saved["hook"], saved["loader"])
            slot = self._open(saved["name"], Options(*saved["options"]))
            slot.value, slot.total = _to(saved["value"], device), _to(saved["total"], device)
            slot.weight = _to(saved["weight"], device)  # type: ignore[assignment]
            if saved["metric"] is not None:
                slot.metric = found_again(self._owner, saved["metric"])
                slot.gathered = slot.metric is not None
            if saved["fresh"]:
                self._fresh[slot] = None
        self.scope = None


def as_tensors(values: dict[str, Number]) -> dict[str, Tensor]:
    """The values as tensors, usable anywhere: in a loss too, where an evaluation in inference mode made them."""
    return {
        name: (
            (value.clone() if value.is_inference() else value)
            if isinstance(value, Tensor)
            else torch.tensor(value, dtype=torch.float64)
        )
        for name, value in values.items()
    }


def as_floats(values: dict[str, Number]) -> dict[str, float]:
    """The values as Python floats, fetched from each device in one copy. Syncs."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[name] = value.detach().to(_wide(value)).reshape(())
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


def _not_a_size(name: str, size: Any) -> ModuleError:
    return ModuleError(
        f"self.log({name!r}, batch_size={size!r}).",
        why="a mean over an epoch is weighted by the number of samples in each batch.",
        fix="batch_size=len(x)",
    )


def _not_a_number(name: str, value: Any) -> ModuleError:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f" {value!r}"
    return ModuleError(
        f"self.log({name!r}) was given a {type(value).__name__}{shape}.",
        why="a metric is one number: a float, a tensor with one element, or an object with update, compute and reset.",
        fix="reduce it first, for example value.mean(), or log several names with self.log_dict.",
    )
