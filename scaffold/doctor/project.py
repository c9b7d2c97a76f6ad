"""The project's folder, its state in git, and its templates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from scaffold import catalog, git, journal, merging, projects, settings
from scaffold.doctor.findings import Finding, guarded, note, ok, problem
from scaffold.errors import ProjectError, SourceError, some
from scaffold.projects import Project

_ROOTS = (settings.ANSWERS_FILE, "ONBOARDING.md", "pyproject.toml")
"""What makes a folder a project, the surest first: a team's own may have no template."""


def folder(path: Path) -> Path:
    """``path``, absolute.

    Raises:
        ProjectError: There is no such folder.
    """
    absolute = path.expanduser().resolve()
    if not absolute.is_dir():
        raise ProjectError(
            f"There is no folder {path}.",
            why="the doctor looks at a project, or at the machine from any folder.",
            fix="name the folder of a project, or leave it out to look at this one.",
        )
    return absolute


def root(start: Path) -> Path | None:
    """The project that the folder ``start`` lies in; None outside of one."""
    for name in _ROOTS:
        for place in (start, *start.parents):
            if (place / name).is_file():
                return place
    return None


def examine(root: Path) -> Iterator[Finding]:
    """Its folder and its state in git."""
    if os.access(root, os.W_OK | os.X_OK):
        yield ok(f"{root} can be written")
    else:
        yield problem(f"{root} cannot be written", f"become its owner, or work on a copy of your own: ls -ld {root}")
    yield from guarded("its git repository", _repository, root)
    yield from guarded("line ends", _line_ends, root)


def _repository(root: Path) -> Iterator[Finding]:
    git.require_git()
    where = git.attempt("rev-parse", "--absolute-git-dir", cwd=root)
    if where.returncode:
        if "dubious ownership" in where.stderr:
            yield problem(
                f"{root} belongs to another user, so git does not read it",
                f"chown it, or: git config --global --add safe.directory {root}",
            )
        else:
            yield problem(
                "it is in no git repository: an update could not be told from your edits",
                "git init && git add -A && git commit -m 'First commit'",
            )
        return
    if git.attempt("rev-parse", "-q", "--verify", "HEAD", cwd=root).returncode:
        yield problem(
            "it has no commit yet: an update merges with what is committed",
            "git add -A && git commit -m 'First commit'",
        )
    unfinished = list(_unfinished(root, Path(where.stdout.strip())))
    yield from unfinished or [ok("no merge or update is unfinished")]


def _unfinished(root: Path, git_dir: Path) -> Iterator[Finding]:
    for what, fix in sorted({told for name, told in git.UNDER_WAY.items() if (git_dir / name).exists()}):
        yield problem(f"{what} is not finished", fix)
    if journal.interrupted(merging.repository(root)):
        yield problem(
            "an update was killed while it wrote files", "scaffold update --abort, then scaffold update again"
        )
    unmerged = _names(git.git("diff", "--name-only", "-z", "--diff-filter=U", "--relative", cwd=root))
    if unmerged:
        yield problem(
            f"not merged yet: {some(unmerged)}",
            "decide each, then git add it. Or undo the last update: scaffold update --abort",
        )
    # Both marks, so that a text about one of them is not taken for a conflict.
    marks = ("--all-match", "-e", "^<<<<<<< ", "-e", "^>>>>>>> ")
    marked = _names(git.attempt("grep", "-I", "-l", "-z", *marks, cwd=root).stdout)
    if left := [name for name in marked if name not in unmerged]:
        yield problem(
            f"conflict markers left in {some(left)}",
            "decide what stands between <<<<<<< and >>>>>>>, then git add it.",
        )
    if rejected := _names(git.git("ls-files", "-z", "--cached", "--others", "--", "*.rej", cwd=root)):
        yield problem(
            f"changes that an update could not apply: {some(rejected)}",
            "apply them by hand, then delete the .rej files.",
        )


def _line_ends(root: Path) -> Iterator[Finding]:
    setting = git.attempt("config", "core.autocrlf", cwd=root).stdout.strip().lower()
    if setting in ("", "false", "input"):
        return
    attributes = git.attempt("check-attr", "eol", "--", "pyproject.toml", cwd=root).stdout.strip()
    if attributes.endswith((": lf", ": crlf")):
        yield ok(f"core.autocrlf is {setting}, but .gitattributes decides here")
    else:
        yield note(
            f"core.autocrlf is {setting}: files get CRLF here, and an update may show every line as changed",
            "add the line `* text=auto eol=lf` to .gitattributes.",
        )


def template(root: Path, online: bool) -> Iterator[Finding]:
    """Where it comes from, and whether it is behind.

    Raises:
        ScaffoldError: The answers cannot be read, or the template is gone.
    """
    if not (root / settings.ANSWERS_FILE).is_file():
        yield note(f"no {settings.ANSWERS_FILE}: this project has no template, and nothing to be updated from")
        return
    project = projects.find(root)
    for layer in project.layers:
        yield ok(f"{layer.answers_file} can be read: {layer.name} {layer.commit} from {layer.src_path}")
    try:
        remote = _elsewhere(project)
    except SourceError as error:
        yield problem(
            error.what,
            "get it back, or write its new place as _src_path into the answers file. Until then, there are no updates.",
        )
        return
    if remote and not online:
        yield note(f"not asked for news: {', '.join(remote)}", "scaffold doctor --online")
    else:
        yield from guarded("what is new", _news, root)


def _elsewhere(project: Project) -> list[str]:
    """The sources that only a network has."""
    sources = [catalog.recorded(layer.src_path) for layer in project.layers]
    return [source.url for source in sources if "file" not in source.protocols.split(":")]


def _news(root: Path) -> Iterator[Finding]:
    from scaffold.checking import check

    checked = check(root, drift=True)
    for state in checked.layers:
        said = f"{state.name} is at {state.version}"
        if state.behind:
            yield note(
                f"{said}, {state.behind} release{'s' * (state.behind > 1)} behind {state.newest}", "scaffold update"
            )
        else:
            yield ok(f"{said}, the newest")
    drifted = [f"{drift.path} ({drift.kind})" for drift in checked.drifted]
    if drifted:
        yield note(
            f"{len(drifted)} managed file{'s' * (len(drifted) > 1)} not as in the template: {some(drifted)}",
            "scaffold check --drift tells how to take one back; or tell the template's authors what you need.",
        )
    elif checked.managed:
        yield ok(f"files that the template manages, and nobody changed: {checked.managed}")


def _names(output: str) -> list[str]:
    return sorted({name for name in output.split("\0") if name})
