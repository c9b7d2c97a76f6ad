"""What ``configure_optimizers`` may return, read once into one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from treadle.errors import ConfigError, ModuleError, nearest, warn

SHAPES = (
    "an optimizer; a list of them; ([optimizers], [schedulers]); "
    '{"optimizer": ..., "lr_scheduler": ...}; a list of such dicts; or None to train without one'
)


@dataclass(kw_only=True)
class Schedule:
    """A learning rate scheduler, and when it steps."""

    scheduler: Any
    """With ``step``, ``state_dict`` and ``load_state_dict``."""
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    """Steps once in so many intervals."""
    monitor: str | None = None
    """The logged metric that a plateau scheduler follows."""
    strict: bool = True
    """A missing ``monitor`` is an error, not a skipped step."""
    name: str | None = None
    reduce_on_plateau: bool = False
    """``step`` takes the value of ``monitor``; so for a ``ReduceLROnPlateau`` in any case."""

    def __post_init__(self) -> None:
        self.on_plateau = self.reduce_on_plateau or isinstance(self.scheduler, ReduceLROnPlateau)


@dataclass(frozen=True)
class Optimizers:
    """What ``configure_optimizers`` returned."""

    optimizers: tuple[Optimizer, ...] = ()
    schedules: list[Schedule] = field(default_factory=list)
    """Live: what is in it when a scheduler is due is stepped."""


def read_optimizers(returned: Any) -> Optimizers:
    """One form for every shape that ``configure_optimizers`` may return.

    Raises:
        ModuleError: It is none of the known shapes.
        ConfigError: A scheduler's settings contradict each other.
    """
    optimizers: list[Any]
    schedulers: list[Any] = []
    match returned:
        case None:
            optimizers = []
        case Optimizer():
            optimizers = [returned]
        case Mapping():
            optimizers, schedulers = _from_mapping(returned)
        case [list() | tuple() as first, list() | tuple() as second]:
            optimizers, schedulers = list(first), list(second)
        case list() | tuple():
            optimizers = []
            for item in returned:
                ours, theirs = _from_mapping(item) if isinstance(item, Mapping) else ([item], [])
                optimizers += ours
                schedulers += theirs
        case _:
            optimizers = [returned]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise ModuleError(
                f"configure_optimizers returned {type(optimizer).__name__} where an optimizer was expected.",
                why=f"it may return {SHAPES}.",
                fix="return torch.optim.AdamW(self.parameters(), lr=1e-3)",
            )
    return Optimizers(tuple(optimizers), [_schedule(item) for item in schedulers])


def _from_mapping(item: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    known = {"optimizer", "lr_scheduler", "monitor"}
    for key in item:
        if key not in known:
            raise ModuleError(
                f"configure_optimizers returned a dict with the key {key!r}.",
                why="its keys are optimizer, lr_scheduler and monitor.",
                fix=nearest(key, sorted(known)),
            )
    if "optimizer" not in item:
        raise ModuleError(
            "configure_optimizers returned a dict without an optimizer.",
            why=f"it may return {SHAPES}.",
            fix='return {"optimizer": optimizer, "lr_scheduler": scheduler}',
        )
    scheduler = item.get("lr_scheduler")
    if scheduler is None:
        return [item["optimizer"]], []
    config = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    if "monitor" in item:
        config.setdefault("monitor", item["monitor"])
    return [item["optimizer"]], [config]


def _schedule(item: Any) -> Schedule:
    config = dict(item) if isinstance(item, Mapping) else {"scheduler": item}
    known = [field.name for field in fields(Schedule)]
    for key in config:
        if key not in known:
            raise ConfigError(
                f"the lr_scheduler dict has the key {key!r}.", why=f"its keys are {known}.", fix=nearest(key, known)
            )
    schedule = Schedule(**config) if "scheduler" in config else None
    if schedule is None or not _is_scheduler(schedule.scheduler):
        raise ModuleError(
            f"configure_optimizers returned {item!r} where a learning rate scheduler was expected.",
            why='a scheduler, or a dict with "scheduler" and when it steps ("interval", "frequency", "monitor").',
            fix='{"scheduler": scheduler, "interval": "step"}',
        )
    if schedule.interval not in ("epoch", "step") or not isinstance(schedule.frequency, int) or schedule.frequency < 1:
        raise ConfigError(
            f"a scheduler with interval={schedule.interval!r}, frequency={schedule.frequency!r}.",
            why='schedulers step every so many epochs or steps: interval is "epoch" or "step", frequency at least 1.',
            fix='{"scheduler": scheduler, "interval": "step", "frequency": 1}',
        )
    if schedule.on_plateau and schedule.monitor is None:
        raise ConfigError(
            "a ReduceLROnPlateau without a metric to follow.",
            why="it lowers the learning rate when a logged metric stops improving.",
            fix='{"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}',
        )
    if isinstance(schedule.scheduler, OneCycleLR) and schedule.interval == "epoch":
        warn(
            "onecycle",
            'OneCycleLR counts steps but is stepped once an epoch; return {"scheduler": scheduler, "interval": "step"}.',
        )
    return schedule


def _is_scheduler(value: Any) -> bool:
    methods = ("step", "state_dict", "load_state_dict")
    return not isinstance(value, (type, Optimizer)) and all(callable(getattr(value, name, None)) for name in methods)


def warn_of_step_counting(schedules: list[Schedule], *, epochs: float, steps: Callable[[], float]) -> None:
    """A schedule whose length is that of all optimizer steps, stepped once an epoch, would never get far."""
    for schedule in schedules:
        length = getattr(schedule.scheduler, "T_max", None)
        if schedule.interval == "epoch" and length is not None and length > epochs and length == steps():
            warn(
                "schedule",
                f"{type(schedule.scheduler).__name__} is {length} long, as many as there are optimizer steps, but is "
                f'stepped once in each of {epochs:g} epochs; return {{"scheduler": scheduler, "interval": "step"}}.',
            )


class Stepper(Protocol):
    """Who steps the optimizers of a run."""

    def step(self, optimizer: TrainerOptimizer, closure: Callable[[], Any] | None, loss: Tensor | None) -> Any: ...

    def zero_grad(self, optimizer: TrainerOptimizer, set_to_none: bool) -> None: ...

    def toggled(self, optimizer: TrainerOptimizer, sync_grad: bool) -> AbstractContextManager[Any]: ...


@final
class TrainerOptimizer:
    """An optimizer as a module sees it while it is trained: everything the optimizer has, and steps that the run knows
    of. Counted, clipped by the Trainer's settings, and left out while gradients accumulate."""

    def __init__(self, optimizer: Optimizer, index: int, stepper: Stepper) -> None:
        self.optimizer, self.index = optimizer, index
        self._stepper = stepper

    def step(self, closure: Callable[[], Any] | Tensor | None = None) -> Any:
        """One step.

        Given a loss instead of a closure, all that belongs to a step: clear the gradients, backward into the parameters
        of this optimizer and no others, clip, step, and the schedulers with interval ``step``. With
        ``accumulate_grad_batches``, only backward until the window's last batch.

        Args:
            closure: Computes gradients and returns the loss; or the loss, a tensor of shape ``()``.

        Returns:
            What the closure returned.
        """
        if isinstance(closure, Tensor):
            return self._stepper.step(self, None, closure)
        return self._stepper.step(self, closure, None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, but those of an accumulation window that is still open."""
        self._stepper.zero_grad(self, set_to_none)

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[Any]:
        """Inside, only this optimizer's parameters require gradients; with ``sync_grad=False`` ranks don't meet."""
        return self._stepper.toggled(self, sync_grad)

    def parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    @property  # type: ignore[misc]  # isinstance(wrapped, torch.optim.Optimizer) holds, as for the optimizer itself
    def __class__(self) -> Any:
        return type(self.optimizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"TrainerOptimizer({self.optimizer!r})"
