"""Learning rate schedulers: when each of them steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

from treadle.errors import ConfigError, nearest
from treadle.loops.run import Run
from treadle.module import overrides
from treadle.optim import Schedule
from treadle.precision import SkipsSteps


def step_schedules(
    schedules: Iterable[Schedule], run: Run, *, interval: Literal["epoch", "step"], on_plateau: bool
) -> None:
    """Step those that count ``interval`` and are due: those that follow a metric, or the others."""
    precision = run.fabric.precision
    if interval == "step" and not on_plateau and isinstance(precision, SkipsSteps) and precision.skipped:
        return  # the optimizer left the step out: its gradients were not finite in 16 bits
    count = run.progress.epoch + 1 if interval == "epoch" else run.progress.global_step
    for schedule in schedules:
        if schedule.interval == interval and schedule.on_plateau == on_plateau and count % schedule.frequency == 0:
            step_schedule(schedule, run)


def step_schedule(schedule: Schedule, run: Run) -> None:
    """Step one, with its metric if it follows one."""
    metric = None
    if schedule.on_plateau:
        known: dict[str, Any] = run.results.tensors()
        if run.book is not None:
            known.update(run.book.callback_values())
            if schedule.interval == "step":
                known.update(run.book.newest())
        if schedule.monitor not in known:
            if schedule.strict:
                raise _no_metric(schedule, sorted(known))
            return
        metric = float(known[schedule.monitor])
        if run.fabric.world_size > 1:  # a step's value is each rank's own, and all must go on with one learning rate
            metric = float(run.fabric.all_reduce(torch.tensor(metric, dtype=torch.float64)))
    if overrides(run.module, "lr_scheduler_step"):
        run.module.lr_scheduler_step(schedule.scheduler, metric)
    elif metric is None:
        schedule.scheduler.step()
    else:
        schedule.scheduler.step(metric)


def _no_metric(schedule: Schedule, known: list[str]) -> ConfigError:
    return ConfigError(
        f"a {type(schedule.scheduler).__name__} follows {schedule.monitor!r}, which is not logged.",
        why=f"known when it should have stepped: {', '.join(known) or 'nothing'}.",
        fix=nearest(str(schedule.monitor), known) if known else f'self.log("{schedule.monitor}", ...)',
    )
