"""A team's templates on top of the base one: each with its own answers file, each writing its own files.

A layer that comes or goes is an update like any other: the project's stack of templates as it was, and as it is to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaffold import (
    answering,
    applying,
    catalog,
    checking,
    fetching,
    git,
    journal,
    merging,
    patterns,
    presets,
    projects,
    updating,
)
from scaffold.errors import AnswerError, ProjectError, SourceError, some
from scaffold.projects import Project
from scaffold.rendering import render_stacks, scratch
from scaffold.steps import Step
from scaffold.updating import Updated


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One layer of a project."""

    name: str
    template: str
    version: str
    answers_file: str
    files: tuple[str, ...]
    """What it writes, relative to the project."""


def listed(path: Path) -> tuple[Listed, ...]:
    """The layers of the project at ``path``, the base first.

    Raises:
        ScaffoldError: It is no project, or a template cannot be reached or rendered.
    """
    project = projects.find(path)
    checking.require_same_host(project)
    steps = _standing(project)
    written = _files(project, steps)
    return tuple(
        Listed(
            name=step.name,
            template=template.source.name,
            version=template.version,
            answers_file=step.answers_file,
            files=files,
        )
        for step, files in zip(steps, written, strict=True)
        if (template := step.old)
    )


def add(
    path: Path,
    text: str,
    *,
    name: str | None = None,
    answers: Mapping[str, Any],
    preset: str | None = None,
    allow_overlap: bool = False,
    ask: bool = False,
    dry_run: bool = False,
    show: str | None = None,
    confirm: Callable[[fetching.Template], None] | None = None,
    in_place: Callable[[Path], None] | None = None,
) -> Updated:
    """Put the template ``text``, as ``--template`` means it, on top of the project at ``path``.

    Args:
        name: Default: what its ``_answers_file`` says.
        preset: A name or a file, for what ``answers`` leaves open.
        allow_overlap: It may write over files of the layers below.
        ask: Ask on the terminal what is open.
        confirm: Shown the template before any of it is rendered; raises to stop.

    Raises:
        ScaffoldError: It cannot be; the project is as it was.
    """
    git.require_git()
    project = projects.find(path)
    checking.require_same_host(project)
    repository = merging.repository(project.root)
    with journal.alone(repository):
        applying.require_ready(repository)
        checking.require_committed(project)
        template = fetching.fetch(catalog.find(text))
        updating.require_scaffold(template)
        if confirm:
            confirm(template)
        chosen = name or projects.layer_name(template.answers_file)
        if not chosen or chosen == "base":
            raise ProjectError(
                f"The template {template.source.name} does not say what its layer is called.",
                why=f"it would write its answers to {template.answers_file}, which are the base's.",
                fix="give it a name: --name NAME (or _answers_file: .copier-answers.NAME.yml in its copier.yml)",
            )
        answers_file = f".copier-answers.{chosen}.yml"
        if projects.layer_name(answers_file) is None:
            raise ProjectError(
                f"{chosen!r} is no name for a layer.",
                why="it becomes part of a file name.",
                fix="use a-z, 0-9, - and _.",
            )
        if chosen in [applied.name for applied in project.layers]:
            raise ProjectError(
                f"The project has a layer {chosen} already.",
                why="a layer lies on a project once.",
                fix="scaffold update, to bring it to its newest version",
            )
        given = [presets.Answers(origin=presets.FLAGS, values=answers)]
        if preset is not None:
            given.append(presets.find(preset, template))
        new = Step(name=chosen, old=None, new=template, answers=presets.merged(given), answers_file=answers_file)
        _check_names(new)
        steps = answering.settle([*_standing(project), new], project.root, ask=ask, make="Add it")
        *below, above = _files(project, steps)
        if answers_file not in above:
            raise SourceError(
                f"The template {template.source.name} does not record its answers.",
                why=f"it writes no {answers_file}, so its layer could never be updated or removed.",
                fix="tell its author: it needs a file {{ _copier_conf.answers_file }}.jinja",
            )
        if not allow_overlap:
            _require_apart(steps[-1], above, below, repository)
        merged, notes = updating.combine(project, repository, steps)
        return updating.put(
            project,
            repository,
            merged,
            before={},
            after={chosen: template.version},
            notes=notes,
            dry_run=dry_run,
            show=show,
            in_place=in_place,
        )


