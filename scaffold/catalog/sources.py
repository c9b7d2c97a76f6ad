"""Addresses of templates: git URLs and paths, and all that is refused in them.

git fetches over https and ssh, and reads folders on this machine. ``http://`` and ``git://``, which nobody could tell
from a forgery on the way, are for servers on this very machine only (127.0.0.1, localhost, [::1]): nothing leaves it.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from scaffold import bundle
from scaffold.errors import SourceError

_REMOTE = re.compile(r"(git\+)?(https|ssh|http)://|git://|gh:|gl:|[A-Za-z0-9_.-]+@[A-Za-z0-9][A-Za-z0-9.-]*:")
_OTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_URL = re.compile(r"(?P<prefix>git\+)?(?P<scheme>[a-z]+)://(?P<authority>[^/]*)/?(?P<path>.*)")
_AUTHORITY = re.compile(
    r"((?P<user>[^@#?\\]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
)
_SCP = re.compile(r"(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>.*)")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_HOSTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_UNREADABLE = frozenset({"Cc", "Zl", "Zp", "Cs"})
"""Unicode's control characters, line and paragraph separators, halves of characters."""
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They show what follows in another order than it is read."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a template comes from."""

    name: str
    """For people to read."""

    url: str
    """What Copier is given, and writes into the project as ``_src_path``."""

    reference: str | None = None
    """Tag, branch or commit; None means the newest release."""

    commit: str | None = None
    """Full hash that a catalog pins it to: a reference that means another commit is refused."""

    trusted: bool = False
    """It came with this distribution."""

    protocols: str = "https:ssh"
    """Transports git may use to get it."""

    git_config: tuple[tuple[str, str], ...] = ()
    """Settings for the git processes that fetch it."""


def at(address: str) -> Source:
    """The template at a URL or path, which may end in ``@REF``, a tag, branch or commit.

    Raises:
        SourceError: There is none, or it may not be used.
    """
    check(address)
    return _remote(address) if _REMOTE.match(address) else _local(address)


def check(address: str) -> None:
    """Raises SourceError for what can't be an address; whether there is anything at it is not looked at."""
    if hides_something(address):
        raise SourceError(
            f"{shown(address)} is not a template.",
            why="it holds control characters, which no name, URL or path of a template needs.",
            fix="type it again by hand instead of pasting it.",
        )
    if address.startswith("-") or not address.strip():
        raise SourceError(
            f"{shown(address)} is not a template.",
            why="what starts with '-' would be taken for an option by git.",
            fix="--template base, a URL, or a path that starts with ./",
        )
    if _REMOTE.match(address):
        _remote(address)
    elif _OTHER_SCHEME.match(address):
        raise SourceError(
            f"--template {shown(address)}: this kind of address is not supported.",
            why="templates are fetched by git over https or ssh, or from a folder on this machine.",
            fix="use https://HOST/OWNER/REPOSITORY, git@HOST:OWNER/REPOSITORY or a path.",
        )


def is_remote(address: str) -> bool:
    """Whether it names another machine, or a server on this one."""
    return bool(_REMOTE.match(address))


def is_address(text: str) -> bool:
    """Whether it is meant as a URL or a path, and not as a name."""
    places = (text, text.rpartition("@")[0])
    other = _REMOTE.match(text) or _OTHER_SCHEME.match(text) or text.startswith("-")
    return bool(other) or os.sep in text or any(place and _exists(place) for place in places)


def is_on_this_machine(url: str) -> bool:
    """Whether its host is this machine's loopback."""
    match = _URL.fullmatch(url)
    authority = _AUTHORITY.fullmatch(match["authority"]) if match else None
    return authority is not None and authority["host"].lower() in _LOOPBACK


