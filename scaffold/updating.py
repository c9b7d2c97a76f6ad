"""A project brought to another version of its template, by Copier's own update.

What Copier answers with a traceback, or by half an update, is found out before anything is touched: the new version is
rendered elsewhere and guarded first. When Copier fails all the same, the project is put back as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scaffold import bundle, catalog, git, settings
from scaffold.catalog import Source
from scaffold.errors import SourceError, UpdateError, nearest
from scaffold.interrupts import undisturbed
from scaffold.rendering import check_names, render
from scaffold.rendering import update as copier_update

_MARKERS = (b"<<<<<<< before updating", b">>>>>>> after updating")


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did. Nothing of it is committed."""

    path: Path
    before: str
    after: str
    changed: tuple[str, ...]
    """Files that differ from the last commit, relative to ``path``."""
    conflicts: tuple[str, ...]
    """Those of them where both sides are left for the user."""

    def summary(self) -> list[str]:
        """For people to read."""
        if not self.changed:
            return [f"{self.path} is at template {self.after}: nothing to do."]
        lines = [f"Updated {self.path} from template {self.before} to {self.after}."]
        lines += [f"  {'conflict' if file in self.conflicts else 'changed '}  {file}" for file in self.changed]
        if self.conflicts:
            lines.append("Resolve the conflicts (look for <<<<<<<), then: git add -A && git commit")
        else:
            lines.append("Look at it with git diff HEAD, then: git add -A && git commit")
        return lines


def update(
    path: Path, *, to: str | None, answers: Mapping[str, Any], in_place: Callable[[Path], None] | None = None
) -> Updated:
    """Bring the project at ``path`` to version ``to``, or the newest one.

    Args:
        answers: To new questions, or instead of recorded answers. What is open beyond them gets its default.
        in_place: Told the project's path as soon as its files are the updated ones: a signal that stops the command
            before this call leaves the project as it was, one after it leaves it updated.

    Raises:
        ScaffoldError: It cannot be; the project is as it was.
    """
    git.require_git()
    project = path.expanduser().resolve()
    last = _last_answers(project)
    before = str(last["_commit"])
    _require_clean(project)
    source = _source(last, before, to)
    after = _probe(source, project.name, last, answers)
    if after != before or answers:
        _merge(project, source, answers, in_place)
    changed = tuple(_changed(project))
    conflicts = tuple(file for file in changed if _is_conflict(project, file))
    return Updated(path=project, before=before, after=after, changed=changed, conflicts=conflicts)


def _last_answers(project: Path) -> Mapping[str, Any]:
    file = project / settings.ANSWERS_FILE
    if not file.is_file():
        parent = next((folder for folder in project.parents if (folder / settings.ANSWERS_FILE).is_file()), None)
        raise UpdateError(
            f"{project} is not a project made by scaffold.",
            why=f"there is no {settings.ANSWERS_FILE} in it.",
            fix=f"scaffold update {parent}" if parent else "run this in such a project, or name its folder.",
        )
    try:
        answers = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        answers = None
    if not isinstance(answers, dict) or not isinstance(answers.get("_src_path"), str):
        raise UpdateError(
            f"{file} does not name a template.",
            why="it should be a list of answers with a _src_path.",
            fix=f"take it back from git: git checkout HEAD -- {settings.ANSWERS_FILE}",
        )
    if not answers.get("_commit"):
        raise UpdateError(
            f"{file} does not say which version of the template the project is at.",
            why="it was made from a template that is not in git, so there is nothing to compare with.",
            fix=f"add the line _commit: TAG to {settings.ANSWERS_FILE}, with the version it was made from.",
        )
    return answers


