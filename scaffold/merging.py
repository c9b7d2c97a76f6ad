"""A three-way merge of trees, by git itself: what the template was, what the project is, what the template is now.

git merges commits, so each tree becomes one, in a repository that is thrown away; its objects are the project's, so the
result is there already when it is applied. Nothing else of the project is read or touched.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaffold import git
from scaffold.errors import GitError, UpdateError

Stage = Literal["1", "2", "3"]
"""As in git's index: the template before, the project, the template now."""

# Folders that the template renames do not take the user's own files along, and every pair of files is looked at.
_RULES = (
    "-c", "merge.conflictStyle=diff3", "-c", "merge.directoryRenames=false", "-c", "merge.renames=true",
    "-c", "merge.renameLimit=0", "-c", "diff.renameLimit=0", "-c", "rerere.enabled=false", "-c", "merge.default=text",
    "-c", "merge.renormalize=false", "-c", "merge.verifySignatures=false",
)  # fmt: skip
_IN_MEMORY = (2, 38)
"""The first git with merge-tree --write-tree."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The git repository of a project, and where in it the project lies."""

    top: Path
    """Its work tree."""

    prefix: str
    """The project's folder in it, with a slash at the end; empty at the top."""

    git_dir: Path
    """Of this work tree, which may be one of several."""

    objects: Path
    """Where it keeps them."""

    format: str
    """``sha1`` or ``sha256``."""

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.top / self.prefix

    def git(self, *arguments: str, stdin: str | None = None, **environment: str) -> str:
        """Run git at the top of the work tree.

        Raises:
            GitError: It failed.
        """
        return git.git(*arguments, cwd=self.top, environment=environment, stdin=stdin)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the conflict markers say."""

    before: str
    """``template v1.0.0``"""

    after: str
    """``template v1.1.0``"""

    project: str = "project"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge."""

    tree: str
    """Files in conflict have markers in it."""

    conflicts: Mapping[str, Mapping[Stage, tuple[str, str]]]
    """Path in the project to the mode and object of each side there is."""

    reasons: Mapping[str, str]
    """Path to what kind of conflict it is, in a few words."""

    kept_deleted: tuple[str, ...]
    """Files that the user had deleted and the template changed: still deleted."""


def as_scaffold() -> dict[str, str]:
    """Whose commits those are: not the user's, whose name and clock git may not know."""
    now = f"@{time.time():.0f} +0000"
    who = {"NAME": "scaffold", "EMAIL": "scaffold@localhost", "DATE": now}
    return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}


def repository(root: Path) -> Repository:
    """The repository that the project at ``root`` lies in.

    Raises:
        UpdateError: There is none, or it has no commit yet.
    """
    asked = ["--show-toplevel", "--absolute-git-dir", "--git-path", "objects", "--show-object-format", "--show-prefix"]
    done = git.attempt("rev-parse", *asked, cwd=root)
    if done.returncode:
        if "dubious ownership" in done.stderr:
            raise GitError(
                f"git does not trust {root}: it belongs to somebody else.",
                why="a repository's settings can run commands.",
                fix=f"git config --global --add safe.directory {root}",
            )
        raise UpdateError(
            f"{root} is not in a git repository.",
            why="an update is merged with your own changes, and git keeps them apart.",
            fix="git init && git add -A && git commit -m 'Before the update'",
        )
    top, git_dir, objects, form, prefix = (done.stdout + "\n").split("\n")[:5]
    found = Repository(
        top=Path(top), prefix=prefix, git_dir=Path(git_dir), objects=(root / objects).resolve(), format=form
    )
    if git.attempt("rev-parse", "--verify", "-q", "HEAD", cwd=root).returncode:
        raise UpdateError(
            f"{root} has no commit yet.",
            why="an update is merged with what you committed.",
            fix="git add -A && git commit -m 'Before the update'",
        )
    return found


def require_writable(repository: Repository) -> None:
    """Raises UpdateError when nothing can be added to the repository's objects, among which a merge is made."""
    if not os.access(repository.objects, os.W_OK):
        raise UpdateError(
            f"{repository.objects} is read-only.",
            why="a merge is made among the objects of the project's repository.",
            fix=f"see who owns it: ls -ld {repository.objects}, and whether its disk is mounted read-only.",
        )


