"""Where a run comes from: code, packages, machine. Found once, when it starts."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import TypedDict

import torch

from treadle.version import __version__

LOCK_FILES = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "conda-lock.yml", "requirements.txt")
DIFF = "uncommitted.diff"
"""Its name beside the run."""

_SECRET = re.compile(r"(api|secret|private|access)?[-_.]?key|token|secret|passw|credential", re.IGNORECASE)
_WRITTEN_BY_RUNS = re.compile(r"(^|/)(version_\d+/|\.lock$)|\.ckpt(\.damaged\d*)?$")
_SECONDS = 10.0
"""For each call of git, on a slow disk say."""
_MOST = 10 * 2**20
"""Characters of a diff that are kept, and bytes of new files that are read: data may lie among them."""


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


@cache  # the code of a process is what it was when that started
def lineage_of(folder: Path) -> tuple[Lineage, str]:
    """That of a process that runs in ``folder``, and its uncommitted changes as a diff that ``git apply`` takes."""
    found = Lineage(versions=_versions(), platform=platform.platform(), command=without_secrets(sys.argv))
    if (lock := _lock_file(folder)) is not None:
        found["lock_file"] = lock
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return found, ""
    found["git_commit"] = commit.strip()
    if branch := _git(folder, "branch", "--show-current"):
        found["git_branch"] = branch.strip()
    diff = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    listed = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", ":/") or ""
    # Without what runs write, this one's lock among it: to close a second opening of that would end the lock.
    new = [name for name in listed.split("\0") if name and not _WRITTEN_BY_RUNS.search(name)]
    if diff or new:
        found["uncommitted"] = _digest_of(chain([diff.encode(errors="surrogateescape")], _new_files(folder, new)))
    named = "".join(f"# not in git: {name!r}\n" for name in new[:1000])
    return found, named + (diff if len(diff) <= _MOST else f"# changes of {len(diff):,} characters are not kept\n")


def _versions() -> dict[str, str]:
    versions = {"treadle": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    with suppress(metadata.PackageNotFoundError):
        versions["numpy"] = metadata.version("numpy")
    return versions


def _lock_file(folder: Path) -> str | None:
    """That of the project around ``folder``: the nearest."""
    for parent in (folder, *folder.parents):
        for name in LOCK_FILES:
            path = parent / name
            try:
                if path.is_file():
                    return f"{name} {_digest_of([path.read_bytes()])}"
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
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook's GIT_DIR
    quiet = {**own, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    command = [program, "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=quiet, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None


def _new_files(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The content of files that git doesn't know, up to a bound; behind it their names, sizes and dates."""
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or "").strip())
    left = _MOST
    for name in sorted(names):
        yield os.fsencode(name)
        try:
            found = (top / name).lstat()
            left -= found.st_size
            if left >= 0 and S_ISREG(found.st_mode):
                yield (top / name).read_bytes()
            else:
                yield f"{found.st_size} {found.st_mtime_ns}".encode()
        except OSError:
            continue


def without_secrets(command: Sequence[str]) -> list[str]:
    """``command``, with what a name like ``api_key`` or ``token`` is set to left out.

    >>> without_secrets(["fit.py", "--logger.api_key=abc", "--token", "def", "--data.batch_size", "8"])
    ['fit.py', '--logger.api_key=***', '--token', '***', '--data.batch_size', '8']
    """
    shown, hides = [], False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and _SECRET.search(name) is not None
        shown.append(f"{name}=***" if secret and equals else "***" if hides and not word.startswith("-") else word)
        hides = secret and not equals
    return shown


def _digest_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
