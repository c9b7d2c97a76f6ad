"""What the Trainer's arguments mean: from shorthands to the objects they stand for."""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from treadle import plugins
from treadle.callbacks import Callback, ModelCheckpoint
from treadle.checkpoint.remote import is_remote
from treadle.errors import ConfigError, nearest
from treadle.loggers import CSVLogger, Logger
from treadle.precision import Precision

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.profilers import Profiler

_PLAIN = (bool, int, float, str, type(None))
Init = TypeVar("Init", bound=Callable[..., None])
PREFIX = "TREADLE_TRAINER_"
ELSEWHERE = {
    "model_registry": "give ckpt_path the path of a file.",
    "suggest_integrations": "leave it out: nothing is advertised.",
    "weights_save_path": "callbacks=ModelCheckpoint(dirpath=...)",
    "checkpoint_callback": "enable_checkpointing=True or False",
    "gpus": 'accelerator="gpu", devices=...',
    "tpu_cores": 'accelerator="tpu", devices=...',
    "resume_from_checkpoint": "trainer.fit(model, ckpt_path=...)",
    "auto_lr_find": "look for a learning rate before the fit, in a loop of your own.",
    "replace_sampler_ddp": "leave it out: loaders are never rebuilt.",
}
"""Arguments that releases of PyTorch Lightning have or had, and what to do instead."""


def from_environment(init: Init) -> Init:
    """A constructor whose keywords may come from the environment too, ``TREADLE_TRAINER_MAX_EPOCHS=3``, and that answers
    an unknown one with the nearest right one. What the code says wins."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: object, *arguments: Any, **settings: Any) -> None:
        if arguments:
            raise ConfigError(
                f"{type(self).__name__} was given {arguments[0]!r} without a name.",
                why="its arguments are keywords.",
                fix=f"{type(self).__name__}(max_epochs=10)",
            )
        for name in settings:
            if name not in known:
                raise _unknown(name, name, known)
        merged = {**environment_settings(known), **settings}
        self.__dict__["_settings"] = {name: value for name, value in merged.items() if isinstance(value, _PLAIN)}
        init(self, **merged)

    return cast(Init, checked)


def environment_settings(known: Sequence[str]) -> dict[str, Any]:
    """The settings among ``known`` that environment variables give.

    Raises:
        ConfigError: A variable with the prefix that is none of them.
    """
    found = {}
    for variable, text in os.environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                raise _unknown(name, f"{variable}={text}", known)
            found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    """
    >>> [_value(text) for text in ("3", "0.5", "true", "null", "[1, 2]", "cpu")]
    [3, 0.5, True, None, [1, 2], 'cpu']
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unknown(name: str, shown: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{shown} is not an argument of Trainer.",
        why="PyTorch Lightning has, or once had, it." if name in ELSEWHERE else "there is none of that name.",
        fix=ELSEWHERE.get(name) or nearest(name, known),
    )


def listed(callbacks: Callback | Sequence[Callback] | None) -> list[Callback]:
    if isinstance(callbacks, (list, tuple)):
        return list(callbacks)
    return [] if callbacks is None else [callbacks]  # type: ignore[list-item]


def callbacks_for(
    given: list[Callback],
    *,
    bar: bool,
    summary: bool,
    max_time: str | timedelta | Mapping[str, float] | None,
    checkpointing: bool | None,
) -> list[Callback]:
    """The user's, then the defaults that he has none of; checkpoints last, so that they save what the others did."""
    from treadle.callbacks import ModelSummary, RichProgressBar, Timer

    _require_callbacks(given, "callbacks has")
    saving: list[Callback] = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
    if saving and checkpointing is False:
        raise ConfigError(
            "enable_checkpointing=False with a ModelCheckpoint.",
            why="the two contradict each other.",
            fix="leave one of them out.",
        )
    if checkpointing is not False and not saving:
        saving = [ModelCheckpoint()]
    others = [callback for callback in given if not isinstance(callback, ModelCheckpoint)]
    if max_time is not None:
        others.append(Timer(max_time))
    if summary and not any(isinstance(callback, ModelSummary) for callback in others):
        others.append(ModelSummary())
    if bar and not any(isinstance(callback, RichProgressBar) for callback in others):
        others.append(RichProgressBar())
    return [*others, *saving]


def without_writers(callbacks: list[Callback]) -> list[Callback]:
    """For ``fast_dev_run``: without those that save, stop early, or need a logger."""
    from treadle.callbacks import DeviceStatsMonitor, EarlyStopping, LearningRateMonitor

    kinds = (ModelCheckpoint, EarlyStopping, LearningRateMonitor, DeviceStatsMonitor)
    return [callback for callback in callbacks if not isinstance(callback, kinds)]