def write_tree(repository: Repository, folder: Path, tracked: Collection[str]) -> tuple[str, frozenset[str]]:
    """``folder``'s files as a tree in the repository, as ``git add`` would store them there: line ends and all.

    Args:
        tracked: Files that count though git is told to ignore them: the project has them.

    Returns:
        The tree; and the files that it leaves out, since git ignores them.
    """
    with tempfile.TemporaryDirectory(prefix="scaffold-index-") as scratch:
        environment = {
            "GIT_DIR": str(repository.git_dir),
            "GIT_WORK_TREE": str(folder),
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
        }
        options = (
            "-c", "core.sparseCheckout=false", "-c", "core.safecrlf=false", "-c", "core.splitIndex=false",
            "-c", "advice.addEmbeddedRepo=false",
        )  # fmt: skip
        git.git(*options, "add", "-A", "--", ".", cwd=folder, environment=environment)
        how = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard")
        ignored = frozenset(filter(None, git.git(*how, cwd=folder, environment=environment).split("\0")))
        if forced := sorted(ignored & frozenset(tracked)):
            paths = ("--pathspec-from-file=-", "--pathspec-file-nul")
            told = "\0".join(forced)
            git.git(
                *options, "--literal-pathspecs", "add", "-f", *paths, cwd=folder, environment=environment, stdin=told
            )
        tree = git.git("write-tree", cwd=folder, environment=environment).strip()
    return tree, ignored - frozenset(forced)


def project_tree(repository: Repository) -> str:
    """The project's last commit, as a tree."""
    if not repository.prefix:
        return repository.git("rev-parse", "HEAD^{tree}").strip()
    done = git.attempt("rev-parse", "-q", "--verify", f"HEAD:{repository.prefix}", cwd=repository.top)
    if done.returncode:
        raise UpdateError(
            f"{repository.prefix} is not committed yet.",
            why="an update is merged with what you committed.",
            fix=f"git add {repository.prefix} && git commit -m 'Before the update'",
        )
    return done.stdout.strip()


def graft(repository: Repository, tree: str) -> str:
    """The tree of the whole repository, with ``tree`` where the project is."""
    parts = repository.prefix.strip("/").split("/") if repository.prefix else []
    for depth in range(len(parts) - 1, -1, -1):
        above, name = "/".join(parts[:depth]), parts[depth]
        listed = repository.git("ls-tree", "-z", f"HEAD:{above}" if above else "HEAD^{tree}")
        entries = [
            f"040000 tree {tree}\t{name}" if entry.partition("\t")[2] == name else entry
            for entry in filter(None, listed.split("\0"))
        ]
        tree = repository.git("mktree", "-z", stdin="".join(f"{entry}\0" for entry in entries)).strip()
    return tree


def merge(repository: Repository, *, before: str, project: str, after: str, labels: Labels) -> Merged:
    """Merge three trees.

    Args:
        before: The template's old rendering, and the base of the merge.
        project: What the user has made of it.
        after: The template's new rendering.
    """
    ours, theirs = "project", _branch(labels.after)
    with _workshop(repository) as workshop:
        base = workshop.commit(before)
        for name, side in ((ours, project), (theirs, after)):
            workshop.branch(name, workshop.commit(side, parent=base))
        merged = workshop.merge_in_memory(ours, theirs) if git.version() >= _IN_MEMORY else None
        tree, stages, reasons = merged or workshop.merge_in_work_tree(ours, theirs)
        tree, kept_deleted = _keep_deleted(workshop, tree, stages, theirs)
        spoken = {ours: labels.project, "HEAD": labels.project, theirs: labels.after}
        tree = _relabel(workshop, tree, stages, spoken, (base, labels.before))
    return Merged(tree=tree, conflicts=stages, reasons=reasons, kept_deleted=kept_deleted)


_Stages = dict[str, dict[Stage, tuple[str, str]]]
_KINDS = {"123": "contents", "23": "contents", "12": "modify/delete", "13": "modify/delete"}


