"""A project brought to another version of its templates, by a real merge: what it was made from, what the user has made of
it, what the templates make of it now. Nothing is committed.

All layers are rendered twice, as they were and as they are, one on top of the other; the two results and the project's
last commit are merged once and applied once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scaffold import (
    __version__,
    answering,
    applying,
    by_copier,
    catalog,
    checking,
    fetching,
    git,
    journal,
    merging,
    patterns,
    projects,
    rendering,
    settings,
)
from scaffold.applying import Change
from scaffold.errors import AnswerError, SourceError, UpdateError, nearest
from scaffold.fetching import Template
from scaffold.interrupts import undisturbed
from scaffold.merging import Merged, Repository
from scaffold.projects import Applied, Project
from scaffold.steps import Step, labels


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did, or would do."""

    path: Path

    before: Mapping[str, str]
    """Version of each layer, by its name."""

    after: Mapping[str, str]
    """The same afterwards."""

    changes: tuple[Change, ...]

    notes: tuple[str, ...] = ()
    """What the user should know besides."""

    difference: str = ""
    """As a patch or a summary, where asked for."""

    dry: bool = False
    """Nothing was written."""

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Files where both sides are left for the user."""
        return tuple(change.path for change in self.changes if change.kind == "conflict")


def update(
    path: Path,
    *,
    to: str | None = None,
    answers: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    show: str | None = None,
    trust_tasks: bool = False,
    ask: bool = False,
    confirm: Callable[[Template], None] | None = None,
    in_place: Callable[[Path], None] | None = None,
) -> Updated:
    """Bring the project at ``path``, with all its layers, to the newest version of their templates.

    Args:
        to: Version of the base, or of a layer as ``NAME=VERSION``. The others then stay where they are.
        answers: To new questions, or instead of recorded answers.
        dry_run: Write nothing.
        show: Also return the difference: ``"diff"`` or ``"stat"``.
        trust_tasks: The templates' tasks and migrations may run.
        ask: Ask on the terminal what is open beyond them; otherwise it gets its default, and where there is none, or
            a recorded answer is not accepted any more, that is an error.
        confirm: Shown each template before any of it is rendered; raises to stop.
        in_place: Told the project's path as soon as its files are the updated ones: a signal that stops the command
            before this call leaves the project as it was, one after it leaves it updated.

    Raises:
        ScaffoldError: It cannot be; the project is as it was.
    """
    git.require_git()
    project = projects.find(path)
    repository = merging.repository(project.root)
    with journal.alone(repository):
        applying.require_ready(repository)
        merging.require_writable(repository)
        checking.require_same_host(project)
        steps = _steps(project, to, answers or {})
        _check_names(answers or {}, steps)
        for step in steps:
            if confirm and step.new and not step.idle:
                confirm(step.new)
        before = {step.name: step.applied.commit for step in steps if step.applied}
        after = {step.name: step.new.version for step in steps if step.new}
        if all(step.idle for step in steps):
            return Updated(path=project.root, before=before, after=after, changes=(), dry=dry_run)
        checking.require_committed(project)
        notes: list[str] = []
        commands = any(template.commands for step in steps for template in (step.old, step.new) if template)
        if trust_tasks or not commands:
            steps = answering.settle(steps, project.root, ask=ask, trust=trust_tasks)
        if commands:
            merged = by_copier.merge(repository, steps, trusted=trust_tasks)
        else:
            merged, notes = combine(project, repository, steps)
        return put(
            project, repository, merged,
            before=before, after=after, notes=notes, dry_run=dry_run, show=show, in_place=in_place,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Undone:
    """What the undoing of an update did."""

    path: Path
    files: tuple[str, ...]
    """As they were before it."""
    kept: str | None
    """The commit that keeps what was written into them since, if anything was."""


def abort(path: Path) -> Undone:
    """Undo the last update of the project at ``path``, as long as nothing was committed since.

    Raises:
        UpdateError: There is none.
    """
    git.require_git()
    start = path.expanduser().resolve()
    root = next((folder for folder in (start, *start.parents) if (folder / settings.ANSWERS_FILE).exists()), start)
    repository = merging.repository(root)  # not the project's answers: they may be in conflict
    with journal.alone(repository), undisturbed():
        files, kept = applying.abort(repository)
    return Undone(path=root, files=files, kept=kept)


def put(
    project: Project,
    repository: Repository,
    merged: Merged,
    *,
    before: Mapping[str, str],
    after: Mapping[str, str],
    notes: Iterable[str] = (),
    dry_run: bool = False,
    show: str | None = None,
    in_place: Callable[[Path], None] | None = None,
) -> Updated:
    """Apply what was merged, or say what applying it would do."""
    planned = applying.changes(repository, merged)
    difference = applying.difference(repository, merged, stat=show == "stat") if show else ""
    if planned and dry_run and (obstacle := applying.obstacle(repository, planned)):
        notes = [*notes, f"as things stand it would be refused: {obstacle.what} {obstacle.why}"]
    if planned and not dry_run:
        with undisturbed():
            applying.apply(repository, merged, planned)
            if in_place:
                in_place(project.root)
    gone = [f"{path} stays deleted: you deleted it, the template has changed it." for path in merged.kept_deleted]
    return Updated(
        path=project.root,
        before=before,
        after=after,
        changes=planned,
        notes=(*notes, *gone),
        difference=difference,
        dry=dry_run,
    )


def combine(project: Project, repository: Repository, steps: Sequence[Step]) -> tuple[Merged, list[str]]:
    """Render all layers as they were and as they are to be, their answers settled, and merge."""
    with rendering.scratch() as scratch:
        old, new = (scratch / side / project.root.name for side in ("old", "new"))
        for folder in (old, new):
            folder.mkdir(parents=True)
        was = [(step, step.old) for step in steps if step.old]
        now = [(step, step.new) for step in steps if step.new]
        steps_now = [step for step, _ in now]
        stacks = [
            (old, [step.as_it_was(template) for step, template in was]),
            (new, [step.as_it_is(template) for step, template in now]),
        ]
        _, renderings = rendering.render_stacks(stacks)
        _write_recorded_versions(was, old)
        notes = _new_questions(steps_now, renderings)
        notes += list(dict.fromkeys(note for each in renderings for note in each.notes))
        notes += [each.message.replace(str(new), str(project.root)) for each in renderings if each.message]
        tree = merging.project_tree(repository)
        tracked = merging.files(repository, tree)
        _leave_generated(steps, tracked, old, new)
        before, _ = merging.write_tree(repository, old, tracked)
        after, ignored = merging.write_tree(repository, new, tracked)
        notes += [
            f"{path} is left alone: git ignores it here, and the template has changed it."
            for path in sorted(ignored)
            if not (old / path).is_file() or (old / path).read_bytes() != (new / path).read_bytes()
        ]
        merged = merging.merge(repository, before=before, project=tree, after=after, labels=labels(steps))
    return merged, notes


def _steps(project: Project, to: str | None, answers: Mapping[str, Any]) -> list[Step]:
    name, _, wanted = to.rpartition("=") if to is not None else ("", "", "")
    name = name or "base"
    names = [applied.name for applied in project.layers]
    if to is not None and not wanted:
        raise UpdateError(
            f"--to {to!r} names no version.",
            why="it brings the project to one version of its template.",
            fix="leave it out, which takes the newest release.",
        )
    if to and name not in names:
        raise UpdateError(
            f"--to {to}: the project has no layer {name!r}.",
            why=f"its layers are: {', '.join(names)}.",
            fix=f"--to {nearest(name, names) or names[-1]}={wanted}",
        )
    steps = []
    for applied in project.layers:
        stays = bool(to) and applied.name != name
        steps.append(_step(applied, wanted if to and not stays else None, answers, stays=stays))
    return steps


def _step(applied: Applied, wanted: str | None, answers: Mapping[str, Any], *, stays: bool) -> Step:
    source = catalog.recorded(applied.src_path)
    newest = fetching.fetch(replace(source, reference=None))
    old = fetching.recorded(newest, applied)
    pin = None if wanted or stays else catalog.pin(applied.src_path)
    to = wanted or pin
    new = old if stays else newest.at(_full(to, newest)) if to else newest
    if not wanted and not stays and _is_older(new, old):
        new = old  # made from a commit after the newest release
    if _is_older(new, old):
        raise UpdateError(
            f"The project is at {applied.commit} of {source.name}, which is newer than {new.version}.",
            why="an update only goes forward.",
            fix="go back with git instead: git revert the commit that updated the project.",
        )
    require_scaffold(new)
    return Step(
        name=applied.name,
        old=old,
        new=new,
        applied=applied,
        answers={key: value for key, value in answers.items() if key in new.config or key in applied.answers},
        answers_file=applied.answers_file,
    )


def require_scaffold(template: Template) -> None:
    """Raises UpdateError when the template wants a newer scaffold than this one."""
    wanted = template.settings.get("requires")
    if wanted is None:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        fits = SpecifierSet(str(wanted)).contains(__version__, prereleases=True)
    except InvalidSpecifier:
        raise SourceError(
            f"The template {template.source.name} requires scaffold {wanted!r}, which is no range of versions.",
            why="its copier.yml says so, under _scaffold: requires.",
            fix='tell its author: it should read like ">=0.2"',
        ) from None
    if not fits:
        raise UpdateError(
            f"{template.source.name} {template.version} needs scaffold {wanted}, and this is {__version__}.",
            why="the template uses what this version does not know.",
            fix="pip install -U treadle-scaffold, or stay with an older template: --to VERSION",
        )


def _full(wanted: str, template: Template) -> str:
    """Releases of the form v1.2.3 may be named without their v."""
    return f"v{wanted}" if wanted not in template.releases and f"v{wanted}" in template.releases else wanted


def _is_older(new: Template, old: Template) -> bool:
    if new.commit == old.commit:
        return False
    try:
        return bool(fetching.version_key(new.version) < fetching.version_key(old.version))
    except ValueError:  # a commit between two releases
        order = git.attempt("merge-base", "--is-ancestor", new.commit, old.commit, cwd=old.mirror)
        return order.returncode == 0


def _write_recorded_versions(was: Sequence[tuple[Step, Template]], old: Path) -> None:
    """A version can have got another name since: its tag was taken away, or one was set on a commit before it."""
    for step, template in was:
        file = old / step.answers_file
        if step.applied and file.is_file():
            text = file.read_text(encoding="utf-8")
            told = projects.parse(text, step.answers_file, old).commit
            if told != template.version:
                line = yaml.safe_dump({"_commit": template.version}).strip()
                file.write_text(
                    re.sub("^_commit: .*$", line.replace("\\", r"\\"), text, flags=re.MULTILINE), encoding="utf-8"
                )


def _check_names(answers: Mapping[str, Any], steps: Sequence[Step]) -> None:
    questions = [name for step in steps if step.new for name in step.new.questions]
    for name in answers:
        if name not in questions:
            guess = nearest(name, questions)
            raise AnswerError(
                f"--set {name}=...: no template of this project has a question called {name!r}.",
                why=f"the questions are: {', '.join(questions) or 'none'}.",
                fix=f"--set {guess}={answers[name]}" if guess else "leave it out.",
            )


def _new_questions(steps: Sequence[Step], renderings: Sequence[rendering.Rendering]) -> list[str]:
    notes = []
    for step, each in zip(steps, renderings, strict=True):
        if step.applied is None:
            continue
        known = {*step.applied.answers, *step.answers}
        notes += [
            f"new question {name}: answered {each.answers[name]!r}. Another answer: --set {name}=..."
            for name in each.asked
            if name not in known and name in each.answers
        ]
    return notes


def _leave_generated(steps: Sequence[Step], tracked: Collection[str], old: Path, new: Path) -> None:
    """What a program writes, such as a lock file, is the project's own once it is there."""
    globs = [str(glob) for step in steps if step.new for glob in step.new.settings.get("generated") or ()]
    if not globs:
        return
    for folder in (old, new):
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            name = file.relative_to(folder).as_posix()
            if name in tracked and patterns.matches(name, globs):
                file.unlink()
