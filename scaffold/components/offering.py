"""Which kinds of components there are: ours, and those of the templates that a project was made from.

A template offers more in ``components/KIND/`` at the root of its repository. They are read at the version that the project
is at, and never take the place of one of ours.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from scaffold import catalog, fetching
from scaffold.components import kinds
from scaffold.errors import AnswerError, ProjectError, ScaffoldError, SourceError, nearest
from scaffold.projects import Applied, Project
from scaffold.projects import find as find_project


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What can be added to a project."""

    kinds: tuple[kinds.Kind, ...]
    notes: tuple[str, ...]
    """Which templates could not be asked for theirs, and why; which kinds are hidden by others."""


def offered(path: Path) -> Offer:
    """The kinds that scaffold has, and those of the templates that the project at ``path`` was made from, if it is one."""
    found = kinds.built_in()
    notes: list[str] = []
    layers: tuple[Applied, ...] = ()
    with suppress(ProjectError):
        layers = find_project(path).layers
    for layer in layers:
        try:
            for kind in _of_layer(layer):
                first = found.setdefault(kind.name, kind)
                if first is not kind:
                    owner = f"the template {first.origin}" if first.origin else "scaffold"
                    notes.append(f"{kind.name} is that of {owner}; the template {layer.name} has one of that name too.")
        except ScaffoldError as error:
            notes.append(f"the template {layer.name} could not be asked: {error.what}")
    return Offer(kinds=tuple(found.values()), notes=tuple(notes))


def find(name: str, project: Project) -> kinds.Kind:
    """Ours first: adding a model asks no template and no network."""
    kinds.require_name(name)
    found = kinds.built_in()
    if name in found:
        return found[name]
    unreachable: list[ScaffoldError] = []
    for layer in project.layers:
        try:
            for kind in _of_layer(layer):
                found.setdefault(kind.name, kind)
        except SourceError as error:
            unreachable.append(error)
    if name in found:
        return found[name]
    if unreachable:
        raise unreachable[0]
    guess = nearest(name, found)
    raise AnswerError(
        f"There is no kind of component called {name!r}.",
        why=f"there are {', '.join(found)}.",
        fix=f"scaffold add {guess} NAME" if guess else "scaffold add --list",
    )


def _of_layer(layer: Applied) -> list[kinds.Kind]:
    """The kinds that a template offers in the version that the project is at."""
    source = catalog.recorded(layer.src_path)
    if source.trusted:  # ours, whose components came with this distribution
        return []
    template = fetching.fetch(replace(source, reference=layer.commit))
    if layer.template_hash and layer.template_hash != template.commit:
        raise SourceError(
            f"{layer.commit} of the template {layer.name} is not what this project was made from.",
            why=f"it was commit {layer.template_hash[:12]}, and is {template.commit[:12]} now.",
            fix="ask its author.",
        )
    with tempfile.TemporaryDirectory(prefix="scaffold-components-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "template"
        template.unpack(folder)
        return kinds.read(folder / "components", origin=layer.name)
