"""T7: the repository around the template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scaffold import fetching, git
from scaffold.linting.findings import Fault
from scaffold.linting.template import Template

_TEST = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_test)\.(?:py|sh|bats)$")
_LICENCE = re.compile(r"(?:LICEN[CS]E|COPYING|UNLICEN[CS]E)(?:[.-][^/]*)?|LICENSES/.*", re.IGNORECASE)
_HOME = re.compile(
    r"(?:(?<![\w.~}])/(?:home|Users)/|\b[A-Za-z]:\\{1,2}Users\\{1,2})(?P<user>[A-Za-z][\w.-]*)(?=[/\\\s\"']|$)"
)
_NOBODY = frozenset(
    [
        "user",
        "users",
        "you",
        "me",
        "name",
        "username",
        "runner",
        "vscode",
        "jovyan",
        "ubuntu",
        "public",
        "shared",
        "default",
        "app",
        "dev",
    ]
)


def no_own_tests(template: Template) -> Iterator[Fault]:
    tested = any(_TEST.search(name) for name in template.others)
    if not tested and not any("scaffold template test" in "\n".join(template.lines(name)) for name in _ci(template)):
        message = "nothing in the repository tests the template"
        fix = "run scaffold template test in its CI, or render and run a project in tests/ beside the template"
        yield Fault(file=template.config.file, message=message, fix=fix)


def _ci(template: Template) -> Iterator[str]:
    return (name for name in template.others if name.endswith((".yml", ".yaml", "Makefile", "justfile")))


def untagged(template: Template) -> Iterator[Fault]:
    if not (template.root / ".git").exists():
        message = "it is not a git repository, so projects cannot record which version they came from"
        fix = "git init && git add -A && git commit -m template && git tag v0.1.0"
        yield Fault(file=template.config.file, message=message, fix=fix)
    elif not _releases(template):
        message = "it has no release: projects follow each commit, and an update has no version to name"
        yield Fault(file=template.config.file, message=message, fix="scaffold template release, or git tag v0.1.0")


def tag_is_behind(template: Template) -> Iterator[Fault]:
    releases = _releases(template)
    if not releases:
        return
    changed = git.git("diff", "--name-only", "-z", "--relative", releases[-1], "--", ".", cwd=template.root).split("\0")
    new = git.git("ls-files", "-z", "--others", "--exclude-standard", cwd=template.root).split("\0")
    parts = {file.path for file in template.files} | {template.config.file}
    gone = {name for name in changed if template.target(name) is not None and not (template.root / name).exists()}
    differ = sorted(parts & {*changed, *new} | gone)
    if differ:
        more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
        message = f"{differ[0]}{more} changed after {releases[-1]}, and no project gets that before the next release"
        yield Fault(file=template.config.file, message=message, fix="scaffold template release")


def _releases(template: Template) -> list[str]:
    """Tags that are versions, oldest first."""
    if not (template.root / ".git").exists():
        return []
    found = []
    for name in git.attempt("tag", "--list", "--merged", "HEAD", cwd=template.root).stdout.splitlines():
        try:
            found.append((fetching.version_key(name), name))
        except ValueError:  # a tag, and no version
            continue
    return [name for _, name in sorted(found)]


def no_licence(template: Template) -> Iterator[Fault]:
    files = {*template.others, *(file.path for file in template.files)}
    if not any(_LICENCE.fullmatch(name) for name in files):
        message = "the repository has no licence, so nobody may use the template"
        yield Fault(file=template.config.file, message=message, fix="add a LICENSE file at its root")


def personal(template: Template) -> Iterator[Fault]:
    for name in (template.config.file, *(file.path for file in template.files)):
        for number, line in enumerate(template.lines(name), start=1):
            match = next((match for match in _HOME.finditer(line) if match["user"].lower() not in _NOBODY), None)
            if match:
                message = f"{match[0]} is somebody's own folder, and every project gets it"
                yield Fault(file=name, line=number, message=message, fix="ask for the path, or write it with ~")
