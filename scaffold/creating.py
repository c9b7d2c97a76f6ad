"""A new project, whole or not at all.

Everything happens in a temporary folder on the target's own file system: render, guard, git, first commit. One rename
then puts it in place, so a stop at any moment leaves either nothing or the whole project.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaffold import console, git, placing, presets, settings, trust
from scaffold.catalog import Source
from scaffold.errors import AnswerError, Declined, SourceError, as_flag, cannot_write
from scaffold.fetching import Template, fetch
from scaffold.interrupts import undisturbed
from scaffold.rendering import Rendering, render

if TYPE_CHECKING:
    from scaffold.questions import Questionnaire


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make and where."""

    path: Path
    source: Source
    answers: Mapping[str, Any]
    """From flags and --set. They win over those of a file, which win over a preset's."""
    answers_file: Path | None = None
    preset: str | None = None
    """A name or a file."""
    ask: bool
    """Ask on the terminal what is open. Otherwise ``accept_defaults`` decides."""
    accept_defaults: bool
    """Take the template's defaults for what is open; otherwise an open question is an error."""
    use_git: bool = True
    trust: bool = False
    """Run the template's tasks and extensions."""


@dataclass(frozen=True, kw_only=True)
class Created:
    """A new project."""

    path: Path
    source: Source
    version: str | None
    template_commit: str
    """The full hash of the template's commit."""
    answers: Mapping[str, Any]
    files: tuple[str, ...]
    """Relative to ``path``, sorted, without git's."""
    commit: str | None
    """The first commit's full hash; None without git."""
    enclosing: Path | None
    """The repository the project's own repository lies in, if any."""
    notes: tuple[str, ...]

    def next_commands(self, typed: Path) -> list[str]:
        """What to type next, for a user who typed ``typed`` as the path."""
        commands = [] if self.path == Path.cwd() else [f"cd {shlex.quote(str(typed))}"]
        if "pyproject.toml" in self.files:
            # The runtime is not published yet; a clone of this repository has it, and pip takes it from there.
            checkout = settings.source_checkout()
            runtime = f"-e {shlex.quote(str(checkout / 'runtime'))} " if checkout and self.source.trusted else ""
            commands.append(f'python -m pip install {runtime}-e ".[dev]"')
        if "configs/train.yaml" in self.files and "package_name" in self.answers:
            commands.append(f"python -m {self.answers['package_name']} fit --config configs/train.yaml")
        return commands

    def all_notes(self) -> list[str]:
        """What the user should know besides."""
        notes = list(self.notes)
        if settings.ANSWERS_FILE not in self.files:
            notes.append(
                f"the template writes no {settings.ANSWERS_FILE}, so this project can never be updated from it."
            )
        if self.enclosing:
            notes.append(
                f"this is a git repository inside another, {self.enclosing}. To make it part of that one instead, "
                "delete its .git folder, or start with --no-git."
            )
        return notes


def create(plan: Plan, in_place: Callable[[Path], None] | None = None) -> Created:
    """Make the project.

    Args:
        in_place: Told the project's path as soon as it is there, whole. A signal that stops the command before this
            call leaves nothing behind, one after it leaves the project: none comes in between.

    Raises:
        ScaffoldError: And nothing was left behind.
    """
    git.require_git()
    try:
        target = placing.destination(plan.path)
        if plan.ask:
            _check_place(plan, target)
        template = fetch(plan.source)
        answered = _answer(plan, template, target, make="Make it")
        filled = placing.is_own_repository(target)
        with placing.staging(target) as staging:
            if plan.use_git:
                _repository(target, staging)
            rendering = _render(plan, template, answered, target, staging / "project" / target.name)
            files = placing.listing(rendering.folder)
            commit = _commit(target, staging, rendering, plan) if plan.use_git else None
            enclosing = placing.enclosing(target) if plan.use_git else None
            with undisturbed():
                if filled:
                    placing.fill(rendering.folder, target, commit)
                else:
                    placing.put_in_place(rendering.folder, target)
                if in_place:
                    in_place(target)
    except OSError as error:
        raise cannot_write(plan.path.absolute().parent, error) from error
    return Created(
        path=target,
        source=plan.source,
        version=rendering.version,
        template_commit=template.commit,
        answers=rendering.answers,
        files=files,
        commit=commit,
        enclosing=enclosing,
        notes=rendering.notes,
    )


def preview(plan: Plan, show: Callable[[Rendering, tuple[str, ...]], None]) -> None:
    """Render to a temporary folder elsewhere, ``show`` it, remove it."""
    git.require_git()
    try:
        target = placing.destination(plan.path)
        template = fetch(plan.source)
        answered = _answer(plan, template, target, make="Show it")
        with placing.temporary(Path(tempfile.gettempdir()), "scaffold-preview-") as staging:
            rendering = _render(plan, template, answered, target, staging / "project" / target.name)
            show(rendering, placing.listing(rendering.folder))
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error


@dataclass(frozen=True, kw_only=True)
class _Answered:
    given: tuple[presets.Answers, ...]
    """Before anybody was asked, the strongest first."""
    values: Mapping[str, Any]
    defaults: Mapping[str, Any]


