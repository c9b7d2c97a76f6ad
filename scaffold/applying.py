"""A merged tree put into a project's work tree, all of it or nothing, and taken back again.

What is about to change is looked at first; then one git call writes files and index together, and one more records the
conflicts. A journal in the git folder says what is going on, so that a process killed anywhere in between leaves something
that the next call can finish or undo.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scaffold import git
from scaffold.errors import GitError, UpdateError
from scaffold.merging import Merged, Repository, graft, project_tree

Kind = Literal["added", "changed", "deleted", "renamed", "conflict"]

_UNDER_WAY = {
    "MERGE_HEAD": ("a merge", "git merge --continue, or git merge --abort"),
    "rebase-merge": ("a rebase", "git rebase --continue, or git rebase --abort"),
    "rebase-apply": ("a rebase or git am", "git rebase --continue, or git rebase --abort"),
    "CHERRY_PICK_HEAD": ("a cherry-pick", "git cherry-pick --continue, or git cherry-pick --abort"),
    "REVERT_HEAD": ("a revert", "git revert --continue, or git revert --abort"),
}
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


@dataclass(frozen=True, kw_only=True)
class _Journal:
    state: Literal["applying", "applied"]
    head: str
    """The commit on top of which it is done."""
    tree: str
    """What the index holds afterwards, conflicts aside."""
    paths: tuple[str, ...]
    """Touched files, from the top of the repository."""
    stages: str
    """What ``update-index --index-info`` is told of the conflicts."""

    @staticmethod
    def file(repository: Repository) -> Path:
        return repository.git_dir / "scaffold" / "update.json"

    @classmethod
    def read(cls, repository: Repository) -> _Journal | None:
        try:
            told: dict[str, Any] = json.loads(cls.file(repository).read_text(encoding="utf-8"))
            return cls(**{**told, "paths": tuple(told["paths"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):  # cut off by a crash of the machine
            return None

    def write(self, repository: Repository) -> None:
        file = self.file(repository)
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as out:
            json.dump(asdict(self), out)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)

    @classmethod
    def drop(cls, repository: Repository) -> None:
        cls.file(repository).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            cls.file(repository).parent.rmdir()


def require_ready(repository: Repository) -> None:
    """Finish an update that was killed just before its end.

    Raises:
        UpdateError: Something else is under way in the repository, or an update that was killed in its middle.
    """
    _recover(repository)
    for name, (what, fix) in _UNDER_WAY.items():
        if (repository.git_dir / name).exists():
            raise UpdateError(
                f"{repository.root} is in the middle of {what}.", why="an update would get mixed up with it.", fix=fix
            )
    unmerged = repository.git("ls-files", "-u", "-z", "--", ".")
    if files := sorted({entry.partition("\t")[2] for entry in unmerged.split("\0") if entry}):
        raise UpdateError(
            f"{repository.root} has unresolved conflicts: {_some(files)}.",
            why="an update would get mixed up with them.",
            fix="resolve them, then: git add -A && git commit. Or undo the last update: scaffold update --abort",
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
    return repository.git("diff-tree", "-r", "--find-renames", *how, project_tree(repository), merged.tree)


def apply(repository: Repository, merged: Merged, planned: Sequence[Change]) -> None:
    """Bring the work tree and the index to ``merged``; what it does not touch stays, committed or not.

    Raises:
        UpdateError: It would overwrite what is not committed.
        GitError: A file cannot be written. The project is as it was.
    """
    touched = sorted({name for change in planned for name in (change.path, change.before) if name})
    _require_untouched(repository, touched)
    _require_writable(repository, touched)
    whole = graft(repository, merged.tree)
    head = repository.git("rev-parse", "HEAD").strip()
    stages = "".join(
        f"0 {'0' * len(whole)}\t{repository.prefix}{path}\0"
        + "".join(f"{mode} {name} {stage}\t{repository.prefix}{path}\0" for stage, (mode, name) in sides.items())
        for path, sides in merged.conflicts.items()
    )
    journal = _Journal(
        state="applying",
        head=head,
        tree=whole,
        paths=tuple(repository.prefix + path for path in touched),
        stages=stages,
    )
    journal.write(repository)
    try:
        repository.git("read-tree", "-m", "-u", "HEAD", whole)
    except BaseException as error:
        _undo(repository, journal)
        if isinstance(error, GitError):
            raise _cannot_apply(repository, error) from error
        raise
    _finish(repository, journal)


def abort(repository: Repository) -> tuple[tuple[str, ...], str | None]:
    """Undo the last update: its files are as they were before.

    Returns:
        Those files; and the commit that keeps what was written into them since, if anything was.

    Raises:
        UpdateError: There is no update that could be undone.
    """
    journal = _Journal.read(repository)
    head = repository.git("rev-parse", "HEAD").strip()
    if journal is None or journal.head != head:
        raise UpdateError(
            f"There is no update to undo in {repository.root}.",
            why="none was made here" if journal is None else "there are commits since the last one.",
            fix="undo a commit with git: git revert COMMIT",
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
    # Files that git ignores are the user's as well; so is a file where the template wants a folder.
    ignored = {
        path
        for path in paths
        if repository.prefix + path not in known and os.path.lexists(repository.root / path) and path not in dirty
    }
    blocked = sorted((paths & dirty) | ignored | {place for path in paths for place in _in_the_way(path, dirty)})
    if blocked:
        raise UpdateError(
            f"The update would change what is not committed: {_some(blocked)}.",
            why="your changes could not be told from it, or be got back.",
            fix="git add -A && git commit -m 'Before the update' (or git stash -u, or move the file away)",
        )


def _in_the_way(path: str, dirty: set[str]) -> Iterable[str]:
    parts = path.split("/")
    yield from (above for above in ("/".join(parts[:n]) for n in range(1, len(parts))) if above in dirty)


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


def _cannot_apply(repository: Repository, error: GitError) -> UpdateError:
    full = "No space left" in str(error) or shutil.disk_usage(repository.top).free < 1_000_000
    return UpdateError(
        f"The update could not be written: {'the disk is full' if full else error.what.removesuffix('.')}.",
        why="all of it is written, or nothing: the project is as it was.",
        fix=(
            "free some space, then run the same command again."
            if full
            else "mend that, then run the same command again."
        ),
    )


def _finish(repository: Repository, journal: _Journal) -> None:
    if journal.stages:
        repository.git("update-index", "-z", "--index-info", stdin=journal.stages)
    replace(journal, state="applied").write(repository)


def _undo(repository: Repository, journal: _Journal) -> None:
    """Files and index of the journal's paths as in its commit."""
    listed = repository.git("ls-tree", "-r", "-z", "--name-only", "--full-tree", journal.head)
    committed = set(listed.split("\0"))
    for path in journal.paths:  # first, since it frees what a full disk lacks
        if path not in committed:
            _remove(repository.top, path)
    _pathspec(repository, "reset", "-q", "HEAD", paths=journal.paths)  # checkout refuses what is unmerged
    _pathspec(repository, "checkout", "-f", "HEAD", paths=[path for path in journal.paths if path in committed])
    _Journal.drop(repository)


