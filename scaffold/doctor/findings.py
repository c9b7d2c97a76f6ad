"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, ParamSpec

from scaffold.errors import ScaffoldError

Level = Literal["ok", "note", "problem"]
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that was looked at."""

    level: Level
    text: str
    fix: str | None = None
    """What to do about it; a problem always says so."""


def ok(text: str) -> Finding:
    return Finding(level="ok", text=printable(text))


def note(text: str, fix: str | None = None) -> Finding:
    return Finding(level="note", text=printable(text), fix=fix and printable(fix))


def problem(text: str, fix: str) -> Finding:
    return Finding(level="problem", text=printable(text), fix=printable(fix))


def printable(text: str) -> str:
    """``text`` on one line, without what a terminal would obey: file names and titles may be a stranger's."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def guarded(name: str, look: Callable[P, Iterable[Finding]], *args: P.args, **kwargs: P.kwargs) -> tuple[Finding, ...]:
    """What ``look`` finds. Where it fails, that is a finding, after those it had."""
    found: list[Finding] = []
    try:
        for finding in look(*args, **kwargs):
            found.append(finding)  # noqa: PERF402 - those before a failure are kept
    except ScaffoldError as error:
        found.append(problem(error.what, error.fix))
    except Exception as error:  # noqa: BLE001 - a doctor that falls ill at the first patient helps nobody
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        found.append(problem(f"{name} could not be examined: {what}", "see whether the same works by hand."))
    return tuple(found)
