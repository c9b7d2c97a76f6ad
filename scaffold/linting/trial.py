"""A trial rendering: what the default answers give, from a committed copy, so that the author's repository stays as it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaffold import catalog, git
from scaffold.errors import AnswerError, ScaffoldError
from scaffold.linting.config import Config, Question
from scaffold.placing import listing
from scaffold.rendering import render

# Left out of the trial: it runs nothing, and what they would do is no file of the template's.
_RUN = ("_tasks", "_migrations")
_AUTHOR = ("-c", "user.name=scaffold", "-c", "user.email=scaffold@localhost", "-c", "commit.gpgsign=false")
_EXAMPLES = {"int": 1, "float": 1.0, "bool": True, "json": [], "yaml": []}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it."""

    files: Mapping[str, bytes]
    """Path in the project to content, links left out."""
    failure: ScaffoldError | None = None
    """Why there are none, when that is the template's fault."""
    skipped: str | None = None
    """Why it wasn't tried, when that is no fault."""


def render_copy(root: Path, names: Iterable[str], config: Config, *, beneath: Mapping[str, bytes]) -> Outcome:
    """Render the files ``names`` of ``root`` as if they were committed.

    Args:
        beneath: What is in the project before, and is no part of the outcome unless the template writes over it.
    """
    if config.data.get("_jinja_extensions"):
        return Outcome(files={}, skipped="its Jinja extensions would run code here")
    with tempfile.TemporaryDirectory(prefix="scaffold-lint-") as scratch:
        copy, project = Path(scratch) / "template", Path(scratch) / "project"
        _copy(root, names, copy)
        (copy / config.file).unlink(missing_ok=True)  # it may be a link, and what it leads to is not ours
        text = (root / config.file).read_text(encoding="utf-8")
        (copy / config.file).write_text(_without_commands(text, config), encoding="utf-8")
        git.git("init", "-q", cwd=copy)
        git.git("add", "-A", "-f", ".", cwd=copy)
        git.git(*_AUTHOR, "commit", "-q", "-m", "as it stands", cwd=copy)
        project.mkdir()
        for name, content in beneath.items():
            (project / name).write_bytes(content)
        outcome = _render(catalog.find(str(copy)), project, _answers(config))
    written = {name: content for name, content in outcome.files.items() if beneath.get(name) != content}
    return replace(outcome, files=written)


def render_base() -> Outcome:
    """What the built-in template writes for its default answers."""
    with tempfile.TemporaryDirectory(prefix="scaffold-lint-") as scratch:
        return _render(catalog.built_in("base"), Path(scratch) / "project", {})


def _render(source: catalog.Source, folder: Path, answers: Mapping[str, Any]) -> Outcome:
    try:
        rendering = render(source, folder, answers=answers, defaults={})
    except AnswerError as error:
        return Outcome(files={}, skipped=f"its default answers don't suffice: {error.what}")
    except ScaffoldError as error:
        return Outcome(files={}, failure=error)
    paths = (name for name in listing(rendering.folder) if not (rendering.folder / name).is_symlink())
    return Outcome(files={name: (rendering.folder / name).read_bytes() for name in paths})


def _copy(root: Path, names: Iterable[str], copy: Path) -> None:
    copy.mkdir()
    for name in names:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target, follow_symlinks=False)


def _without_commands(text: str, config: Config) -> str:
    """copier.yml without what runs commands: Copier refuses it, and the rest is to be judged all the same."""
    lines = text.splitlines(keepends=True)
    starts = sorted(line for keys, (file, line) in config.places.items() if len(keys) == 1 and file == config.file)
    for key in _RUN:
        file, line = config.places.get((key,), ("", 0))
        if file == config.file and lines[line - 1].startswith(key):
            end = next((start for start in starts if start > line), len(lines) + 1)
            lines[line - 1 : end - 1] = ["\n"] * (end - line)
    return "".join(lines)


def _answers(config: Config) -> dict[str, Any]:
    """Something for each question that has no default."""
    return {
        name: _example(question)
        for name, question in config.questions.items()
        if question.asked and "default" not in question.details
    }


def _example(question: Question) -> Any:
    choices = question.details.get("choices")
    if isinstance(choices, dict):
        choices = list(choices.values())
    if isinstance(choices, list) and choices:
        first = choices[0]
        value = first.get("value") if isinstance(first, dict) else first[-1] if isinstance(first, list) else first
        return [value] if question.details.get("multiselect") else value
    return _EXAMPLES.get(str(question.details.get("type")), "example")
