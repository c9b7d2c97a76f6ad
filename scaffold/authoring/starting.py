"""A new template, whole or not at all: a git repository with tests, CI, and something that trains."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from scaffold import catalog, fetching, git, guard, placing
from scaffold.authoring import skeletons
from scaffold.console import quoted
from scaffold.errors import Declined, SourceError, TemplateError, UnsafeTemplate, cannot_write, nearest
from scaffold.interrupts import undisturbed

Kind = Literal["scratch", "fork", "layer"]

_LONGEST = 40
"""Letters of a name, which stands in file names and headings."""

_ABOUT = {
    "scratch": "A template for training projects: `scaffold new my-project --template URL-OF-THIS-REPOSITORY`.",
    "fork": "A template for training projects: `scaffold new my-project --template URL-OF-THIS-REPOSITORY`.\n\n"
    "It is @MADE_FROM@, which came with scaffold @SCAFFOLD@. What that one learns later does not arrive here by itself:\n"
    "make another fork beside this one, and compare.",
    "layer": "A layer: it adds a team's rules to projects that were made from the template `base`, in files of its own.\n"
    "`scaffold layer add URL-OF-THIS-REPOSITORY` adds it to the project one stands in.",
}
_MADE_FROM = {"scratch": "made from scratch", "layer": "a layer on top of `base`"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make and where."""

    path: Path
    name: str | None = None
    """Default: the folder's."""
    fork_of: str | None = None
    """A built-in template whose files to begin with."""
    layer: bool = False
    """A template that goes on top of the base."""
    use_git: bool = True

    @property
    def kind(self) -> Kind:
        return "layer" if self.layer else "fork" if self.fork_of else "scratch"


@dataclass(frozen=True, kw_only=True)
class Started:
    """A new template."""

    path: Path
    name: str
    kind: Kind
    made_from: str
    """In words."""
    files: tuple[str, ...]
    """Relative to ``path``, sorted, without git's."""
    commit: str | None
    """The first commit's full hash; None without git."""
    enclosing: Path | None
    """The repository the template's own repository lies in, if any."""

    def next_commands(self, typed: Path) -> list[str]:
        """What to type next, for a user who typed ``typed`` as the path."""
        there = [] if self.path == Path.cwd() else [f"cd {quoted(str(typed))}"]
        return [*there, "scaffold template lint", "scaffold template test"]

    def notes(self) -> list[str]:
        """What the author should know besides."""
        notes = ["all rights are reserved: before you publish it, replace LICENSE with a license you choose."]
        if not self.commit:
            notes.append(
                "a template is released by a git tag, so it needs a repository before projects can be updated."
            )
        if self.enclosing:
            notes.append(f"this is a git repository inside another, {self.enclosing}: templates are found at a root.")
        return notes


def start(
    plan: Plan,
    confirm: Callable[[str, tuple[str, ...]], bool] | None = None,
    in_place: Callable[[Path], None] | None = None,
) -> Started:
    """Make the template.

    Args:
        confirm: Shown the name and the files before anything is put in place; False stops. None goes ahead.
        in_place: Told the template's path as soon as it is there, whole.

    Raises:
        ScaffoldError: And nothing was left behind.
    """
    git.require_git()
    _check_options(plan)
    try:
        target = placing.destination(plan.path)
        name = _name(plan, target)
        with placing.staging(target) as staging:
            if plan.use_git:
                placing.initialise(staging / "repository")
            folder = staging / "template" / target.name
            folder.mkdir(parents=True)
            made_from = _write(plan, name, folder, staging / "built-in")
            files = placing.listing(folder)
            if confirm and not confirm(name, files):
                raise Declined("Nothing was made.", why="you said no.", fix="run the same command again.")
            commit = _commit(staging / "repository", folder, f"Start the template {name}, {made_from}", plan.use_git)
            enclosing = placing.enclosing(target) if plan.use_git else None
            with undisturbed():
                placing.put_in_place(folder, target)
                if in_place:
                    in_place(target)
    except OSError as error:
        raise cannot_write(plan.path.absolute().parent, error) from error
    return Started(
        path=target,
        name=name,
        kind=plan.kind,
        made_from=made_from,
        files=files,
        commit=commit,
        enclosing=enclosing,
    )


