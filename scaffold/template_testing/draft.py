"""A template as its author's work tree has it now, uncommitted changes included, as one more release of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scaffold.catalog import Source
from scaffold.errors import TemplateError
from scaffold.fetching import Template, fetch
from scaffold.git import attempt, git

VERSION = "v9999.0.0"
"""The draft's tag: newer than every release."""

_CONFIGS = ("copier.yml", "copier.yaml")
_RUNS_COMMANDS = ("_tasks", "_migrations", "_jinja_extensions")
_AUTHOR = ("-c", "user.name=scaffold", "-c", "user.email=scaffold@localhost")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The draft, in a repository of its own that the author's knows nothing of."""

    root: Path
    """The author's folder."""
    template: Template
    files: Path
    """Its plain files."""
    tree: str
    """git's hash of them."""
    releases: Mapping[str, str]
    """Released tags to their commits, oldest first."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.template.config

    @cached_property
    def trust(self) -> bool:
        """It, or a release of it, needs trust to be rendered, and has it: it is the author's own."""
        configs = (self.config, *(self.template.at(tag).config for tag in self.releases))
        return any(config.get(key) for config in configs for key in _RUNS_COMMANDS)

    def questions_of(self, release: str) -> tuple[str, ...]:
        """The names in an older version's copier.yml."""
        return tuple(name for name in self.template.at(release).config if not str(name).startswith("_"))


def make(path: Path, scratch: Path) -> Draft:
    """The draft of the template that ``path`` is or lies in. Its repository is written below ``scratch``.

    Raises:
        TemplateError: There is no template.
        SourceError: Its copier.yml cannot be read.
    """
    root = _root(path)
    # The name tells Copier that it is a repository.
    repository, files = scratch / "template.git", scratch / "files"
    git("init", "-q", "--bare", str(repository), cwd=scratch)
    inside = attempt("rev-parse", "--show-toplevel", cwd=root)
    parents: list[str] = []
    work = (f"--git-dir={repository}", f"--work-tree={root}")
    if inside.returncode == 0 and Path(inside.stdout.strip()).resolve() == root:
        git("fetch", "-q", "--no-tags", "--update-shallow", str(root), "refs/tags/*:refs/tags/*", cwd=repository)
        head = attempt("rev-parse", "--verify", "-q", "HEAD", cwd=root).stdout.strip()
        if head:
            git("fetch", "-q", "--no-tags", "--update-shallow", str(root), "HEAD:refs/heads/before", cwd=repository)
            git(*work, "read-tree", head, cwd=root)  # what is tracked stays, even where .gitignore names it
            parents = ["-p", head]
    git(*work, "add", "-A", "--", ".", cwd=root)
    tree = git(*work, "write-tree", cwd=root).strip()
    commit = git(*work, *_AUTHOR, "commit-tree", tree, *parents, "-m", "draft", cwd=root).strip()
    git("update-ref", f"refs/tags/{VERSION}", commit, cwd=repository)
    git("update-ref", "refs/heads/main", commit, cwd=repository)
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=repository)
    template = fetch(Source(name=root.name, url=str(repository), reference=VERSION, protocols="https:ssh:file"))
    template.unpack(files)
    releases = {tag: template.resolve(tag) or "" for tag in template.releases if tag != VERSION}
    return Draft(root=root, template=template, files=files, tree=tree, releases=releases)


def _root(path: Path) -> Path:
    start = path.expanduser().resolve()
    for folder in (start, *start.parents):
        if any((folder / name).is_file() for name in _CONFIGS):
            return folder
    raise TemplateError(
        f"{path} is not a template." if start.exists() else f"There is no folder {path}.",
        why="a template has a copier.yml in its first folder.",
        fix="name the template's folder, or start one: scaffold template new PATH",
    )
