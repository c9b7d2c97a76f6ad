"""The repository a template's author works in: is it in a state to release from, and the release itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from scaffold import settings
from scaffold.authoring import changelog
from scaffold.errors import GitError, TemplateError, some
from scaffold.git import UNDER_WAY, attempt, git
from scaffold.interrupts import undisturbed

_CONFIGS = ("copier.yml", "copier.yaml")

# The remote is the author's own choice, so whatever git can read from it will do.
_ANY_PROTOCOL = "https:ssh:file:http:git"


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Where the branch is pushed to."""

    remote: str
    tags: frozenset[str]
    """Of the remote, where it could be asked."""


def find(path: Path) -> Path:
    """The root of the template that ``path`` lies in.

    Raises:
        TemplateError: There is none.
        GitError: It has no commit.
    """
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise TemplateError(
            f"{path} is not a folder.",
            why="a template is the root of a git repository.",
            fix="name the template's folder.",
        )
    top = attempt("rev-parse", "--show-toplevel", cwd=folder)
    if top.returncode:
        said = (top.stderr.strip().splitlines() or ["it is a bare one"])[-1]
        raise TemplateError(
            f"{path} is not in a git work tree: {said}",
            why="a template is released by a tag of its repository.",
            fix="cd to the template; a new one is made by: scaffold template new PATH",
        )
    root = Path(top.stdout.strip("\n"))
    if not any((root / name).is_file() for name in _CONFIGS):
        project = (root / settings.ANSWERS_FILE).is_file()
        raise TemplateError(
            f"{root} is {'a project made from a template' if project else 'no template'}: it has no copier.yml.",
            why="that file at the root of a repository is what makes it one.",
            fix="cd to the template; a new one is made by: scaffold template new PATH",
        )
    if attempt("rev-parse", "-q", "--verify", "HEAD", cwd=root).returncode:
        raise GitError(
            f"{root} has no commit yet.",
            why="a tag stands for one.",
            fix="git add -A && git commit -m 'Start the template'",
        )
    return root


def branch(root: Path) -> str:
    """The default branch, which is checked out with nothing unfinished or uncommitted.

    Raises:
        GitError: It isn't.
    """
    for file, (what, fix) in UNDER_WAY.items():
        if Path(root, git("rev-parse", "--git-path", file, cwd=root).strip("\n")).exists():
            raise GitError(
                f"{what.capitalize()} is in progress.", why="a release is made of what is committed.", fix=fix
            )
    name = attempt("symbolic-ref", "--short", "-q", "HEAD", cwd=root).stdout.strip()
    default = _default(root)
    if not name:
        raise GitError(
            "HEAD is detached: no branch is checked out.",
            why="the release's commit would belong to no branch.",
            fix=f"git switch {default or 'main'}",
        )
    if default and name != default:
        raise GitError(
            f"You are on {name}, and releases are made from {default}.",
            why="projects should get what everybody works on.",
            fix=f"git switch {default}",
        )
    changed = [line[3:] for line in git("status", "--porcelain", "-z", "--no-renames", cwd=root).split("\0") if line]
    if changed:
        raise GitError(
            f"Not committed: {some(changed)}.",
            why="a release is made of what is committed, and this would not be in it.",
            fix="commit it, or put it aside: git stash -u",
        )
    return name


def _default(root: Path) -> str | None:
    """The branch releases are made from; None when nothing tells."""
    remote = attempt("symbolic-ref", "--short", "-q", "refs/remotes/origin/HEAD", cwd=root).stdout.strip()
    if remote:
        return remote.removeprefix("origin/")
    configured = attempt("config", "--get", "init.defaultBranch", cwd=root).stdout.strip()
    names = [name for name in (configured, "main", "master") if name]
    there = git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=root).splitlines()
    return next((name for name in names if name in there), None)


def identity(root: Path) -> str:
    """The author's name, address and time, as git writes them.

    Raises:
        GitError: git does not know them.
    """
    # useConfigOnly: without it git makes up user@hostname and calls that a name.
    who = attempt("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT", cwd=root)
    if who.returncode:
        raise GitError(
            "git does not know your name and e-mail address.",
            why="a release's tag says who made it.",
            fix='git config --global user.name "Your Name" && git config --global user.email you@example.com',
        )
    return who.stdout.strip()


