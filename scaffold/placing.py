"""A new folder, whole or not at all: made beside its place, then put there by one rename."""

from __future__ import annotations

import os
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
        DestinationError: Something is there already.
    """
    target = path.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise DestinationError(
            f"{path} is a file.",
            why="a project is a folder.",
            fix=f"choose another name, for example {path}-project",
        )
    if target.is_dir() and (names := sorted(entry.name for entry in target.iterdir())):
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


def enclosing(target: Path) -> Path | None:
    """The repository that ``target`` lies in, unless it ignores it."""
    parent = nearest_existing(target)
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
