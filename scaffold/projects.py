"""A project: its folder, and the templates it was made from, as its answers files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaffold import git, settings
from scaffold.errors import ProjectError

_LAYER = re.compile(r"\.copier-answers\.([A-Za-z0-9][A-Za-z0-9_-]*)\.ya?ml")
_HASH = re.compile(r"^# Template commit: ([0-9a-f]{40,64})[ \t]*$", re.MULTILINE)
_MOST = 200_000
"""Bytes of an answers file: more is an attack, or a mistake."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """One template that a project was made from."""

    name: str
    """``base``, or the layer's."""

    answers_file: str
    """Relative to the project."""

    src_path: str
    """The template's source, as Copier records it."""

    commit: str
    """Its version, as Copier records it."""

    template_hash: str | None
    """Full hash of that version's commit, where the template writes it down."""

    answers: Mapping[str, Any]
    """What was answered to its questions."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder that a template was rendered into."""

    root: Path
    """Absolute."""

    layers: tuple[Applied, ...]
    """The base first, the others by name."""


def find(path: Path) -> Project:
    """The project at ``path``, or the one that ``path`` lies in.

    Raises:
        ProjectError: There is none, or its answers cannot be read.
    """
    start = path.expanduser().resolve()
    root = next((folder for folder in (start, *start.parents) if _is_root(folder)), None)
    if root is None:
        raise ProjectError(
            f"{path} is not in a project made by scaffold.",
            why=f"neither it nor a folder above it has a {settings.ANSWERS_FILE}.",
            fix="run this in such a project, or name its folder.",
        )
    if "\n" in str(root):
        raise ProjectError(
            f"The path of the project {str(root)!r} holds a line break.",
            why="git tells paths line by line, and would take it for two.",
            fix="give the folder another name.",
        )
    files = sorted(entry.name for entry in root.iterdir() if _LAYER.fullmatch(entry.name))
    return Project(root=root, layers=tuple(read(root, name) for name in (settings.ANSWERS_FILE, *files)))


def layer_name(answers_file: str) -> str | None:
    """``acme`` for ``.copier-answers.acme.yml``, ``base`` for the base's, None for any other name."""
    if answers_file == settings.ANSWERS_FILE:
        return "base"
    match = _LAYER.fullmatch(answers_file)
    return match[1] if match else None


def read(root: Path, name: str) -> Applied:
    """What the answers file ``name`` of a project says.

    Raises:
        ProjectError: It cannot be read, or lacks what an update needs.
    """
    file = root / name
    try:
        if file.stat().st_size > _MOST:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(root, name, str(error)) from None
    return parse(text, name, root)


def parse(text: str, name: str, root: Path) -> Applied:
    """The same of a text, for example the committed one."""
    if any(line.startswith(("<<<<<<<", ">>>>>>>")) for line in text.splitlines()):
        raise ProjectError(
            f"{root / name} holds conflict markers.",
            why="a merge was left in the middle, and its answers are not known.",
            fix="resolve them, then git add it. Or undo the last update: scaffold update --abort",
        )
    try:
        answers = _load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(root, name, str(error).splitlines()[0]) from None
    if not isinstance(answers, dict) or not isinstance(answers.get("_src_path"), str) or not answers["_src_path"]:
        raise _unreadable(root, name, "it should be a list of answers with a _src_path")
    commit = answers.get("_commit")
    if commit is not None and not (isinstance(commit, str | int | float) and str(commit).isprintable()):
        raise _unreadable(root, name, f"_commit is {commit!r}")
    if commit in (None, ""):
        raise ProjectError(
            f"{root / name} does not say which version of the template the project is at.",
            why="it was made from a template that is not in git, so there is nothing to compare with.",
            fix=f"add the line _commit: TAG to {name}, with the version it was made from.",
        )
    odd = [key for key in answers if not isinstance(key, str)]
    if odd:
        raise _unreadable(root, name, f"{odd[0]!r} is no name of a question")
    found = _HASH.search(text)
    return Applied(
        name=layer_name(name) or name,
        answers_file=name,
        src_path=answers["_src_path"],
        commit=str(commit),
        template_hash=found[1] if found else None,
        answers={key: value for key, value in answers.items() if not key.startswith("_")},
    )


def _load(text: str) -> Any:
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # before anything is built
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > 10:  # more of them can stand for more than any memory holds
            raise ValueError(f"it has more than {aliases - 1} YAML aliases (*)")
        if depth > 30:  # reading them takes time that grows with the square of it
            raise ValueError("it is nested too deeply")
    return yaml.safe_load(text)


def _is_root(folder: Path) -> bool:
    return (folder / settings.ANSWERS_FILE).is_file()


def _unreadable(root: Path, name: str, reason: str) -> ProjectError:
    tracked = git.attempt("cat-file", "-e", f"HEAD:./{name}", cwd=root).returncode == 0
    return ProjectError(
        f"{root / name} cannot be read: {reason}.",
        why="it names the template of this project and what was answered to it.",
        fix=(
            f"take it back from git: git -C {root} checkout HEAD -- {name}"
            if tracked
            else f"write it again, or make it anew: copier copy TEMPLATE {root}"
        ),
    )
