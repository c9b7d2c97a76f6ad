"""Names to sources: what ``--template`` and a project's recorded ``_src_path`` mean."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scaffold import bundle, settings
from scaffold.errors import SourceError, nearest

BUILT_IN = ("base",)

_REMOTE = re.compile(r"(git\+)?(https|ssh)://|gh:|gl:|[A-Za-z0-9_.-]+@[A-Za-z0-9][A-Za-z0-9.-]*:")
_OTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_ADDRESS = re.compile(r"(?P<head>[a-z+]+://[^/]*|gh:|gl:|[^/@:]+@[^/:]+:)(?P<path>.*)", re.DOTALL)
_HOSTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a template comes from."""

    name: str
    """For people to read."""

    url: str
    """What Copier is given, and writes into the project as ``_src_path``."""

    reference: str | None = None
    """Tag, branch or commit; None means the newest release."""

    trusted: bool = False
    """It came with this distribution."""

    protocols: str = "https:ssh"
    """Transports git may use to get it."""

    git_config: tuple[tuple[str, str], ...] = ()
    """Settings for the git processes that fetch it."""


def find(text: str) -> Source:
    """The template that ``--template TEXT`` means: a built-in name, a URL or the path of a local git repository.

    A URL or path may end in ``@REF``, a tag, branch or commit.

    Raises:
        SourceError: There is no such template, or it may not be used.
    """
    name, _, reference = text.partition("@")
    if name in BUILT_IN:
        return built_in(name, reference=reference or None)
    _refuse_option(text)
    if _REMOTE.match(text):
        return _remote(text)
    if _OTHER_SCHEME.match(text):
        raise SourceError(
            f"--template {text!r}: this kind of address is not supported.",
            why="templates are fetched by git over https or ssh, or from a folder on this machine.",
            fix="use https://HOST/OWNER/REPOSITORY, git@HOST:OWNER/REPOSITORY or a path.",
        )
    if os.sep in text or any(Path(place).expanduser().exists() for place in (text, text.rpartition("@")[0]) if place):
        return _local(text)
    guess = nearest(text, BUILT_IN) or BUILT_IN[0]
    raise SourceError(
        f"There is no template called {text!r}.",
        why=f"the built-in templates are: {', '.join(BUILT_IN)}; anything else is a git URL or a path.",
        fix=f"--template {guess}",
    )


def built_in(name: str, *, reference: str | None = None, url: str | None = None) -> Source:
    """A template that came with this distribution.

    Args:
        reference: One of its releases; default: the newest.
        url: What a project made from it records: the published repository, or this machine's copy of the bundle
            while there is none. git reads the bundle in either case, without a network.

    Raises:
        SourceError: There is no such release.
    """
    tags = bundle.releases(settings.SHIPPED_BUNDLE)
    if reference and reference not in tags:
        raise SourceError(
            f"The template {name} has no version {reference}.",
            why=f"this scaffold has {', '.join(tags)}.",
            fix=f"--template {name}@{nearest(reference, tags) or tags[-1]}",
        )
    url = url or _published() or settings.BUNDLE_FOR_PROJECTS
    config: tuple[tuple[str, str], ...] = ()
    if url == settings.BUNDLE_FOR_PROJECTS:
        refresh()
    else:
        config = ((f"url.{settings.SHIPPED_BUNDLE.as_posix()}.insteadOf", _for_git(url)),)
    return Source(
        name=name,
        url=url,
        reference=reference or tags[-1],
        trusted=True,
        protocols="https:ssh:file",
        git_config=config,
    )


def recorded(src_path: str) -> Source:
    """The source a project names in its answers.

    Raises:
        SourceError: It is gone, or may not be used.
    """
    if src_path in (settings.BUNDLE_FOR_PROJECTS, _published()):
        return built_in(BUILT_IN[0], url=src_path)
    _refuse_option(src_path)
    return _remote(src_path) if _REMOTE.match(src_path) else _local(src_path)


def _published() -> str | None:
    url = settings.repository_url()
    return _for_copier(url) if url else None


