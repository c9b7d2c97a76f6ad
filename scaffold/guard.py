"""What a template may write. Templates come from strangers, and what they render is looked at before anyone uses it.

Copier already keeps rendering inside its folder and refuses tasks, migrations and extensions. On top of that, nothing
may touch ``.git`` in any spelling that some file system takes for it, point out of the project, bear a name that
another operating system cannot hold, or be absurdly large.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from scaffold.errors import UnsafeTemplate
from scaffold.settings import Limits

# Drawn as nothing and skipped by file systems such as HFS+, but not of Unicode's format category (Cf).
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_BARE_REPOSITORY = {"HEAD", "objects", "refs"}


def check_path(path: PurePosixPath) -> None:
    """Raises UnsafeTemplate when no template may write ``path``, a path relative to the project."""
    if path.is_absolute() or ".." in path.parts:
        raise _refused(path, "it leads out of the project")
    for name in path.parts:
        if _is_git(name):
            raise _refused(path, "only git may write in .git: a configuration or hook there would run as a command")
        if re.search(r'[\x00-\x1f\x7f<>:"\\|?*]', name) or name != name.rstrip(". "):
            raise _refused(path, "the name cannot exist on Windows, or means another file there")
        if _RESERVED.fullmatch(name):
            raise _refused(path, "the name is a device on Windows")


def check_tree(root: Path, limits: Limits) -> None:
    """Walk what was rendered into ``root`` and raise UnsafeTemplate at the first thing no template may write."""
    count = total = 0
    pending = [root]
    while pending:
        folder = pending.pop()
        seen: dict[str, str] = {}
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = PurePosixPath(Path(entry.path).relative_to(root).as_posix())
            check_path(path)
            twin = seen.setdefault(_folded(entry.name), entry.name)
            if twin != entry.name:
                raise _refused(path, f"it and {twin} are one file where capitals do not count")
            count += 1
            total += _size(entry, path, root, limits)
            if count > limits.files:
                raise _refused(path, f"the template writes more than {limits.files} files")
            if total > limits.total_bytes:
                raise _refused(path, f"the template writes more than {limits.total_bytes:,} bytes")
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
        if seen.keys() >= {_folded(name) for name in _BARE_REPOSITORY}:
            raise _refused(PurePosixPath(folder.relative_to(root).as_posix()), "it is a git repository in disguise")


def _size(entry: os.DirEntry[str], path: PurePosixPath, root: Path, limits: Limits) -> int:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        _check_link(Path(entry.path), path, root)
        return 0
    if stat.S_ISDIR(mode):
        return 0
    if not stat.S_ISREG(mode):
        raise _refused(path, "it is neither a file, a folder nor a link")
    size = entry.stat(follow_symlinks=False).st_size
    if size > limits.file_bytes:
        raise _refused(path, f"it has {size:,} bytes, more than {limits.file_bytes:,}")
    return size


def _check_link(link: Path, path: PurePosixPath, root: Path) -> None:
    target = link.readlink().as_posix()
    if _is_circle(link):
        raise _refused(path, f"it links to {target}, which leads back to it")
    # Looked at as text, before what it resolves to: a link to a link may change its meaning when the project moves.
    landing = PurePosixPath(os.path.normpath(path.parent / target.replace("\\", "/"))).parts
    windows = PureWindowsPath(target)
    inside = (
        not PurePosixPath(target).is_absolute() and not windows.drive and not windows.root and landing[:1] != ("..",)
    )
    if not inside or not link.resolve().is_relative_to(root.resolve()):
        raise _refused(path, f"it links to {target}, outside the project")
    if any(_is_git(name) for name in landing):
        raise _refused(path, f"it links to {target}, and only git may write there")


def _is_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _folded(name: str) -> str:
    """The name as the most forgiving file system sees it."""
    visible = (
        c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf" and c not in _INVISIBLE
    )
    return "".join(visible).casefold().rstrip(". ")


def _is_git(name: str) -> bool:
    stream = _folded(name).partition(":")[0].rstrip(". ")  # .git::$INDEX_ALLOCATION is .git on NTFS
    parts = stream.split("\\")
    return any(part == ".git" or re.fullmatch(r"\.?git~[0-9]+", part) for part in parts)


def _refused(path: PurePosixPath, reason: str) -> UnsafeTemplate:
    return UnsafeTemplate(
        f"The template tried to write {str(path)!r}.",
        why=f"{reason}.",
        fix="do not use this template; tell its author.",
    )
