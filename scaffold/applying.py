"""A merged tree put into a project's work tree, all of it or nothing, and taken back again.

What is about to change is looked at first. Files are then written with an index of our own beside the project's, which it
replaces at the end in one step: whatever is killed before leaves no lock behind. A journal in the git folder says what is
going on, so that the next call can finish it or undo it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scaffold import git
from scaffold.errors import GitError, UpdateError, some
from scaffold.journal import Journal, own_index, own_lock
from scaffold.merging import Merged, Repository, as_scaffold, graft, project_tree

Kind = Literal["added", "changed", "deleted", "renamed", "conflict"]

KEPT = "refs/scaffold/aborted"
"""Where what the user wrote between an update and its --abort is kept."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happens to one file."""

    path: str
    """In the project."""

    kind: Kind

    before: str | None = None
    """Of a renamed file: its old path."""

    reason: str = ""
    """Of a conflict: what kind."""


def require_ready(repository: Repository) -> None:
    """Finish an update that was killed just before its end.

    Raises:
        UpdateError: Something else is under way in the repository, or an update that was killed in its middle.
    """
    _recover(repository)
    for name, (what, fix) in git.UNDER_WAY.items():
        if (repository.git_dir / name).exists():
            raise UpdateError(
                f"{repository.root} is in the middle of {what}.", why="an update would get mixed up with it.", fix=fix
            )
    if (lock := repository.git_dir / "index.lock").exists():
        raise UpdateError(
            f"Another git command is at work in {repository.root}, or was killed there.",
            why=f"it holds {lock}.",
            fix=f"wait until it is done. If none is running: rm {lock}",
        )
    unmerged = repository.git("ls-files", "-u", "-z", "--", ".")
    if files := sorted({entry.partition("\t")[2] for entry in unmerged.split("\0") if entry}):
        raise UpdateError(
            f"{repository.root} has unresolved conflicts: {some(files)}.",
            why="an update would get mixed up with them.",
            fix="resolve them, then: git add -A && git commit"
            + (". Or undo the last update: scaffold update --abort" if Journal.read(repository) else ""),
        )


def changes(repository: Repository, merged: Merged) -> tuple[Change, ...]:
    """What applying ``merged`` would do to the project's files, by path."""
    entries = repository.git(
        "diff-tree", "-r", "-z", "--name-status", "--find-renames", project_tree(repository), merged.tree
    ).split("\0")
    found: dict[str, Change] = {}
    at = 0
    while at < len(entries) - 1:
        letter = entries[at][:1]
        if letter == "R":
            before, path = entries[at + 1 : at + 3]
            found[path] = Change(path=path, kind="renamed", before=before)
            at += 3
        else:
            path = entries[at + 1]
            kinds: dict[str, Kind] = {"A": "added", "D": "deleted"}
            found[path] = Change(path=path, kind=kinds.get(letter, "changed"))
            at += 2
    for path in merged.conflicts:
        known = found.get(path, Change(path=path, kind="conflict"))
        found[path] = replace(known, kind="conflict", reason=merged.reasons.get(path, ""))
    return tuple(found[path] for path in sorted(found))


def difference(repository: Repository, merged: Merged, *, stat: bool) -> str:
    """The same as a patch, or as git's summary of one."""
    how = ["--stat=100", "--summary"] if stat else ["--patch"]
    plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    return repository.git("diff-tree", "-r", "--find-renames", *plain, *how, project_tree(repository), merged.tree)


def obstacle(repository: Repository, planned: Sequence[Change]) -> UpdateError | None:
    """Why :func:`apply` would refuse."""
    try:
        _require_applicable(repository, planned)
    except UpdateError as error:
        return error
    return None


def _require_applicable(repository: Repository, planned: Sequence[Change]) -> list[str]:
    touched = sorted({name for change in planned for name in (change.path, change.before) if name})
    _require_untouched(repository, touched)
    _require_writable(repository, touched)
    return touched


def apply(repository: Repository, merged: Merged, planned: Sequence[Change]) -> None:
    """Bring the work tree and the index to ``merged``; what it does not touch stays, committed or not.

    Raises:
        UpdateError: It would overwrite what is not committed.
        GitError: A file cannot be written. The project is as it was.
    """
    touched = _require_applicable(repository, planned)
    whole = graft(repository, merged.tree)
    head = repository.git("rev-parse", "HEAD").strip()
    stages = "".join(
        f"0 {'0' * len(whole)}\t{repository.prefix}{path}\0"
        + "".join(f"{mode} {name} {stage}\t{repository.prefix}{path}\0" for stage, (mode, name) in sides.items())
        for path, sides in merged.conflicts.items()
    )
    journal = Journal(
        state="applying",
        head=head,
        tree=whole,
        paths=tuple(repository.prefix + path for path in touched),
        stages=stages,
    )
    with _prepared_index(repository) as index:
        try:
            # What git refuses it refuses here, where there is nothing to undo yet.
            repository.git(*_READ_TREE, "--dry-run", "HEAD", whole, **index)
        except GitError as error:
            raise _cannot_apply(repository, error) from error
        journal.write(repository)
        try:
            repository.git(*_READ_TREE, "HEAD", whole, **index)
            _finish(repository, journal)
        except (GitError, OSError) as error:
            _undo(repository, journal)
            raise _cannot_apply(repository, error) from error
        except BaseException:
            _undo(repository, journal)
            raise


