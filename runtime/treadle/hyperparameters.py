"""The arguments a Module or DataModule was made with: kept, logged, and saved in its checkpoints."""

from __future__ import annotations

import inspect
import json
from argparse import Namespace
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

from treadle.errors import CheckpointError, ConfigError, warn

PLAIN = (bool, int, float, str, bytes, type(None))


class HyperParameters(dict[str, Any]):
    """A dict whose keys are attributes too.

    >>> HyperParameters(hidden=64).hidden
    64
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no hyperparameter {name!r}; there are {sorted(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class HasHyperParameters:
    """What Module and DataModule share."""

    @property
    def hparams(self) -> HyperParameters:
        """What ``save_hyperparameters`` kept; empty before. Changes are saved with the next checkpoint."""
        kept = self.__dict__.get("_hparams")
        if kept is None:
            kept = self.__dict__["_hparams"] = HyperParameters()
        return kept

    @property
    def hparams_initial(self) -> HyperParameters:
        """``hparams`` as ``save_hyperparameters`` kept them first."""
        return HyperParameters(self.__dict__.get("_hparams_initial", self.hparams))

    def save_hyperparameters(
        self,
        *values: Any,
        ignore: str | Collection[str] = (),
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in ``self.hparams``, in every checkpoint, and in the logger.

        Called bare, inside ``__init__``, it takes the arguments that ``__init__`` was given, those of subclasses
        included. Names (``"hidden", "depth"``) restrict it to these; a dict or a dataclass is taken instead of
        the arguments.

        Args:
            values: Names of arguments, or one mapping or dataclass.
            ignore: Names to leave out, for example modules passed as arguments.
            frame: Of the ``__init__`` whose arguments are meant; default: the caller's.
            logger: Hand them to the loggers.

        Raises:
            ConfigError: A name that is not an argument.
        """
        here = inspect.currentframe()
        if len(values) == 1 and not isinstance(values[0], str):
            found = _as_dict(values[0])
            arguments = _init_arguments(self, frame or (here.f_back if here else None))
            names = [name for name, value in arguments.items() if value is values[0]]
            self.__dict__["_hparams_argument"] = next(iter(names), None)
        else:
            found = _init_arguments(self, frame or (here.f_back if here else None))
            if unknown := set(values) - set(found):
                raise ConfigError(
                    f"save_hyperparameters({', '.join(map(repr, sorted(unknown)))}): no such argument.",
                    why=f"{type(self).__name__}.__init__ takes {sorted(found)}.",
                    fix="name arguments of __init__, and call save_hyperparameters inside it.",
                )
            found = {name: value for name, value in found.items() if not values or name in values}
        ignored = {ignore} if isinstance(ignore, str) else set(ignore)
        self.hparams.update({name: value for name, value in found.items() if name not in ignored})
        self.__dict__.setdefault("_hparams_initial", HyperParameters(self.hparams))
        self.__dict__["_logs_hparams"] = logger

    @property
    def logged_hparams(self) -> HyperParameters:
        """Those for the loggers: all, or none after ``save_hyperparameters(logger=False)``."""
        return self.hparams if self.__dict__.get("_logs_hparams", True) else HyperParameters()


def plain_hyperparameters(owner: HasHyperParameters) -> dict[str, Any]:
    """Those of ``owner`` that a checkpoint can hold; the others are left out with a warning that names them."""
    kept, dropped = {}, []
    for name, value in owner.hparams.items():
        if _is_plain(value):
            kept[name] = value
        else:
            dropped.append(f"{name} ({type(value).__name__})")
    if dropped:
        warn(
            "hparams",
            f"hyperparameters of {type(owner).__name__} that are not plain values are not saved: {', '.join(dropped)}. "
            "Loading needs them as arguments. To say so: save_hyperparameters(ignore=[...]).",
        )
    return kept


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) in PLAIN and _is_plain(item) for key, item in value.items())
    return type(value) in PLAIN


def _as_dict(values: Any) -> dict[str, Any]:
    if is_dataclass(values) and not isinstance(values, type):
        return asdict(values)
    if isinstance(values, Mapping):
        return dict(values)
    if isinstance(values, Namespace):
        return dict(vars(values))
    raise ConfigError(
        f"save_hyperparameters({values!r}): not a mapping or dataclass.",
        why="hyperparameters have names.",
        fix="pass a dict, a dataclass, names of arguments, or nothing.",
    )


def _init_arguments(owner: object, frame: FrameType | None) -> dict[str, Any]:
    """The arguments of every ``__init__`` of ``owner`` now on the stack; outer ones (subclasses) win."""
    found: dict[str, Any] = {}
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is owner:
            found.update(_arguments_of(frame))
        frame = frame.f_back
    return found


def _arguments_of(frame: FrameType) -> dict[str, Any]:
    names, _, keywords, values = inspect.getargvalues(frame)
    found = {name: values[name] for name in names[1:] if name in values}
    return {**found, **(values[keywords] if keywords else {})}


def arguments_for(
    cls: type,
    saved: Mapping[str, Any],
    overrides: Mapping[str, Any],
    path: str | PathLike[str],
    as_argument: str | None = None,
) -> dict[str, Any]:
    """Arguments to make a ``cls`` again: the saved hyperparameters that its ``__init__`` takes, and ``overrides``.

    Args:
        as_argument: The argument that was all of them, where ``__init__`` takes them as one.

    Raises:
        CheckpointError: An argument without a default is in neither.
    """
    parameters = inspect.signature(cls).parameters
    if as_argument in parameters:
        saved = {as_argument: HyperParameters(saved)}  # type: ignore[dict-item]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {name: value for name, value in saved.items() if takes_any or name in parameters}
    arguments.update(overrides)
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if missing := [name for name in required if name not in arguments]:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}, which {cls.__name__} needs.",
            why="a checkpoint holds the plain values that save_hyperparameters() kept.",
            fix=f"{cls.__name__}.load_from_checkpoint(path, {missing[0]}=...)",
        )
    return arguments


def read_hyperparameters(path: str | PathLike[str]) -> dict[str, Any]:
    """Those in a JSON or YAML file (YAML needs PyYAML, which comes with ``treadle[cli]``).

    Raises:
        ConfigError: The file is not there, or holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read.", why=f"{error}.", fix="give a JSON or YAML file.") from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}.", why="hyperparameters have names.", fix="NAME: VALUE"
        )
    return found


def _yaml(text: str) -> Any:
    """
    Raises:
        ValueError: It is not YAML, or nothing here can read YAML.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError('YAML needs PyYAML: pip install "treadle[cli]"') from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
