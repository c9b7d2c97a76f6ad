"""What a template asks and brings, as its copier.yml says, for people who choose one. All texts are fit to print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scaffold import git
from scaffold.catalog.entries import plain

_NEEDS_TRUST = {"_tasks": "tasks", "_migrations": "migrations", "_jinja_extensions": "Jinja extensions"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One that a user may answer."""

    name: str
    help: str
    default: str
    """As its author wrote it: it may be an expression. Empty where there is none."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Description:
    """One version of a template."""

    questions: tuple[Question, ...]
    presets: tuple[str, ...]
    """Names of the answers files that it brings."""
    managed: tuple[str, ...]
    """Patterns of the files that projects should leave as they are."""
    needs_trust: tuple[str, ...]
    """What of it would run commands, which scaffold does not: plain Copier does, with --trust."""
    layer: str | None
    """The name of the layer that it is; None for one to start a project from."""


def describe(config: Mapping[str, Any], repository: Path, commit: str | None) -> Description:
    """What there is to know before using a template.

    Args:
        config: Its copier.yml.
        repository: One that has the commit.
        commit: None for the work tree of that repository.
    """
    told = config.get("_scaffold")
    managed = told.get("managed") if isinstance(told, dict) else None
    answers_file = PurePosixPath(str(config.get("_answers_file") or ".copier-answers.yml")).name.split(".")
    return Description(
        questions=tuple(_questions(config)),
        presets=tuple(sorted(_presets(repository, commit))),
        managed=tuple(map(plain, managed)) if isinstance(managed, list) else (),
        needs_trust=tuple(what for key, what in _NEEDS_TRUST.items() if config.get(key)),
        layer=plain(answers_file[2]) if len(answers_file) == 4 and answers_file[1] == "copier-answers" else None,
    )


def _questions(config: Mapping[str, Any]) -> Iterator[Question]:
    for name, details in config.items():
        if str(name).startswith("_"):
            continue
        if not isinstance(details, dict):  # the short form: a name and its default
            details = {"default": details}
        if details.get("when", True) is False or details.get("ask", True) is False:
            continue
        secret, choices = details.get("secret"), details.get("choices")
        yield Question(
            name=plain(name),
            help=plain(details.get("help") or ""),
            default="" if secret or details.get("default") is None else plain(details["default"]),
            choices=(
                tuple(map(plain, choices.values() if isinstance(choices, dict) else choices or ()))
                if isinstance(choices, dict | list)
                else ()
            ),
        )


def _presets(repository: Path, commit: str | None) -> Iterator[str]:
    if commit:
        listed = git.attempt("ls-tree", "-z", "--name-only", commit, "--", "presets/", cwd=repository)
    else:
        listed = git.attempt("ls-files", "-z", "-c", "-o", "--exclude-standard", "--", "presets/", cwd=repository)
    for path in map(PurePosixPath, filter(None, listed.stdout.split("\0"))):
        if len(path.parts) == 2 and path.suffix in (".yml", ".yaml"):
            yield plain(path.stem)
