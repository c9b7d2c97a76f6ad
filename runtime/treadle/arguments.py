"""What the Trainer's arguments mean: from shorthands to the objects they stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from treadle.callbacks import Callback, ModelCheckpoint
from treadle.errors import ConfigError
from treadle.loggers import CSVLogger, Logger


def listed(callbacks: Callback | Sequence[Callback] | None) -> list[Callback]:
    if isinstance(callbacks, (list, tuple)):
        return list(callbacks)
    return [] if callbacks is None else [callbacks]  # type: ignore[list-item]


def callbacks_for(given: Callback | Sequence[Callback] | None, checkpointing: bool, bar: bool) -> list[Callback]:
    """The user's, then the defaults; checkpoints last, so that they save what the others did."""
    callbacks = listed(given)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks has {described(callback)}.",
                why="the loops call the hooks of treadle.Callback.",
                fix="derive it from treadle.Callback, and pass an object, not a class.",
            )
    saving = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if saving and not checkpointing:
        raise ConfigError(
            "enable_checkpointing=False with a ModelCheckpoint.",
            why="the two contradict each other.",
            fix="leave one of them out.",
        )
    if checkpointing and not saving:
        saving = [ModelCheckpoint()]
    others = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
    if bar:
        from treadle.callbacks import RichProgressBar

        if not any(isinstance(callback, RichProgressBar) for callback in others):
            others.append(RichProgressBar())
    return [*others, *saving]


def require_unique_keys(callbacks: Sequence[Callback]) -> None:
    keys = [callback.state_key for callback in callbacks]
    for callback in callbacks:
        if keys.count(callback.state_key) > 1 and callback.state_dict():
            raise ConfigError(
                f"two callbacks have the state key {callback.state_key!r}.",
                why="a checkpoint holds the state of each callback under its key.",
                fix="override state_key in one of them, or give them different settings.",
            )


def loggers_for(logger: bool | Logger | Sequence[Logger], root: Path) -> list[Logger]:
    if logger is True:
        return [CSVLogger(root)]
    if logger is False or logger is None:
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


def folder_for(path: str | os.PathLike[str] | None) -> Path:
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ConfigError(
            f"default_root_dir={path!r} is not a path.", why="runs are folders in it.", fix='default_root_dir="results"'
        )
    return Path(path or Path.cwd())


def described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
