"""Where a run comes from: code, packages, machine. Found once, when it starts."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import torch

from treadle.version import __version__

LOCK_FILES = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "conda-lock.yml", "requirements.txt")
DIFF = "uncommitted.diff"
"""Its name beside the run."""

_SECONDS = 10.0
"""For each call of git, on a slow disk say."""
_MOST = 10 * 2**20
"""Bytes of a diff that are kept."""


class Lineage(TypedDict, total=False):
    """What made a checkpoint. What could not be found is not there."""

    versions: dict[str, str]
    """Of treadle, Python, torch, and numpy."""
    platform: str
    command: list[str]
    """As the process was started."""
    git_commit: str
    git_branch: str
    uncommitted: str
    """A hash of the changes that were not committed, new files included; missing if there were none."""
    lock_file: str
    """Its name and hash: ``"uv.lock 5d41402a..."``."""
    config: str
    """A hash of every setting, where the command line made the run."""
    data: dict[str, str]
    """A fingerprint of each data set, by the kind of loader it is for."""


def lineage_of(folder: Path) -> tuple[Lineage, str]:
    """That of a process that runs in ``folder``, and its uncommitted changes as a diff that ``git apply`` takes."""
    found = Lineage(versions=_versions(), platform=platform.platform(), command=list(sys.argv))
    if (lock := _lock_file(folder)) is not None:
        found["lock_file"] = lock
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return found, ""
    found["git_commit"] = commit.strip()
    if branch := _git(folder, "branch", "--show-current"):
        found["git_branch"] = branch.strip()
    diff = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    new = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", ":/") or ""
    if diff or new:
        found["uncommitted"] = _digest(diff.encode(), *_new_files(folder, new))
    listed = "".join(f"# not in git: {name}\n" for name in new.split("\0") if name)
    return found, (listed + diff)[:_MOST]


def _versions() -> dict[str, str]:
    versions = {"treadle": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    try:
        versions["numpy"] = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        pass
    return versions


def _lock_file(folder: Path) -> str | None:
    """That of the project around ``folder``: the nearest."""
    for parent in (folder, *folder.parents):
        for name in LOCK_FILES:
            path = parent / name
            try:
                if path.is_file():
                    return f"{name} {_digest(path.read_bytes())}"
            except OSError:
                continue
        if (parent / ".git").exists():
            break
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where there is no git, no repository, or no answer in time."""
    program = shutil.which("git")
    if program is None:
        return None
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    command = [program, "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=quiet, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None


def _new_files(folder: Path, names: str) -> list[bytes]:
    """The content of files that git doesn't know, small ones; of others name and size."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    contents: list[bytes] = []
    for name in sorted(filter(None, names.split("\0"))):
        path = Path((top or "").strip()) / name
        try:
            size = path.lstat().st_size
            whole = size <= 2**20 and path.is_file() and not path.is_symlink()
            contents += [os.fsencode(name), path.read_bytes() if whole else str(size).encode()]
        except OSError:
            contents.append(os.fsencode(name))
    return contents


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
