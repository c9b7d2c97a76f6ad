"""T5: GitHub workflows that the template writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scaffold.linting.findings import Fault
from scaffold.linting.template import Template

_PLACE = re.compile(r"(?:^|/)\.github/(?:workflows/[^/]+|(?:[^/]+/)*action)\.ya?ml$")
_USES = re.compile(r"""^\s*(?:-\s+)?uses:\s*["']?(?P<action>[^\s"'#@]+)(?:@(?P<version>[^\s"'#]+))?""")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"v?[0-9]+(?:\.[0-9]+)*(?:[-.+][A-Za-z0-9.-]+)?")
_FIX = "name the commit, all 40 digits, with the tag in a comment: uses: owner/action@SHA # v1.2.3"


@dataclass(frozen=True, kw_only=True)
class _Use:
    file: str
    line: int
    action: str
    version: str


def branch(template: Template) -> Iterator[Fault]:
    for use in _uses(template):
        if not _COMMIT.fullmatch(use.version) and not _TAG.fullmatch(use.version):
            what = f"{use.action}@{use.version} is a branch" if use.version else f"{use.action} names no version"
            message = f"{what}: whoever may push to it runs code in every project's CI"
            yield Fault(file=use.file, line=use.line, message=message, fix=_FIX)


def tag(template: Template) -> Iterator[Fault]:
    for use in _uses(template):
        if _TAG.fullmatch(use.version) and not _COMMIT.fullmatch(use.version) and not use.action.startswith("actions/"):
            message = f"{use.action}@{use.version} is a tag, which its owner can move to other code"
            yield Fault(file=use.file, line=use.line, message=message, fix=_FIX)


def _uses(template: Template) -> Iterator[_Use]:
    """Actions of other repositories, where the version is written out."""
    for file in template.files:
        if not _PLACE.search(file.plain_target):
            continue
        for number, line in enumerate((file.text or "").splitlines(), start=1):
            match = _USES.match(line)
            if match and not match["action"].startswith(("./", "docker://")) and "{{" not in match[0]:
                yield _Use(file=file.path, line=number, action=match["action"], version=match["version"] or "")
