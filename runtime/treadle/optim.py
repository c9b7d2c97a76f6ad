"""What ``configure_optimizers`` may return, read once into one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from treadle.errors import ConfigError, ModuleError, nearest, warn

SHAPES = (
    "an optimizer; a list of them; ([optimizers], [schedulers]); "
    '{"optimizer": ..., "lr_scheduler": ...}; or None to train without one'
)


@dataclass(kw_only=True)
class Schedule:
    """A learning rate scheduler, and when it steps."""

    scheduler: LRScheduler | ReduceLROnPlateau
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    """Steps once in so many intervals."""
    monitor: str | None = None
    """The logged metric that a plateau scheduler follows."""
    strict: bool = True
    """A missing ``monitor`` is an error, not a skipped step."""
    name: str | None = None

    @property
    def on_plateau(self) -> bool:
        return isinstance(self.scheduler, ReduceLROnPlateau)


@dataclass(frozen=True)
class Optimizers:
    """What ``configure_optimizers`` returned."""

    optimizers: tuple[Optimizer, ...]
    schedules: tuple[Schedule, ...]


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
    return Optimizers(tuple(optimizers), tuple(_schedule(item) for item in schedulers))


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
    config.pop("reduce_on_plateau", None)  # told by the scheduler's type
    known = [field.name for field in fields(Schedule)]
    for key in config:
        if key not in known:
            raise ConfigError(
                f"the lr_scheduler dict has the key {key!r}.", why=f"its keys are {known}.", fix=nearest(key, known)
            )
    schedule = Schedule(**config) if "scheduler" in config else None
    if schedule is None or not isinstance(schedule.scheduler, (LRScheduler, ReduceLROnPlateau)):
        raise ModuleError(
            f"configure_optimizers returned {item!r} where a learning rate scheduler was expected.",
            why='a scheduler, or a dict with "scheduler" and when it steps ("interval", "frequency", "monitor").',
            fix='{"scheduler": scheduler, "interval": "step"}',
        )
    if schedule.interval not in ("epoch", "step") or schedule.frequency < 1:
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
