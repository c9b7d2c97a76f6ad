"""The user's own catalog, and looking a name up: built in first, then the user's, then the shared ones in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaffold import settings
from scaffold.catalog import entries, files, shared, sources
from scaffold.catalog.entries import Entry, plain
from scaffold.catalog.shipped import BUILT_IN, DESCRIPTIONS, built_in, published
from scaffold.catalog.sources import Source
from scaffold.errors import SourceError, nearest, some

_TITLE = "Names for templates. Written by scaffold template add and remove; comments are not kept."


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All names this machine knows."""

    entries: tuple[Entry, ...]
    """In the order in which they are looked up."""

    problems: tuple[str, ...]
    """What could not be read, a line each."""

    catalogs: tuple[str, ...]
    """The places of the shared catalogs."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was taken out of the user's catalog."""

    address: str | None = None
    """What the name stood for."""

    catalog: str | None = None
    """Or the place of the shared catalog."""


def find(text: str) -> Source:
    """The template that ``--template TEXT`` means: a name, a git URL or the path of a local git repository.

    Each may end in ``@REF``, a tag, branch or commit. A name goes before a folder called the same: that is ``./NAME``.

    Raises:
        SourceError: There is no such template, or it may not be used.
    """
    sources.check(text)
    name, _, reference = text.partition("@")
    if name in BUILT_IN:
        return built_in(name, reference=reference or None)
    known: Listing | None = None
    if entries.is_name(name):
        known = _known() if sources.is_address(text) else _require_known()
        if entry := next((entry for entry in known.entries if entry.name == name), None):
            return entry.source(sources.reference_in(reference))
    if sources.is_address(text):
        return sources.at(text)
    raise _no_such_name(name, text, known or _known())


def listing(*, refresh: bool = False) -> Listing:
    """Every name, where it comes from, and which one hides which.

    Args:
        refresh: Fetch the shared catalogs anew. What cannot be fetched is a problem, and its names stay what they were.
    """
    problems = []
    for place in _known().catalogs if refresh else ():
        try:
            shared.fetch(place)
        except SourceError as error:
            problems.append(f"{error.what} Its names are those from before.")
    known = _known()
    shipped_at = published() or settings.BUNDLE_FOR_PROJECTS
    base = [
        Entry(name=name, address=shipped_at, description=DESCRIPTIONS[name], origin="built in") for name in BUILT_IN
    ]
    return replace(known, entries=(*base, *known.entries), problems=tuple(dict.fromkeys((*problems, *known.problems))))


def add(name: str, address: str, *, commit: str | None = None, description: str = "") -> Entry:
    """Give a template a name, for this user.

    Args:
        address: URL or path, with a version or without; nothing is fetched from it.
        commit: Full hash of the only commit it may ever mean.

    Raises:
        SourceError: The name is taken or malformed, or the address may not be used.
    """
    new = entries.entry(name, address, commit=commit, description=description, folder=Path.cwd())
    if not sources.is_remote(new.address):
        sources.at(new.address)
    with files.changing(_path(), _TITLE) as document:
        templates, _ = _parts(document)
        before = templates.get(name)
        if before is not None and before != new.as_yaml():
            raise SourceError(
                f"There is a template called {name} already.",
                why=f"it stands for {plain(before.get('source', '?') if isinstance(before, dict) else before)}.",
                fix=f"scaffold template remove {name}, or choose another name.",
            )
        templates[name] = new.as_yaml()
    return new


def subscribe(place: str) -> tuple[str, list[Entry], list[str]]:
    """Take on the names of a shared catalog, which is read at once.

    Returns:
        Its place as it is remembered, its entries, and what is wrong with those that were left out.

    Raises:
        SourceError: It cannot be read, or is no catalog.
    """
    place = shared.canonical(place)
    if not sources.is_remote(place) and sources.expanded(place).resolve() == _path().resolve():
        raise SourceError(
            f"{place} is your own catalog.",
            why="its names are known already.",
            fix="name the catalog of somebody else.",
        )
    shared.fetch(place)
    with files.changing(_path(), _TITLE) as document:
        _, places = _parts(document)
        if place not in places:
            places.append(place)
    return (place, *shared.read(place))


