"""A template as it lies on its author's disk, what isn't committed included: read once, for all rules."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

from scaffold import git, guard, projects, settings
from scaffold.errors import TemplateError, UnsafeTemplate
from scaffold.linting import config, trial
from scaffold.linting.jinja import Jinja, Piece
from scaffold.patterns import matches

_DEFAULT_EXCLUDE = ("copier.yaml", "copier.yml", "~*", "*.py[co]", "__pycache__", ".git", ".DS_Store", ".svn")
_LARGEST_TEXT = 2_000_000
_JINJA = re.compile(r"\{%.*?%\}|\{#.*?#\}")
_VALUE = re.compile(r"\{\{.*?\}\}")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the repository that becomes part of a project."""

    path: str
    """Relative to the repository's root."""
    target: str
    """Relative to the project, Jinja included, the suffix not."""
    absolute: Path
    rendered: bool
    """It ends in the suffix; other files are copied as they are."""

    @property
    def link(self) -> str | None:
        """Where it points to, if it is a symbolic link."""
        return self.absolute.readlink().as_posix() if self.absolute.is_symlink() else None

    @cached_property
    def content(self) -> bytes:
        """Empty for links, folders in disguise and what is too large to be source."""
        readable = self.absolute.is_file() and not self.absolute.is_symlink()
        return self.absolute.read_bytes() if readable and self.absolute.stat().st_size <= _LARGEST_TEXT else b""

    @cached_property
    def text(self) -> str | None:
        """None for what is not text."""
        try:
            return None if b"\0" in self.content else self.content.decode("utf-8")
        except UnicodeDecodeError:
            return None

    @cached_property
    def plain_target(self) -> str:
        """``target`` as a project may have it: conditions met, values short, suffix gone."""
        return _VALUE.sub("x", _JINJA.sub("", self.target))

    @cached_property
    def refused(self) -> str | None:
        """Why no project may hold it, if so, as far as its name and its link tell."""
        parts = [part for part in self.plain_target.split("/") if part]
        if self.absolute.is_symlink() and _is_circle(self.absolute):
            return "it leads back to itself"
        try:
            guard.check_path(PurePosixPath(*parts))
            if self.link is not None:
                guard.check_path(PurePosixPath(os.path.normpath(PurePosixPath(*parts[:-1], self.link))))
        except UnsafeTemplate as error:
            return error.why.rstrip(".")
        return None


@dataclass(frozen=True, kw_only=True)
class Template:
    """What the rules look at."""

    root: Path
    config: config.Config
    files: tuple[File, ...]
    others: tuple[str, ...]
    """Files of the repository that no project gets: its own tests, its README, its licence."""

    def target(self, name: str) -> str | None:
        """Where the repository's file ``name``, which may be gone, lies in a project; None if no project gets it."""
        return _target(name, self.config)

    @property
    def answers_file(self) -> str:
        return str(self.config.data.get("_answers_file") or settings.ANSWERS_FILE)

    @property
    def is_layer(self) -> bool:
        """It is made to lie on top of another template, by what it says of itself."""
        named = projects.layer_name(self.answers_file) != "base"
        return named or self.reads_base or "overlaps" in self.config.ours

    @property
    def reads_base(self) -> bool:
        """It takes answers from the template that it lies on."""
        external = self.config.data.get("_external_data")
        return isinstance(external, dict) and settings.ANSWERS_FILE in external.values()

    @cached_property
    def jinja(self) -> Jinja:
        return Jinja.of(self.config)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """All Jinja of the template: in copier.yml, in file names and in files that are rendered."""
        inside = (
            piece
            for file in self.files
            for piece in self.jinja.of_file(
                file.path, file.target, file.text if file.rendered and file.link is None else None
            )
        )
        return (*self.jinja.of_config(self.config), *inside)

    @cached_property
    def outcome(self) -> trial.Outcome:
        """What its default answers give."""
        refused = {file.path for file in self.files if file.refused}
        keep = [file.path for file in self.files if file.path not in refused]
        answers = self.base.files.get(settings.ANSWERS_FILE) if self.reads_base else None
        beneath = {settings.ANSWERS_FILE: answers} if answers is not None else {}
        return trial.render_copy(self.root, [*keep, *self.others], self.config, beneath=beneath)

    @cached_property
    def base(self) -> trial.Outcome:
        """What the built-in template gives, on which layers lie."""
        return trial.render_base()

    def origin(self, written: str) -> File | None:
        """The template's file that ``written``, a file of the rendered project, was made from."""
        candidates = [file for file in self.files if _as_pattern(file).fullmatch(written)]
        return max(candidates, key=lambda file: len(_VALUE.sub("", file.plain_target)), default=None)

    def lines(self, file: str) -> list[str]:
        """Of any file of the repository; none for links and for what is too large to be source."""
        path = self.root / file
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_TEXT:
            return []
        return path.read_bytes().decode("utf-8", errors="replace").splitlines()


