"""Whether the steps of an ONBOARDING.md are done. A check names a thing to look for; none of them runs anything it names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from scaffold import git
from scaffold.doctor.findings import Finding, guarded, note, ok, problem
from scaffold.doctor.onboarding import FILE, Check, Step
from scaffold.doctor.python import Python, fits, unmet
from scaffold.errors import GitError, nearest

EXAMPLES = {
    "command": "command git",
    "python": "python >=3.10",
    "installed": "installed treadle>=0.1",
    "env": "env MLFLOW_TRACKING_URI",
    "file": "file runs/*/metrics.csv",
    "git-identity": "git-identity",
    "plugin": "plugin acme-policies",
    "remote": "remote origin",
}
"""Every check there is."""

State = Literal["done", "open", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What checks look at."""

    root: Path
    variables: Mapping[str, str]
    """The environment's."""
    python: Python | None
    """The project's; None when it does not answer."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A step, and what its checks say: ok, a note for what is not there yet, a problem for no check at all."""

    step: Step
    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        """``unchecked``: it names nothing to look for."""
        if not self.findings:
            return "unchecked"
        return "done" if all(finding.level == "ok" for finding in self.findings) else "open"


def verify(step: Step, there: Surroundings) -> Verified:
    """Look for what ``step`` names."""
    findings = [finding for check in step.checks for finding in guarded(f"{check}", _look, check, there)]
    return Verified(step=step, findings=tuple(findings))


def _look(check: Check, there: Surroundings) -> list[Finding]:
    argument = check.argument
    match check.name:
        case "command" if re.fullmatch(r"[\w.+-]+", argument):
            found = shutil.which(argument, path=there.variables.get("PATH", ""))
            return [ok(f"{argument} is at {found}") if found else note(f"{argument} is not on the PATH")]
        case "env" if re.fullmatch(r"\w+", argument):
            # Never its value: it may be a secret.
            return [ok(f"{argument} is set") if there.variables.get(argument) else note(f"{argument} is not set")]
        case "file" if argument:
            return [_file(argument, there.root)]
        case "git-identity" if not argument:
            return [_identity(there.root)]
        case "remote" if re.fullmatch(r"[\w./-]+", argument):
            names = git.attempt("remote", cwd=there.root).stdout.split()
            known = argument in names
            return [ok(f"git has the remote {argument}") if known else note(f"git has no remote {argument}")]
        case "python" | "installed" | "plugin" if argument:
            return [_in_python(check, there.python)]
    return [_malformed(check)]


def _file(pattern: str, root: Path) -> Finding:
    parts = pattern.replace("\\", "/").split("/")
    if pattern.startswith(("/", "~")) or ":" in parts[0] or ".." in parts or "**" in pattern:
        return problem(
            f"{FILE}: file {pattern} reaches out of the project, or through all of it",
            f"name a file below the project, with * for parts of a name: {EXAMPLES['file']}",
        )
    found = next(iter(root.glob("/".join(parts))), None)
    return ok(f"{found.relative_to(root).as_posix()} is there") if found else note(f"there is no {pattern}")


def _identity(root: Path) -> Finding:
    try:
        git.identity(root)
    except GitError as error:
        return note(error.what.rstrip("."))
    return ok("git knows your name and e-mail address")


def _in_python(check: Check, it: Python | None) -> Finding:
    if it is None:
        return note(f"{check}: the project's Python does not answer")
    try:
        match check.name:
            case "python":
                fitting = fits(it.version, SpecifierSet(check.argument))
                return (ok if fitting else note)(f"Python {it.version}{'' if fitting else f' is not {check.argument}'}")
            case "installed":
                return _installed(Requirement(check.argument), it)
    except (InvalidSpecifier, InvalidRequirement):
        return _malformed(check)
    return _plugin(check.argument, it)


def _installed(wanted: Requirement, it: Python) -> Finding:
    there = it.find(wanted.name)
    # What it needs in turn is looked at elsewhere, where it is told once; but an extra is what it brings.
    by = (None, there.name) if there and wanted.extras else (None,)
    if missing := next((one for one in unmet([str(wanted)], it) if one.wanted_by in by), None):
        return note(f"not installed: {missing}")
    return ok(f"{wanted.name} {there.version} is installed" if there else f"{wanted} is not for this machine")


def _plugin(name: str, it: Python) -> Finding:
    """An entry point, the distribution that brings it, or the module it is in, whichever a team calls it by."""
    wanted = canonicalize_name(name)
    for one in it.distributions.values():
        for point in one.entry_points:
            names = (point["name"], one.name, re.split(r"[.:]", point["value"])[0])
            if wanted in map(canonicalize_name, names):
                return ok(f"{name} is installed: {one.name} {one.version} ({point['group']})")
    return note(f"no plugin {name} is installed: no entry point of treadle's groups has that name")


def _malformed(check: Check) -> Finding:
    if check.name in EXAMPLES:
        return problem(
            f"{FILE}: {check} is not a check as {check.name} takes it", f"write it like: {EXAMPLES[check.name]}"
        )
    guess = nearest(check.name, EXAMPLES)
    return problem(
        f"{FILE}: there is no check {check.name!r}",
        f"did you mean {guess}, as in: {EXAMPLES[guess]}" if guess else f"there are: {', '.join(EXAMPLES)}",
    )
