"""Catalogs of a team: a YAML file on this machine, at an https URL, or in a git repository as ``catalog.yml``.

One that is not on this machine is fetched when the user says so, at ``template add --catalog`` and ``template list
--refresh``, and read from the cache at all other times: names work without a network, and mean tomorrow what they mean
today. A catalog cannot name other catalogs, so none can lead in a circle, or to where the user did not agree to.
"""

from __future__ import annotations

import tempfile
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from scaffold import git, placing, settings
from scaffold.catalog import entries, files, sources
from scaffold.catalog.entries import Entry, plain
from scaffold.errors import SourceError

FILE = "catalog.yml"
"""Its name in a git repository."""

_SUFFIXES = (".yml", ".yaml")
_PATIENCE = 20
"""Seconds to bear with a git server that sends next to nothing."""


def canonical(place: str) -> str:
    """``place`` as it is remembered: a path in full, or as written with ``~``.

    Raises:
        SourceError: It cannot be the place of a catalog.
    """
    sources.check(place)
    if sources.is_remote(place) or place.startswith("~"):
        return place
    return str(Path(place).absolute())


def fetch(place: str) -> None:
    """Read a catalog anew and keep it for when there is no network. One on this machine is only looked at.

    Raises:
        SourceError: It cannot be reached, or is no catalog.
    """
    sources.check(place)  # the user's file may have been edited by hand
    content = _local(place) if not sources.is_remote(place) else _download(place) if _is_file(place) else _clone(place)
    try:
        document = files.parse(content)
        if not isinstance(document.get("templates"), dict):
            raise ValueError("it has no mapping called templates")
    except ValueError as error:
        raise _no_catalog(place, str(error)) from None
    if sources.is_remote(place):
        try:
            placing.write(_cached(place), content)
        except OSError as error:
            raise SourceError(
                f"Cannot write {_cached(place)}: {error.strerror or error}.",
                why="a shared catalog is kept there, for when there is no network.",
                fix=f"make {settings.cache_folder()} writable, or set XDG_CACHE_HOME to a folder that is.",
            ) from None


def read(place: str) -> tuple[list[Entry], list[str]]:
    """The entries of a catalog as far as this machine has it, and what is wrong with it; uses no network."""
    try:
        if sources.is_remote(place):
            content, folder = _kept(place), None
        else:
            content = _local(place)
            folder = _file(place).parent
        document = files.parse(content)
        found, problems = entries.in_document(document, origin=place, folder=folder)
        if document.get("catalogs"):
            problems.append(f"{place}: it names other catalogs, which are not followed. Add those you want yourself.")
        return found, problems
    except ValueError as error:
        return [], [_no_catalog(place, str(error)).what]
    except SourceError as error:
        return [], [f"{error.what} To repair it: {error.fix}"]


def forget(place: str) -> None:
    """Remove what was kept of it."""
    _cached(place).unlink(missing_ok=True)


def _is_file(place: str) -> bool:
    return place.startswith(("https://", "http://")) and urlsplit(place).path.endswith(_SUFFIXES)


def _cached(place: str) -> Path:
    return settings.cache_folder() / "catalogs" / f"{sha256(place.encode()).hexdigest()[:32]}.yml"


def _kept(place: str) -> bytes:
    try:
        with _cached(place).open("rb") as file:
            return file.read(files.LARGEST + 1)
    except OSError:
        raise SourceError(
            f"The catalog {place} has not been read on this machine.",
            why="the cache has no copy of it.",
            fix="scaffold template list --refresh",
        ) from None


def _file(place: str) -> Path:
    path = sources.expanded(place)
    return path / FILE if path.is_dir() else path


def _local(place: str) -> bytes:
    try:
        path = _file(place)
        if not path.is_file():  # a pipe would wait for ever
            raise FileNotFoundError(2, "No such file")
        with path.open("rb") as file:
            return file.read(files.LARGEST + 1)
    except OSError as error:
        raise SourceError(
            f"The catalog {plain(place)[:200]} cannot be read: {error.strerror}.",
            why="its names are not known without it.",
            fix=f"check the path, or leave it: scaffold template remove {place}",
        ) from None


def _clone(place: str) -> bytes:
    """``catalog.yml`` at the root of a git repository, without its history."""
    source = sources.at(place)
    url, reference = sources.for_git(source.url), source.reference or "HEAD"
    patience = (("http.lowSpeedLimit", "1000"), ("http.lowSpeedTime", str(_PATIENCE)))
    environment = settings.git_environment(protocols=source.protocols, config=(*source.git_config, *patience))
    environment["LC_ALL"] = "C"  # one of git's messages is looked at
    with tempfile.TemporaryDirectory(prefix="scaffold-catalog-") as name:
        folder = Path(name)
        git.git("init", "-q", "--bare", ".", cwd=folder)
        fetch = ("fetch", "-q", "--no-tags")
        fetched = git.attempt(*fetch, "--depth=1", "--", url, reference, cwd=folder, environment=environment)
        if "dumb http" in fetched.stderr:  # a plain file server, which can't send a part
            fetched = git.attempt(*fetch, "--", url, reference, cwd=folder, environment=environment)
        if fetched.returncode:
            said = fetched.stderr.strip().splitlines() or ["no word from git"]
            raise _unreachable(place, said[-1], fix=f"see whether this works: git ls-remote {url}")
        size = git.attempt("cat-file", "-s", f"FETCH_HEAD:{FILE}", cwd=folder, environment=environment)
        if size.returncode:
            raise _no_catalog(place, f"there is no {FILE} at the root of that repository")
        if int(size.stdout) > files.LARGEST:
            raise _no_catalog(place, f"it has more than {files.LARGEST:,} bytes")
        shown = git.git("show", f"FETCH_HEAD:{FILE}", cwd=folder, environment=environment)
        return shown.encode("utf-8", errors="surrogateescape")


def _download(place: str) -> bytes:
    # Imported here: it takes as long as all else of this package together, and only a catalog at a URL needs it.
    from scaffold.catalog.downloading import download

    try:
        return download(place, direct=sources.is_on_this_machine(place))
    except (OSError, ValueError) as error:
        fix = "check the URL in a browser; for a private one use its git repository."
        raise _unreachable(place, str(error), fix=fix) from None


def _unreachable(place: str, reason: str, *, fix: str) -> SourceError:
    return SourceError(
        f"The catalog {place} cannot be fetched: {plain(reason)}.",
        why="there is no such file, no access to it, or no network.",
        fix=fix,
    )


def _no_catalog(place: str, reason: str) -> SourceError:
    return SourceError(
        f"{place} is not a catalog: {plain(reason)}.",
        why="a catalog is a YAML file with templates: {NAME: {source: URL}}.",
        fix="tell who keeps it; names of other catalogs work meanwhile.",
    )
