"""The same for many projects: each in a process of its own, several at once, so that one that fails stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scaffold import settings
from scaffold.errors import ProjectError

Status = Literal["current", "behind", "drifted", "updated", "conflicts", "failed"]

MEANING: Mapping[Status, str] = {
    "current": "at the newest version",
    "behind": "there is a newer version",
    "drifted": "files that the template manages were changed",
    "updated": "merged clean; to be committed",
    "conflicts": "waits for somebody to resolve conflicts",
    "failed": "could not be looked at or updated",
}
"""From good news to bad."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one project."""

    path: Path
    status: Status
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of each of its layers, as the project has it now."""
    before: Mapping[str, str] = field(default_factory=dict)
    """The same before an update."""
    newest: Mapping[str, str] = field(default_factory=dict)
    """The same of their templates."""
    changed: tuple[str, ...] = ()
    """Files that an update changed, without conflicts."""
    conflicts: tuple[str, ...] = ()
    drifted: tuple[str, ...] = ()
    error: Mapping[str, str] = field(default_factory=dict)
    """``what``, ``why`` and ``fix``."""


def gather(places: Iterable[Path]) -> list[Path]:
    """The projects that ``places`` mean: each is one, or a folder of some.

    Raises:
        ProjectError: One of them is neither.
    """
    found: dict[Path, None] = {}
    for place in places:
        root = place.expanduser().resolve()
        if (root / settings.ANSWERS_FILE).is_file():
            inside = [root]
        elif root.is_dir():
            inside = sorted(folder for folder in root.iterdir() if (folder / settings.ANSWERS_FILE).is_file())
        else:
            inside = []
        if not inside:
            raise ProjectError(
                f"{place} is no project made by scaffold, and holds none.",
                why=f"neither it nor a folder in it has a {settings.ANSWERS_FILE}.",
                fix="name projects, or folders of projects: scaffold fleet check ~/work",
            )
        found |= dict.fromkeys(inside)
    return list(found)


def check(
    projects: Sequence[Path], *, drift: bool, jobs: int | None = None, seen: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Look at each, in order.

    Args:
        jobs: How many at once; default: one per CPU.
        seen: Told of each as it is done.
    """
    return _each(projects, lambda path: _checked(path, drift), jobs, seen)


def update(
    projects: Sequence[Path],
    *,
    to: str | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
    seen: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Update each, as :func:`scaffold.updating.update` does, then look whether its managed files have drifted.

    Args:
        jobs: How many at once; default: one per CPU.
        seen: Told of each as it is done.
    """
    return _each(projects, lambda path: _updated(path, to, dry_run), jobs, seen)


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """Of the worst: 1 failed, 3 conflicts, 2 behind or drifted, 0."""
    found = {status for outcome in outcomes for status in (outcome.status, "drifted" if outcome.drifted else "current")}
    return 1 if "failed" in found else 3 if "conflicts" in found else 2 if found & {"behind", "drifted"} else 0


def steps(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Of each layer, two versions: those that an update led from and to, else the project's and its template's newest."""
    return {
        name: (
            (outcome.before[name], version) if name in outcome.before else (version, outcome.newest.get(name, version))
        )
        for name, version in outcome.versions.items()
    }


def counts(outcomes: Iterable[Outcome]) -> dict[Status, int]:
    """How many of each status, those that there are, from good news to bad."""
    counted = Counter(outcome.status for outcome in outcomes)
    return {status: counted[status] for status in MEANING if counted[status]}


def also_drifted(outcomes: Iterable[Outcome]) -> int:
    """How many have drifted and are counted as something else, since that is to be done first."""
    return sum(bool(outcome.drifted) and outcome.status != "drifted" for outcome in outcomes)


def _each(
    projects: Sequence[Path],
    work: Callable[[Path], Outcome],
    jobs: int | None,
    seen: Callable[[Outcome], None] | None,
) -> list[Outcome]:
    outcomes = []
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count() or 1) as pool:
        for outcome in pool.map(work, projects):
            if seen:
                seen(outcome)
            outcomes.append(outcome)
    return outcomes


def _checked(path: Path, drift: bool) -> Outcome:
    code, told = _scaffold("check", str(path), "--json", *(["--drift"] if drift else []))
    if code not in (0, 2) or "error" in told:
        return _failed(path, told)
    drifted = tuple(each["path"] for each in told["drifted"])
    return Outcome(
        path=path,
        status=(
            "conflicts" if told["unresolved"] else "behind" if told["behind"] else "drifted" if drifted else "current"
        ),
        versions={layer["name"]: layer["version"] for layer in told["layers"]},
        newest={layer["name"]: layer["newest"] for layer in told["layers"]},
        drifted=drifted,
        conflicts=tuple(told["unresolved"]),
    )


def _updated(path: Path, to: str | None, dry_run: bool) -> Outcome:
    options = [*(["--to", to] if to else []), *(["--stat"] if dry_run else [])]
    code, told = _scaffold("update", str(path), "--json", *options)
    if code not in (0, 3) or "error" in told:
        before = _checked(path, drift=False)
        return before if before.status == "conflicts" else _failed(path, told)  # of the update before
    conflicts = tuple(told["conflicts"])
    changed = tuple(change["path"] for change in told["changes"] if change["path"] not in conflicts)
    drifted: tuple[str, ...] = ()
    if not conflicts:
        code, looked = _scaffold("check", str(path), "--json", "--drift")
        drifted = tuple(each["path"] for each in looked.get("drifted", ()))
    done: Status = "behind" if dry_run else "updated"
    return Outcome(
        path=path,
        status="conflicts" if conflicts else done if changed else "drifted" if drifted else "current",
        versions=told["from"] if dry_run else told["to"],
        before={} if dry_run else told["from"],
        newest=told["to"],
        changed=changed,
        conflicts=conflicts,
        drifted=drifted,
    )


def _failed(path: Path, told: Mapping[str, Any]) -> Outcome:
    return Outcome(path=path, status="failed", error=told["error"])


def _scaffold(*arguments: str) -> tuple[int, dict[str, Any]]:
    # In a folder of nobody's: `python -m` takes modules from the folder it is called in, which may be a stranger's.
    done = subprocess.run(
        [sys.executable, "-m", "scaffold", *arguments],
        cwd=Path(__file__).parents[1] if settings.source_checkout() else Path(sys.prefix),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        what = f"scaffold {arguments[0]} ended without an answer: {last}"
        told = {"error": {"what": what, "why": "it crashed, or was killed.", "fix": f"scaffold {' '.join(arguments)}"}}
    return done.returncode, told
