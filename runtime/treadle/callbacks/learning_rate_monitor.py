"""Log the learning rates that steps are taken with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch.optim import Optimizer

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.optim import Schedule
    from treadle.trainer import Trainer

Interval = Literal["step", "epoch"]


@final
class LearningRateMonitor(Callback):
    """Logs the rate of each optimizer, with or without a scheduler: the one that the step of the row was taken with.

    It is called ``lr-AdamW``; of several optimizers of a kind the second is ``lr-AdamW-1``, and of several parameter
    groups the first is ``lr-AdamW/pg1``, or has the group's ``"name"`` in that place. A ``name`` in the scheduler's
    config takes the place of ``lr-AdamW``. ``lrs`` lists what was logged, by these names.

    Args:
        logging_interval: ``step`` for each log point, ``epoch`` for the start of each epoch, in that epoch's row.
            Default: as the optimizer's scheduler steps; at log points if it has none.
        log_momentum: And ``lr-AdamW-momentum``: the momentum, or the first of ``betas``.
        log_weight_decay: And ``lr-AdamW-weight_decay``.
        log_key_prefix: Comes before every name, as it is.

    Raises:
        ConfigError: Another interval; while fitting: there is no logger, or two things have the same name.
    """

    def __init__(
        self,
        logging_interval: Interval | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}).",
                why="rates are logged on steps, at the start of epochs, or as each scheduler steps (None).",
                fix='LearningRateMonitor(logging_interval="step")',
            )
        self.logging_interval, self.log_key_prefix = logging_interval, log_key_prefix
        self.log_momentum, self.log_weight_decay = log_momentum, log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self._logged_at = -1

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if not trainer.loggers and not trainer.fast_dev_run:
            raise ConfigError(
                "LearningRateMonitor in a run without a logger.",
                why="there is nothing to log the rates to.",
                fix="Trainer(logger=True), or leave LearningRateMonitor out.",
            )
        self.lrs, self._logged_at = {}, -1

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.batch == 0:  # inside an epoch, a resumed run has logged it already
            self._remember(self._log(trainer, module, "epoch"))

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        rates = self._log(trainer, module, "step")
        if trainer.global_step != self._logged_at:  # else an earlier batch of the same accumulation window did
            self._logged_at = trainer.global_step
            self._remember(rates)

    def _log(self, trainer: Trainer, module: Module, interval: Interval) -> dict[str, float]:
        """Log what is due at ``interval``. Returns the rates."""
        rates: dict[str, float] = {}
        others: dict[str, float] = {}
        for name, optimizer, own in _named(trainer.optimizers, trainer.lr_scheduler_configs):
            if (self.logging_interval or own) != interval:
                continue
            for key, group in _groups(f"{self.log_key_prefix or ''}{name}", optimizer):
                if key in rates:
                    raise ConfigError(
                        f"two learning rates are called {key!r}.",
                        why="they are logged by the names of schedulers and parameter groups.",
                        fix="give each a name of its own.",
                    )
                rates[key] = float(group["lr"])
                if self.log_momentum and (momentum := _momentum(group)) is not None:
                    others[f"{key}-momentum"] = float(momentum)
                if self.log_weight_decay and "weight_decay" in group:
                    others[f"{key}-weight_decay"] = float(group["weight_decay"])
        on_step = interval == "step"
        module.log_dict({**rates, **others}, on_step=on_step, on_epoch=not on_step)
        return rates

    def _remember(self, rates: dict[str, float]) -> None:
        for name, rate in rates.items():
            self.lrs.setdefault(name, []).append(rate)

    @property
    def state_key(self) -> str:
        return f"LearningRateMonitor[{self.logging_interval},{self.log_key_prefix}]"

    def state_dict(self) -> dict[str, Any]:
        lrs = {name: torch.tensor(rates, dtype=torch.float64) for name, rates in self.lrs.items()}
        return {"lrs": lrs, "logged_at": self._logged_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lrs = {name: rates.tolist() for name, rates in state["lrs"].items()}
        self._logged_at = state["logged_at"]


def _named(optimizers: Sequence[Optimizer], schedules: Sequence[Schedule]) -> Iterator[tuple[str, Optimizer, Interval]]:
    """Each optimizer with its name and the interval at which its rate changes."""
    kinds: Counter[str] = Counter()
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        number = kinds[kind]
        kinds[kind] += 1
        own = [schedule for schedule in schedules if getattr(schedule.scheduler, "optimizer", None) is optimizer]
        given = next((schedule.name for schedule in own if schedule.name), None)
        in_epochs = bool(own) and all(schedule.interval == "epoch" for schedule in own)
        yield given or f"lr-{kind}{f'-{number}' if number else ''}", optimizer, "epoch" if in_epochs else "step"


def _groups(name: str, optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each parameter group with the name of its rate."""
    groups = optimizer.param_groups
    for index, group in enumerate(groups, start=1):
        own = group.get("name") or (f"pg{index}" if len(groups) > 1 else "")
        yield f"{name}/{own}" if own else name, group


def _momentum(group: dict[str, Any]) -> Any:
    return group["betas"][0] if "betas" in group else group.get("momentum")