def remove(
    path: Path,
    name: str,
    *,
    dry_run: bool = False,
    show: str | None = None,
    in_place: Callable[[Path], None] | None = None,
) -> Updated:
    """Take the layer ``name`` off the project at ``path``: its files go, those that were changed become conflicts.

    Raises:
        ScaffoldError: It cannot be; the project is as it was.
    """
    git.require_git()
    project = projects.find(path)
    checking.require_same_host(project)
    repository = merging.repository(project.root)
    with journal.alone(repository):
        applying.require_ready(repository)
        checking.require_committed(project)
        names = [applied.name for applied in project.layers]
        if name == "base" or name not in names:
            others = [each for each in names if each != "base"]
            raise ProjectError(
                (
                    "The base is no layer that could be removed."
                    if name == "base"
                    else f"The project has no layer {name!r}."
                ),
                why="all others lie on it." if name == "base" else f"its layers are: {', '.join(others) or 'none'}.",
                fix="scaffold layer list",
            )
        steps = [replace(step, new=None) if step.name == name else step for step in _standing(project)]
        steps = answering.settle(steps, project.root)
        merged, notes = updating.combine(project, repository, steps)
        versions = {applied.name: applied.commit for applied in project.layers}
        return updating.put(
            project,
            repository,
            merged,
            before=versions,
            after={each: version for each, version in versions.items() if each != name},
            notes=notes,
            dry_run=dry_run,
            show=show,
            in_place=in_place,
        )


def _standing(project: Project) -> list[Step]:
    """All layers, staying as they are."""
    steps = []
    for applied in project.layers:
        newest = fetching.fetch(replace(catalog.recorded(applied.src_path), reference=None))
        old = fetching.recorded(newest, applied)
        steps.append(Step(name=applied.name, old=old, new=old, applied=applied, answers_file=applied.answers_file))
    return steps


def _files(project: Project, steps: Sequence[Step]) -> list[tuple[str, ...]]:
    """What each layer writes, on top of those below it."""
    with scratch() as place:
        folder = place / project.root.name
        folder.mkdir()
        layers = [step.as_it_is(step.new) for step in steps if step.new]
        [renderings] = render_stacks([(folder, layers)], skip_tasks=True)
    return [rendering.files for rendering in renderings]


def _check_names(step: Step) -> None:
    questions = {} if step.new is None else step.new.config
    for name in step.answers:
        if name not in questions:
            raise AnswerError(
                f"--set {name}=...: the layer has no question called {name!r}.",
                why=f"its questions are: {', '.join(each for each in questions if each[0] != '_') or 'none'}.",
                fix="leave it out.",
            )


def _require_apart(
    new: Step, files: Iterable[str], below: Sequence[Iterable[str]], repository: merging.Repository
) -> None:
    theirs = {file for each in below for file in each}
    tree = merging.project_tree(repository)
    committed = set(repository.git("ls-tree", "-r", "-z", "--name-only", tree).split("\0"))
    told = new.new.settings.get("overlaps") if new.new else None
    allowed = [str(glob) for glob in told] if isinstance(told, list) else []
    both = [file for file in files if file in theirs | committed and not patterns.matches(file, allowed)]
    if both:
        raise ProjectError(
            f"The layer {new.name} would write over {some(both)}.",
            why="two templates that write one file undo each other's work at every update.",
            fix="--allow-overlap, if that is meant. Better: the layer writes files of its own (configs/, docs/, "
            f".github/workflows/{new.name}.yml).",
        )