def _check_place(plan: Plan, target: Path) -> None:
    """Whether one may write there, and git knows who commits: before anything is asked, and nothing lies there meanwhile."""
    with placing.staging(target) as staging:
        if plan.use_git:
            _repository(target, staging)


def _repository(target: Path, staging: Path) -> None:
    """What the first commit is made in: a new one, or the one that is there, if it has no file."""
    if placing.is_own_repository(target):
        git.identity(target)
    else:
        placing.initialise(staging / "repository")


def _answer(plan: Plan, template: Template, target: Path, *, make: str) -> _Answered:
    if plan.ask and not trust.known(plan.source):
        _confirm_source(template)
    given = _given(plan, template)
    values = presets.merged(given)
    defaults = {} if values.get("author_name") else git.author_name(placing.nearest_existing(target))
    if plan.ask:
        values |= _ask(plan, template, target, given, defaults, make)
    return _Answered(given=given, values=values, defaults=defaults)


def _render(plan: Plan, template: Template, answered: _Answered, target: Path, folder: Path) -> Rendering:
    try:
        rendering = render(template, folder, answers=answered.values, defaults=answered.defaults, trust=plan.trust)
    except (AnswerError, SourceError):
        if not template.commands or plan.trust:
            _check_answers(plan, template, target, answered)
        raise
    if rendering.message:
        said = rendering.message.replace(str(folder), str(target))
        rendering = replace(rendering, notes=(*rendering.notes, said))
    presets.check_names(answered.given, rendering.questions)
    missing = [name for name in rendering.asked if name not in answered.values]
    if missing and not plan.ask and not plan.accept_defaults:
        raise _unanswered(missing, rendering)
    if trust.known(plan.source):
        return rendering
    if plan.ask:
        trust.remember(plan.source, template.commit)
        return rendering
    note = f"{plan.source.url} was not used before; its commit {template.commit} was taken without asking."
    return replace(rendering, notes=(*rendering.notes, note))


def _check_answers(plan: Plan, template: Template, target: Path, answered: _Answered) -> None:
    """Raises AnswerError when answers are what the rendering failed for: Copier names one, at times in words of Python."""
    from scaffold.questions import as_error, problems

    with _questionnaire(plan, template, target, answered.values, answered.defaults) as form:
        if found := problems(form.evaluate({}), as_flag):
            raise as_error(found)


def _confirm_source(template: Template) -> None:
    url = template.source.url
    console.rows([("template", url), ("version", template.version), ("commit", template.commit)])
    if not console.confirmed("You have not used this template before. Do you trust its authors?", default=False):
        raise Declined(
            "Nothing was made.",
            why="a template decides what stands in your project, and you do not trust this one.",
            fix=f"look at it first: git clone {shlex.quote(url.removeprefix('git+'))}",
        )


def _given(plan: Plan, template: Template) -> tuple[presets.Answers, ...]:
    given = [presets.Answers(origin=presets.FLAGS, values=plan.answers)]
    if plan.answers_file:
        given.append(presets.read(plan.answers_file))
    if plan.preset:
        given.append(presets.find(plan.preset, template))
    return tuple(given)


def _ask(
    plan: Plan,
    template: Template,
    target: Path,
    given: Sequence[presets.Answers],
    defaults: Mapping[str, Any],
    make: str,
) -> Mapping[str, Any]:
    from scaffold import asking  # only a dialogue needs it, and it takes a while to import

    with _questionnaire(plan, template, target, presets.merged(given), defaults) as form:
        presets.check_names(given, form.names())
        about = [
            ("project", str(target)),
            ("template", f"{template.source.name} {template.version} ({template.commit[:12]})"),
            *([("preset", plan.preset)] if plan.preset else []),
        ]
        return asking.ask(form, about=about, make=make)


@contextmanager
def _questionnaire(
    plan: Plan, template: Template, target: Path, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Questionnaire]:
    from scaffold.questions import Questionnaire

    with placing.temporary(Path(tempfile.gettempdir()), "scaffold-questions-") as folder:
        template.unpack(folder / "template")
        yield Questionnaire(
            template=folder / "template", destination=target, given=given, defaults=defaults, trust=plan.trust
        )


def _unanswered(missing: list[str], rendering: Rendering) -> AnswerError:
    return AnswerError(
        f"Not answered: {', '.join(missing)}.",
        why="this is not a terminal, so nobody can be asked.",
        fix="add --yes to take the defaults, which are: "
        + " ".join(as_flag(name, rendering.answers.get(name)) for name in missing),
    )


def _commit(target: Path, staging: Path, rendering: Rendering, plan: Plan) -> str:
    message = "Start from template " + " ".join(filter(None, [plan.source.name, rendering.version]))
    if placing.is_own_repository(target):
        return placing.commit(rendering.folder, message, repository=target, staging=staging)
    (staging / "repository" / ".git").rename(rendering.folder / ".git")
    git.git("add", "-A", cwd=rendering.folder)
    # Not signed: a pass phrase could be asked for, and the user signs from the next commit on.
    git.git("commit", "-q", "--no-gpg-sign", "-m", message, cwd=rendering.folder)
    return git.git("rev-parse", "HEAD", cwd=rendering.folder).strip()
