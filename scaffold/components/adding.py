"""Adding a component: rendered for this project, then written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scaffold import projects
from scaffold.components import entry_point, kinds, naming, offering, record, writing
from scaffold.errors import AnswerError, ProjectError


@dataclass(frozen=True, kw_only=True)
class Component:
    """One that was added or removed, or would be."""

    root: Path
    """Of its project."""

    kind: str
    name: str
    files: Mapping[str, str]
    """Contents by path, as they were added; when removed, as they were last."""

    next: tuple[str, ...] = ()
    """Commands to type in the project."""


def add(
    kind: str,
    name: str,
    path: Path,
    *,
    dry_run: bool = False,
    in_place: Callable[[Component], None] = lambda _: None,
) -> Component:
    """Add a component to the project at ``path``.

    Args:
        in_place: Told as soon as all of its files are there.

    Raises:
        ScaffoldError: And the project is as it was.
    """
    project = projects.find(path)
    component = rendered(offering.find(kind, project), naming.parse(name), project)
    listed = record.path_of(component.kind, component.name)
    files = {**component.files, listed: record.text_of(component.kind, component.name, component.files)}
    writing.require_free(project.root, files)
    if not dry_run:
        writing.write(project.root, files, lambda: in_place(component))
    return component


def rendered(kind: kinds.Kind, name: naming.Name, project: projects.Project) -> Component:
    package = _package(project)
    values = {
        "name": name.snake,
        "class_name": name.camel,
        "package": package,
        "import_line": entry_point.statement(f"{package}.{name.snake}", {name.camel}),
    }
    if kind.classes:
        model, data = entry_point.classes(project.root, package)
        if name.camel in (model.name, data.name):
            raise AnswerError(
                f"{name.camel} is what the project has already.",
                why="the new class starts as a variant of it, and needs a name of its own.",
                fix=f"call it my-{name.snake.replace('_', '-')}.",
            )
        values |= {
            "model_class": model.name,
            "data_class": data.name,
            "classes_import": entry_point.as_import(model, data),
        }
    files, needs, commands = kinds.render(kind, values)
    if lacking := [path for path in needs if not (project.root / path).exists()]:
        raise ProjectError(
            f"{project.root} has no {lacking[0]}.",
            why=f"a component of the kind {kind.name} builds on it.",
            fix=f"write {lacking[0]} first.",
        )
    module = f"src/{package}/{name.snake}"
    if f"{module}.py" in files and (project.root / module).exists():
        raise ProjectError(
            f"{module} is there already.",
            why=f"Python would take that folder for {name.snake}, and never read {module}.py.",
            fix="choose another name.",
        )
    return Component(root=project.root, kind=kind.name, name=name.snake, files=files, next=tuple(commands))


def _package(project: projects.Project) -> str:
    """The name of the project's Python package.

    Raises:
        ProjectError: Its answers do not say it, or it is not there.
    """
    answers = [layer.answers for layer in project.layers if "package_name" in layer.answers]
    package = answers[0]["package_name"] if answers else None
    if not isinstance(package, str) or not package.isidentifier() or not package.isascii():
        raise ProjectError(
            (
                f"{project.root} has no Python package that is known."
                if package is None
                else f"package_name is {package!r} in the answers of {project.root}."
            ),
            why="components are modules of the package that package_name in its answers names.",
            fix="add components by hand here." if package is None else "take the answers file back from git.",
        )
    if not (project.root / "src" / package).is_dir():
        raise ProjectError(
            f"{project.root} has no folder src/{package}.",
            why="components are modules of the package that package_name in its answers names.",
            fix=f"mkdir -p src/{package}, or move the package there.",
        )
    return package
