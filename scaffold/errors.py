"""Everything a user can do wrong, as one tree. The command line prints these; a caller of the library catches them.

ScaffoldError
├── DestinationError    the folder to write to
├── AnswerError         what was answered to the template's questions
├── SourceError         where the template comes from
├── UnsafeTemplate      what the template tried to do
├── GitError            git is missing, not set up, or failed
├── ProjectError        there is no project here, or not one in a usable state
├── UpdateError         the project cannot be brought to another version
├── TemplateError       what an author's template lacks
└── Declined            the user said no at the summary
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class ScaffoldError(Exception):
    """Base class of every error raised on purpose; ``str(error)`` is fit to show.

    Args:
        what: The fact, with the offending value in it.
        why: The rule that was broken, in the user's terms.
        fix: One thing to type, first.
    """

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(f"{what}\n  why: {why}\n  fix: {fix}")
        self.what, self.why, self.fix = what, why, fix


class DestinationError(ScaffoldError):
    """The folder to write to is taken, or cannot be written."""


class AnswerError(ScaffoldError):
    """An answer is missing, unknown or invalid."""


class SourceError(ScaffoldError):
    """There is no usable template at the given name, URL or path."""


class UnsafeTemplate(ScaffoldError):
    """The template tried to do what no template may."""


class GitError(ScaffoldError):
    """git is missing, not set up, or failed."""


class ProjectError(ScaffoldError):
    """There is no project made by scaffold here, or its state is not one to work on."""


class TemplateError(ScaffoldError):
    """A template that its author works on is not as it should be."""


class UpdateError(ScaffoldError):
    """The project cannot be brought to another version of its template."""


class Declined(ScaffoldError):
    """The user looked at the summary and said no."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, if any is close."""
    matches = get_close_matches(word, list(words), n=1, cutoff=0.5)
    return matches[0] if matches else None


def some(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


QUESTIONS_WITH_A_FLAG = ("package_name", "description", "author_name", "ci")


def as_flag(question: str, value: object) -> str:
    """What to type to answer ``question``."""
    text = shlex.quote(str(value))
    if question in QUESTIONS_WITH_A_FLAG:
        return f"--{question.replace('_', '-')} {text}"
    return f"--set {question}={text}"


def cannot_write(folder: Path, error: OSError) -> DestinationError:
    """What an ``OSError`` met while writing in ``folder`` means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DestinationError(
            f"The disk of {folder} is full.",
            why="the project could not be written whole; what had been written is removed again.",
            fix="free some space, or choose a folder on another disk.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DestinationError(
            f"Cannot write in {folder}: {error.strerror}.",
            why="the project is built in a temporary folder there, then renamed into place.",
            fix="choose a folder you may write in, for example under your home.",
        )
    return DestinationError(
        f"Writing in {folder} failed: {error.strerror or error}.",
        why="the operating system refused; nothing was left behind.",
        fix="choose another folder.",
    )
