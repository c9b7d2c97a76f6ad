"""Rendering a template by Copier, in a confined process: through its public functions, and one private one for a template's
own message. Only this module and :mod:`scaffold.questions` know Copier.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import copier
import copier.errors
import jinja2
from plumbum import ProcessExecutionError, local

from scaffold import confined, console, guard, settings
from scaffold.catalog import Source
from scaffold.errors import AnswerError, ScaffoldError, SourceError, UnsafeTemplate, cannot_write, nearest
from scaffold.fetching import Template, fetch

_OF_THE_MACHINE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EIO,
    }
)
"""What goes wrong there is not the template's fault."""
MOST_SAID = 4_000
"""Characters of a message."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What came of one rendering."""

    folder: Path
    answers: Mapping[str, Any]
    questions: tuple[str, ...]
    """Those a user may answer, in order."""
    asked: tuple[str, ...]
    """Those a user is asked, without those that do not apply."""
    version: str | None
    """The template's tag or description, as the project records it."""
    notes: tuple[str, ...] = field(default=())
    """What Copier wants the user to know."""
    files: tuple[str, ...] = field(default=())
    """What this layer of a stack wrote, relative to ``folder``, sorted."""
    message: str = ""
    """What the template's author wants the user to know, fit for a terminal; it may name ``folder``."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One template to render, and what is known of its questions."""

    template: Template
    answers: Mapping[str, Any]
    """Taken as they are."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Take precedence over the template's own defaults."""
    answers_file: str | None = None
    """Where the answers are written to; default: where the template says."""
    moment: str = ""
    """``copy`` or ``update``: its author may have a message for the user then."""


def render(
    source: Source | Template,
    folder: Path,
    *,
    answers: Mapping[str, Any],
    defaults: Mapping[str, Any],
    answers_file: str | None = None,
    limits: settings.Limits | None = None,
    trust: bool = False,
    skip_tasks: bool = False,
) -> Rendering:
    """Render ``source`` into ``folder``, and guard what is there then. Nothing is asked: what is open gets its default.

    Copier runs in a process of its own, with limits.

    Args:
        trust: Run its tasks, migrations and Jinja extensions, without limits.
        skip_tasks: But no tasks: only what is rendered is wanted.

    Raises:
        AnswerError: An answer is not one the template accepts.
        SourceError: The template cannot be fetched or is broken.
        UnsafeTemplate: It tried to do what no template may.
    """
    template = source if isinstance(source, Template) else fetch(source)
    layer = Layer(template=template, answers=answers, defaults=defaults, answers_file=answers_file, moment="copy")
    if not trust:
        [[rendering]] = render_stacks([(folder, [layer])], limits=limits, skip_tasks=skip_tasks)
        return rendering
    with scratch() as place, template.served() as served:
        told = _render(layer, served, folder, place, trust=True, skip_tasks=skip_tasks)
    guard.check_tree(folder, limits or settings.Limits())
    return _rendering(folder, told)


