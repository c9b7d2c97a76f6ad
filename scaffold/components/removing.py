"""Removing a component: the mirror of adding it, while its files are as they were written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path

from scaffold import projects
from scaffold.components import kinds, naming, offering, record, writing
from scaffold.components.adding import Component, rendered
from scaffold.console import quoted
from scaffold.errors import ProjectError, ScaffoldError, nearest


def remove(
    kind: str,
    name: str,
    path: Path,
    *,
    dry_run: bool = False,
    in_place: Callable[[Component], None] = lambda _: None,
) -> Component:
    """Take a component away: the files that ``add`` wrote, if all are as it wrote them. Those that are gone stay gone.

    Raises:
        ProjectError: There is no such component, or a file of it was changed.
        ScaffoldError: Something else went wrong. The project is as it was in any case.
    """
    project = projects.find(path)
    parsed = naming.spelled(name)
    kinds.require_name(kind)
    before = record.hashes(project.root, kind, parsed.snake)
    if before is None:
        before = _as_it_would_be_now(kind, parsed, project)
    listed = record.path_of(kind, parsed.snake)
    for file in (*before, listed):
        writing.require_inside(project.root, file)
    there = [file for file in before if (project.root / file).exists() or (project.root / file).is_symlink()]
    if changed := [file for file in there if record.digest_of(project.root / file) != before[file]]:
        raise _changed(kind, parsed, project, changed, before)
    component = Component(
        root=project.root,
        kind=kind,
        name=parsed.snake,
        files={file: (project.root / file).read_text(encoding="utf-8") for file in there},
    )
    if not dry_run:
        recorded = [listed] if (project.root / listed).is_file() else []
        writing.remove(project.root, [*there, *recorded], lambda: in_place(component))
    return component


def _as_it_would_be_now(kind: str, name: naming.Name, project: projects.Project) -> dict[str, str]:
    """Without a record: the files that the component would be made of today, if they are all there, to the byte."""
    component: Component | None = None
    with suppress(ScaffoldError):
        component = rendered(offering.find(kind, project), name, project)
    if component:
        hashes = {file: record.digest(text) for file, text in component.files.items()}
        if all(record.digest_of(project.root / file) == hash_ for file, hash_ in hashes.items()):
            return hashes
    known = {called: of_kind for of_kind, called in record.known(project.root)}
    guess = nearest(name.snake, known)
    raise ProjectError(
        f"{project.root} has no {kind} called {name.snake} that scaffold added.",
        why=(
            f"it added {', '.join(f'{known[called]} {called}' for called in sorted(known))}."
            if known
            else "it has added no component here."
        ),
        fix=f"scaffold remove {known[guess]} {guess}" if guess else "look at git log for what was added.",
    )


def _changed(
    kind: str, name: naming.Name, project: projects.Project, changed: list[str], before: Mapping[str, str]
) -> ProjectError:
    """What the user changed, as a diff where today's scaffold still writes what it wrote then."""
    now: Mapping[str, str] = {}
    with suppress(ScaffoldError):
        now = rendered(offering.find(kind, project), name, project).files
    shown: list[str] = []
    for file in changed:
        text = now.get(file, "")
        path = project.root / file
        if record.digest(text) == before[file] and record.digest_of(path):
            lines = path.read_text(encoding="utf-8").splitlines()
            shown += unified_diff(text.splitlines(), lines, f"added/{file}", file, n=0, lineterm="")
        else:
            shown.append(f"{file}: not what was added")
    more = [f"... and {len(shown) - 20} lines more"] if len(shown) > 20 else []
    return ProjectError(
        f"{', '.join(changed)} changed since {kind} {name.snake} was added.",
        why="what you wrote would be lost:\n" + "\n".join(f"    {line}" for line in [*shown[:20], *more]),
        fix="take back the changes, or delete all the same: " + quoted("rm", *before, record.path_of(kind, name.snake)),
    )
