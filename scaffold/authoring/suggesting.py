"""How large is the step to the next release: by what it means for projects that were made from the last one.

major  it takes an answer away from them, or asks for one that nobody can guess
minor  it brings questions or files
patch  anything else
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaffold import git
from scaffold.catalog import Source
from scaffold.errors import SourceError
from scaffold.fetching import Template, fetch, version_key

Size = Literal["major", "minor", "patch"]

FIRST = "0.1.0"


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The next version, and why that one."""

    size: Size | None
    """None before the first release."""
    version: str
    since: str | None
    """The tag it was compared with."""
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Change:
    size: Size
    text: str


def suggest(root: Path) -> Suggestion:
    """Compare the newest release of the template in ``root`` with its last commit.

    Raises:
        SourceError: That commit's copier.yml cannot be read.
    """
    now = fetch(Source(name=root.name, url=str(root), reference="HEAD", protocols="file")).at("HEAD")
    if not now.releases:
        return Suggestion(size=None, version=FIRST, since=None, reasons=("it is the first release",))
    tag = now.releases[-1]
    before = now.at(tag)
    questions = _questions(now.config)  # read first: a mistake in it is told, one in a release of long ago is not
    try:
        changes = list(_changes(before, now, questions))
    except SourceError as error:
        return Suggestion(
            size="patch", version=_next(tag, "patch"), since=tag, reasons=(f"nobody can tell: {error.what}",)
        )
    size: Size = next((size for size in ("major", "minor") if any(c.size == size for c in changes)), "patch")
    reasons = [change.text for change in changes if change.size == size] or [_small(before, now)]
    return Suggestion(size=size, version=_next(tag, size), since=tag, reasons=tuple(reasons))


def _next(tag: str, size: Size) -> str:
    """Below 1.0.0 nothing is promised yet: there, what would be major is minor."""
    last = version_key(tag)
    major, minor, patch = last.major, last.minor, last.micro
    if last.is_prerelease:
        return f"{major}.{minor}.{patch}"
    if size == "major" and major:
        return f"{major + 1}.0.0"
    if size == "patch":
        return f"{major}.{minor}.{patch + 1}"
    return f"{major}.{minor + 1}.0"


def _changes(before: Template, now: Template, questions: Mapping[str, Mapping[str, Any]]) -> Iterator[_Change]:
    if before.answers_file != now.answers_file:
        text = f"answers are kept in {now.answers_file} instead of {before.answers_file}"
        yield _Change(size="major", text=text)
    yield from _of_questions(_questions(before.config), questions)
    old, new = _files(before), _files(now)
    yield from (_Change(size="minor", text=f"the file {file} is new") for file in sorted(new - old))
    yield from (_Change(size="patch", text=f"the file {file} is gone") for file in sorted(old - new))


def _of_questions(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> Iterator[_Change]:
    added = {name: details for name, details in now.items() if name not in before}
    for name, details in before.items():
        if name not in now:
            heir = next((other for other in added if _alike(details, added[other])), None)
            text = f"was renamed to {heir}" if heir else "is gone"
            yield _Change(size="major", text=f"the question {name} {text}, and projects have answered it")
        else:
            yield from _of_question(name, details, now[name])
    for name, details in added.items():
        if "default" in details:
            yield _Change(size="minor", text=f"the question {name} is new")
        else:
            text = f"the question {name} is new and has no default, so no update goes through by itself"
            yield _Change(size="major", text=text)


def _of_question(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[_Change]:
    old, new = _choices(before), _choices(now)
    for choice in old or ():
        if new is not None and choice not in new:
            yield _Change(size="major", text=f"the question {name} has no choice {choice} any more")
    if new and old is None and "choices" not in before:
        yield _Change(
            size="major", text=f"the question {name} takes only {', '.join(new)} now, and took anything before"
        )
    for choice in new or ():
        if old is not None and choice not in old:
            yield _Change(size="minor", text=f"the question {name} has the new choice {choice}")
    if (was := _type(before)) != (is_now := _type(now)):
        yield _Change(size="major", text=f"the question {name} takes a {is_now} instead of a {was}")
    if "default" in before and "default" not in now:
        yield _Change(size="major", text=f"the question {name} has no default any more")


def _small(before: Template, now: Template) -> str:
    parts = ("copier.yml", "copier.yaml", _subdirectory(now) or ".")
    same = git.attempt("diff", "--quiet", before.commit, now.commit, "--", *parts, cwd=now.mirror).returncode == 0
    return "nothing changed of what projects get" if same else "only contents of files changed"


def _questions(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those that a project answers, in their long form."""
    long = {
        str(name): details if isinstance(details, dict) else {"default": details}
        for name, details in config.items()
        if not str(name).startswith("_")
    }
    return {name: details for name, details in long.items() if str(details.get("when", True)).lower() != "false"}


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Two questions that ask the same, as far as one can tell."""
    said = bool(one.get("help")) and one.get("help") == other.get("help")
    return said or (bool(one.get("choices")) and one.get("choices") == other.get("choices"))


def _type(details: Mapping[str, Any]) -> str:
    """Without one, Copier takes the default's."""
    default = details.get("default")
    guessed = type(default).__name__ if isinstance(default, bool | int | float | str) else "yaml"
    return str(details.get("type", guessed))


def _choices(details: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The values to choose from; None where there are none, or where they are computed."""
    given = details.get("choices")
    if isinstance(given, dict):
        values = list(given.values())
    elif isinstance(given, list):
        values = [item[1] if isinstance(item, list) and len(item) == 2 else item for item in given]
    else:
        return None
    return tuple(str(item.get("value") if isinstance(item, dict) else item) for item in values)


def _files(template: Template) -> set[str]:
    """What is written into a project, as far as names tell."""
    below = _subdirectory(template)
    listed = git.git("ls-tree", "-r", "-z", "--name-only", template.commit, cwd=template.mirror).split("\0")
    return {name.removeprefix(f"{below}/") for name in listed if name and (not below or name.startswith(f"{below}/"))}


def _subdirectory(template: Template) -> str:
    """The folder of the template's files; empty for all of the repository."""
    return str(template.config.get("_subdirectory") or "").partition("{")[0].strip("/")