def abort(repository: Repository) -> tuple[tuple[str, ...], str | None]:
    """Undo the last update: its files are as they were before.

    Returns:
        Those files; and the commit that keeps what was written into them since, if anything was.

    Raises:
        UpdateError: There is no update that could be undone.
    """
    journal = Journal.read(repository)
    head = repository.git("rev-parse", "HEAD").strip()
    if journal is None or journal.head != head:
        raise UpdateError(
            f"There is no update to undo in {repository.root}.",
            why=(
                "scaffold made none here since the last commit."
                if journal is None
                else "there are commits since the last one."
            ),
            fix="undo a commit with git revert, changes that are not committed with git restore.",
        )
    standing = {
        place.relative_to(repository.top).as_posix()
        for path in journal.paths
        for place in _standing(repository.top, path)
    }
    if strange := sorted(standing - set(journal.paths)):
        raise UpdateError(
            f"Undoing the update would overwrite {some(strange)}.",
            why="that is new since the update, and stands where a file or folder was before it.",
            fix="move it away, then: scaffold update --abort",
        )
    kept = _keep(repository, journal)
    _undo(repository, journal)
    return tuple(path.removeprefix(repository.prefix) for path in journal.paths), kept


def uncommitted(repository: Repository) -> tuple[str, ...]:
    """Files of the project that differ from its last commit, those that git does not know included."""
    status = git.git("status", "--porcelain", "-z", "--no-renames", "-uall", "--", ".", cwd=repository.root)
    names = (entry[3:] for entry in status.split("\0") if entry)
    return tuple(name.removeprefix(repository.prefix) for name in names)


def _require_untouched(repository: Repository, touched: Iterable[str]) -> None:
    paths = set(touched)
    dirty = set(uncommitted(repository))
    known = set(repository.git("ls-files", "-z").split("\0"))
    # Files that git ignores are the user's as well, also where the template wants a folder, or in one that it ends.
    strange = {
        place.relative_to(repository.root).as_posix()
        for path in paths
        for place in _standing(repository.root, path)
        if place.relative_to(repository.top).as_posix() not in known
    }
    blocked = sorted((paths & dirty) | strange)
    if blocked:
        raise UpdateError(
            f"The update would change what is not committed: {some(blocked)}.",
            why="your changes could not be told from it, or be got back.",
            fix="git add -A && git commit -m 'Before the update' (or git stash -u, or move the file away)",
        )


def _standing(root: Path, path: str) -> Iterator[Path]:
    """Files that stand where ``path`` is to be: at it, below it, or above it instead of a folder."""
    place = root
    for part in path.split("/"):
        place /= part
        if os.path.lexists(place) and not _is_folder(place):
            yield place
            return
    for folder, names, files in os.walk(place):
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in (*files, *links))


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _require_writable(repository: Repository, touched: Iterable[str]) -> None:
    for name in touched:
        place = repository.root / name
        folder = next(folder for folder in place.parents if folder.exists())
        if not os.access(folder, os.W_OK):
            raise UpdateError(
                f"{folder} is read-only, and the update changes {name}.",
                why="all of an update is written, or nothing.",
                fix=f"chmod u+w {folder}",
            )
        if place.is_file() and not place.is_symlink() and not place.stat().st_mode & 0o200:
            raise UpdateError(
                f"{name} is read-only, and the update changes it.",
                why="somebody wanted it to stay as it is.",
                fix=f"chmod u+w {name}, or delete it: what you delete stays deleted.",
            )


def _cannot_apply(repository: Repository, error: GitError | OSError) -> UpdateError:
    full = "No space left" in str(error) or shutil.disk_usage(repository.top).free < 1_000_000
    said = error.what if isinstance(error, GitError) else str(error)
    return UpdateError(
        f"The update could not be written: {'the disk is full' if full else said.removesuffix('.')}.",
        why="all of it is written, or nothing: the project is as it was.",
        fix=f"{'free some space' if full else 'mend that'}, then run the same command again.",
    )


_READ_TREE = ("-c", "submodule.recurse=false", "read-tree", "-m", "-u")