class _Workshop:
    """A bare repository with nothing in it but two branches, over the project's objects."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self._folder = folder
        self._environment = {
            **as_scaffold(),
            "GIT_DIR": str(folder / "git"),
            "GIT_OBJECT_DIRECTORY": str(repository.objects),
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_ATTR_NOSYSTEM": "1",
        }
        (folder / "git/refs/heads").mkdir(parents=True)
        (folder / "git/objects").mkdir()
        (folder / "git/HEAD").write_text("ref: refs/heads/none\n")
        (folder / "git/info").mkdir()
        # Contents are merged as they are stored: no attribute, of the project or of the user, has a say.
        attributes = "* -text !eol !merge !diff !filter !ident !working-tree-encoding !conflict-marker-size\n"
        (folder / "git/info/attributes").write_text(attributes)
        sha256 = repository.format == "sha256"
        (folder / "git/config").write_text(
            f"[core]\n\trepositoryformatversion = {int(sha256)}\n\tbare = true\n\tautocrlf = false\n\tfileMode = true\n"
            + ("[extensions]\n\tobjectFormat = sha256\n" if sha256 else "")
        )

    def run(self, *arguments: str, stdin: str | None = None, **environment: str) -> str:
        return git.git(
            *arguments, cwd=self._folder, environment={**self._environment, **environment}, stdin=stdin
        ).strip("\n")

    def commit(self, tree: str, parent: str | None = None) -> str:
        return self.run("commit-tree", tree, *(["-p", parent] if parent else []), "-m", "a side of the merge")

    def branch(self, name: str, commit: str) -> None:
        (self._folder / "git/refs/heads" / name).write_text(f"{commit}\n")

    def merge_in_memory(self, ours: str, theirs: str) -> tuple[str, _Stages, dict[str, str]]:
        done = git.attempt(
            *_RULES, "merge-tree", "--write-tree", "-z", ours, theirs, cwd=self._folder, environment=self._environment
        )
        if done.returncode not in (0, 1):
            raise GitError(
                f"git merge-tree failed: {(done.stderr.strip() or 'no word').splitlines()[-1]}",
                why="git could not merge the template with the project.",
                fix="see whether the project's repository is whole: git fsck",
            )
        tree, *rest = done.stdout.split("\0")
        end = rest.index("") if "" in rest else len(rest)
        return tree.strip(), _parsed(rest[:end]), _reasons(rest[end + 1 :])

    def merge_in_work_tree(self, ours: str, theirs: str) -> tuple[str, _Stages, dict[str, str]]:
        """The same with a git that cannot merge without files."""
        files = self._folder / "files"
        files.mkdir()
        here = {"GIT_WORK_TREE": str(files)}
        bare = ("-c", "core.bare=false")
        self.run(*bare, "checkout", "-q", "-f", "--detach", ours, **here)
        done = git.attempt(
            *bare, *_RULES, "merge", "-q", "--no-ff", "--no-commit", "--no-stat", theirs,
            cwd=files, environment={**self._environment, **here, "LC_ALL": "C"},
        )  # fmt: skip
        stages = _parsed(self.run(*bare, "ls-files", "-u", "-z", **here).split("\0"))
        if done.returncode and not stages:
            raise GitError(
                f"git merge failed: {(done.stderr.strip() or done.stdout.strip() or 'no word').splitlines()[-1]}",
                why="git could not merge the template with the project.",
                fix="a git of version 2.38 or newer merges in another way: update git.",
            )
        reasons = {path: _KINDS.get("".join(sorted(sides)), "renamed") for path, sides in stages.items()}
        # What an .gitignore in the tree names is part of it, too.
        self.run(*bare, "add", "-A", "-f", "--", ".", **here)
        return self.run(*bare, "write-tree", **here), stages, reasons

    def replace(self, tree: str, entries: Iterable[tuple[str, str, str]]) -> str:
        """``tree`` with other entries: (mode, object, path); mode 0 takes the path away."""
        self.run("read-tree", tree)
        lines = "".join(f"{mode} {name}\t{path}\0" for mode, name, path in entries)
        self.run("update-index", "-z", "--index-info", stdin=lines)
        return self.run("write-tree")

    def entries(self, tree: str, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Mode and object of those ``paths`` that are files in ``tree``."""
        found = {}
        for entry in self.run("ls-tree", "-r", "-z", tree).split("\0"):
            details, _, path = entry.partition("\t")
            if path in paths:
                mode, _, name = details.split(" ")
                found[path] = (mode, name)
        return found

    def read(self, name: str) -> bytes:
        return git.read_blob(name, cwd=self._folder, environment=self._environment)

    def write(self, content: bytes) -> str:
        path = self._folder / "content"
        path.write_bytes(content)
        return self.run("hash-object", "-w", "--no-filters", "--", str(path))


@contextmanager
def _workshop(repository: Repository) -> Iterator[_Workshop]:
    with tempfile.TemporaryDirectory(prefix="scaffold-merge-", ignore_cleanup_errors=True) as folder:
        yield _Workshop(Path(folder), repository)


def _branch(label: str) -> str:
    """A label as the name of a branch, which git writes into markers and file names."""
    name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", label).strip("-.")
    name = re.sub(r"\.\.+", ".", name).removesuffix(".lock")
    return name if name not in ("", "project", "HEAD") else "template"


