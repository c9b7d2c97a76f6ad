"""``scaffold doctor``: this machine and this project, one line for each thing that matters, and what to do about it.

It changes nothing. It starts git, and the project's own Python to ask what is installed there; nothing that a file of the
project names. Whatever cannot be examined is a line as well, never the end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from scaffold.doctor import environment, machine, onboarding, project
from scaffold.doctor.findings import Finding, guarded
from scaffold.doctor.steps import Surroundings, Verified, verify

PATIENCE = 60.0
"""Seconds that the project's Python may take to answer; importing torch from a network disk takes half of it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What belongs together."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found."""

    root: Path | None
    """The project; None outside of one."""

    sections: tuple[Section, ...]

    steps: tuple[Verified, ...]
    """Of the project's ONBOARDING.md; none without one."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, those of the steps' checks included."""
        of_steps = (finding for step in self.steps for finding in step.findings)
        return (*(finding for section in self.sections for finding in section.findings), *of_steps)

    @property
    def problems(self) -> int:
        """A step that is not done yet is none."""
        return sum(finding.level == "problem" for finding in self.findings)

    @property
    def next_step(self) -> Verified | None:
        """The first one that is not done."""
        return next((step for step in self.steps if step.state == "open"), None)


def examine(path: Path, *, online: bool = False, patience: float = PATIENCE) -> Report:
    """Look at this machine, and at the project that ``path`` lies in, if any.

    Args:
        online: Templates on other machines may be asked for news.
        patience: Seconds to wait for the project's Python.

    Raises:
        ProjectError: There is no such folder.
    """
    here = project.folder(path)
    root = project.root(here)
    variables = dict(os.environ)
    sections = [Section(title="Machine", findings=guarded("this machine", machine.examine, root or here))]
    verified: tuple[Verified, ...] = ()
    if root is None:
        return Report(root=None, sections=tuple(sections), steps=verified)
    python, findings = environment.examine(root, variables, patience)
    sections.append(Section(title="Python of the project", findings=findings))
    sections.append(Section(title="Project", findings=guarded("the project", project.examine, root)))
    sections.append(Section(title="Template", findings=guarded("the template", project.template, root, online)))
    text, unread = onboarding.read(root)
    if unread:
        sections.append(Section(title=onboarding.FILE, findings=(unread,)))
    surroundings = Surroundings(root=root, variables=variables, python=python)
    verified = tuple(verify(step, surroundings) for step in onboarding.parse(text))
    return Report(root=root, sections=tuple(sections), steps=verified)