def _require_clean(project: Path) -> None:
    status = git.attempt("status", "--porcelain", "--", ".", cwd=project)
    if status.returncode:
        raise UpdateError(
            f"{project} is not in a git repository.",
            why="an update is merged with your own changes, and git keeps them apart.",
            fix="git init && git add -A && git commit -m 'Before the update'",
        )
    if git.attempt("rev-parse", "--verify", "-q", "HEAD", cwd=project).returncode:
        raise UpdateError(
            f"{project} has no commit yet.",
            why="an update is merged with what you committed.",
            fix="git add -A && git commit -m 'Before the update'",
        )
    if lines := status.stdout.splitlines():
        some = ", ".join(line[3:] for line in lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
        raise UpdateError(
            f"{project} has changes that are not committed: {some}.",
            why="an update could not be told from them, or undone without them.",
            fix="git add -A && git commit -m 'Before the update' (or git stash)",
        )


def _source(last: Mapping[str, Any], before: str, to: str | None) -> Source:
    """The recorded source at the wanted version.

    Raises:
        SourceError: It is gone, or has not got one of the two versions.
        UpdateError: The wanted version is older.
    """
    source = catalog.recorded(last["_src_path"])
    # A number of ours is written with or without its v.
    wanted = f"v{to}" if to and bundle.version_of(f"v{to}") and source.trusted else to
    source = replace(source, reference=wanted or source.reference)
    if not source.trusted:
        return source
    tags = bundle.releases(settings.project_bundle() if not source.git_config else settings.SHIPPED_BUNDLE)
    for tag in filter(None, [before, wanted]):
        if tag not in tags:
            raise SourceError(
                f"This scaffold does not have version {tag} of the template.",
                why=f"it has {', '.join(tags)}.",
                fix=f"--to {nearest(tag, tags) or tags[-1]}" if tag == wanted else "pip install -U treadle-scaffold",
            )
    newest = wanted or tags[-1]
    if (bundle.version_of(newest) or ()) < (bundle.version_of(before) or ()):
        raise UpdateError(
            f"The project is at {before}, which is newer than {newest}.",
            why="an update only goes forward.",
            fix="go back with git instead: git revert the commit that updated the project.",
        )
    return replace(source, reference=newest)


def _probe(source: Source, name: str, last: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """Render the new version elsewhere, for the guard to see; returns the version Copier will record."""
    known = {key: value for key, value in last.items() if not key.startswith("_")}
    with tempfile.TemporaryDirectory(prefix="scaffold-update-") as folder:
        probe = render(source, Path(folder) / name, answers=answers, defaults=known, ask=False)
    check_names(probe, answers)
    return probe.version or ""


def _merge(project: Path, source: Source, answers: Mapping[str, Any], in_place: Callable[[Path], None] | None) -> None:
    """Copier's update of a clean project, which is put back as it was when that fails or is stopped."""
    updated = False
    try:
        copier_update(project, source, answers=answers)
        with undisturbed():
            updated = True
            if in_place:
                in_place(project)
    except BaseException:
        if updated:  # stopped, but too late
            raise
        with undisturbed():
            git.attempt("reset", "-q", "--", ".", cwd=project)
            git.attempt("checkout", "-q", "HEAD", "--", ".", cwd=project)
            git.attempt("clean", "-q", "-f", "-d", "--", ".", cwd=project)
        raise


def _changed(project: Path) -> list[str]:
    # Copier leaves *.rej where it could not merge, and a project's .gitignore may hide them.
    lines = git.git("status", "--porcelain", "-z", "--no-renames", "-uall", "--ignored", "--", ".", cwd=project)
    prefix = git.git("rev-parse", "--show-prefix", cwd=project).strip()
    entries = (entry for entry in lines.split("\0") if entry)
    files = ((entry[:2], entry[3:].removeprefix(prefix)) for entry in entries)
    return sorted(file for state, file in files if state != "!!" or file.endswith(".rej"))


def _is_conflict(project: Path, file: str) -> bool:
    if file.endswith(".rej"):
        return True
    if git.git("ls-files", "-u", "--", file, cwd=project):
        return True
    path = project / file
    return path.is_file() and any(line.rstrip() in _MARKERS for line in path.read_bytes().splitlines())
