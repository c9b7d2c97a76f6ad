"""Rendering and updating in a process of their own, which a time limit or Ctrl-C can end.

Reads one JSON document from standard input and writes one to the file it names. What fails is said in it, and with exit
code 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaffold.catalog import Source
from scaffold.errors import ScaffoldError
from scaffold.git import git
from scaffold.interrupts import unwinding
from scaffold.rendering import render
from scaffold.settings import ANSWERS_FILE

_AUTHOR = ("-c", "user.name=scaffold", "-c", "user.email=scaffold@localhost")


def main() -> None:
    """Do what standard input says."""
    job = json.load(sys.stdin)
    try:
        with unwinding():
            told = _update(job) if job["update"] else _render(job)
    except ScaffoldError as error:
        told = {"error": type(error).__name__, "said": str(error)}
    Path(job["told"]).write_text(json.dumps(told, default=str), encoding="utf-8")
    sys.exit("error" in told)


def _render(job: Mapping[str, Any]) -> dict[str, Any]:
    """The template at one version, with these answers."""
    source = Source(name=job["name"], url=job["repository"], reference=job["version"], protocols="https:ssh:file")
    made = render(source, Path(job["project"]), answers=job["answers"], defaults={}, trust=job["trust"])
    return {"answers": dict(made.answers), "questions": list(made.questions)}


def _update(job: Mapping[str, Any]) -> dict[str, Any]:
    """A project made at one version, updated to another."""
    from scaffold.updating import update

    project = Path(job["project"])
    told = _render(job)
    if not (project / ANSWERS_FILE).is_file():
        return {"layer": True}
    git("init", "-q", "-b", "main", cwd=project)
    git("add", "-A", cwd=project)
    git(*_AUTHOR, "commit", "-q", "--no-gpg-sign", "-m", job["version"], cwd=project)
    updated = update(project, to=job["update"], answers=job["new_answers"], trust_tasks=job["trust"])
    return {**told, "conflicts": list(updated.conflicts)}


if __name__ == "__main__":
    main()