def read(path: Path) -> Template:
    """Read the template whose root is ``path``.

    Raises:
        TemplateError: There is none, or its copier.yml cannot be read.
    """
    root = path.expanduser().resolve()
    if not root.is_dir():
        raise TemplateError(
            f"There is no folder {path}.",
            why="a template is a folder with a copier.yml.",
            fix="check the path; without one, the folder you are in is linted.",
        )
    settings_of_it = config.read(root)
    suffix = settings_of_it.data.get("_templates_suffix", ".jinja")
    suffix = suffix if isinstance(suffix, str) else ".jinja"
    files, others = [], []
    for name in sorted(_listing(root)):
        target = _target(name, settings_of_it)
        if target is None:
            others.append(name)
            continue
        rendered = target.endswith(suffix)
        bare = target.removesuffix(suffix) if suffix else target
        files.append(File(path=name, target=bare, absolute=root / name, rendered=rendered))
    return Template(root=root, config=settings_of_it, files=tuple(files), others=tuple(others))


def _target(name: str, read: config.Config) -> str | None:
    match = _subdirectory(read).match(name)
    target = name[match.end() :] if match else ""
    return target if target and not excluded(target, _exclude(read)) else None


def excluded(path: str, patterns: Iterable[str]) -> bool:
    """Does Copier leave ``path`` out? Patterns are those of a .gitignore: the last one that matches decides.

    >>> excluded("a/__pycache__/b.pyc", ["__pycache__"]), excluded("a/b.pyc", ["*.py[co]", "!b.pyc"])
    (True, False)
    >>> excluded("docs/a.md", ["/docs"]), excluded("a/docs/b.md", ["/docs"]), excluded("a/docs/b.md", ["docs/"])
    (True, False, True)
    """
    out = False
    for pattern in patterns:
        bare = pattern.removeprefix("!").rstrip("/")
        names = path.split("/")
        if matches(path, [bare]) if "/" in bare else any(fnmatchcase(name, bare) for name in names):
            out = not pattern.startswith("!")
    return out


def _listing(root: Path) -> Iterator[str]:
    """Files and links, without what git ignores where there is a repository."""
    names: Iterable[str] = _walk(root)
    if (root / ".git").exists():
        listed = git.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root)
        names = listed.split("\0")
    for name in set(names):
        path = root / name
        if name and (path.is_symlink() or path.is_file()):
            yield name


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if not (here == root and name == ".git")]
        links = [name for name in folders if (here / name).is_symlink()]
        yield from ((here / name).relative_to(root).as_posix() for name in (*files, *links))


def _subdirectory(read: config.Config) -> re.Pattern[str]:
    """What the paths of files that become part of a project start with."""
    folder = str(read.data.get("_subdirectory") or "").strip("/")
    folder = "" if folder == "." else folder
    parts = re.split(r"\{[{%].*?[%}]\}", folder)
    return re.compile("[^/]+".join(re.escape(part) for part in parts) + ("/" if folder else ""))


def _exclude(read: config.Config) -> tuple[str, ...]:
    if "_exclude" in read.data:
        return read.strings("_exclude")
    return () if read.data.get("_subdirectory") else _DEFAULT_EXCLUDE


def _is_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _as_pattern(file: File) -> re.Pattern[str]:
    """What it may be called in a project."""
    bare = _JINJA.sub("", file.target)
    return re.compile(".*".join(re.escape(part) for part in _VALUE.split(bare)))
