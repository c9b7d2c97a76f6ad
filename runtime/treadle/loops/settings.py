"""How long and how often: checked once, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from treadle.errors import ConfigError
from treadle.fabric import ClipAlgorithm

Limit = int | float


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How much to train."""

    max_epochs: int | None = None
    """Default: 1000, or no bound if ``max_steps`` is given; -1 is no bound."""
    min_epochs: int = 0
    """Nothing stops the run before, but ``max_steps``."""
    max_steps: int = -1
    """Optimizer steps; -1 is no bound."""
    min_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps"):
            value = getattr(self, name)
            if (not _whole(value) or value < -1) and not (name == "max_epochs" and value is None):
                raise _out_of_range(name, value, "a whole number, or -1 for no bound", f"{name}=10")
        for name in ("min_epochs", "min_steps"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 0:
                raise _out_of_range(name, getattr(self, name), "a whole number", f"{name}=1")

    @property
    def epochs(self) -> float:
        if self.max_epochs is None:
            return 1000 if self.max_steps == -1 else float("inf")
        return float("inf") if self.max_epochs == -1 else self.max_epochs

    @property
    def steps(self) -> float:
        return float("inf") if self.max_steps == -1 else self.max_steps


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many batches of each loader to use: a count (int) or a fraction (float)."""

    train: Limit = 1.0
    val: Limit = 1.0
    test: Limit = 1.0
    predict: Limit = 1.0

    def __post_init__(self) -> None:
        for name in ("train", "val", "test", "predict"):
            check_limit(f"limit_{name}_batches", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often to validate and log."""

    val_check_interval: int | float = 1.0
    """Validate every so many batches (int), or so many times in an epoch (a fraction of its batches)."""
    check_val_every_n_epoch: int = 1
    num_sanity_val_steps: int = 2
    """Batches to validate before training starts, so that a mistake there shows at once; -1 all, 0 none."""
    log_every_n_steps: int = 50

    def __post_init__(self) -> None:
        check_limit("val_check_interval", self.val_check_interval)
        if not self.val_check_interval:
            raise _out_of_range("val_check_interval", self.val_check_interval, "above 0", "limit_val_batches=0")
        for name in ("check_val_every_n_epoch", "log_every_n_steps"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), "a whole number from 1", f"{name}=1")
        if not _whole(self.num_sanity_val_steps) or self.num_sanity_val_steps < -1:
            raise _out_of_range("num_sanity_val_steps", self.num_sanity_val_steps, "a count or -1", "0")


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """How gradients become an optimizer step."""

    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    detect_anomaly: bool = False

    def __post_init__(self) -> None:
        if not _whole(self.accumulate_grad_batches) or self.accumulate_grad_batches < 1:
            raise _out_of_range(
                "accumulate_grad_batches", self.accumulate_grad_batches, "a whole number from 1", "leave it out"
            )
        if self.gradient_clip_val is not None and not (_number(self.gradient_clip_val) and self.gradient_clip_val > 0):
            raise _out_of_range(
                "gradient_clip_val", self.gradient_clip_val, "above 0, or None for no clipping", "gradient_clip_val=1.0"
            )
        if self.gradient_clip_algorithm not in ("norm", "value"):
            raise _out_of_range("gradient_clip_algorithm", self.gradient_clip_algorithm, '"norm" or "value"', '"norm"')
        check_flag("detect_anomaly", self.detect_anomaly)


def check_limit(name: str, value: Any) -> None:
    """A count (int from 0) or a fraction (float from 0 to 1)."""
    fraction = isinstance(value, float) and 0 <= value <= 1
    if not fraction and (not _whole(value) or value < 0):
        raise _out_of_range(
            name, value, "a count (int) or a fraction from 0.0 to 1.0 (float)", f"{name}=10 or {name}=0.1"
        )


def check_count(name: str, value: Any) -> None:
    """A whole number from 0, or True or False."""
    if not isinstance(value, bool) and (not _whole(value) or value < 0):
        raise _out_of_range(name, value, "True, False, or a count (int)", f"{name}=True")


def check_flag(name: str, value: Any) -> None:
    """True or False, and nothing that Python would take for one of them."""
    if not isinstance(value, bool):
        raise _out_of_range(name, value, "True or False", f"{name}=True")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _out_of_range(name: str, value: Any, rule: str, fix: str) -> ConfigError:
    return ConfigError(f"{name}={value!r} makes no sense.", why=f"it is {rule}.", fix=fix)