def refresh() -> None:
    """Bring the copy of the bundle that projects name to what this distribution ships, unless it is newer."""
    copy = settings.project_bundle()
    shipped = settings.SHIPPED_BUNDLE
    try:
        if copy.is_file() and (copy.read_bytes() == shipped.read_bytes() or _is_newer(copy, shipped)):
            return
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = copy.with_name(f".{copy.name}.{os.getpid()}")
        try:
            shutil.copyfile(shipped, fresh)
            fresh.replace(copy)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise SourceError(
            f"Cannot write {copy}: {error.strerror}.",
            why="projects name this copy of the templates as their source.",
            fix="make its folder writable, or set HOME to one that is.",
        ) from None


def _is_newer(copy: Path, shipped: Path) -> bool:
    """An older scaffold beside a newer one must not take releases away from projects."""
    try:
        there = bundle.releases(copy)
    except SourceError:
        return False
    return bool(set(there) - set(bundle.releases(shipped))) and bundle.newest(copy) > bundle.newest(shipped)


def _remote(text: str) -> Source:
    match = _ADDRESS.fullmatch(text)
    if match is None or "\n" in text:
        raise SourceError(
            f"--template {text!r} is not an address git understands.",
            why="a URL names a host and a repository on it.",
            fix="write it like https://HOST/OWNER/REPOSITORY, with @TAG at the end for one version.",
        )
    path, _, reference = match["path"].partition("@")
    url = _HOSTS[match["head"]] + path.lstrip("/") if match["head"] in _HOSTS else match["head"] + path
    _refuse_credentials(url)
    return Source(name=url, url=_for_copier(url), reference=_reference(reference))


def _local(text: str) -> Source:
    place, reference = text, ""
    if not Path(text).expanduser().exists() and "@" in text:
        place, _, reference = text.rpartition("@")
    path = Path(place).expanduser()
    if not path.exists():
        raise SourceError(
            f"There is no template at {place}.",
            why="neither a file nor a folder is there.",
            fix=f"check the path, or use a built-in template: --template {BUILT_IN[0]}",
        )
    if path.is_dir() and not (path / ".git").exists() and not (path / "HEAD").is_file():
        raise SourceError(
            f"{place} is not the root of a git repository.",
            why="a project remembers the commit of its template, or it could never be updated.",
            fix=f"git -C {place} init && git -C {place} add -A && git -C {place} commit -m template",
        )
    if path.is_file():
        bundle.heads(path)
    # A home folder is written as ~, so that the project works for another user too; anything else in full.
    absolute = place if place.startswith("~") else str(path.absolute())
    return Source(name=place, url=absolute, reference=_reference(reference), protocols="https:ssh:file")


def _for_copier(url: str) -> str:
    """Copier takes a URL for a git repository when it ends in .git, has a known host, or says so."""
    known = url.endswith(".git") or url.startswith(("git+", "git@"))
    return url if known or url.startswith(tuple(_HOSTS.values())) else f"git+{url}"


def _for_git(url: str) -> str:
    """What Copier in turn gives to git."""
    url = url.removeprefix("git+")
    return f"{url}.git" if url.startswith(tuple(_HOSTS.values())) and not url.endswith(".git") else url


def _reference(text: str) -> str | None:
    if not text:
        return None
    if not _REFERENCE.fullmatch(text) or ".." in text:
        raise SourceError(
            f"{text!r} cannot be a version of a template.",
            why="it is the name of a tag, branch or commit.",
            fix="write it like @v1.2.0 after the URL or path.",
        )
    return text


def _refuse_option(text: str) -> None:
    if text.startswith("-") or not text:
        raise SourceError(
            f"{text!r} is not a template.",
            why="what starts with '-' would be taken for an option by git.",
            fix=f"--template {BUILT_IN[0]}, a URL, or a path that starts with ./",
        )


def _refuse_credentials(url: str) -> None:
    try:
        parts = urlsplit(url.removeprefix("git+"))
        secret = parts.password is not None or (parts.scheme == "https" and parts.username is not None)
        bad = (parts.hostname or "git").startswith("-")
    except ValueError:
        secret, bad = False, True
    if secret:
        raise SourceError(
            "The template's URL holds a user name or password.",
            why="the URL is written into every project made from it, for all to read.",
            fix="leave it out and let git ask its credential helper, or use ssh.",
        )
    if bad:
        raise SourceError(
            f"{url!r} is not an address git understands.",
            why="the host is malformed.",
            fix="write it like https://HOST/OWNER/REPOSITORY",
        )
