"""The templates that came with this distribution."""

from __future__ import annotations

from pathlib import Path

from scaffold import bundle, placing, settings
from scaffold.catalog.sources import Source, at, for_copier, for_git
from scaffold.errors import SourceError, nearest

DESCRIPTIONS = {"base": "A PyTorch training project: data, model, configs, tests and CI."}
BUILT_IN = tuple(DESCRIPTIONS)


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
    url = url or published() or settings.BUNDLE_FOR_PROJECTS
    config: tuple[tuple[str, str], ...] = ()
    if url == settings.BUNDLE_FOR_PROJECTS:
        refresh()
    else:
        config = ((f"url.{settings.SHIPPED_BUNDLE.as_posix()}.insteadOf", for_git(url)),)
    return Source(
        name=name,
        url=url,
        reference=reference or tags[-1],
        trusted=True,
        protocols="https:ssh:file",
        git_config=config,
    )


def recorded(src_path: str) -> Source:
    """The source a project names in its answers. A name is none: what a catalog says may change, a project's not.

    Raises:
        SourceError: It is gone, or may not be used.
    """
    if is_built_in(src_path):
        return built_in(BUILT_IN[0], url=src_path)
    try:
        source = at(src_path)
    except SourceError as error:
        if "There is no template at" not in error.what:
            raise
        raise SourceError(
            error.what,
            why="the project was made from it, and there it is no more.",
            fix="if it moved, write its new place as _src_path into the answers file, and commit that.",
        ) from None
    if source.url != src_path and not src_path.startswith("~") and Path(source.url).is_absolute():
        raise SourceError(
            f"{src_path} is a relative path, and no place to get a template from.",
            why="it means another folder wherever it is read, one inside a stranger's project, say.",
            fix="write the whole path, or a URL, as _src_path into the answers file, and commit that.",
        )
    return source


def is_built_in(src_path: str) -> bool:
    """Whether a project that records ``src_path`` was made from a template of this distribution."""
    return src_path in (settings.BUNDLE_FOR_PROJECTS, published())


def published() -> str | None:
    """What a project records for the published repository; None while there is none."""
    url = settings.repository_url()
    return for_copier(url) if url else None


def refresh() -> None:
    """Bring the copy of the bundle that projects name to what this distribution ships, unless it is newer."""
    copy = settings.project_bundle()
    shipped = settings.SHIPPED_BUNDLE
    try:
        if copy.is_file() and (copy.read_bytes() == shipped.read_bytes() or _is_newer(copy, shipped)):
            return
        placing.write(copy, shipped.read_bytes())
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
