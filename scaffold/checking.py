"""Is a project behind its templates, and are the files that they manage as they left them? For CI; changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaffold import catalog, fetching, git, patterns, placing, projects, trust
from scaffold.errors import SourceError, UpdateError
from scaffold.projects import Applied, Project


@dataclass(frozen=True, kw_only=True)
class State:
    """One layer of a project, and how far it is."""

    name: str
    """``base``, or the layer's."""

    template: str
    """For people to read."""

    version: str
    """The project's."""

    newest: str
    """The newest release; ``version`` where the template has none."""

    behind: int
    """Releases between the two."""

    answers_file: str
    """Where the project says so."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A file that the template manages, and somebody changed."""

    path: str
    kind: Literal["changed", "deleted"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found."""

    path: Path
    layers: tuple[State, ...]
    drifted: tuple[Drift, ...]
    managed: int | None
    """Files that were looked at; None if none were."""
    unresolved: tuple[str, ...]
    """Files in which an update, or another merge, waits for somebody to decide."""

    @property
    def behind(self) -> bool:
        """Of one of its templates, at least."""
        return any(layer.behind for layer in self.layers)

    @property
    def fine(self) -> bool:
        return not (self.behind or self.drifted or self.unresolved)


def check(path: Path, *, drift: bool = False, restore: bool = False) -> Checked:
    """Look at the project at ``path``.

    Args:
        drift: Also render it as it was made, and compare the files that its templates manage.
        restore: And write those that differ as they were, once each is committed as it is.

    Raises:
        ScaffoldError: It is no project, or a template cannot be reached or rendered.
    """
    project = projects.find(path)
    require_same_host(project)
    layers = tuple(_state(applied) for applied in project.layers)
    drifted, managed = _drift(project, restore) if drift or restore else ((), None)
    unresolved = tuple(_unresolved(project.root))
    return Checked(path=project.root, layers=layers, drifted=drifted, managed=managed, unresolved=unresolved)


def require_same_host(project: Project) -> None:
    """Whoever can change one line of a project must not get their template into it.

    Raises:
        UpdateError: An answers file that is not committed names another host than the committed one.
    """
    for applied in project.layers:
        committed = git.attempt("show", f"HEAD:./{applied.answers_file}", cwd=project.root)
        if committed.returncode:
            continue
        before = projects.parse(committed.stdout, applied.answers_file, project.root).src_path
        if trust.changed_host(before, applied.src_path):
            raise UpdateError(
                f"{applied.answers_file} names another host than it did in the last commit.",
                why=f"the template came from {before}, and would come from {applied.src_path} now.",
                fix="if that is right, commit the file first: the change then has an author.",
            )


def require_committed(project: Project) -> None:
    """Raises UpdateError when the answers are not those of the last commit, with which an update is merged."""
    for applied in project.layers:
        here = (project.root / applied.answers_file).read_bytes()
        committed = git.attempt("show", f"HEAD:./{applied.answers_file}", cwd=project.root)
        text = committed.stdout.encode("utf-8", "surrogateescape")
        if committed.returncode or _plain(text) != _plain(here):
            raise UpdateError(
                f"{applied.answers_file} is not as it was committed.",
                why="it says what the project was made from, and the next change is merged with the last commit.",
                fix="commit what was done so far: git add -A && git commit. Or undo it: scaffold update --abort",
            )


def _state(applied: Applied) -> State:
    source = catalog.recorded(applied.src_path)
    commits = fetching.newest(source)
    releases = [tag for tag in commits if not fetching.version_key(tag).is_prerelease]
    here = commits.get(applied.commit) or applied.template_hash
    if pin := catalog.pin(applied.src_path):
        newer = [tag for tag in releases if commits[tag] == pin][-1:] or [pin[:12]]
        newer = [] if here == pin else newer
    elif here in [commits[tag] for tag in releases]:  # several releases may be one commit
        newer = releases[max(n for n, tag in enumerate(releases) if commits[tag] == here) + 1 :]
    else:
        newer = _after(applied.commit, releases)
    return State(
        name=applied.name,
        template=source.name,
        version=applied.commit,
        newest=newer[-1] if newer else applied.commit,
        behind=len(newer),
        answers_file=applied.answers_file,
    )


def _after(commit: str, releases: Sequence[str]) -> list[str]:
    """The releases that are newer than a version that is none, such as ``v1.0.0-3-gabc1234``."""
    tag = commit.rsplit("-", 2)[0] if commit.count("-") >= 2 else commit
    try:
        now = fetching.version_key(tag)
    except ValueError:
        return list(releases[-1:])  # a bare commit: any release is the better place to be
    return [release for release in releases if fetching.version_key(release) > now]


def _unresolved(root: Path) -> list[str]:
    listed = git.attempt("ls-files", "-u", "-z", "--", ".", cwd=root).stdout
    return sorted({entry.partition("\t")[2] for entry in listed.split("\0") if entry})


def _drift(project: Project, restore: bool) -> tuple[tuple[Drift, ...], int]:
    from scaffold.rendering import Layer, render_stacks, scratch  # with Copier, which takes longer than all the rest

    layers, globs = [], []
    for applied in project.layers:
        template = _recorded(applied)
        globs += _managed(template)
        layers.append(Layer(template=template, answers={}, defaults=applied.answers, answers_file=applied.answers_file))
    if not globs:
        return (), 0
    found, count = [], 0
    with scratch() as place:
        folder = place / project.root.name
        folder.mkdir()
        render_stacks([(folder, layers)], skip_tasks=True)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            if patterns.matches(name, globs):
                count += 1
                here = project.root / name
                if not here.is_file():
                    found.append(Drift(path=name, kind="deleted"))
                elif _plain(here.read_bytes()) != _plain(file.read_bytes()):
                    found.append(Drift(path=name, kind="changed"))
        if restore:
            _restore(project.root, folder, found)
    return tuple(found), count


def _restore(root: Path, rendered: Path, found: Sequence[Drift]) -> None:
    for each in found:
        place = root / each.path
        if not place.parent.resolve().is_relative_to(root.resolve()) or place.is_symlink():
            raise UpdateError(
                f"{each.path} is not in the project: a link leads out of it.",
                why="only the project's own files are put back.",
                fix=f"make it a file of the project, or leave it: rm {each.path}",
            )
        if each.kind == "changed" and git.attempt("diff", "--quiet", "HEAD", "--", each.path, cwd=root).returncode:
            raise _not_committed(each.path)
        if each.kind == "changed" and git.attempt("cat-file", "-e", f"HEAD:./{each.path}", cwd=root).returncode:
            raise _not_committed(each.path)
    for each in found:
        target = root / each.path
        placing.write(target, (rendered / each.path).read_bytes())
        shutil.copymode(rendered / each.path, target)


def _not_committed(path: str) -> UpdateError:
    return UpdateError(
        f"{path} was changed and not committed.",
        why="what is in it could not be got back.",
        fix="commit it first (git add -f, where git ignores it), then run the same command again.",
    )


def _recorded(applied: Applied) -> fetching.Template:
    newest = fetching.fetch(catalog.recorded(applied.src_path))
    return fetching.recorded(newest, applied)


def _managed(template: fetching.Template) -> list[str]:
    told = template.settings.get("managed") or []
    if not isinstance(told, list):
        raise SourceError(
            f"The template {template.source.name} says that it manages {told!r}.",
            why="_scaffold: managed, in its copier.yml, is a list of patterns.",
            fix='tell its author: it should read like [".github/**"]',
        )
    return [str(glob) for glob in told]


def _plain(content: bytes) -> bytes:
    """Line ends are git's and the editor's business."""
    return content.replace(b"\r\n", b"\n")
