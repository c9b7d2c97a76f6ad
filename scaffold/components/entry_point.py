"""Which two classes a project trains: what its ``__main__.py`` gives to ``treadle.cli.main``. Read, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaffold.errors import ProjectError

_SHORT = 88
"""Characters that fit into a line whatever length a team has chosen."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A class of the project's own package."""

    module: str
    """Within the package: ``model``; empty for the package itself."""

    name: str


def classes(root: Path, package: str) -> tuple[Imported, Imported]:
    """The project's model and its data.

    Raises:
        ProjectError: The file is not there, or does not say it in a way that can be read.
    """
    file = root / "src" / package / "__main__.py"
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise _unclear(file, package, f"it cannot be read: {error}") from None
    given = next((found for call in _calls_of_main(tree) if (found := _arguments(call))), None)
    if given is None:
        raise _unclear(file, package, "it has no call like main(MyModel, MyData), with two classes")
    imported = dict(_imports(tree, package))
    for name in given:
        if name not in imported:
            raise _unclear(file, package, f"{name} is not imported from the package {package}")
    model, data = given
    return imported[model], imported[data]


def as_import(*wanted: Imported) -> str:
    """The lines that import these in a module of the same package, sorted as ruff does."""
    modules = sorted({one.module for one in wanted}, key=lambda text: (text.lower(), text))
    return "\n".join(
        statement(f".{module}", {one.name for one in wanted if one.module == module}) for module in modules
    )


def statement(module: str, names: set[str]) -> str:
    """One import, as black and ruff write it. A long one ends in a comma, which keeps it apart at any line length."""
    # A name in capitals is taken for a constant, and those come first.
    ordered = sorted(names, key=lambda text: (len(text) == 1 or not text.isupper(), text.lower(), text))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= _SHORT:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in ordered), ")"])


def _calls_of_main(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="main") | ast.Attribute(attr="main")):
                yield node


def _arguments(call: ast.Call) -> tuple[str, str] | None:
    given = dict(zip(("model", "data"), call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    match given.get("model"), given.get("data"):
        case ast.Name(id=model), ast.Name(id=data):
            return model, data
    return None


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, Imported]]:
    """Names in the file, with what they are in the package."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(level=1, module=module):
                inside = module or ""
            case ast.ImportFrom(level=0, module=str(module)) if module == package or module.startswith(f"{package}."):
                inside = module[len(package) + 1 :]
            case _:
                continue
        for alias in node.names:
            yield alias.asname or alias.name, Imported(module=inside, name=alias.name)


def _unclear(file: Path, package: str, reason: str) -> ProjectError:
    return ProjectError(
        f"{file} does not say which model and data this project trains.",
        why=f"{reason}; a new one starts as a variant of them.",
        fix=f"write there: from treadle.cli import main, import both classes from {package}, and main(Model, Data).",
    )
