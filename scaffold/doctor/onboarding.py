"""ONBOARDING.md: numbered steps, and in HTML comments what tells that a step is done.

A step begins with a numbered heading (``## 1. Install``) or, in a file without those, with a numbered line. Each comment
``<!-- doctor: NAME ARGUMENT -->`` after it is a check of the step; one comment may have several, a line each. What stands
in a code block is text about checks, and none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaffold.doctor.findings import Finding, printable, problem

FILE = "ONBOARDING.md"
_MOST = 500_000
"""Bytes. More is no text for people."""

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?:Step[ \t]+)?(\d{1,4})[.):]?[ \t]+(\S.*)", re.IGNORECASE)
_ITEM = re.compile(r"(\d{1,4})[.)][ \t]+(\S.*)")
_FENCE = re.compile(r"[ \t]*(?:\d{1,4}[.)][ \t]+|[-*+][ \t]+)?(`{3,}(?=[^`]*$)|~{3,}).*")
_MARK = re.compile(r"<!--|-->|`+")
_TITLE = 80
"""Characters of a title that are shown."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What tells that a step is done: one thing of this machine."""

    name: str
    argument: str

    def __str__(self) -> str:
        return f"{self.name} {self.argument}".strip()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, as it is written down."""

    number: int
    """As in the file; 0 for what stands before the first step."""
    title: str
    checks: tuple[Check, ...]


def read(root: Path) -> tuple[str, Finding | None]:
    """The text of the project's file, empty without one, and what was wrong with it."""
    path = root / FILE
    if not path.is_file():
        return "", None
    try:
        with path.open("rb") as file:
            text = file.read(_MOST + 1)
    except OSError as error:
        return "", problem(f"it cannot be read: {error.strerror}", f"git checkout HEAD -- {FILE}")
    if len(text) > _MOST:
        return "", problem(
            f"it has more than {_MOST:,} bytes and was not read", "keep the steps short, the rest elsewhere."
        )
    return text.decode("utf-8-sig", errors="replace"), None


def parse(text: str) -> tuple[Step, ...]:
    """The steps in ``text``, whatever it is.

    >>> parse("1. Get git <!-- doctor: command git -->")
    (Step(number=1, title='Get git', checks=(Check(name='command', argument='git'),)),)
    """
    lines = list(_outside_of_code(text))
    begins = _HEADING if any(_HEADING.fullmatch(line) for line, _ in lines) else _ITEM
    steps: list[tuple[int, str, list[Check]]] = [(0, "Before the first step", [])]
    for line, checks in lines:
        if match := begins.fullmatch(line):
            steps.append((int(match[1]), _title(match[2]), []))
        steps[-1][2].extend(checks)
    if not steps[0][2]:
        del steps[0]
    return tuple(Step(number=number, title=title, checks=tuple(checks)) for number, title, checks in steps)


def _outside_of_code(text: str) -> Iterator[tuple[str, list[Check]]]:
    """Each line that is no code, without its comments, and the checks in the comments that end there."""
    fence = ""
    comment: list[str] | None = None  # what an open comment has so far
    for line in text.splitlines():
        if fence:
            bare = line.strip()
            if bare.startswith(fence) and not bare.strip(fence[0]):
                fence = ""
            continue
        if comment is None and (opened := _FENCE.fullmatch(line)):
            fence = opened[1]
            continue
        shown: list[str] = []
        checks: list[Check] = []
        begin, in_code = 0, False
        for mark in _MARK.finditer(line):
            if comment is not None:
                if mark[0] == "-->":
                    checks += _checks("".join((*comment, line[begin : mark.start()])))
                    comment, begin = None, mark.end()
            elif mark[0] == "<!--" and not in_code:
                shown.append(line[begin : mark.start()])
                comment, begin = [], mark.end()
            elif mark[0].startswith("`"):  # the last one of a line opens nothing
                in_code = not in_code and line.find("`", mark.end()) >= 0
        (shown if comment is None else comment).append(line[begin:])
        if comment is not None:
            comment.append("\n")
        yield "".join(shown).rstrip(), checks


def _checks(comment: str) -> Iterator[Check]:
    for line in comment.splitlines():
        label, colon, text = line.strip().partition(":")
        if colon and label.lower() == "doctor":
            name, _, argument = text.strip().partition(" ")
            yield Check(name=printable(name), argument=printable(argument))


def _title(text: str) -> str:
    plain = printable(text.strip().rstrip("#").replace("*", "").replace("`", ""))
    return plain if len(plain) <= _TITLE else f"{plain[: _TITLE - 1].rstrip()}…"