def require_bare(
    logger: Any, checkpointing: bool | None, bar: bool | None, summary: bool | None, profiler: Any, fast_dev_run: Any
) -> None:
    """
    Raises:
        ConfigError: Something that ``barebones=True`` turns off was asked for.
    """
    wanted = {
        "logger": logger,
        "enable_checkpointing": checkpointing,
        "enable_progress_bar": bar,
        "enable_model_summary": summary,
        "profiler": profiler,
        "fast_dev_run": fast_dev_run,
    }
    if named := [name for name, value in wanted.items() if value]:
        raise ConfigError(
            f"barebones=True with {' and '.join(named)}.",
            why="barebones turns everything off but training itself.",
            fix="leave one of them out.",
        )


def takes_each_batch(callbacks: Sequence[Callback]) -> bool:
    """Whether one of them writes predictions batch by batch, so that they need not pile up."""
    from treadle.callbacks import BasePredictionWriter

    return any(isinstance(callback, BasePredictionWriter) and callback.writes_batches for callback in callbacks)


def with_the_modules(callbacks: Sequence[Callback], module: Module) -> list[Callback]:
    """``callbacks``, those of a type that ``module.configure_callbacks`` brings replaced by its own."""
    own = listed(module.configure_callbacks())
    _require_callbacks(own, f"{type(module).__name__}.configure_callbacks returned")
    kinds = {type(callback) for callback in own}
    merged = [*(callback for callback in callbacks if type(callback) not in kinds), *own]
    return sorted(merged, key=lambda callback: isinstance(callback, ModelCheckpoint))


def _require_callbacks(callbacks: Sequence[Any], where: str) -> None:
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"{where} {described(callback)}.",
                why="the loops call the hooks of treadle.Callback.",
                fix="derive it from treadle.Callback, and pass an object, not a class.",
            )


def require_unique_keys(callbacks: Sequence[Callback]) -> None:
    keys = [callback.state_key for callback in callbacks]
    for callback in callbacks:
        if keys.count(callback.state_key) > 1 and callback.state_dict():
            raise ConfigError(
                f"two callbacks have the state key {callback.state_key!r}.",
                why="a checkpoint holds the state of each callback under its key.",
                fix="override state_key in one of them, or give them different settings.",
            )


def loggers_for(logger: bool | Logger | Sequence[Logger] | None, root: Path) -> list[Logger]:
    if logger is True or logger is None:
        return [CSVLogger(root)]
    if logger is False:
        return []
    loggers = list(logger) if isinstance(logger, (list, tuple)) else [logger]
    for item in loggers:
        if isinstance(item, type) or not isinstance(item, Logger):
            raise ConfigError(
                f"logger is {described(item)}.",
                why="a logger has the methods of treadle.loggers.Logger.",
                fix="logger=True for CSV files, or logger=CSVLogger(...).",
            )
    return loggers  # type: ignore[return-value]


def precision_and_plugins(
    precision: str | int | Precision, given: str | Precision | Sequence[Precision] | None
) -> tuple[str | int | Precision, str | None]:
    """What ``plugins`` says: a precision of one's own, or ``"none"`` for a Trainer without what packages install."""
    if given is None or isinstance(given, str):
        return precision, given
    for item in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(item, type) or not isinstance(item, Precision):
            raise ConfigError(
                f"plugins has {described(item)}.",
                why='a plugin is a Precision; "none" leaves out what installed packages bring.',
                fix='strategy=..., or precision="32-true"',
            )
        if precision not in ("32-true", "32", 32):
            raise ConfigError(
                f"precision={precision!r} and a Precision in plugins.",
                why="a run has one.",
                fix="leave one of them out.",
            )
        precision = item
    return precision, None


def profiler_of(profiler: str | Profiler | None) -> Profiler | None:
    if profiler is None:
        return None
    from treadle.profilers import profiler_for

    return profiler_for(profiler)


def policies(named: str | None) -> tuple[list[Callback], list[Logger], str]:
    """The callbacks and loggers that installed packages bring to every Trainer, and a line that says which."""
    if not plugins.enabled(named):
        return [], [], ""
    callbacks = plugins.made("treadle.callbacks", Callback)
    loggers = plugins.made("treadle.loggers", Logger)
    said = plugins.described([*dict.fromkeys(entry for entry, _ in [*callbacks, *loggers])])
    return [callback for _, callback in callbacks], [logger for _, logger in loggers], said


def folder_for(path: str | os.PathLike[str] | None) -> Path:
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ConfigError(
            f"default_root_dir={path!r} is not a path.", why="runs are folders in it.", fix='default_root_dir="results"'
        )
    if path is not None and is_remote(path):
        raise ConfigError(
            f"default_root_dir={str(path)!r} is not on this machine.",
            why="loggers append to files in it, which a store can't do; checkpoints may lie in one.",
            fix=f'callbacks=ModelCheckpoint(dirpath="{path}"), and a default_root_dir of this machine.',
        )
    return Path(path or Path.cwd())


def described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
