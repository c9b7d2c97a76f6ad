"""Which sources are known. One that isn't is named with its commit, and confirmed once.

Known are the templates of this distribution, those a name stands for (the user gave it, or took on the catalog that
does), a path on this machine, which the user typed or made, and what was confirmed before. What counts is the
repository: host and path, whether git gets there over https or ssh, and whatever the version.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from scaffold import settings
from scaffold.catalog import files, names, shipped, sources
from scaffold.catalog.sources import Source
from scaffold.errors import SourceError

_TITLE = "Sources of templates that you said yes to, with the commit you saw. Written by scaffold."


def known(source: Source) -> bool:
    """Whether ``source`` needs no confirmation.

    Raises:
        SourceError: The user's list of sources is damaged, and this one may be in it.
    """
    return source.trusted or is_local(source) or names.vouched(source.url) or _key(source.url) in _confirmed()


def is_local(source: Source) -> bool:
    """Whether it is a path on this machine."""
    return sources.host_and_path(source.url)[0] == ""


def remember(source: Source, commit: str) -> None:
    """The user has seen ``source`` at ``commit`` and said yes; any of its versions is known from now on.

    Raises:
        SourceError: It cannot be written down.
    """
    with files.changing(_path(), _TITLE) as document:
        document[_key(source.url)] = commit


def forget(address: str) -> bool:
    """Ask again about the source at an address.

    Returns:
        Whether it was confirmed before.

    Raises:
        SourceError: The user's list of sources cannot be read or written.
    """
    key = "/".join(sources.repository(address))
    if key not in _confirmed():
        return False
    with files.changing(_path(), _TITLE) as document:
        return document.pop(key, None) is not None


def remove(what: str) -> str:
    """Take a name of the user's out of their catalog and forget its source, or a shared catalog, or a confirmed URL.

    Returns:
        What was done, for people to read.

    Raises:
        SourceError: It is none of these.
    """
    if sources.is_remote(what) and forget(what):
        with suppress(SourceError):  # it need not be a catalog's place, too
            names.remove(what)
        return f"{what} will be asked about before it is used again."
    removed = names.remove(what)
    if removed.catalog:
        return f"The names of {removed.catalog} are gone."
    if removed.address:
        forget(removed.address)
    return f"{what} is no name any more."


def changed_host(before: str, now: str) -> bool:
    """Whether the recorded source of a project moved to another machine.

    How git gets there, as which user and through which port makes no difference. A path on this machine is a machine of
    its own. The templates of this distribution stay the same when they move from the local bundle to the published
    repository, or back.

    Args:
        before: ``_src_path`` as last committed.
        now: ``_src_path`` in the work tree.
    """
    if shipped.is_built_in(before) and shipped.is_built_in(now):
        return False
    return _host(before) != _host(now)


def _host(src_path: str) -> str:
    host = sources.host_and_path(src_path)[0]
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


def _key(url: str) -> str:
    return "/".join(sources.host_and_path(url))


def _path() -> Path:
    return settings.config_folder() / "known-sources.yml"


def _confirmed() -> dict[str, str]:
    return files.read(_path())