def render_stacks(
    stacks: Sequence[tuple[Path, Sequence[Layer]]],
    *,
    limits: settings.Limits | None = None,
    skip_tasks: bool = False,
) -> list[list[Rendering]]:
    """Render several stacks of layers at the same time, each into its folder, a layer on top of what lies below it.

    Args:
        skip_tasks: Templates with tasks are not refused: these are left out.

    Raises:
        As :func:`render`.
    """
    limits = limits or settings.Limits()
    with contextlib.ExitStack() as open_until_done:
        calls = []
        for folder, layers in stacks:
            place = open_until_done.enter_context(scratch())
            served = [open_until_done.enter_context(layer.template.served()) for layer in layers]
            call = confined.Call(_render_stack, layers, served, folder, place, skip_tasks, limits=limits)
            calls.append(open_until_done.enter_context(call))
        told = [call.result() for call in calls]
    for folder, _ in stacks:
        guard.check_tree(folder, limits)
    return [[_rendering(stacks[number][0], each) for each in stack] for number, stack in enumerate(told)]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone at the end of the block.

    Raises:
        DestinationError: It cannot be made, or the disk of it is full.
    """
    where = Path(tempfile.gettempdir())
    try:
        made = tempfile.TemporaryDirectory(prefix="scaffold-", ignore_cleanup_errors=True)
    except OSError as error:
        raise cannot_write(where, error) from error
    with made as folder:
        try:
            yield Path(folder)
        except OSError as error:
            # A write names no file.
            here = (
                str(error.filename).startswith(folder) if error.filename else shutil.disk_usage(where).free < 1_000_000
            )
            if not here:
                raise
            raise cannot_write(where, error) from error


def _render_stack(
    layers: Sequence[Layer], served: Sequence[Source], folder: Path, place: Path, skip_tasks: bool
) -> list[dict[str, Any]]:
    told = []
    for number, (layer, source) in enumerate(zip(layers, served, strict=True)):
        before = _written(folder)
        each = _render(layer, source, folder, place / str(number), skip_tasks=skip_tasks)
        after = _written(folder)
        each["files"] = sorted(path for path, state in after.items() if before.get(path) != state)
        told.append(each)
    return told


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file below ``folder``, and what changes when it is written."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            state = path.lstat()
            found[path.relative_to(folder).as_posix()] = (state.st_ino, state.st_mtime_ns)
    return found


def _rendering(folder: Path, told: Mapping[str, Any]) -> Rendering:
    return Rendering(
        folder=folder,
        answers=told["answers"],
        questions=tuple(told["questions"]),
        asked=tuple(told["asked"]),
        version=told["version"],
        notes=tuple(told["notes"]),
        files=tuple(told.get("files", ())),
        message=told["message"],
    )


def check_names(rendering: Rendering, answers: Mapping[str, Any]) -> None:
    """Raises AnswerError when the template has no question of a name in ``answers``."""
    for name in answers:
        if name not in rendering.questions:
            guess = nearest(name, rendering.questions)
            raise AnswerError(
                f"--set {name}=...: the template has no question called {name!r}.",
                why=f"its questions are: {', '.join(rendering.questions) or 'none'}.",
                fix=f"--set {guess}={answers[name]}" if guess else "leave it out.",
            )


def update(project: Path, template: Template, *, answers: Mapping[str, Any], answers_file: str) -> None:
    """Run Copier's own update on ``project``, a clean git work tree, with the template's tasks and migrations. Conflicts
    are left in its files.

    Args:
        template: The one the project records, at the wanted version.
        answers: Replace recorded ones.

    Raises:
        ScaffoldError: Copier refused or failed; files may have been changed already.
    """
    with (
        scratch() as place,
        template.served() as served,
        _copier_for(served, answers, place),
    ):
        copier.run_update(
            project,
            dict(answers),
            answers_file=answers_file,
            vcs_ref=served.reference,
            settings=copier.Settings(),
            exclude=[".git"],
            defaults=True,
            overwrite=True,
            unsafe=True,
            quiet=True,
        )


def _render(
    layer: Layer, served: Source, folder: Path, place: Path, *, trust: bool = False, skip_tasks: bool = False
) -> dict[str, Any]:
    """What :class:`Rendering` holds, as plain values."""
    if not served.trusted and not trust and layer.template.has_submodules:
        raise UnsafeTemplate(
            f"The template {served.name} has git submodules.",
            why="they are fetched from wherever it says, this machine's own folders included.",
            fix="read its .gitmodules; if you trust it, say so: scaffold new --trust",
        )
    with _copier_for(served, {**layer.defaults, **layer.answers}, place) as caught:
        worker = copier.run_copy(
            served.url,
            folder,
            dict(layer.answers),
            answers_file=layer.answers_file,
            vcs_ref=served.reference,
            user_defaults=dict(layer.defaults),
            defaults=True,
            exclude=[".git"],
            settings=copier.Settings(),  # not the user's: what they trust elsewhere must not run here
            overwrite=True,
            unsafe=trust,
            skip_tasks=skip_tasks,
            quiet=True,
        )
        questions = worker.template.questions_data
        hidden = worker.answers.hidden | worker.template.secret_questions
        combined = worker.answers.combined
        given = {name: combined[name] for name in questions if name in combined}
        told = {
            "answers": {name: value for name, value in given.items() if name not in hidden},
            "questions": [name for name, details in questions.items() if details.get("when", True) is not False],
            "asked": [n for n in questions if n not in hidden and questions[n].get("ask", True) is not False],
            "version": worker.template.commit,
            "notes": list(dict.fromkeys(str(warning.message) for warning in caught)),
            "message": _message(worker, layer.moment),
        }
    if not served.trusted and not trust:
        _check_attempts(served, place, given, layer.template)
    return told


def _message(worker: copier.Worker, moment: str) -> str:
    """Rendered as Copier would, which prints it as it is."""
    template = worker.template
    texts = {"copy": template.message_after_copy, "update": template.message_after_update}
    text = texts.get(moment) or ""
    said = worker._render_string(text) if text else ""  # not public, and its context cannot be had otherwise
    return console.plain(said[:MOST_SAID]).strip()


def _check_attempts(source: Source, place: Path, answers: Mapping[str, Any], template: Template) -> None:
    """Raises UnsafeTemplate when the template has a file for .git, which the rendering left out without a word.

    A dry run names every path and writes none. It reads the template's files without their own .git folder, which
    would be listed, too. What it cannot render it does not judge: the guard sees what was really written.
    """
    plain = place / "template"
    template.unpack(plain)
    listing = io.StringIO()
    with (
        contextlib.suppress(SourceError, AnswerError),
        _copier_for(source, answers, place),
        contextlib.redirect_stderr(listing),
        contextlib.redirect_stdout(listing),
    ):
        copier.run_copy(
            str(plain),
            place / "dry",
            dict(answers),
            settings=copier.Settings(),
            exclude=["!.git"],  # and with it what the template, or Copier by default, leaves out
            defaults=True,
            pretend=True,
            overwrite=True,
        )
    for line in listing.getvalue().splitlines():
        action, _, path = _ANSI.sub("", line).strip().partition("  ")
        if action == "create":
            guard.check_path(PurePosixPath(path))


@contextlib.contextmanager
def _copier_for(source: Source, answers: Mapping[str, Any], place: Path) -> Iterator[list[warnings.WarningMessage]]:
    """Copier's surroundings: git's safe environment, its errors turned into ours.

    Args:
        answers: To name the one that Copier does not take.
        place: Where Copier keeps what it fetches, and its temporary files, which it leaves behind when it is ended. Not
            its shared cache: our bundle may be older than what plain Copier has fetched from the same URL, and would
            prune the newer releases there.

    Yields:
        Copier's warnings, as they come.
    """
    environment = settings.git_environment(protocols=source.protocols, config=source.git_config)
    cache = os.environ.get("COPIER_CACHE_DIR")
    os.environ["COPIER_CACHE_DIR"] = str(place / "mirrors")
    temporary, tempfile.tempdir = tempfile.tempdir, str(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as caught, local.env():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", copier.errors.CopierWarning)
            # Copier's git processes see plumbum's copy of the environment, taken when it was imported.
            for name in set(dict(local.env)) - set(environment):
                del local.env[name]
            local.env.update(environment)
            yield caught
    except ProcessExecutionError as error:  # an OSError, though nothing of ours failed
        raise _git_failed(error, source) from error
    except jinja2.TemplateNotFound as error:  # an OSError as well
        raise _ours(error, source, answers) from error
    except (ScaffoldError, KeyboardInterrupt):  # Copier's own interrupt is both a CopierError and this
        raise
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        raise _ours(error, source, answers) from error
    except Exception as error:  # a stranger's template can make Copier and Jinja raise anything; all of it is its fault
        raise _ours(error, source, answers) from error
    finally:
        tempfile.tempdir = temporary
        if cache is None:
            del os.environ["COPIER_CACHE_DIR"]
        else:
            os.environ["COPIER_CACHE_DIR"] = cache


def _ours(error: Exception, source: Source, answers: Mapping[str, Any]) -> ScaffoldError:
    """The error to show for one that Copier raised."""
    said = str(error)
    if isinstance(error, copier.errors.UnsafeTemplateError):
        return UnsafeTemplate(
            said.splitlines()[0],
            why="tasks, migrations and extensions run commands on your machine, which takes your word.",
            fix="read the template; if you trust it, say so: scaffold new --trust, scaffold update --trust",
        )
    if isinstance(error, copier.errors.ForbiddenPathError):
        return UnsafeTemplate(
            f"The template reaches outside of its folder: {said.splitlines()[0]}.",
            why="a template may only read and write its own files.",
            fix="do not use this template; tell its author.",
        )
    if match := re.match(r"Validation error for question '(\w+)': (.*)", said, re.DOTALL):
        return _bad_answer(match[1], match[2], answers)
    if match := re.match(r"Invalid choice for '(\w+)': (.*)", said, re.DOTALL):
        return _bad_answer(match[1], match[2], answers)
    if match := re.match(r'Question "(\w+)" is required', said):
        return AnswerError(
            f"The template's question {match[1]!r} has no answer.",
            why="it has no default either.",
            fix=f"--set {match[1]}=...",
        )
    if isinstance(error, copier.errors.InvalidConfigFileError):
        return SourceError(
            f"The copier.yml of the template {source.name} cannot be read.",
            why="it is not YAML, or not a mapping of questions.",
            fix="tell its author: scaffold template lint shows where.",
        )
    if match := re.match(r"Could not convert (.*) to string", said, re.DOTALL):
        names = [name for name, value in answers.items() if str(value) == match[1]]
        return AnswerError(
            f"{names[0] if names else 'An answer'} cannot be {match[1][:80]}.",
            why="the template takes a text there, not a list or a mapping.",
            fix=f"--set {names[0] if names else 'NAME'}=...",
        )
    if "Unknown revision" in said:
        return SourceError(
            f"{source.name} has no version {source.reference}.",
            why="it is neither a tag, a branch nor a commit there.",
            fix=f"list its versions: git ls-remote --tags {source.url}",
        )
    return SourceError(
        f"The template {source.name} cannot be rendered: {said.strip() or type(error).__name__}",
        why="the template itself is broken, or made for another version of Copier.",
        fix="tell its author, or use another version of it: --template SOURCE@TAG",
    )


def _bad_answer(name: str, reason: str, answers: Mapping[str, Any]) -> AnswerError:
    choices = re.search(r"is not in \[(.*)\]", reason)
    allowed = re.findall(r"'([^']*)'", choices[1]) if choices else []
    guess = nearest(str(answers.get(name, "")), allowed) or (allowed[0] if allowed else "...")
    return AnswerError(
        f"{name} cannot be {answers[name]!r}." if name in answers else f"{name} has no usable answer.",
        why=f"{'choose one of: ' + ', '.join(allowed) if allowed else reason}.",
        fix=f"--set {name}={guess}",
    )


def _git_failed(error: ProcessExecutionError, source: Source) -> ScaffoldError:
    lines = [line for line in str(error.stderr or "").splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else str(error))
    if "No space left on device" in str(error.stderr):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return cannot_write(Path(tempfile.gettempdir()), full)
    return SourceError(
        f"git could not get the template {source.name}: {said.strip()}",
        why="no such repository or version, no access to it, or no network.",
        fix=f"see whether this works: git ls-remote {source.url.removeprefix('git+')}",
    )