def _check_options(plan: Plan) -> None:
    if plan.fork_of is None:
        return
    if plan.fork_of not in catalog.BUILT_IN:
        guess = nearest(plan.fork_of, catalog.BUILT_IN) or catalog.BUILT_IN[0]
        raise SourceError(
            f"There is no built-in template called {plan.fork_of!r}.",
            why=f"--from takes one of those that came with scaffold: {', '.join(catalog.BUILT_IN)}.",
            fix=f"--from {guess}; anybody else's template is forked with git clone.",
        )
    if plan.layer:
        raise TemplateError(
            f"--layer and --from {plan.fork_of} do not go together.",
            why="a layer holds only what it adds to a project; a fork holds a project's every file.",
            fix="leave one of them out.",
        )


def _name(plan: Plan, target: Path) -> str:
    """The name as it was given, or the folder's as far as it can be one."""
    name = plan.name
    if name is None:
        name = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")
    try:
        guard.check_path(PurePosixPath(f"{name or '.git'}.yml"))
        valid = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is not None and len(name) <= _LONGEST
    except UnsafeTemplate:
        valid = False
    if not valid:
        raise TemplateError(
            f"A template cannot be called {name if plan.name is not None else target.name!r}.",
            why=f"its name is made of a-z and 0-9, with single hyphens inside, a letter first, {_LONGEST} at most.",
            fix="choose another, for example --name acme",
        )
    if name in catalog.BUILT_IN:
        raise TemplateError(
            f"A template called {name} came with scaffold.",
            why=f"--template {name} would go on meaning that one.",
            fix=f"choose another, for example --name my-{name}",
        )
    return name


def _write(plan: Plan, name: str, folder: Path, scratch: Path) -> str:
    """Write all files; what the template is made from, in words."""
    base = fetching.fetch(catalog.find(plan.fork_of or catalog.BUILT_IN[0])) if plan.kind != "scratch" else None
    made_from = _MADE_FROM.get(plan.kind) or f"a fork of `{plan.fork_of} {base.version if base else ''}`"
    filling = {"NAME": name, "MADE_FROM": made_from}
    skeletons.write(plan.kind, folder, {**filling, "ABOUT": skeletons.fill(_ABOUT[plan.kind], filling)})
    if base and plan.fork_of:
        skeletons.write_fork(plan.fork_of, base, folder, scratch)
    elif base:
        base.unpack(scratch)
        _refuse_overlap(name, scratch, folder)
    return made_from


def _refuse_overlap(name: str, base: Path, layer: Path) -> None:
    """Raises TemplateError when a file of the layer is one of the base's too, whatever condition stands in its name."""
    theirs = _plain(base / "templates" / catalog.BUILT_IN[0])
    both = sorted(theirs & _plain(layer / "template"))
    if both:
        raise TemplateError(
            f"A layer cannot be called {name}: {both[0]} is a file of the base.",
            why="a layer writes only files that no other template writes, and they bear its name.",
            fix=f"choose another, for example --name team-{name}",
        )


def _plain(folder: Path) -> set[str]:
    """The files of a template, without the conditions in their names and without ``.jinja``; its answers file is its own."""
    names = {re.sub(r"\{%.*?%\}", "", file).removesuffix(".jinja") for file in placing.listing(folder)}
    return {name for name in names if "answers_file" not in name}


def _commit(repository: Path, folder: Path, message: str, use_git: bool) -> str | None:
    if not use_git:
        return None
    (repository / ".git").rename(folder / ".git")
    git.git("add", "-A", "-f", cwd=folder)
    # Not signed: a pass phrase could be asked for, and the author signs from the next commit on.
    git.git("commit", "-q", "--no-gpg-sign", "-m", message.replace("`", ""), cwd=folder)
    return git.git("rev-parse", "HEAD", cwd=folder).strip()