def _parsed(lines: Iterable[str]) -> _Stages:
    """``mode object stage\\tpath``, one after the other."""
    stages: _Stages = {}
    for line in filter(None, lines):
        details, _, path = line.partition("\t")
        mode, name, stage = details.split(" ")
        if stage in ("1", "2", "3"):
            stages.setdefault(path, {})[stage] = (mode, name)  # type: ignore[index] # just seen
    return stages


def _reasons(messages: Sequence[str]) -> dict[str, str]:
    """From ``count, path ..., kind, sentence``, one after the other."""
    reasons: dict[str, str] = {}
    at = 0
    while at < len(messages) and messages[at].strip().isdigit():
        count = int(messages[at])
        paths, kind = messages[at + 1 : at + 1 + count], messages[at + 1 + count]
        match = re.fullmatch(r"CONFLICT \((.*)\)", kind)
        for path in paths if match else ():
            reasons.setdefault(path, match[1] if match else kind)
        at += count + 3
    return reasons


def _keep_deleted(workshop: _Workshop, tree: str, stages: _Stages, theirs: str) -> tuple[str, tuple[str, ...]]:
    """A file that the user deleted stays deleted, whatever the template did to it since."""
    # Where the user has something else of that name, git gave the template's file another one.
    names = {path: path.partition(f"~{theirs}")[0] for path, sides in stages.items() if sides.keys() == {"1", "3"}}
    gone = {path: name for path, name in names.items() if name == path or name not in stages}
    if gone:
        tree = workshop.replace(tree, [("0", "0" * len(tree), path) for path in gone])
        for path in gone:
            del stages[path]
    return tree, tuple(sorted(gone.values()))


def _relabel(workshop: _Workshop, tree: str, stages: _Stages, spoken: Mapping[str, str], base: tuple[str, str]) -> str:
    """The tree, with markers that say whose side is whose."""
    commit, before = base
    names = "|".join(map(re.escape, sorted(spoken, key=len, reverse=True)))
    marker = re.compile(
        rb"^(<{7,}|>{7,}|\|{7,}) (" + names.encode() + rb"|[0-9a-f]{7,64})(:[^\r\n]*)?(\r?)$", re.MULTILINE
    )

    def say(match: re.Match[bytes]) -> bytes:
        name = match[2].decode()
        label = spoken.get(name) if match[1][:1] != b"|" else before if commit.startswith(name) else None
        if label is None:  # a line of the file itself
            return match[0]
        return match[1] + b" " + label.encode() + (match[3] or b"") + match[4]

    changed = []
    for path, (mode, name) in workshop.entries(tree, list(stages)).items():
        if mode == "120000" or name in (entry[1] for entry in stages[path].values()):
            continue  # as one of the sides has it, without markers
        content = workshop.read(name)
        marked = marker.sub(say, content)
        if marked != content:
            changed.append((mode, workshop.write(marked), path))
    return workshop.replace(tree, changed) if changed else tree


def unmerged(root: Path) -> dict[str, dict[Stage, tuple[str, str]]]:
    """What the index of the repository at ``root`` holds in stages, by path below ``root``."""
    return _parsed(git.git("ls-files", "-u", "-z", "--", ".", cwd=root).split("\0"))


def take_over(repository: Repository, clone: Path, stages: Mapping[str, Mapping[Stage, tuple[str, str]]]) -> str:
    """The last commit of the folder ``clone``, in a clone of this repository, as a tree of this one; with the objects that
    ``stages`` name."""
    repository.git("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", str(clone), "HEAD")
    with tempfile.TemporaryDirectory(prefix="scaffold-side-") as scratch:
        for _, name in {entry for sides in stages.values() for entry in sides.values()}:
            content = Path(scratch) / "content"
            content.write_bytes(git.read_blob(name, cwd=clone))
            repository.git("hash-object", "-w", "--no-filters", "--", str(content))
    return git.git("rev-parse", "HEAD:./", cwd=clone).strip()


def files(repository: Repository, tree: str) -> dict[str, tuple[str, str]]:
    """Each file in ``tree``: its mode and its object."""
    found = {}
    for entry in repository.git("ls-tree", "-r", "-z", "--full-tree", tree).split("\0"):
        details, _, path = entry.partition("\t")
        if path:
            mode, _, name = details.split(" ")
            found[path] = (mode, name)
    return found


def put_back(repository: Repository, tree: str, entries: Mapping[str, tuple[str, str]]) -> str:
    """``tree`` with these files in it as well."""
    if not entries:
        return tree
    with _workshop(repository) as workshop:
        return workshop.replace(tree, [(mode, name, path) for path, (mode, name) in entries.items()])
