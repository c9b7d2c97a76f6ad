"""The project's own Python: which one it is, and what it says about itself."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from scaffold import git
from scaffold.doctor.findings import Finding, note, problem
from scaffold.errors import GitError, ProjectError

_PROGRAMS = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed package."""

    name: str
    version: str
    requires: tuple[str, ...]
    origin: str | None
    """Contents of its direct_url.json: where it came from, when not from an index."""
    entry_points: tuple[Mapping[str, str], ...]
    """Those in treadle's groups, each with group, name and value."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter that answered."""

    executable: Path
    version: str
    virtual: bool
    """It is a virtual environment's."""
    distributions: Mapping[str, Distribution]
    """By normalized name."""
    markers: Mapping[str, str]
    """What requirements may depend on, as it is there."""

    def find(self, name: str) -> Distribution | None:
        return self.distributions.get(canonicalize_name(name))


@dataclass(frozen=True, kw_only=True)
class Unmet:
    """A requirement that is not fulfilled."""

    requirement: str
    found: str | None
    """The version that is there instead."""
    wanted_by: str | None
    """The package that needs it; None when the project itself does."""

    def __str__(self) -> str:
        by = f" for {self.wanted_by}" if self.wanted_by else ""
        return f"{self.requirement}{by}" + (f" (there is {self.found})" if self.found else "")


def choose(root: Path, variables: Mapping[str, str]) -> tuple[Path | None, list[Finding]]:
    """The interpreter that runs the project, and what is odd about it."""
    findings = []
    own = root / ".venv"
    if active := variables.get("VIRTUAL_ENV"):
        if executable := _in(Path(active)):
            if own.is_dir() and own.resolve() != Path(active).resolve():
                findings.append(note(f"{active} is active, though the project has a .venv of its own", _activate(own)))
            return executable, findings
        findings.append(
            problem(f"VIRTUAL_ENV is {active}, where there is no Python", "deactivate, or: unset VIRTUAL_ENV")
        )
    if executable := _in(own):
        if _tracked(root):
            findings.append(
                problem(
                    ".venv is part of the repository: its Python may be anybody's program, and was not started",
                    "git rm -r --cached .venv, delete it, then: python -m venv .venv",
                )
            )
            return None, findings
        if not active:
            findings.append(note("the project's .venv is not active in this shell", _activate(own)))
        return executable, findings
    if executable := _in(Path(conda)) if (conda := variables.get("CONDA_PREFIX")) else None:
        return executable, findings
    findings.append(
        note(
            "no virtual environment, neither active nor in .venv: what scaffold runs with is looked at",
            f"python -m venv .venv, then {_activate(own)}",
        )
    )
    return Path(sys.executable), findings


def ask(executable: Path, variables: Mapping[str, str], seconds: float) -> Python:
    """What ``executable`` says about itself.

    Raises:
        ProjectError: It cannot be started, takes too long, or answers nonsense.
    """
    said = run(executable, "inventory.py", variables, seconds)
    found: dict[str, Distribution] = {}
    for name, facts in said["distributions"].items():
        found.setdefault(
            canonicalize_name(name),
            Distribution(
                name=name,
                version=str(facts["version"]),
                requires=tuple(facts["requires"]),
                origin=facts["origin"],
                entry_points=tuple(facts["entry_points"]),
            ),
        )
    return Python(
        executable=executable,
        version=said["version"],
        virtual=said["virtual"],
        distributions=found,
        markers=said["markers"],
    )


def run(executable: Path, program: str, variables: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Run one of the programs beside this file there; its last line is JSON.

    Raises:
        ProjectError: No answer.
    """
    source = (_PROGRAMS / program).read_text(encoding="utf-8")
    what = f"{executable} was asked for its {program.removesuffix('.py')}, and"
    fix = f"try: {executable} --version. If it is broken: python -m venv --clear .venv, then install the project again."
    # Files, not pipes: a grandchild that lives on would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryDirectory() as nowhere:
        try:
            process = subprocess.Popen(
                [str(executable), "-c", source],
                cwd=nowhere,  # modules of the project must not stand in for Python's own
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            raise ProjectError(f"{what} cannot be started: {error.strerror}.", why="", fix=fix) from None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProjectError(
                f"{what} did not answer within {seconds:g} s.", why="", fix="try again with a longer --timeout."
            ) from None
        finally:
            _end(process)
        out.seek(0)
        err.seek(0)
        lines = out.read().decode(errors="replace").splitlines() or [""]
        said = (err.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        answer = None
    if code or not isinstance(answer, dict):
        raise ProjectError(f"{what} failed: {said if code else 'it printed no answer'}", why="", fix=fix)
    return answer


def unmet(requirements: Iterable[str], python: Python) -> Iterator[Unmet]:
    """Which of ``requirements``, and of what they require in turn, are not fulfilled there.

    Raises:
        InvalidRequirement: One of the first is none.
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[Requirement, str | None, tuple[str, ...]]]
    waiting = [(Requirement(text), None, ("",)) for text in requirements]
    while waiting:
        wanted, by, extras = waiting.pop(0)
        markers = dict(python.markers)
        if wanted.marker and not any(wanted.marker.evaluate({**markers, "extra": extra}) for extra in extras):
            continue
        there = python.find(wanted.name)
        short = f"{wanted.name}{wanted.specifier}"
        if there is None:
            yield Unmet(requirement=short, found=None, wanted_by=by)
            continue
        if not fits(there.version, wanted.specifier):
            yield Unmet(requirement=short, found=there.version, wanted_by=by)
            continue
        if (key := (canonicalize_name(wanted.name), frozenset(wanted.extras))) in seen:
            continue
        seen.add(key)
        for text in there.requires:
            with contextlib.suppress(InvalidRequirement):  # somebody's old metadata; pip took it
                waiting.append((Requirement(text), there.name, ("", *wanted.extras)))


def fits(version: str, specifier: SpecifierSet) -> bool:
    """Whether ``version``, a pre-release or not, is one that ``specifier`` allows."""
    try:
        return specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return not specifier


def _in(environment: Path) -> Path | None:
    places = (environment / "bin" / "python", environment / "Scripts" / "python.exe", environment / "python.exe")
    return next((place for place in places if place.is_file()), None)


def _activate(environment: Path) -> str:
    if (environment / "Scripts").is_dir():
        return f'"{environment}\\Scripts\\activate"'
    return f"source {shlex.quote(str(environment))}/bin/activate"


def _tracked(root: Path) -> bool:
    try:
        return bool(git.attempt("ls-files", "--", ".venv", cwd=root).stdout)
    except GitError:  # no git here, so nothing that came by it either
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, and on POSIX all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
    process.wait()
