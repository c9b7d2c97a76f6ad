"""CHANGELOG.md: is there something to release, and the same file with a version and a date on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from scaffold.errors import TemplateError

FILE = "CHANGELOG.md"

_HEADING = re.compile(r"^##[ \t]+(?P<title>.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one release says of itself."""

    notes: str
    """Markdown."""
    text: str
    """The whole file with this entry in it; the same as before when the author had put it there."""


def entry(text: str, version: str, day: date, *, more: str | None = None) -> Entry:
    """The entry for ``version``: the one that is there, else what stands under "Unreleased".

    Args:
        more: One more line for it.

    Raises:
        TemplateError: There is neither, or nothing stands there.
    """
    sections = list(_sections(text))
    for title, start, end in sections:
        if re.fullmatch(rf"\[?v?{re.escape(version)}\]?([ \t(:-].*)?", title):
            return _whole(text, version, start, end, more)
    for title, start, end in sections:
        if title.strip("[]").lower() == "unreleased":
            heading = text.rfind("##", 0, start)
            dated = f"{text[:heading]}## Unreleased\n\n## {version} - {day.isoformat()}"
            return _whole(dated + text[start:], version, len(dated), len(dated) + end - start, more)
    raise TemplateError(
        f"{FILE} has no entry for {version}, and no section called Unreleased.",
        why="a release says what it changes for the projects that take it.",
        fix=f"add the line `## Unreleased` to {FILE} and what changed below it, commit it, then run this again.",
    )


def _sections(text: str) -> list[tuple[str, int, int]]:
    """Title of each section, and where what it says starts and ends."""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings] + [len(text)]
    return [(heading["title"], heading.end(), end) for heading, end in zip(headings, ends[1:], strict=True)]


def _whole(text: str, version: str, start: int, end: int, more: str | None) -> Entry:
    body = _without_links(text[start:end])
    if more:
        after = start + len(body.rstrip())
        line = f"\n{'' if _is_list(body) else chr(10)}- {' '.join(more.split())}\n"
        text = text[:after] + line + ("\n" if text[after:].strip() else "") + text[after:].lstrip("\n")
        body = body.rstrip() + line
    said = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    if not any(line.strip() and not line.startswith("#") for line in said.splitlines()):
        raise TemplateError(
            f"{FILE} says nothing about {version}: the section is empty.",
            why="a release says what it changes for the projects that take it.",
            fix=f"write a line or two under Unreleased in {FILE} and commit it, or give one here: --notes TEXT",
        )
    return Entry(notes=said.strip(), text=text)


def _is_list(body: str) -> bool:
    return bool(body.strip()) and body.strip().splitlines()[-1].startswith(("-", "*", " "))


def _without_links(body: str) -> str:
    """``body`` up to the link targets that end a file in the style of Keep a Changelog."""
    return re.sub(r"(\n\[[^\]\n]+\]:[ \t]*\S+[ \t]*)+\s*\Z", "\n", body)
