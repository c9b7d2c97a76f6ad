"""Getting a template: one fetch into a mirror of the user's, then everything is read from there.

A mirror never forgets a release that it has seen: a tag that moved upstream is noticed, shown and refused.
"""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from scaffold import bundle, settings
from scaffold.catalog import Source
from scaffold.errors import ScaffoldError, SourceError, cannot_write, nearest
from scaffold.git import NETWORK_SECONDS, attempt, git, require_git
from scaffold.locking import alone
from scaffold.projects import Applied

_MOST_TEXT = 300_000
"""Characters of a copier.yml: reading more takes many seconds."""
_MOST_NODES = 100_000
"""Texts, lists and mappings of a copier.yml, each counted as often as it is referred to."""
_CONFIGS = ("copier.yml", "copier.yaml")


@dataclass(frozen=True, kw_only=True)
class Template:
    """One version of a template, on this machine."""

    source: Source
    """Its ``reference`` is what to give Copier: a tag where there is one."""

    mirror: Path
    """A repository with all of its history. That of a local template is its author's own."""

    commit: str
    """Full hash of the version."""

    version: str
    """As Copier records it: the tag, or how far after which tag."""

    releases: tuple[str, ...]
    """All tags that are versions, oldest first."""

    draft: bool = False
    """It is its author's work tree, with what isn't committed there."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its copier.yml.

        Raises:
            SourceError: There is none, or it is no YAML mapping.
        """
        for name in _CONFIGS:
            if self.draft:
                path = self.mirror / name
                text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
            else:
                shown = attempt("show", f"{self.commit}:{name}", cwd=self.mirror)
                text = None if shown.returncode else shown.stdout
            if text is not None:
                return _config(text, name, self.source.name)
        return {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its author tells scaffold, under ``_scaffold``."""
        told = self.config.get("_scaffold")
        return told if isinstance(told, dict) else {}

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of those that a user may answer."""
        return tuple(
            name
            for name, details in self.config.items()
            if not name.startswith("_") and not (isinstance(details, dict) and details.get("when", True) is False)
        )

    @cached_property
    def has_submodules(self) -> bool:
        """It brings other repositories along."""
        return attempt("cat-file", "-e", f"{self.commit}:.gitmodules", cwd=self.mirror).returncode == 0

    @property
    def commands(self) -> tuple[str, ...]:
        """Settings by which it runs commands."""
        return tuple(key for key in ("_tasks", "_migrations", "_jinja_extensions") if self.config.get(key))

    @property
    def answers_file(self) -> str:
        """Where a project keeps its answers to it."""
        return str(self.config.get("_answers_file") or settings.ANSWERS_FILE)

    def resolve(self, reference: str) -> str | None:
        """The full hash of the commit that ``reference`` means there; None if it means none."""
        return _resolve(self.mirror, reference)

    def at(self, reference: str) -> Template:
        """Another version of it.

        Raises:
            SourceError: It has no such version.
        """
        source = replace(self.source, reference=reference)
        commit = self.resolve(reference)
        if commit is None:
            raise _no_version(source, reference, self.releases)
        return replace(self, source=source, commit=commit, version=_describe(self.mirror, commit), draft=False)

    def unpack(self, folder: Path) -> None:
        """Write its plain files into ``folder``, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.draft:
            _copy_work_tree(self.mirror, folder)
            return
        with tempfile.TemporaryDirectory(prefix="scaffold-") as scratch:
            packed = Path(scratch) / "template.tar"
            # In a repository of ours over the same objects: that of a local template may define filters, which are commands.
            form, objects = git(
                "rev-parse", "--show-object-format", "--git-path", "objects", cwd=self.mirror
            ).splitlines()
            git("init", "-q", "--bare", f"--object-format={form}", str(scratch), cwd=self.mirror)
            there = {"GIT_OBJECT_DIRECTORY": str((self.mirror / objects).resolve())}
            git("archive", "--format=tar", "-o", str(packed), self.commit, cwd=Path(scratch), environment=there)
            with tarfile.open(packed) as archive:
                for member in archive:
                    if member.isfile() or member.isdir():  # links are not followed, and not needed
                        archive.extract(member, folder, **_filter())

    @contextmanager
    def served(self) -> Iterator[Source]:
        """The source as one that git reads from the mirror, without a network."""
        if self.source.trusted or Path(self.source.url).expanduser().exists():
            yield self.source
            return
        url = self.source.url.removeprefix("git+")
        yield replace(
            self.source,
            git_config=(*self.source.git_config, (f"url.{self.mirror.as_posix()}.insteadOf", url)),
            protocols=f"{self.source.protocols}:file",
        )


def fetch(source: Source) -> Template:
    """Bring the mirror of ``source`` up to date, and find the version that its reference means: the newest release if it
    names none, the newest commit if there is no release.

    Raises:
        SourceError: It cannot be reached, has no such version, or a release in it is not what it was.
    """
    require_git()
    place = Path(source.url).expanduser()
    local = place.is_dir() and not source.trusted
    try:
        mirror = place if local else _mirror(source, place)
    except OSError as error:
        raise SourceError(
            f"Cannot write in {settings.cache_folder()}: {error.strerror}.",
            why="templates are kept there, so that each is fetched once.",
            fix="make it writable, or set XDG_CACHE_HOME to a folder that is.",
        ) from error
    releases = tuple(_releases(mirror))
    stable = [tag for tag in releases if not _is_prerelease(tag)]
    reference = source.reference or source.commit or (stable[-1] if stable else None)
    commit = _resolve(mirror, reference or "HEAD")
    if commit is None:
        raise _no_version(source, reference or "HEAD", releases)
    if source.commit and commit != source.commit:
        raise SourceError(
            f"{source.name} is not at the commit that the catalog pins it to.",
            why=f"the catalog says {source.commit[:12]}, {reference or 'its newest state'} is {commit[:12]} now.",
            fix="ask who keeps the catalog which is right, then add the template again with that --commit.",
        )
    draft = local and reference in (None, "HEAD") and _is_dirty(mirror)
    version = _describe(mirror, commit)
    return Template(
        source=replace(source, reference=reference or "HEAD"),
        mirror=mirror,
        commit=commit,
        version=version,
        releases=releases,
        draft=draft,
    )


def recorded(newest: Template, applied: Applied) -> Template:
    """The version that a project was made from.

    Raises:
        SourceError: It is gone, or is not what it was.
    """
    commit = newest.resolve(applied.commit)
    if commit is None and applied.template_hash:
        commit = newest.resolve(applied.template_hash)
    if commit is None:
        raise SourceError(
            f"{newest.source.name} does not have version {applied.commit} any more, which the project is at.",
            why=f"its releases are {', '.join(newest.releases[-8:]) or 'none'}."
            + (" This scaffold brought them along." if newest.source.trusted else ""),
            fix=(
                "pip install -U treadle-scaffold"
                if newest.source.trusted
                else f"if the template moved, say where to in {applied.answers_file}: _src_path"
            ),
        )
    if applied.template_hash and commit != applied.template_hash:
        raise SourceError(
            f"{applied.commit} of {newest.source.name} is not what this project was made from.",
            why=f"it was commit {applied.template_hash[:12]} then, it is {commit[:12]} now: the tag was moved.",
            fix="ask its author. If the new one is to be trusted, take the line '# Template commit: ...' out of "
            f"{applied.answers_file} and commit that.",
        )
    reference = applied.commit if newest.resolve(applied.commit) else commit
    return replace(newest.at(reference), version=applied.commit)


def newest(source: Source) -> dict[str, str]:
    """Its releases and their commits, oldest first, asked for without fetching anything.

    Raises:
        SourceError: It cannot be reached.
    """
    place = Path(source.url).expanduser()
    if source.trusted:
        file = settings.SHIPPED_BUNDLE if source.git_config else settings.project_bundle()
        heads = bundle.heads(file)
        return {tag: heads[f"refs/tags/{tag}"] for tag in bundle.releases(file)}
    listed = attempt(
        "ls-remote",
        "--tags",
        "--",
        str(place.resolve()) if place.exists() else source.url.removeprefix("git+"),
        cwd=Path.cwd(),
        environment=settings.git_environment(protocols=source.protocols, config=source.git_config),
        seconds=NETWORK_SECONDS / 5,
    )
    if listed.returncode:
        raise _unreachable(source, listed)
    commits: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        commit, _, name = line.partition("\trefs/tags/")
        commits[name.removesuffix("^{}")] = commit  # of an annotated tag, the commit comes second
    return {tag: commits[tag] for tag in sorted(filter(_is_version, commits), key=version_key)}


def _mirror(source: Source, place: Path) -> Path:
    """The repository in the user's cache that holds all of the source."""
    url = source.url.removeprefix("git+")
    bundled = settings.SHIPPED_BUNDLE if source.trusted and source.git_config else place if place.is_file() else None
    # What a bundle holds never changes without its bytes: one mirror for each, made once.
    key = bundled.read_bytes() if bundled else url.encode()
    mirror = settings.cache_folder() / "mirrors" / f"{sha256(key).hexdigest()[:32]}.git"
    there = (mirror / "HEAD").is_file() and (mirror / "objects").is_dir()
    environment = settings.git_environment(protocols=source.protocols, config=source.git_config)
    if there and bundled:
        return mirror
    if there:
        with alone(mirror, patience=NETWORK_SECONDS):
            refs = ["+HEAD:refs/scaffold/HEAD", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
            how: Any = {"cwd": mirror, "environment": environment, "seconds": NETWORK_SECONDS}
            fetched = attempt("fetch", "-q", "--no-tags", "--prune", "--", url, *refs, **how)
            if fetched.returncode:  # upstream, HEAD may name a branch that is not there
                fetched = attempt("fetch", "-q", "--no-tags", "--prune", "--", url, *refs[1:], **how)
            if fetched.returncode:
                raise _unreachable(source, fetched)
            _require_unmoved(source, mirror)
        return mirror
    mirror.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=mirror.parent, ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch) / "mirror.git"
        what = str(bundled) if bundled else url
        cloned = attempt(
            "clone",
            "-q",
            "--mirror",
            "--",
            what,
            str(fresh),
            cwd=mirror.parent,
            environment=environment,
            seconds=NETWORK_SECONDS,
        )
        if cloned.returncode:
            raise _unreachable(source, cloned)
        attempt("remote", "remove", "origin", cwd=fresh)  # nothing is fetched there by name
        # Its HEAD is a commit, not a branch: upstream, another branch may become the default one.
        if attempt("update-ref", "refs/scaffold/HEAD", "HEAD", cwd=fresh).returncode == 0:
            git("symbolic-ref", "HEAD", "refs/scaffold/HEAD", cwd=fresh)
        _require_unmoved(source, fresh)
        try:
            fresh.rename(mirror)
        except OSError:
            if not (mirror / "HEAD").is_file():  # else another scaffold was first
                shutil.rmtree(mirror, ignore_errors=True)
                fresh.rename(mirror)
    return mirror


def _require_unmoved(source: Source, mirror: Path) -> None:
    """Compare each tag with what it was when it was first seen; that is remembered also of tags that are gone."""
    seen: dict[str, str] = {}
    now: dict[str, str] = {}
    for line in git(
        "for-each-ref", "--format=%(refname) %(objectname)", "refs/seen", "refs/tags", cwd=mirror
    ).splitlines():
        name, _, commit = line.partition(" ")
        _, kind, tag = name.split("/", 2)
        (seen if kind == "seen" else now)[tag] = commit
    moved = [
        f"{tag} was {seen[tag][:12]}, is {commit[:12]} now"
        for tag, commit in now.items()
        if seen.get(tag, commit) != commit
    ]
    if moved:
        raise SourceError(
            f"The template {source.name} was rewritten: {'; '.join(moved)}.",
            why="a release that changes after it is out cannot be trusted, and projects made from it cannot be merged.",
            fix=f"ask its author. If the new one is right: rm -r {shlex.quote(str(mirror))}, then run the same command again.",
        )
    if new := now.keys() - seen.keys():
        git("update-ref", "--stdin", cwd=mirror, stdin="".join(f"create refs/seen/{tag} {now[tag]}\n" for tag in new))


def _resolve(repository: Path, reference: str) -> str | None:
    if not re.fullmatch(r"[\w.][\w./+@{}^~-]*", reference):
        return None
    for candidate in (reference, f"refs/remotes/origin/{reference}"):
        done = attempt("rev-parse", "-q", "--verify", "--end-of-options", f"{candidate}^{{commit}}", cwd=repository)
        if done.returncode == 0:
            return done.stdout.strip().splitlines()[-1]
    return None


def _describe(repository: Path, commit: str) -> str:
    return git("describe", "--tags", "--always", commit, cwd=repository).strip()


def _is_dirty(repository: Path) -> bool:
    return bool(attempt("status", "--porcelain", cwd=repository).stdout.strip())


def _releases(repository: Path) -> Iterator[str]:
    tags = git("tag", "--list", cwd=repository).splitlines()
    yield from sorted(filter(_is_version, tags), key=version_key)


def version_key(tag: str) -> Any:
    """What orders versions, as Copier does: by PEP 440.

    Raises:
        ValueError: It is no version.
    """
    from packaging.version import Version  # which Copier brings

    return Version(tag)


def _is_version(tag: str) -> bool:
    try:
        version_key(tag)
    except ValueError:
        return False
    return True


def _is_prerelease(tag: str) -> bool:
    return bool(version_key(tag).is_prerelease)


def _no_version(source: Source, reference: str, releases: Iterable[str]) -> SourceError:
    known = list(releases)
    guess = nearest(reference, known) or (known[-1] if known else None)
    return SourceError(
        f"{source.name} has no version {reference}.",
        why=(
            f"its releases are {', '.join(known[-8:])}."
            if known
            else "it has no releases, and no such branch or commit."
        ),
        fix=(
            f"take {guess}: --to {guess}, or @{guess} after the template's name."
            if guess
            else "leave the version out, which takes its newest commit."
        ),
    )


def _unreachable(source: Source, done: subprocess.CompletedProcess[str]) -> ScaffoldError:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "no word")
    if "No space left on device" in done.stderr:
        return cannot_write(settings.cache_folder(), OSError(errno.ENOSPC, said))
    return SourceError(
        f"git could not get the template {source.name}: {said.strip()}",
        why="no such repository or version, no access to it, or no network.",
        fix=f"see whether this works: git ls-remote {source.url.removeprefix('git+')}",
    )


