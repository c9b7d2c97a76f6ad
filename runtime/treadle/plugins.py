"""What installed packages add, without a line in the training code.

A package lists entry points in its ``pyproject.toml``. Those of ``treadle.callbacks`` and ``treadle.loggers`` are
policies: every Trainer of the environment gets them. Those of the other groups are names that become available::

    [project.entry-points."treadle.callbacks"]
    time-limit = "acme_policy:TimeLimit"

    [project.entry-points."treadle.strategies"]
    acme-ring = "acme_policy.ring:Ring"

What each stands for is called without arguments: policies return one object or a list of them, accelerators a device, the
others an object. A run that writes nothing (``fast_dev_run``, ``barebones``) has no logger, a policy's neither; callbacks are
there. Environments (``treadle.environments``) are asked before those that are built in, whether a process is one of theirs.

The environment variable ``TREADLE_PLUGINS=none`` switches all of it off, ``Trainer(plugins="none")`` the policies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args

from treadle.errors import ConfigError, TreadleError, nearest

Group = Literal[
    "treadle.callbacks",
    "treadle.loggers",
    "treadle.strategies",
    "treadle.precision",
    "treadle.environments",
    "treadle.accelerators",
]
GROUPS: tuple[Group, ...] = get_args(Group)
VARIABLE = "TREADLE_PLUGINS"


@dataclass(frozen=True)
class Entry:
    """One entry point, not imported yet."""

    group: str
    name: str
    value: str
    """What it stands for: ``package.module:attribute``."""
    distribution: str
    version: str

    @property
    def provider(self) -> str:
        """The distribution that brings it, and its version."""
        return f"{self.distribution} {self.version}"


def enabled(plugins: str | None) -> bool:
    """Whether policies apply: not with ``Trainer(plugins="none")`` or ``TREADLE_PLUGINS=none``.

    Raises:
        ConfigError: Either has a value other than that or nothing.
    """
    if plugins not in (None, "none"):
        raise ConfigError(
            f"plugins={plugins!r}.",
            why='plugins are what installed packages add: all of them, or with "none" no policies.',
            fix='leave it out, or plugins="none"; objects of your own go to strategy=, precision= and callbacks=.',
        )
    return plugins is None and not _switched_off()


def _switched_off() -> bool:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "none"):
        raise ConfigError(
            f"the environment variable {VARIABLE} is {value!r}.",
            why='installed plugins are used unless it is "none".',
            fix=f"{VARIABLE}=none, or unset {VARIABLE}",
        )
    return value == "none"


def installed(group: Group) -> list[Entry]:
    """The entry points of ``group``, by name; nothing is imported. Looked up once in a process, used or not.

    Raises:
        ConfigError: The group is unknown, or two distributions provide one name.
    """
    if group not in GROUPS:
        raise ConfigError(
            f"{group!r} is not a group of entry points.", why="treadle reads its own only.", fix=nearest(group, GROUPS)
        )
    entries = [entry for entry in _found() if entry.group == group]
    for one, other in pairwise(entries):
        if one.name == other.name:
            raise ConfigError(
                f"{one.provider} and {other.provider} both provide {one.name!r} in {group}.",
                why="a name stands for one thing.",
                fix=f"pip uninstall {other.distribution}, or {one.distribution}",
            )
    return entries


@cache
def _found() -> tuple[Entry, ...]:
    """Every entry point of ours in the environment, sorted. Reads a file of each installed distribution."""
    from importlib.metadata import entry_points

    points = entry_points()
    entries = []
    for group in GROUPS:
        for point in points.select(group=group):
            assert point.dist is not None  # set for each that entry_points returns
            entries.append(Entry(group, point.name, point.value, point.dist.metadata["Name"], point.dist.version))
    return tuple(sorted(entries, key=lambda entry: (entry.group, entry.name, entry.distribution)))


def load(entry: Entry) -> Any:
    """Import what ``entry`` stands for.

    Raises:
        ConfigError: It can't be imported, or is not in its module.
    """
    from importlib.metadata import EntryPoint

    try:
        return EntryPoint(entry.name, entry.value, entry.group).load()
    except Exception as error:
        raise _broken(entry, f"importing {entry.value} failed: {_in_words(error)}") from error


def made(group: Literal["treadle.callbacks", "treadle.loggers"], kind: type = object) -> list[tuple[Entry, Any]]:
    """New objects of every policy in ``group``, by name of the entry point; none if plugins are switched off.

    Each entry point is a callable without arguments, a class or a function. It returns one object or a list of them.

    Args:
        group: Callbacks or loggers.
        kind: What each object must be.

    Raises:
        ConfigError: An entry point can't be imported or called, or returns something else. What a policy raises from
            ``treadle.errors`` passes through.
    """
    if _switched_off():
        return []
    return [(entry, item) for entry in installed(group) for item in _made(entry, kind)]


def _made(entry: Entry, kind: type) -> Sequence[Any]:
    make = load(entry)
    try:
        result = make()
    except TreadleError:
        raise
    except Exception as error:
        raise _broken(entry, f"calling {entry.value} failed: {_in_words(error)}") from error
    items = result if isinstance(result, (list, tuple)) else [result]
    for item in items:
        if item is None or isinstance(item, type) or not isinstance(item, kind):
            found = f"the class {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"
            wanted = "an object" if kind is object else f"a {kind.__name__}"
            raise _broken(entry, f"{entry.value}() returned {found}, not {wanted} or a list of them")
    return items


def named(group: Group, name: str) -> Any | None:
    """What is installed under ``name``, imported; None if nothing is, or plugins are switched off.

    Raises:
        ConfigError: It can't be imported.
    """
    if _switched_off():
        return None
    return next((load(entry) for entry in installed(group) if entry.name == name), None)


def names(group: Group) -> list[str]:
    """The names that :func:`named` knows; nothing is imported."""
    return [] if _switched_off() else [entry.name for entry in installed(group)]


def described(entries: Sequence[Entry]) -> str:
    """The policies by the distributions that bring them, for the line at the start of a run; empty without any.

    >>> described([Entry("treadle.callbacks", "time-limit", "acme_policy:TimeLimit", "acme-policy", "1.2")])
    'policies: acme-policy 1.2 (time-limit)'
    """
    by_provider: dict[str, dict[str, None]] = {}
    for entry in entries:
        by_provider.setdefault(entry.provider, {})[entry.name] = None  # a policy of several objects is named once
    listed = ", ".join(f"{provider} ({', '.join(names)})" for provider, names in by_provider.items())
    return f"policies: {listed}" if listed else ""


def _broken(entry: Entry, what: str) -> ConfigError:
    return ConfigError(
        f"the plugin {entry.name!r} of {entry.provider} can't be used: {what}.",
        why=f"it is an entry point in the group {entry.group}, which treadle reads from installed packages.",
        fix=f"repair or uninstall {entry.distribution}; {VARIABLE}=none runs without plugins.",
    )


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": .")
