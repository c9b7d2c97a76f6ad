"""Answers that were written down: a file for one project, or a preset, which is such a file with a short name.

Both are YAML mappings from a question's name to its answer. A preset says what it is for in a comment, in its first line:

    # description: As the platform group starts a service.
    ci: gitlab

They come from strangers as templates do, so they are read as plain data, in a process with limits.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaffold import confined, git, settings
from scaffold.errors import AnswerError, UnsafeTemplate, nearest
from scaffold.fetching import Template

FOLDER = "presets"
"""Of a template's repository, and of the user's settings."""

FLAGS = "--set"
"""The origin of answers on the command line."""

MOST_BYTES = 1_000_000
MOST_ALIASES = 20
DEEPEST = 20
SECONDS = 5.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DESCRIPTION = re.compile(r"\A#\s*description:[ \t]*(.*)")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers and where they stand."""

    origin: str
    """As the user knows it: a file's path, a preset's name."""
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset that there is."""

    name: str
    description: str
    """One line; empty when it doesn't say."""
    place: str
    """``template``, or the path of the user's own file."""


def read(path: Path) -> Answers:
    """The answers in the file ``path``.

    Raises:
        AnswerError: It cannot be read, or holds something else.
    """
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise AnswerError(
            f"Cannot read the answers in {path}: {error.strerror}.",
            why="they are read before anything is made.",
            fix="check the path.",
        ) from None
    return Answers(origin=str(path), values=parse(text, str(path)))


def find(text: str, template: Template) -> Answers:
    """The preset that ``--preset TEXT`` means: a file, or a name in the template or else in the user's settings.

    Raises:
        AnswerError: There is none, or it holds no answers.
    """
    if os.sep in text or text.endswith((".yml", ".yaml")) or not _NAME.fullmatch(text):
        return read(Path(text))
    if (content := _in_template(text, template)) is not None:
        origin = f"preset {text} of {template.source.name}"
        return Answers(origin=origin, values=parse(content, origin))
    own = settings.config_folder() / FOLDER / f"{text}.yml"
    if own.is_file():
        return read(own)
    known = [preset.name for preset in available(template)]
    guess = nearest(text, known)
    raise AnswerError(
        f"There is no preset called {text!r}.",
        why=(
            f"there {'is' if len(known) == 1 else 'are'}: {', '.join(known)}."
            if known
            else f"neither the template nor {own.parent} has any."
        ),
        fix=f"--preset {guess}" if guess else "name a file with answers, like --preset ./answers.yml",
    )


def available(template: Template) -> tuple[Preset, ...]:
    """The presets of a template and the user's own, by name. A template's hides the user's of the same name."""
    found: dict[str, Preset] = {}
    mine = settings.config_folder() / FOLDER
    for path in sorted(mine.glob("*.yml")):
        with path.open("rb") as file:
            head = file.read(1_000)
        found[path.stem] = Preset(name=path.stem, description=describe(head), place=str(path))
    for name in _names_in(template):
        content = _in_template(name, template) or b""
        found[name] = Preset(name=name, description=describe(content), place="template")
    return tuple(found[name] for name in sorted(found))


def describe(content: bytes) -> str:
    """What the first line of a preset says it is for."""
    match = _DESCRIPTION.match(content.decode("utf-8", errors="replace"))
    return match[1].strip() if match else ""


def check_names(given: Iterable[Answers], questions: Iterable[str]) -> None:
    """Raises AnswerError when a template with these ``questions`` has none of a name in ``given``."""
    known = tuple(questions)
    for answers in given:
        for name, value in answers.values.items():
            if name in known:
                continue
            guess, flag = nearest(name, known), answers.origin == FLAGS
            better = f"--set {guess}={value}" if flag else f"write {guess}: instead of {name}: there."
            raise AnswerError(
                (
                    f"--set {name}=...: the template has no question called {name!r}."
                    if flag
                    else f"{answers.origin}: the template has no question called {name!r}."
                ),
                why=f"its questions are: {', '.join(known) or 'none'}.",
                fix=better if guess else "leave it out.",
            )


def merged(given: Iterable[Answers]) -> dict[str, Any]:
    """One mapping; the first answers win."""
    values: dict[str, Any] = {}
    for answers in given:
        values = {**answers.values, **values}
    return values


def _in_template(name: str, template: Template) -> bytes | None:
    """The preset's content, if there is such a file of a sane size."""
    if template.draft:
        path = template.mirror / FOLDER / f"{name}.yml"
        usable = path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_BYTES
        return path.read_bytes() if usable else None
    place = f"{template.commit}:{FOLDER}/{name}.yml"
    size = git.attempt("cat-file", "-s", place, cwd=template.mirror)
    if size.returncode or int(size.stdout) > MOST_BYTES:
        return None
    return git.read_blob(place, cwd=template.mirror)


def _names_in(template: Template) -> list[str]:
    if template.draft:
        files = [path.name for path in (template.mirror / FOLDER).glob("*.yml")]
    else:
        listed = git.attempt("ls-tree", "--name-only", template.commit, f"{FOLDER}/", cwd=template.mirror).stdout
        files = [line.removeprefix(f"{FOLDER}/") for line in listed.splitlines() if line.endswith(".yml")]
    return [name for file in files if _NAME.fullmatch(name := file.removesuffix(".yml"))]


def parse(content: bytes, origin: str) -> Mapping[str, Any]:
    """The answers in ``content``. What Copier notes down for itself, like ``_commit``, is left out.

    Raises:
        AnswerError: It holds something else, or is made to exhaust this machine.
    """
    if len(content) > MOST_BYTES:
        raise _unreadable(origin, f"it is larger than {MOST_BYTES:,} bytes", "answers are a few lines")
    try:
        values: dict[str, Any] = confined.run(_parse, content, origin, seconds=SECONDS)
    except (UnsafeTemplate, RuntimeError):
        raise _unreadable(origin, "it takes too long or too much memory", "answers are a few lines") from None
    return values


def _parse(content: bytes, origin: str) -> dict[str, Any]:
    rule = "each line is the name of a question, a colon and its answer"
    try:
        loader = _Loader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise _unreadable(origin, "it is not a YAML mapping", rule)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise _unreadable(origin, f"it answers {key.value!r} twice", rule)
            seen.add(key.value)
        values = loader.construct_document(node)
        json.dumps(values, default=str)  # as it goes back to where it was called
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise _unreadable(origin, f"it is not plain YAML: {error.problem}{line}", rule) from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _unreadable(origin, f"it is not plain YAML: {str(error).splitlines()[0]}", rule) from None
    return {name: value for name, value in values.items() if not name.startswith("_")}


class _Loader(yaml.SafeLoader):
    """Plain data, of a sane shape."""

    aliases = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise yaml.YAMLError(f"more than {MOST_ALIASES} aliases")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != "tag:yaml.org,2002:str":
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise yaml.YAMLError(f"{shown} is a key, and keys are words")
        return node


def _unreadable(origin: str, what: str, why: str) -> AnswerError:
    return AnswerError(f"{origin} cannot be used: {what}.", why=f"{why}.", fix="write it like this: ci: github")