class _Loader(yaml.SafeLoader):
    """Copier's files may include others, which hold questions and nothing that we read."""


_Loader.add_constructor("!include", lambda _loader, _node: {})


def _config(text: str, file: str, name: str) -> Mapping[str, Any]:
    merged: dict[str, Any] = {}
    try:
        if len(text) > _MOST_TEXT:
            raise ValueError(f"it has more than {_MOST_TEXT:,} characters")
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            _require_small(node)
            merged.update(loader.construct_document(node) or {})
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{file} of the template {name} cannot be read: {str(error).splitlines()[0]}",
            why="it is where a template's questions stand.",
            fix="tell its author.",
        ) from None
    return merged


def _require_small(root: yaml.Node | None) -> None:
    """Raises ValueError when YAML's aliases stand for more than anybody would write: printing it would fill the memory."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            below = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        known = sizes[id(node)]
        if known is None or known > _MOST_NODES:
            raise ValueError("it holds itself" if known is None else f"it stands for more than {_MOST_NODES:,} values")
        return known

    if root is not None:
        size(root)


def _copy_work_tree(repository: Path, folder: Path) -> None:
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=repository)
    for name in filter(None, listed.split("\0")):
        path = repository / name
        if path.is_file() and not path.is_symlink():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def _filter() -> dict[str, Any]:
    """Refuse paths out of the folder, where Python's tarfile can: git archive makes none, but trust is no plan."""
    return {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
