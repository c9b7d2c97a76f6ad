"""What a component may be called: one name, which becomes a file, a class and a config."""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from dataclasses import dataclass

from scaffold.errors import AnswerError

LONGEST = 40
"""Characters; the lines that hold a name then fit into 120."""

_NEEDED = {"jsonargparse", "numpy", "pytest", "rich", "scaffold", "sklearn", "src", "tests", "torch", "treadle", "yaml"}
_IN_OUR_FILES = {"Any", "Callback", "Classifier", "Literal", "Logger", "Mapping", "ModelCheckpoint", "Path", "Points"}


@dataclass(frozen=True, kw_only=True)
class Name:
    """A component's name in its two spellings."""

    snake: str
    """Of its files and its module: ``my_model``."""

    camel: str
    """Of its class: ``MyModel``."""


def parse(typed: str) -> Name:
    """The name that ``typed`` means, for a new component.

    Raises:
        AnswerError: It cannot be the name of a module and a class, or would hide one.
    """
    name = spelled(typed)
    if reason := _why_not(name):
        better = f"my-{name.snake.replace('_', '-')}"[:25].rstrip("-")
        raise AnswerError(f"{typed!r} cannot be the name of a component.", why=reason, fix=f"call it {better}.")
    return name


def spelled(typed: str) -> Name:
    """The same for one that is there: ``my-model``, ``MyModel`` and ``my_model`` are one name.

    Raises:
        AnswerError: It cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", typed):
        good = re.sub(r"[^A-Za-z0-9]+", "-", typed).strip("-0123456789")
        raise AnswerError(
            f"{typed!r} cannot be the name of a component.",
            why="it becomes a Python module and a class: a letter first, then a-z, 0-9, - and _.",
            fix=f"call it {good}." if good else "call it my-model, for example.",
        )
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-", "_", typed)
    snake = re.sub(r"_+", "_", words).strip("_").lower()
    return Name(snake=snake, camel="".join(word[:1].upper() + word[1:] for word in snake.split("_")))


def _why_not(name: Name) -> str | None:
    if len(name.snake) > LONGEST:
        return f"it has {len(name.snake)} characters; {LONGEST} is the most."
    if keyword.iskeyword(name.snake) or keyword.iskeyword(name.camel) or keyword.issoftkeyword(name.snake):
        return "it is a word of Python's own."
    if name.camel.startswith("Test"):
        return "pytest would take it for a test."
    if name.snake in sys.stdlib_module_names | _NEEDED:
        return f"{name.snake} is a module that programs import; two of a name are mistaken for each other."
    if hasattr(builtins, name.snake) or hasattr(builtins, name.camel):
        return "it would hide what Python calls by that name."
    if name.camel in _IN_OUR_FILES:
        return f"{name.camel} is imported in its own files, under that name."
    return None
