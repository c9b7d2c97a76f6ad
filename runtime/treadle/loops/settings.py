"""How long and how often: checked once, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

from treadle.errors import ConfigError
from treadle.fabric import ClipAlgorithm
from treadle.schedule import Every, parse_duration

Limit = int | float
ValCheckInterval = int | float | str | timedelta | Mapping[str, float] | Every


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How much to train."""

    max_epochs: int | None = None
    """Default: 1000, or no bound if ``max_steps`` is given; -1 is no bound."""
    min_epochs: int = 0
    """Callbacks and ``should_stop`` don't end the run before."""
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
    overfit: Limit = 0
    """So many batches, the same in each epoch and unshuffled, in place of ``train`` and ``val``; 0 is off."""

    def __post_init__(self) -> None:
        for name in ("train", "val", "test", "predict"):
            check_limit(f"limit_{name}_batches", getattr(self, name))
        check_limit("overfit_batches", self.overfit)
        if self.overfit and (self.train != 1.0 or self.val not in (0, 1.0)):
            raise ConfigError(
                f"overfit_batches={self.overfit} with limit_train_batches or limit_val_batches.",
                why="it takes the place of both.",
                fix="leave the limits out.",
            )

    def of(self, kind: str) -> Limit:
        """That of ``train``, ``val``, ``test`` or ``predict``."""
        if self.overfit and (kind == "train" or (kind == "val" and self.val)):
            return self.overfit
        limit: Limit = getattr(self, kind)
        return limit


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often to validate, log, and ask for loaders anew."""

    val_check_interval: ValCheckInterval = 1.0
    """Validate every so many batches (int), at every such fraction of an epoch (float), or at a rhythm: ``Every``, its
    words, or a length of time."""
    check_val_every_n_epoch: int | None = 1
    """None: the interval counts batches across epochs."""
    num_sanity_val_steps: int = 2
    """Batches to validate before training starts, so that a mistake there shows at once; -1 all, 0 none."""
    log_every_n_steps: int = 50
    reload_dataloaders_every_n_epochs: int = 0
    """0: never."""

    def __post_init__(self) -> None:
        interval = self.interval
        if not isinstance(interval, Every):
            check_limit("val_check_interval", interval)
            if not interval:
                raise _out_of_range("val_check_interval", interval, "above 0", "limit_val_batches=0")
        if self.check_val_every_n_epoch is None:
            if isinstance(interval, float):
                raise ConfigError(
                    f"val_check_interval={interval} with check_val_every_n_epoch=None.",
                    why="a fraction is of an epoch, and None says that epochs don't matter.",
                    fix="val_check_interval=100, in batches, or check_val_every_n_epoch=1",
                )
        elif isinstance(interval, Every) and interval.unit == "epochs" and self.check_val_every_n_epoch != 1:
            raise ConfigError(
                f"val_check_interval={interval!r} with check_val_every_n_epoch={self.check_val_every_n_epoch}.",
                why="both count epochs.",
                fix="leave check_val_every_n_epoch out.",
            )
        for name in ("check_val_every_n_epoch", "log_every_n_steps"):
            value = getattr(self, name)
            if value is None and name == "check_val_every_n_epoch":
                continue
            if not _whole(value) or value < 1:
                raise _out_of_range(name, value, "a whole number from 1", f"{name}=1")
        if not _whole(self.num_sanity_val_steps) or self.num_sanity_val_steps < -1:
            raise _out_of_range("num_sanity_val_steps", self.num_sanity_val_steps, "a count or -1", "0")
        every = self.reload_dataloaders_every_n_epochs
        if not _whole(every) or every < 0:
            raise _out_of_range("reload_dataloaders_every_n_epochs", every, "a count, or 0 for never", "1")

    @property
    def interval(self) -> int | float | Every:
        """``val_check_interval`` with its forms of a rhythm made one."""
        given = self.val_check_interval
        try:
            match given:
                case str() if ":" not in given:
                    return Every(given)
                case str() | timedelta() | Mapping():
                    return Every(f"{parse_duration(given).total_seconds():f} s")
                case _:
                    return given
        except ConfigError as error:
            raise ConfigError(f"val_check_interval={given!r}: {error.what}", why=error.why, fix=error.fix) from None


@dataclass(kw_only=True)
class Stepping:
    """How gradients become an optimizer step."""

    accumulate_grad_batches: int = 1
    micro_batch_size: int | Literal["auto"] | None = None
    """Samples of a batch in one forward and backward pass; ``auto``: as many as fit. None: all."""
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"

    def __post_init__(self) -> None:
        if not _whole(self.accumulate_grad_batches) or self.accumulate_grad_batches < 1:
            raise _out_of_range(
                "accumulate_grad_batches", self.accumulate_grad_batches, "a whole number from 1", "leave it out"
            )
        size = self.micro_batch_size
        if size is not None and size != "auto" and (not _whole(size) or size < 1):
            raise _out_of_range("micro_batch_size", size, 'a number of samples, or "auto"', "micro_batch_size=16")
        if self.gradient_clip_val == 0 and _number(self.gradient_clip_val):
            self.gradient_clip_val = None
        if self.gradient_clip_val is not None and not (_number(self.gradient_clip_val) and self.gradient_clip_val > 0):
            raise _out_of_range(
                "gradient_clip_val", self.gradient_clip_val, "above 0, or None for no clipping", "gradient_clip_val=1.0"
            )
        if self.gradient_clip_algorithm not in ("norm", "value"):
            raise _out_of_range("gradient_clip_algorithm", self.gradient_clip_algorithm, '"norm" or "value"', '"norm"')


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What torch is asked for while a stage runs. What it was set to before is put back afterwards, but for the
    environment variable that cuBLAS reads with its first call."""

    detect_anomaly: bool = False
    deterministic: bool | Literal["warn"] | None = None
    """Only algorithms that give the same result each time; ``warn``: where there is one. None: as torch is set."""
    benchmark: bool | None = None
    """Let cuDNN try its algorithms and take the fastest. Default: as torch is set; off with ``deterministic``."""
    inference_mode: bool = True
    """Evaluate in ``torch.inference_mode``; False: ``torch.no_grad``, whose tensors may take part in a backward."""

    def __post_init__(self) -> None:
        check_flag("detect_anomaly", self.detect_anomaly)
        check_flag("inference_mode", self.inference_mode)
        if not isinstance(self.deterministic, bool) and self.deterministic not in (None, "warn"):
            raise _out_of_range("deterministic", self.deterministic, 'True, False or "warn"', "deterministic=True")
        if self.benchmark is not None:
            check_flag("benchmark", self.benchmark)
        if self.benchmark and self.deterministic:
            raise ConfigError(
                "benchmark=True with deterministic.",
                why="the fastest algorithm may be another one in each run.",
                fix="leave benchmark out.",
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The settings hold inside."""
        strict, warns = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        benchmark = torch.backends.cudnn.benchmark
        if self.deterministic is not None:
            if self.deterministic and torch.cuda.is_available():
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it with its first call
            torch.use_deterministic_algorithms(bool(self.deterministic), warn_only=self.deterministic == "warn")
        if self.benchmark is not None or self.deterministic:
            torch.backends.cudnn.benchmark = bool(self.benchmark)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            torch.backends.cudnn.benchmark = benchmark


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