def expanded(place: str) -> Path:
    """A path with its ``~`` resolved, where there is such a user."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # ~nobody
        return Path(place)


def hides_something(text: str) -> bool:
    """Whether a terminal would not show ``text`` as it is."""
    return any(unicodedata.category(character) in _UNREADABLE or character in _BIDI for character in text)


def shown(text: str, *, quote: bool = True) -> str:
    """``text`` for a message: short, and without anything a terminal obeys."""
    short = text if len(text) <= 200 else f"{text[:200]}..."
    return ascii(short) if hides_something(short) else repr(short) if quote else short


def reference_in(text: str) -> str | None:
    """The version after an ``@``; None for an empty text.

    Raises:
        SourceError: git could take it for something else than a tag, branch or commit.
    """
    if not text:
        return None
    if not _REFERENCE.fullmatch(text) or ".." in text:
        raise SourceError(
            f"{shown(text)} cannot be a version of a template.",
            why="it is the name of a tag, branch or commit.",
            fix="write it like @v1.2.0 after the URL or path.",
        )
    return text


def for_copier(url: str) -> str:
    """Copier takes a URL for a git repository when it ends in .git, has a known host, or says so."""
    known = url.endswith(".git") or url.startswith(("git+", "git@", "git://"))
    return url if known or url.startswith(tuple(_HOSTS.values())) else f"git+{url}"


def for_git(url: str) -> str:
    """What Copier in turn gives to git."""
    url = url.removeprefix("git+")
    return f"{url}.git" if url.startswith(tuple(_HOSTS.values())) and not url.endswith(".git") else url


def host_and_path(url: str) -> tuple[str, str]:
    """What two spellings of one repository share: host in lower case, path without ``.git`` and outer slashes. The
    host is empty for a path on this machine, and is the whole text where that is no address at all."""
    head = next((head for head in _HOSTS if url.startswith(head)), None)
    url = for_git(_HOSTS[head] + url.removeprefix(head).lstrip("/") if head else url)
    match = _URL.fullmatch(url)
    if match:
        authority = _AUTHORITY.fullmatch(match["authority"])
        if authority is None:
            return url, ""
        host = authority["host"].lower()
        # On this machine a port is a server of its own; elsewhere https and ssh are two doors of one house.
        port = f":{authority['port']}" if host in _LOOPBACK and authority["port"] else ""
        return host + port, _bare(match["path"])
    if match := _SCP.fullmatch(url):
        return match["host"].lower(), _bare(match["path"])
    return (url, "") if _OTHER_SCHEME.match(url) else ("", str(expanded(url)))


def repository(address: str) -> tuple[str, str]:
    """The same of an address, without the version that it may end in."""
    try:
        return host_and_path(at(address).url)
    except SourceError:  # gone, or no address
        return host_and_path(address)


def _bare(path: str) -> str:
    return path.strip("/").removesuffix(".git").rstrip("/")


def _remote(text: str) -> Source:
    head = next((head for head in _HOSTS if text.startswith(head)), None)
    if head:
        text = _HOSTS[head] + text.removeprefix(head).lstrip("/")
    protocols = "https:ssh"
    config: tuple[tuple[str, str], ...] = ()
    if match := _URL.fullmatch(text):
        _check_authority(match["scheme"], match["authority"])
        path, _, reference = match["path"].partition("@")
        url = f"{match['prefix'] or ''}{match['scheme']}://{match['authority']}/{path}"
        if match["scheme"] in ("http", "git"):
            protocols = match["scheme"]
            # A server here could send git on to another machine, and so could a proxy.
            config = (("http.followRedirects", "false"), ("http.proxy", ""))
    elif match := _SCP.fullmatch(text):
        path, _, reference = match["path"].partition("@")
        url = f"{match['user']}@{match['host']}:{path}"
    else:
        raise _malformed(text, "a URL names a host and a repository on it.")
    if not path.strip("/") or path.startswith("-"):
        raise _malformed(text, "a URL names a host and a repository on it.")
    return Source(
        name=url,
        url=for_copier(url),
        reference=reference_in(reference),
        protocols=protocols,
        git_config=config,
    )


def _check_authority(scheme: str, authority: str) -> None:
    match = _AUTHORITY.fullmatch(authority)
    user = match["user"] if match else authority.rpartition("@")[0]
    if user is not None and (":" in user or (user and scheme != "ssh")):
        raise SourceError(
            "The template's URL holds a user name or password.",
            why="the URL is written into every project made from it, for all to read.",
            fix="leave it out and let git ask its credential helper, or use ssh.",
        )
    if match is None or (user is not None and not _USER.fullmatch(user)):
        raise _malformed(f"{scheme}://{authority}", "the host is malformed.")
    if scheme in ("http", "git") and match["host"].lower() not in _LOOPBACK:
        raise SourceError(
            f"{scheme}://{authority}: this kind of address is not supported for another machine.",
            why=f"what comes over {scheme} can be changed on the way; it is for servers on this machine only.",
            fix=f"use https://{authority}/... or ssh.",
        )


def _malformed(text: str, why: str) -> SourceError:
    return SourceError(
        f"--template {shown(text)} is not an address git understands.",
        why=why,
        fix="write it like https://HOST/OWNER/REPOSITORY, with @TAG at the end for one version.",
    )


def _local(text: str) -> Source:
    place, reference = text, ""
    if not _exists(text) and "@" in text:
        place, _, reference = text.rpartition("@")
    path = expanded(place)
    if not _exists(place):
        raise SourceError(
            f"There is no template at {shown(place, quote=False)}.",
            why="neither a file nor a folder is there.",
            fix="check the path, or use a built-in template: --template base",
        )
    if path.is_file():
        bundle.heads(path)
    elif not path.is_dir() or not (_exists(str(path / ".git")) or (path / "HEAD").is_file()):
        raise SourceError(
            f"{place} is not the root of a git repository.",
            why="a project remembers the commit of its template, or it could never be updated.",
            fix=f"git -C {place} init && git -C {place} add -A && git -C {place} commit -m template",
        )
    # A home folder is written as ~, so that the project works for another user too; anything else in full.
    absolute = place if place.startswith("~") else os.path.abspath(path)  # noqa: PTH100 - links stay as they were typed
    return Source(name=place, url=absolute, reference=reference_in(reference), protocols="https:ssh:file")


def _exists(place: str) -> bool:
    try:
        return expanded(place).exists()
    except (OSError, ValueError):  # too long a name, a folder nobody may look into
        return False