def _pathspec(repository: Repository, *arguments: str, paths: Sequence[str]) -> None:
    """Literal paths, more than a command line may hold."""
    for start in range(0, len(paths), 200):
        repository.git("--literal-pathspecs", *arguments, "--", *paths[start : start + 200])


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


def _keep(repository: Repository, journal: _Journal) -> str | None:
    """What the user wrote into the touched files since, as a commit that nothing else points to."""
    with tempfile.TemporaryDirectory(prefix="scaffold-index-") as scratch:
        environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        repository.git("read-tree", journal.tree, **environment)
        names = "\0".join(journal.paths)
        options = ("--add", "--remove", "-z", "--stdin")
        repository.git("update-index", *options, stdin=f"{names}\0" if names else "", **environment)
        tree = repository.git("write-tree", **environment).strip()
        if tree in (journal.tree, repository.git("rev-parse", f"{journal.head}^{{tree}}").strip()):
            return None
        # Not the user's commit, so not in the user's name, which git may not know.
        author: Mapping[str, str] = {
            "GIT_AUTHOR_NAME": "scaffold",
            "GIT_AUTHOR_EMAIL": "scaffold@localhost",
            "GIT_COMMITTER_NAME": "scaffold",
            "GIT_COMMITTER_EMAIL": "scaffold@localhost",
        }
        message = "What the work tree held when an update was undone"
        commit = repository.git("commit-tree", tree, "-p", journal.head, "-m", message, **author).strip()
    repository.git("update-ref", KEPT, commit)
    return commit


def _recover(repository: Repository) -> None:
    journal = _Journal.read(repository)
    if journal is None or journal.state == "applied":
        return
    if journal.head != repository.git("rev-parse", "HEAD").strip():  # the user went on
        _Journal.drop(repository)
        return
    if git.attempt("diff-index", "--cached", "--quiet", journal.tree, cwd=repository.top).returncode == 0:
        _finish(repository, journal)
        return
    if not set(journal.paths) & {repository.prefix + path for path in uncommitted(repository)}:
        _Journal.drop(repository)  # killed before it touched anything
        return
    raise UpdateError(
        f"An update of {repository.root} was killed while it wrote files.",
        why="some of them are the new ones, some the old ones.",
        fix="scaffold update --abort, which puts back the old ones. Then update again.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
