"""git, the Python that runs scaffold, and the disk."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from scaffold import __version__, git, settings
from scaffold.doctor.findings import Finding, guarded, note, ok, problem
from scaffold.errors import GitError

_NEWER_GIT = (
    ((2, 31), "a repository's hooks stay off while scaffold works, and a built-in template needs no network"),
    ((2, 38), "updates merge in memory; before, they take a temporary worktree, which is slower"),
)
_LITTLE, _TOO_LITTLE = 8e9, 1e9
"""Bytes: what torch with CUDA takes to install, and what a run's checkpoints soon fill."""


def examine(folder: Path) -> Iterator[Finding]:
    """Everything that holds for every project here; ``folder`` says on which disk, and whose git settings."""
    yield from guarded("git", _git, folder)
    yield from guarded("scaffold", _scaffold)
    yield from guarded("the disk", _disk, folder)


def _git(folder: Path) -> Iterator[Finding]:
    git.require_git()
    said = git.git("--version", cwd=folder).strip()
    match = re.search(r"(\d+)\.(\d+)", said)
    if match is None:
        yield problem(f"git does not tell its version: {said!r}", "install git (https://git-scm.com/downloads).")
        return
    version = (int(match[1]), int(match[2]))
    missing = [(first, what) for first, what in _NEWER_GIT if version < first]
    if not missing:
        yield ok(said)
    for (major, minor), what in missing:
        yield note(f"{said}; since {major}.{minor}, {what}.", f"install git {major}.{minor} or newer when you can.")
    try:
        git.identity(folder)
    except GitError as error:
        yield problem(error.what, error.fix.partition(" (or ")[0])
    else:
        name, mail = (git.attempt("config", f"user.{key}", cwd=folder).stdout.strip() for key in ("name", "email"))
        yield ok(f"git knows you as {name} <{mail}>" if name and mail else "git knows your name and e-mail address")


def _scaffold() -> Iterator[Finding]:
    yield ok(f"scaffold {__version__}, run by Python {platform.python_version()}")
    try:
        version = metadata.version("copier")
    except metadata.PackageNotFoundError:
        yield problem("copier is not installed", f"pip install -U {settings.DISTRIBUTION}")
        return
    try:
        declared = [Requirement(text) for text in metadata.requires(settings.DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:  # run from a checkout
        declared = []
    wanted = next((one.specifier for one in declared if one.name == "copier"), None)
    if wanted is not None and version not in wanted:
        yield problem(f"copier {version}, but scaffold needs {wanted}", f"pip install 'copier{wanted}'")
    else:
        yield ok(f"copier {version}")


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    said = f"{free / 1e9:,.1f} GB free where {folder} lies"
    if free < _TOO_LITTLE:
        yield problem(said, "free some space: checkpoints of a run need it.")
    elif free < _LITTLE:
        yield note(said, "free some space before you install torch with CUDA, which takes about 8 GB.")
    else:
        yield ok(said)
