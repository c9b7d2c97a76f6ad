"""What the config parser says, as what, why and fix; a misspelled name gets the nearest right one."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from treadle.errors import ConfigError, nearest


def not_settings(group: str) -> ConfigError:
    return ConfigError(
        f"{group} of the config is not a list of settings.",
        why="trainer, model and data hold NAME: VALUE lines; without any, leave the group out.",
        fix="indent the settings below the group's name, or remove the name.",
    )


_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option|Key) ['\"](?P<key>[\w.]+)['\"]"
    r"|unrecognized arguments: (?:--)?(?P<flag>[\w.]+)"
)
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':\s*(.*)")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (?P<short>\S+)"
    r"|Import path (?P<other>\S+) does not correspond to a subclass of (?P<base>\w+)"
)
_VALUE = re.compile(r"Parser key \"(?P<key>[\w.]+)\":(?P<problem>.*?)(?:Given value: (?P<value>.*))?$", re.DOTALL)


def explained(message: str, parser: Any) -> ConfigError:
    """The parser's message as what, why and fix; a misspelled name gets the nearest right one."""
    at = match["key"] if (match := _VALUE.search(message)) else None
    if match := _CLASS.search(message):
        return _explained_class(at, match[1], match[2])
    if match := _NO_CLASS.search(message):
        return _not_a_class(at, match["short"] or match["other"], match["base"])
    if match := re.match(r"Unexpected config: (\w+):", message):
        return not_settings(match[1])
    if match := re.search(r"unrecognized arguments: (\S+\.ya?ml)", message):
        return ConfigError(f"{match[1]} stands alone.", why="a config has its flag.", fix=f"--config {match[1]}")
    if match := _UNKNOWN.search(message):
        group = f"{match['group']}." if match["group"] else ""
        return _unknown_key(group + (match["key"] or match["flag"]), _setting_names(parser))
    if at == "config":
        return _no_config(" ".join(message.split(":", 1)[1].split()))
    if match := re.search(r"argument (--[\w.]+): expected one argument", message):
        return ConfigError(f"{match[1]} has no value.", why="each setting is given one.", fix=f"{match[1]} VALUE")
    if match := _VALUE.search(message):
        return _wrong_value(match["key"], match["problem"], match["value"])
    return ConfigError(
        " ".join(message.split()),
        why="the config is not YAML that can be read.",
        fix="look at that line: brackets and quotes closed, spaces for indentation, a space after each colon.",
    )


def _no_config(problem: str) -> ConfigError:
    """A config that isn't there; one of a similar name beside it is named."""
    fix = "check the path, relative to the folder you are in."
    if missing := re.search(r"'(.*)'", problem):
        path = Path(os.path.relpath(missing[1]))
        if others := sorted(str(other) for other in path.parent.glob("[!.]*.yaml")):
            fix = nearest(str(path), others)
    return ConfigError(f"{problem}.", why="--config names a YAML file.", fix=fix)


def _wrong_value(key: str, problem: str, value: str | None) -> ConfigError:
    if value is None and (given := re.search(r"Got value: (.*)", problem)):
        value, problem = given[1], problem[: given.start()]
    kinds = {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
    expected = sorted(
        {kinds.get(kind, kind) for kind in re.findall(r"Expected an? <class '(?:[\w.]*\.)?(\w+)'>", problem)}
    )
    return ConfigError(
        f"{key} = {value}." if value is not None else f"{key} has a value that can't be used.",
        why=f"it takes {' or '.join(expected)}." if expected else " ".join(problem.split()).replace("typing.", ""),
        fix=f"change {key} in the config or on the command line; --help says what it is.",
    )


def _unknown_key(key: str, known: list[str]) -> ConfigError:
    group, _, rest = key.partition(".")
    groups = sorted({name.split(".")[0] for name in known})
    if group not in groups:
        return ConfigError(
            f"{key} is not a setting.",
            why=f"there is no group {group!r}; groups are {', '.join(groups)}.",
            fix=nearest(group, groups),
        )
    siblings = [name.partition(".")[2] for name in known if name.startswith(f"{group}.")]
    close = nearest(rest, siblings) if siblings else f"give {group} a value of its own."
    return ConfigError(f"{key} is not a setting.", why=f"{group} has {', '.join(siblings) or 'no parts'}.", fix=close)


_PARSERS_OWN = ("help", "print_config", "print_shtab")


def _setting_names(parser: Any) -> list[str]:
    names = [action.dest for action in parser._actions if action.dest not in _PARSERS_OWN]
    return [name for name in names if not name.endswith(".help")]


_FORM = ("class_path", "init_args")
"""What an object in a config is written with."""


def _explained_class(at: str | None, class_path: str, problem: str) -> ConfigError:
    where = f" in {at}" if at else ""
    module, _, name = class_path.rpartition(".")
    if match := re.search(r"Option '([\w.]+)' is not accepted|does not accept option '([\w.]+)'", problem):
        option = match[1] or match[2]
        found = getattr(importlib.import_module(module), name)
        accepted = [p for p in inspect.signature(found).parameters if p != "self"]
        if get_close_matches(option, _FORM):
            accepted = list(_FORM)
        return ConfigError(
            f"{class_path}{where} has no argument {option!r}.",
            why=f"it takes {', '.join(accepted)}.",
            fix=nearest(option.split(".")[-1], accepted),
        )
    if "has no attribute" in problem and module in sys.modules:
        offered = [n for n in getattr(importlib.import_module(module), "__all__", []) if n[0].isupper()]
        return ConfigError(
            f"there is no class {class_path}{where}.",
            why=f"{module} offers {', '.join(offered)}.",
            fix=nearest(name, offered),
        )
    return ConfigError(
        f"{class_path}{where} can't be used.",
        why=" ".join(problem.split()),
        fix='write "class_path: module.ClassName", with its arguments below "init_args:".',
    )


def _not_a_class(at: str | None, class_path: str, base: str | None) -> ConfigError:
    ours = [
        f"treadle.{home}.{name}"
        for home in ("callbacks", "loggers")
        for name in importlib.import_module(f"treadle.{home}").__all__
    ]
    by_name = {path.rpartition(".")[2]: path for path in ours}
    close = get_close_matches(class_path, [*by_name, *ours], n=1)
    return ConfigError(
        f"{class_path} in {at} is not a class{f' derived from {base}' if base else ''}.",
        why="a class is named with its module.",
        fix=(
            f"did you mean {by_name.get(close[0], close[0])!r}?"
            if close
            else 'class_path: "my_project.callbacks.MyOwn"'
        ),
    )