def remove(what: str) -> Removed:
    """Take a name, or a shared catalog, out of the user's catalog.

    Raises:
        SourceError: It is not in there.
    """
    with files.changing(_path(), _TITLE) as document:
        templates, places = _parts(document)
        if what in templates:
            details = templates.pop(what)
            return Removed(address=str(details.get("source", "") if isinstance(details, dict) else details))
        place = shared.canonical(what) if sources.is_address(what) and what not in places else what
        if place in places:
            places.remove(place)
            shared.forget(place)
            return Removed(catalog=place)
        raise _not_yours(what, [*templates, *places])


def pin(src_path: str) -> str | None:
    """The commit that a catalog pins the source of a project to; None where no pinned entry names that repository."""
    wanted = sources.host_and_path(src_path)
    pinned = (entry for entry in _known().entries if entry.commit)
    return next((entry.commit for entry in pinned if sources.repository(entry.address) == wanted), None)


def vouched(url: str) -> bool:
    """Whether a name stands for this repository: the user's own, or one of a catalog that they took on."""
    wanted = sources.host_and_path(url)
    remote = (entry.address for entry in _known().entries if sources.is_remote(entry.address))
    return any(sources.repository(address) == wanted for address in remote)


def _path() -> Path:
    return settings.config_folder() / "catalog.yml"


def _known() -> Listing:
    """All names but the built-in ones; a damaged file of the user's is a problem and holds none."""
    try:
        return _require_known()
    except SourceError as error:
        return Listing(entries=(), problems=(f"{error.what} To repair it: {error.fix}",), catalogs=())


def _require_known() -> Listing:
    """The same, but a damaged file of the user's raises SourceError."""
    document = files.read(_path())
    _, places = _parts(document)
    found, problems = entries.in_document(document, origin="yours", folder=_path().parent)
    for place in places:
        more, wrong = shared.read(place)
        found += more
        problems += wrong
    return Listing(entries=tuple(_marked(found)), problems=tuple(problems), catalogs=tuple(places))


def _marked(found: list[Entry]) -> Iterator[Entry]:
    taken: set[str] = set()
    for entry in found:
        yield replace(entry, hidden=entry.name in taken)
        taken.add(entry.name)


def _parts(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The two parts of the user's catalog, to read and to change: names, and places of shared catalogs.

    Raises:
        SourceError: One is not of its kind.
    """
    templates, places = document.get("templates") or {}, document.get("catalogs") or []
    if not isinstance(templates, dict):
        raise files.damaged(_path(), "what stands under templates is not a mapping of names")
    if not isinstance(places, list) or not all(isinstance(place, str) and place for place in places):
        raise files.damaged(_path(), "what stands under catalogs is not a list of places")
    document["templates"], document["catalogs"] = templates, places
    return templates, places


def _no_such_name(name: str, text: str, known: Listing) -> SourceError:
    names = list(dict.fromkeys([*BUILT_IN, *(entry.name for entry in known.entries)]))
    guess = nearest(name, names)
    trouble = f" {known.problems[0]}" if known.problems else ""
    suggestion = f"--template {guess or BUILT_IN[0]}"
    refresh = known.catalogs and (known.problems or not guess)
    return SourceError(
        f"There is no template called {sources.shown(text)}.",
        why=f"the names known here are: {some(names, 12)}; anything else is a git URL or a path.{trouble}",
        fix=f"scaffold template list --refresh, or {suggestion}" if refresh else suggestion,
    )


def _not_yours(what: str, known: list[str]) -> SourceError:
    if what in BUILT_IN:
        return SourceError(
            f"{what} is a built-in template.",
            why="it came with scaffold and is always there.",
            fix="scaffold template list shows which names are yours.",
        )
    if shared_one := next((entry for entry in _known().entries if entry.name == what), None):
        return SourceError(
            f"{what} is not yours to remove.",
            why=f"it comes from the catalog {shared_one.origin}.",
            fix=f"scaffold template remove {shared_one.origin}, which takes all its names with it.",
        )
    guess = nearest(what, known)
    return SourceError(
        f"Your catalog has no {sources.shown(what)}.",
        why=f"it has {', '.join(plain(name)[:80] for name in known[:12]) or 'no names yet'}.",
        fix=f"scaffold template remove {plain(guess)}" if guess else "scaffold template list shows all names.",
    )
