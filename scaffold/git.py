"""Calling git, always with the same safe environment."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from scaffold.errors import GitError
from scaffold.settings import git_environment


def require_git() -> None:
    """Raises GitError when there is no git on the PATH."""
    if shutil.which("git") is None:
        raise GitError(
            "git was not found on the PATH.",
            why="templates are git repositories, and updates compare a project's history with theirs.",
            fix="install git (https://git-scm.com/downloads), then run the same command again.",
        )


UNDER_WAY = {
    "MERGE_HEAD": ("a merge", "git merge --continue, or git merge --abort"),
    "rebase-merge": ("a rebase", "git rebase --continue, or git rebase --abort"),
    "rebase-apply": ("a rebase or git am", "git rebase --continue, or git rebase --abort"),
    "CHERRY_PICK_HEAD": ("a cherry-pick", "git cherry-pick --continue, or git cherry-pick --abort"),
    "REVERT_HEAD": ("a revert", "git revert --continue, or git revert --abort"),
}
"""What git leaves in its folder while something is unfinished: its name, and what to do about it."""

NETWORK_SECONDS = 300.0
"""How long getting a template may take."""


def attempt(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
    seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run git and hand back whatever came of it. Text is as git wrote it: line ends stay, odd bytes survive.

    Args:
        seconds: After which it is ended, with exit code 124; default: never.
    """
    require_git()
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env={**git_environment(), **(environment or {})},
            input=None if stdin is None else _bytes(stdin),
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(["git", *arguments], 124, "", f"fatal: no answer within {seconds:g} s\n")
    return subprocess.CompletedProcess(done.args, done.returncode, _text(done.stdout), _text(done.stderr))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")


def git(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """Run git and return what it printed.

    Raises:
        GitError: git is missing or failed; its own words are in the message.
    """
    done = attempt(*arguments, cwd=cwd, environment=environment, stdin=stdin)
    if done.returncode:
        full = "No space left on device" in done.stderr
        raise GitError(
            f"git {command(arguments)} failed: {words(done)}",
            why="the disk is full." if full else "git could not do what was asked of it.",
            fix="free some space." if full else f"try it by hand, in {cwd}: git {shlex.join(arguments)}",
        )
    return done.stdout


def command(arguments: Sequence[str]) -> str:
    """The command among git's arguments: ``merge-tree`` of ``-c merge.renames=true merge-tree ...``."""
    at = 0
    while at < len(arguments) - 1 and arguments[at].startswith("-"):
        at += 2 if arguments[at] == "-c" else 1
    return arguments[at]


def words(done: subprocess.CompletedProcess[str]) -> str:
    """What git says went wrong, in its first line that does."""
    lines = [line for line in (*done.stderr.splitlines(), *done.stdout.splitlines()) if line.strip()]
    said = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "")
    return said.strip() or f"exit code {done.returncode}"


def version() -> tuple[int, ...]:
    """Of the git on the PATH: ``(2, 39, 5)``."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", attempt("--version", cwd=Path.cwd()).stdout)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)


def read_blob(name: str, *, cwd: Path, environment: Mapping[str, str] | None = None) -> bytes:
    """The content of an object, byte for byte.

    Raises:
        GitError: There is no such object.
    """
    done = subprocess.run(
        ["git", "cat-file", "blob", name],
        cwd=cwd,
        env={**git_environment(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise GitError(
            f"git has no object {name}.", why="the repository is damaged.", fix="see what is wrong with it: git fsck"
        )
    return done.stdout


def identity(repository: Path) -> None:
    """Raises GitError when a commit in ``repository`` would have no author."""
    for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        # useConfigOnly: without it git makes up user@hostname and calls that a name.
        if attempt("-c", "user.useConfigOnly=true", "var", who, cwd=repository).returncode:
            raise GitError(
                "git does not know your name and e-mail address.",
                why="a new project starts with a first commit, and a commit has an author.",
                fix='git config --global user.name "Your Name" && git config --global user.email you@example.com'
                " (or make the project without git: --no-git)",
            )


def author_name(folder: Path) -> dict[str, str]:
    """The answer ``author_name`` as git knows it, if it does."""
    name = attempt("config", "--get", "user.name", cwd=folder).stdout.strip()
    return {"author_name": name} if name else {}