def upstream(root: Path, branch: str) -> tuple[Upstream | None, list[str]]:
    """Where ``branch`` is pushed to, and what the author should know about it. The remote is asked, not fetched from.

    Raises:
        GitError: Somebody pushed what is not here.
    """
    remote = attempt("config", "--get", f"branch.{branch}.remote", cwd=root).stdout.strip()
    merge = attempt("config", "--get", f"branch.{branch}.merge", cwd=root).stdout.strip()
    if not remote or not merge:
        return None, [f"the branch {branch} has no upstream, so nobody can tell whether somebody else pushed to it."]
    asked = attempt(
        "ls-remote", "--", remote, merge, "refs/tags/*",
        cwd=root, environment=settings.git_environment(protocols=_ANY_PROTOCOL),
    )  # fmt: skip
    if asked.returncode:
        known = attempt("rev-parse", "-q", "--verify", "@{upstream}", cwd=root).stdout.strip()
        there: dict[str, str] = {merge: known} if known else {}
        notes = [f"{remote} could not be asked, so this goes by what was last fetched from it."]
    else:
        lines = (line.partition("\t") for line in asked.stdout.splitlines())
        there, notes = {name: commit for commit, _, name in lines}, []
    theirs = there.get(merge)
    if theirs and attempt("merge-base", "--is-ancestor", theirs, "HEAD", cwd=root).returncode:
        raise GitError(
            f"{branch} is behind {remote}: somebody pushed what is not here.",
            why="a release without it would be replaced by the next merge.",
            fix="git pull --rebase",
        )
    tags = frozenset(name.removeprefix("refs/tags/") for name in there if name.startswith("refs/tags/"))
    return Upstream(remote=remote, tags=frozenset(tag for tag in tags if not tag.endswith("^{}"))), notes


def tags(root: Path) -> frozenset[str]:
    return frozenset(git("tag", "--list", cwd=root).splitlines())


def remotes(root: Path) -> list[str]:
    return git("remote", cwd=root).splitlines()


def read_changelog(root: Path) -> str:
    """CHANGELOG.md as it was committed.

    Raises:
        TemplateError: There is none, or it is no plain file.
    """
    listed = git("ls-tree", "HEAD", "--", changelog.FILE, cwd=root)
    if not listed.startswith("100"):
        raise TemplateError(
            f"There is no {changelog.FILE} at the root of {root}{', but a link' if listed else ''}.",
            why="a release says what it changes for the projects that take it.",
            fix="write one with the line `## Unreleased` and what changed below it, and commit it.",
        )
    return git("show", f"HEAD:{changelog.FILE}", cwd=root)


def write(root: Path, branch: str, tag: str, message: str, changelog_text: str) -> str:
    """Commit the changelog, if it is another than before, and tag the commit.

    All objects are written first, which nobody sees; then branch and tag move together. A signal takes effect before
    that or after it.

    Returns:
        The tagged commit.

    Raises:
        GitError: git refused; everything is as it was.
    """
    who = identity(root)
    head = git("rev-parse", "HEAD", cwd=root).strip()
    commit = _commit(root, head, f"Release {tag.removeprefix('v')}", changelog_text)
    described = f"object {commit}\ntype commit\ntag {tag}\ntagger {who}\n\n{message}\n"
    annotated = git("mktag", cwd=root, stdin=described).strip()
    moves = f"update refs/heads/{branch} {commit} {head}\ncreate refs/tags/{tag} {annotated}\n"
    with undisturbed():
        try:
            if commit != head:
                git("read-tree", "-m", "-u", head, commit, cwd=root)
            git("update-ref", "-m", f"release: {tag}", "--stdin", cwd=root, stdin=moves)
        except GitError as error:
            git("checkout", "-q", "HEAD", "--", changelog.FILE, cwd=root)
            raise GitError(
                f"The tag {tag} could not be made: {error.what}",
                why="branch and tag move together, or not at all; nothing was released.",
                fix="run the same command again.",
            ) from None
    return commit


def _commit(root: Path, head: str, message: str, changelog_text: str) -> str:
    if changelog_text == read_changelog(root):
        return head
    mode = git("ls-tree", head, "--", changelog.FILE, cwd=root).split()[0]
    blob = git("hash-object", "-w", "--stdin", cwd=root, stdin=changelog_text).strip()
    with tempfile.TemporaryDirectory(prefix="scaffold-release-") as scratch:
        aside = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        git("read-tree", head, cwd=root, environment=aside)
        git("update-index", "--cacheinfo", f"{mode},{blob},{changelog.FILE}", cwd=root, environment=aside)
        tree = git("write-tree", cwd=root, environment=aside).strip()
    # Not signed: a pass phrase could be asked for, and there may be nobody to type it.
    return git("commit-tree", tree, "-p", head, "-m", message, cwd=root).strip()
