"""All files or none: new ones appear together, old ones disappear together.

They are staged in a folder of the project's own file system. A stop or an error while they are moved undoes what was
moved; a signal is held back until it is over.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scaffold.errors import DestinationError, ProjectError
from scaffold.interrupts import undisturbed


def require_free(root: Path, files: Mapping[str, str]) -> None:
    """Raises ProjectError when one of ``files`` is there, or would lie out of the project."""
    for file in files:
        require_inside(root, file)
    if taken := [file for file in files if (root / file).exists() or (root / file).is_symlink()]:
        raise ProjectError(
            f"{taken[0]} is there already{f', and {len(taken) - 1} more' if len(taken) > 1 else ''}.",
            why="a component brings new files only, and nothing of yours is ever changed.",
            fix="choose another name.",
        )


def require_inside(root: Path, file: str) -> None:
    """Raises ProjectError when a link or a file on the way leads ``file`` out of the project."""
    folder = (root / file).parent
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ProjectError(
            f"{folder.relative_to(root)} is a link out of the project.",
            why=f"{file} would lie in {folder.resolve()}.",
            fix="make it a folder of the project.",
        )
    blocking = next((above for above in (root / file).parents if above.exists() and not above.is_dir()), None)
    if blocking:
        raise ProjectError(
            f"{blocking.relative_to(root)} is a file.",
            why=f"{file} belongs in a folder of that name.",
            fix="rename that file.",
        )


def write(root: Path, files: Mapping[str, str], in_place: Callable[[], None]) -> None:
    """Make these files, none of which is there, then call ``in_place``.

    Raises:
        DestinationError: The operating system refused; nothing was left behind.
    """
    with _staging(root) as staging:
        for file, text in files.items():
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).write_text(text, encoding="utf-8", newline="\n")
        with undisturbed():
            _move(staging, root, list(files))
            in_place()


def remove(root: Path, files: Sequence[str], in_place: Callable[[], None]) -> None:
    """Delete these files, and the folders that are empty then, and call ``in_place``.

    Raises:
        DestinationError: The operating system refused; all are still there.
    """
    with _staging(root) as staging, undisturbed():
        _move(root, staging, files)
        for file in files:
            _remove_empty(root / file, root)
        in_place()


def _move(start: Path, end: Path, files: Sequence[str]) -> None:
    moved: list[str] = []
    made: list[Path] = []
    try:
        for file in files:
            target = end / file
            made += [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # somebody was faster
                raise FileExistsError(errno.EEXIST, "it is there already", str(target))
            (start / file).rename(target)
            moved.append(file)
    except BaseException:
        for file in moved:
            (end / file).rename(start / file)
        for folder in sorted(made, key=lambda path: len(path.parts), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        raise


def _remove_empty(file: Path, root: Path) -> None:
    for folder in file.parents:
        if folder == root or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    folder: Path | None = None
    try:
        with undisturbed():
            folder = Path(tempfile.mkdtemp(prefix=".scaffold-component-", dir=root))
        yield folder
    except OSError as error:
        raise _refused(root, error) from error
    finally:
        if folder is not None:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def _refused(root: Path, error: OSError) -> DestinationError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DestinationError(
            f"The disk of {root} is full.",
            why="the files of a component come and go together; the project is as it was.",
            fix="free some space.",
        )
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    where = error.filename or root
    return DestinationError(
        f"Cannot write in {root}: {error.strerror or error} ({where}).",
        why="the files of a component come and go together; the project is as it was.",
        fix=f"make its folders writable: chmod -R u+w {root}" if denied else "see what is at that path.",
    )
