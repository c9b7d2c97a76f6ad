"""What a catalog file holds: short names for templates.

```yaml
templates:
  acme:
    source: https://git.example.com/platform/template@v1.2.0   # a URL or a path, with or without a version
    commit: 0123456789abcdef0123456789abcdef01234567          # optional: the one commit it may mean
    description: Training projects at Acme.                    # optional
```

One bad entry takes nothing from the others: it is reported, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaffold import console
from scaffold.catalog import sources
from scaffold.catalog.shipped import BUILT_IN
from scaffold.errors import ScaffoldError, SourceError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_LONGEST_DESCRIPTION = 200
_MOST_REPORTED = 20
_KNOWN_KEYS = frozenset({"source", "commit", "description"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A name and what it stands for."""

    name: str

    address: str
    """URL or path, with a version or without."""

    commit: str | None = None
    """Full hash it is pinned to."""

    description: str = ""
    """One line."""

    origin: str = "yours"
    """Where the name comes from: ``built in``, ``yours``, or the place of a shared catalog."""

    hidden: bool = False
    """Another entry of that name goes first."""

    def source(self, reference: str | None = None) -> sources.Source:
        """What to fetch.

        Args:
            reference: Instead of the version in ``address``.

        Raises:
            SourceError: Nothing is there any more.
        """
        there = sources.at(self.address)
        wanted = reference or there.reference or self.commit
        return replace(there, name=self.name, reference=wanted, commit=self.commit)

    def as_yaml(self) -> dict[str, str]:
        """What a catalog file holds under its name."""
        given = {"source": self.address, "commit": self.commit, "description": self.description}
        return {key: value for key, value in given.items() if value}


def entry(
    name: str,
    address: str,
    *,
    commit: str | None = None,
    description: str = "",
    origin: str = "yours",
    folder: Path | None = None,
) -> Entry:
    """A checked entry.

    Args:
        folder: What a relative path in ``address`` starts from; None where a path makes no sense, since the catalog
            comes from another machine.

    Raises:
        SourceError: A part of it cannot be used.
    """
    check_name(name)
    sources.check(address)
    if not sources.is_remote(address):
        address = _absolute(address, folder)
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise SourceError(
            f"{plain(commit)!r} is not the full hash of a commit.",
            why="a pin names exactly one commit, and a shorter hash or a tag may mean another one tomorrow.",
            fix="write all its 40 digits, as git rev-parse TAG^{commit} shows them.",
        )
    return Entry(
        name=name,
        address=address,
        commit=commit,
        description=plain(description)[:_LONGEST_DESCRIPTION],
        origin=origin,
    )


def is_name(text: str) -> bool:
    """Whether a catalog could hold it."""
    return bool(_NAME.fullmatch(text))


def check_name(name: str) -> None:
    """Raises SourceError for what cannot be the name of a user's or a team's template."""
    if name in BUILT_IN:
        raise SourceError(
            f"{name} is the name of a built-in template.",
            why="everybody's projects and documentation mean that one by it.",
            fix=f"choose another name, for example my-{name}",
        )
    if not is_name(name):
        guess = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40].strip("-_") or "my-template"
        raise SourceError(
            f"{plain(name)[:80]!r} cannot be the name of a template.",
            why="a name is up to 40 of a-z, 0-9, - and _, so that it is never mistaken for a path, a URL or an option.",
            fix=f"call it {f'my-{guess}' if guess in BUILT_IN else guess}",
        )


def in_document(document: Mapping[str, Any], *, origin: str, folder: Path | None) -> tuple[list[Entry], list[str]]:
    """The entries of a catalog, and what is wrong with those left out."""
    templates = document.get("templates") or {}
    if not isinstance(templates, dict):
        return [], [f"{origin}: what stands under templates is not a mapping of names."]
    good: list[Entry] = []
    bad: list[str] = []
    for name, details in templates.items():
        try:
            good.append(_parsed(str(name), details, origin=origin, folder=folder))
        except ScaffoldError as error:
            bad.append(f"{origin}: {plain(name)[:80]} is left out. {error.what} {error.why.capitalize()}")
    if len(bad) > _MOST_REPORTED:
        bad[_MOST_REPORTED:] = [f"{origin}: {len(bad) - _MOST_REPORTED} more are left out."]
    return good, bad


def plain(text: object) -> str:
    """``text`` on one line, without what a terminal would obey instead of showing it."""
    return " ".join(console.plain(text).split())


def _parsed(name: str, details: object, *, origin: str, folder: Path | None) -> Entry:
    check_name(name)
    if isinstance(details, str):
        details = {"source": details}
    if not isinstance(details, dict) or not all(isinstance(value, str) for value in details.values()):
        raise _not_an_entry("its entry is neither an address nor a mapping of texts.")
    if unknown := [key for key in details if key not in _KNOWN_KEYS]:
        raise _not_an_entry(f"its entry has {plain(unknown[0])[:80]!r}, which is none of source, commit, description.")
    if "source" not in details:
        raise _not_an_entry("its entry has no source.")
    return entry(
        name,
        details["source"],
        commit=details.get("commit") or None,
        description=details.get("description", ""),
        origin=origin,
        folder=folder,
    )


def _not_an_entry(reason: str) -> SourceError:
    return SourceError(
        "It is no entry of a catalog.", why=reason, fix="write it like NAME: {source: https://HOST/OWNER/REPOSITORY}"
    )


def _absolute(address: str, folder: Path | None) -> str:
    if folder is None:
        raise SourceError(
            f"{plain(address)[:80]!r} is no URL.",
            why="a catalog from another machine names templates that every machine can reach.",
            fix="write it like https://HOST/OWNER/REPOSITORY or git@HOST:OWNER/REPOSITORY",
        )
    if not address.startswith(("~", ".")) and "/" not in address:
        raise SourceError(
            f"{plain(address)[:80]!r} is neither a URL nor a path.",
            why="a name stands for an address, not for another name.",
            fix=f"write it like https://HOST/OWNER/REPOSITORY, or ./{plain(address)[:80]} for a folder.",
        )
    return address if address.startswith("~") else str(folder / address)
