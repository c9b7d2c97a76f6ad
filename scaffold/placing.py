"""A new folder, whole or not at all: made beside its place, then put there by one rename."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaffold import git
from scaffold.errors import DestinationError, some
from scaffold.interrupts import undisturbed


def destination(path: Path) -> Path:
    """The absolute path to create.

    Raises:
        DestinationError: Something is there already, other than a git repository without any file.
    """
    target = path.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise DestinationError(
            f"{path} is a file.",
            why="a project is a folder.",
            fix=f"choose another name, for example {path}-project",
        )
    names = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if is_own_repository(target):
        if names == [".git"] and _is_clean(target) and not _has_files(target):
            return target
        if names == [".git"] or _is_clean(target):
            raise _has_history(path, target, names)
    if names:
        raise DestinationError(
            f"{path} is not empty: it holds {some(names)}.",
            why="the template's files would mix with yours, and scaffold never deletes.",
            fix=f"choose a new folder, for example {path / 'project' if path.name in ('', '.', '..') else f'{path}-2'}",
        )
    ancestor = nearest_existing(target)
    if not ancestor.is_dir():
        raise DestinationError(
            f"{ancestor} is a file, so {path} cannot be made in it.",
            why="a project is a folder in a folder.",
            fix="choose another path.",
        )
    return target


def is_own_repository(target: Path) -> bool:
    """``target`` is the root of a git work tree."""
    if not (target / ".git").exists():
        return False
    top = git.attempt("rev-parse", "--show-toplevel", cwd=target)
    return top.returncode == 0 and Path(top.stdout.rstrip("\n")).resolve() == target.resolve()


def _is_clean(target: Path) -> bool:
    state = git.attempt("status", "--porcelain", cwd=target)
    return state.returncode == 0 and not state.stdout


def _has_files(target: Path) -> bool:
    """In its last commit."""
    return bool(git.attempt("ls-tree", "--name-only", "HEAD", cwd=target).stdout)


def _has_history(path: Path, target: Path, names: list[str]) -> DestinationError:
    files = [name for name in names if name != ".git"]
    what = f"it holds {some(files)}" if files else "its last commit has files, or some are to be committed"
    at = "" if target == Path.cwd() else f"-C {shlex.quote(str(path))} "
    return DestinationError(
        f"{path} is a git repository that is not empty: {what}.",
        why="the template's files would mix with yours. A repository without any file would be filled.",
        fix=f'git {at}rm -rq . && git {at}commit -m "Make room", then the same command again. Git keeps what was there.',
    )


def nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A temporary folder from which one rename leads to ``target``: beside it, or in it when it is there, empty."""
    with temporary(nearest_existing(target), f".{target.name}.scaffold-") as folder:
        yield folder


@contextmanager
def temporary(parent: Path, prefix: str) -> Iterator[Path]:
    folder: Path | None = None
    try:
        with undisturbed():
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        yield folder
    finally:
        if folder is not None:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def initialise(repository: Path) -> None:
    """An empty repository beside the rendering, never in it while a template may still write there."""
    repository.mkdir()
    branch = git.attempt("config", "--get", "init.defaultBranch", cwd=repository).stdout.strip() or "main"
    git.git("init", "-q", "-b", branch, cwd=repository)
    git.identity(repository)


def commit(rendered: Path, message: str, *, repository: Path, staging: Path) -> str:
    """The files of ``rendered`` as a commit on top of what the repository of others has, which stays as it is."""
    there = {"GIT_INDEX_FILE": str(staging / "index")}
    at = ("--git-dir", str(repository / ".git"), "--work-tree", str(rendered))
    git.git(*at, "add", "-A", cwd=rendered, environment=there)
    tree = git.git(*at, "write-tree", cwd=rendered, environment=there).strip()
    last = git.attempt("rev-parse", "-q", "--verify", "HEAD", cwd=repository).stdout.strip()
    parent = ("-p", last) if last else ()
    # Not signed: a pass phrase could be asked for, and the user signs from the next commit on.
    return git.git("commit-tree", "--no-gpg-sign", *parent, "-m", message, tree, cwd=repository).strip()


def fill(rendered: Path, target: Path, commit: str | None) -> None:
    """Put the files into a repository that has none, at ``commit`` of it."""
    last = git.attempt("rev-parse", "-q", "--verify", "HEAD", cwd=target).stdout.strip()
    if commit:
        git.git("update-ref", "-m", "scaffold new", "HEAD", commit, cwd=target)
    try:
        put_in_place(rendered, target)
    except OSError:
        if commit:
            git.git("update-ref", *(("HEAD", last) if last else ("-d", "HEAD")), cwd=target)
        raise
    if commit:
        git.git("reset", "-q", cwd=target)  # the index; no file


def enclosing(target: Path) -> Path | None:
    """The repository that ``target`` lies in, unless it ignores it."""
    parent = nearest_existing(target.parent)
    top = git.attempt("rev-parse", "--show-toplevel", cwd=parent)
    if top.returncode or git.attempt("check-ignore", "-q", str(target), cwd=parent).returncode == 0:
        return None
    return Path(top.stdout.strip())


def put_in_place(rendered: Path, target: Path) -> None:
    if target.is_dir():
        # Not renamed over: it may be the user's working directory, or a mount.
        _move_children(rendered, target)
        return
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        rendered.rename(target)
    except OSError:
        for folder in made:
            if folder.is_dir():
                folder.rmdir()
        raise


def _move_children(rendered: Path, target: Path) -> None:
    moved: list[str] = []
    try:
        for entry in sorted(rendered.iterdir()):
            entry.rename(target / entry.name)
            moved.append(entry.name)
    except OSError:
        for name in moved:
            (target / name).rename(rendered / name)
        raise


def listing(folder: Path) -> tuple[str, ...]:
    """Files and links below ``folder``, relative to it, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in paths))


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