@contextmanager
def _prepared_index(repository: Repository) -> Iterator[Mapping[str, str]]:
    """A copy of the index, as the environment of git calls that work on it. What is locked there is only ever ours."""
    own = own_index(repository)
    own.parent.mkdir(exist_ok=True)
    own_lock(repository).unlink(missing_ok=True)
    shutil.copyfile(repository.git_dir / "index", own)
    index = {"GIT_INDEX_FILE": str(own)}
    try:
        # What a copied project's index says of its files' times is not true any more.
        git.attempt("update-index", "-q", "--refresh", cwd=repository.top, environment=index)
        yield index
    finally:
        own.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            own.parent.rmdir()  # unless the journal is in it


def _finish(repository: Repository, journal: Journal) -> None:
    """Bring our index, which stands for files that are written already, to the project."""
    own = own_index(repository)
    if own.exists():
        replace(journal, state="written").write(repository)
        own_lock(repository).unlink(missing_ok=True)
        if journal.stages:
            repository.git("update-index", "-z", "--index-info", stdin=journal.stages, GIT_INDEX_FILE=str(own))
        own.replace(repository.git_dir / "index")
    replace(journal, state="applied").write(repository)


def _undo(repository: Repository, journal: Journal) -> None:
    """Files and index of the journal's paths as in its commit."""
    listed = repository.git("ls-tree", "-r", "-z", "--name-only", "--full-tree", journal.head)
    committed = set(listed.split("\0"))
    for path in journal.paths:  # first, since it frees what a full disk lacks
        if path not in committed:
            _remove(repository.top, path)
    with contextlib.suppress(OSError):
        replace(journal, state="undoing").write(repository)
    back = [path for path in journal.paths if path in committed]
    with _prepared_index(repository) as index:
        paths = ("--pathspec-from-file=-", "--pathspec-file-nul")
        literally = ("-c", "submodule.recurse=false", "--literal-pathspecs")
        # First reset, since checkout refuses what is unmerged.
        for command, names in ((("reset", "-q"), journal.paths), (("checkout", "-q", "-f"), back)):
            if names:
                repository.git(*literally, *command, "HEAD", *paths, stdin="\0".join(names), **index)
        own_index(repository).replace(repository.git_dir / "index")
    Journal.drop(repository)


def _remove(top: Path, path: str) -> None:
    place = top / path
    if place.is_symlink() or place.is_file():
        place.unlink()
    for folder in place.parents:
        if folder == top:
            break
        try:
            folder.rmdir()
        except OSError:  # not empty, or not there
            break


def _keep(repository: Repository, journal: Journal) -> str | None:
    """What the user wrote into the touched files since, as a commit that nothing else points to."""
    with tempfile.TemporaryDirectory(prefix="scaffold-index-") as scratch:
        environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        repository.git("read-tree", journal.tree, **environment)
        folders = [path for path in journal.paths if _is_folder(repository.top / path)]
        files = [path for path in journal.paths if path not in folders]
        for how, names in (("--force-remove", folders), ("--remove", files)):
            told = "".join(f"{name}\0" for name in names)
            repository.git("update-index", "--add", "--replace", how, "-z", "--stdin", stdin=told, **environment)
        tree = repository.git("write-tree", **environment).strip()
        if tree in (journal.tree, repository.git("rev-parse", f"{journal.head}^{{tree}}").strip()):
            return None
        message = "What the work tree held when an update was undone"
        commit = repository.git("commit-tree", tree, "-p", journal.head, "-m", message, **as_scaffold()).strip()
    repository.git("update-ref", KEPT, commit)
    return commit


def _recover(repository: Repository) -> None:
    journal = Journal.read(repository)
    if journal and journal.state == "applied":
        return
    if journal is None or journal.head != repository.git("rev-parse", "HEAD").strip():  # the user went on
        Journal.drop(repository)
        return
    if journal.state != "undoing" and _is_written(repository, journal):
        _finish(repository, journal)
        return
    if not set(journal.paths) & {repository.prefix + path for path in uncommitted(repository)}:
        Journal.drop(repository)  # killed before it touched anything
        return
    raise UpdateError(
        f"{'The undoing of an' if journal.state == 'undoing' else 'An'} update of {repository.root} was killed while it "
        "wrote files.",
        why="some of them are the new ones, some the old ones.",
        fix="scaffold update --abort, which puts back the old ones. Then update again.",
    )


def _is_written(repository: Repository, journal: Journal) -> bool:
    """All files are: git writes an index after the last of them."""
    own = own_index(repository)
    if journal.state == "written" or not own.exists():  # then it is the project's already
        return True
    differing = repository.git("diff-index", "--cached", "--name-only", "-z", journal.tree, GIT_INDEX_FILE=str(own))
    return not set(journal.paths) & set(differing.split("\0"))
