"""A release of a template: everything is looked at first, then branch and tag move together. Nothing is ever pushed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from scaffold.authoring import changelog, repository
from scaffold.authoring.suggesting import Suggestion, suggest
from scaffold.bundle import Version, version_of
from scaffold.console import quoted
from scaffold.errors import TemplateError
from scaffold.fetching import version_key

Lint = Callable[[Path], Sequence[str]]
"""The errors of the template at a root, a line each; none when all is well."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """A release, or with ``dry`` what would be one."""

    root: Path
    tag: str
    commit: str | None
    """The tagged commit; None when ``dry``."""
    message: str
    """Of the tag: its title and what the changelog says."""
    push: tuple[str, ...]
    """What to type so that others get it."""
    suggestion: Suggestion
    notes: tuple[str, ...]
    dry: bool


def release(
    path: Path,
    version: str,
    *,
    lint: Lint,
    more: str | None = None,
    dry: bool = False,
    day: date | None = None,
    in_place: Callable[[str], None] | None = None,
) -> Released:
    """Make the tag ``vVERSION``, and before it the commit that dates the changelog.

    Args:
        path: In the template.
        lint: Looks for mistakes that no project should get.
        more: One more line for the changelog.
        dry: Do all but that.
        day: Default: today.
        in_place: Told the tag as soon as it is there.

    Raises:
        ScaffoldError: And everything is as it was.
    """
    number = _number(version)
    root = repository.find(path)
    branch = repository.branch(root)
    repository.identity(root)
    upstream, notes = repository.upstream(root, branch)
    _check_is_new(number, repository.tags(root), upstream)
    text = ".".join(map(str, number))
    entry = changelog.entry(repository.read_changelog(root), text, day or date.today(), more=_line(more))
    _check_lint(lint(root))
    suggestion = suggest(root)
    if suggestion.since and number < (version_of(f"v{suggestion.version}") or ()):
        notes.append(f"{suggestion.version} or newer would tell more: {'; '.join(suggestion.reasons)}.")
    tag, message = f"v{text}", f"Release {text}\n\n{entry.notes}"
    commit = None
    if not dry:
        commit = repository.write(root, branch, tag, message, entry.text)
        if in_place:
            in_place(tag)
    return Released(
        root=root,
        tag=tag,
        commit=commit,
        message=message,
        push=_push(root, branch, tag, upstream),
        suggestion=suggestion,
        notes=tuple(notes),
        dry=dry,
    )


def _push(root: Path, branch: str, tag: str, upstream: repository.Upstream | None) -> tuple[str, ...]:
    if upstream:
        return (quoted("git", "push", "--atomic", upstream.remote, branch, tag),)
    remotes = repository.remotes(root)
    adding = () if remotes else ("git remote add origin URL",)
    return (*adding, quoted("git", "push", "-u", "--atomic", remotes[0] if remotes else "origin", branch, tag))


def _number(version: str) -> Version:
    number = version_of(version if version.startswith("v") else f"v{version}")
    if number is None or any(part != "0" and part.startswith("0") for part in version.lstrip("v").split(".")):
        raise TemplateError(
            f"{version!r} is not a version.",
            why="releases are numbered with three whole numbers, so that scaffold and Copier know which is newer.",
            fix="write it like 1.2.3; scaffold template release alone says which one would fit.",
        )
    return number


def _line(more: str | None) -> str | None:
    if more is not None and (not more.strip() or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", more)):
        raise TemplateError(
            f"--notes {more!r} is not a text.",
            why="it becomes a line of the changelog.",
            fix="give some words, or leave it out when the changelog has them.",
        )
    return more


def _check_is_new(number: Version, here: Iterable[str], upstream: repository.Upstream | None) -> None:
    text = ".".join(map(str, number))
    there = upstream.tags if upstream else frozenset()
    for tag in sorted({*here, *there}, key=len):
        if tag.removeprefix("v") == text:
            where = "" if tag in here else f" on {upstream.remote}" if upstream else ""
            raise TemplateError(
                f"The tag {tag} exists already{where}.",
                why="a release never changes once it is out: projects may have been made from it.",
                fix="choose a newer version; scaffold template release alone suggests one.",
            )
    newer = [tag for tag in {*here, *there} if (_released(tag) or ()) > number]
    if newer:
        newest = max(newer, key=lambda tag: _released(tag) or ())
        raise TemplateError(
            f"{text} is not newer than {newest}.",
            why="projects are brought to the newest version, and would never see this one.",
            fix="choose a newer version; scaffold template release alone suggests one.",
        )


def _released(tag: str) -> Version | None:
    """The number in a tag that Copier takes for a version; ``v2.0.0rc1`` comes before 2.0.0, so it has none of its own."""
    try:
        read = version_key(tag)
    except ValueError:
        return None
    release: Version = tuple(read.release) + (0,) * (3 - len(read.release))
    return release


def _check_lint(errors: Sequence[str]) -> None:
    if errors:
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        raise TemplateError(
            f"The template has mistakes: {'; '.join(errors[:3])}{more}.",
            why="every project would get them.",
            fix="scaffold template lint shows them all, and what to do about each.",
        )
