"""``scaffold add`` and ``scaffold remove``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.components import Component

_Kind = Annotated[
    str | None,
    typer.Argument(metavar="KIND", help="model, datamodule, callback, experiment, logger, or one of your team's."),
]
_Name = Annotated[str | None, typer.Argument(metavar="NAME", help="my-model, MyModel and my_model are the same.")]
_Path = Annotated[Path, typer.Argument(metavar="PATH", help="The project.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def add(
    kind: _Kind = None,
    name: _Name = None,
    path: _Path = Path(),
    listing: Annotated[bool, typer.Option("--list", help="Show the kinds there are.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be written; write nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Add a component to a project: a source file, its config and its test. Nothing that is there is changed.

    Example: scaffold add callback gradient-noise
    """
    with reporting(as_json) as done:
        from scaffold import components

        if listing:
            _list(path, as_json)
            return
        kind, name = _required("add", kind, name)
        added = components.add(
            kind,
            name,
            path,
            dry_run=preview,
            in_place=lambda it: done.append(f"{it.kind} {it.name} was added, and is whole"),
        )
        if as_json:
            print_json({**_described(added), **({"contents": dict(added.files)} if preview else {})})
        elif preview:
            console.tree(added.root.name, sorted(added.files))
            for file, text in added.files.items():
                typer.echo(f"\n--- {file}\n{text}", nl=False)
        else:
            console.tree(added.root.name, sorted(added.files))
            typer.echo(f"\nAdded {added.kind} {added.name}, {_count(added)}.{' Next:' if added.next else ''}\n")
            console.commands(_next(added))


def remove(
    kind: _Kind = None,
    name: _Name = None,
    path: _Path = Path(),
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be removed; remove nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Remove a component that was added, while its files are as they were added.

    Example: scaffold remove callback gradient-noise
    """
    with reporting(as_json) as done:
        from scaffold import components

        kind, name = _required("remove", kind, name)
        removed = components.remove(
            kind,
            name,
            path,
            dry_run=preview,
            in_place=lambda it: done.append(f"{it.kind} {it.name} was removed"),
        )
        if as_json:
            print_json(_described(removed))
        else:
            for file in sorted(removed.files):
                typer.echo(file)
            would = "Would remove" if preview else "Removed"
            typer.echo(f"\n{would} {removed.kind} {removed.name}, {_count(removed)}.")


def _list(path: Path, as_json: bool) -> None:
    from scaffold import components

    offer = components.offered(path)
    if as_json:
        offers = [{"kind": kind.name, "help": kind.help, "template": kind.origin or None} for kind in offer.kinds]
        print_json({"kinds": offers, "notes": list(offer.notes)})
        return
    width = max(len(kind.name) for kind in offer.kinds)
    for kind in offer.kinds:
        typer.echo(f"{kind.name:<{width}}  {kind.help}{f' (from {kind.origin})' if kind.origin else ''}")
    for text in offer.notes:
        console.note(text)


def _required(command: str, kind: str | None, name: str | None) -> tuple[str, str]:
    from scaffold.errors import AnswerError

    if kind is None or name is None:
        raise AnswerError(
            "No KIND was given." if kind is None else f"No NAME was given for the {kind}.",
            why=f"scaffold {command} takes both.",
            fix=f"scaffold {command} {kind or 'model'} my-{kind or 'model'} (the kinds: scaffold add --list)",
        )
    return kind, name


def _described(component: Component) -> dict[str, Any]:
    return {
        "path": str(component.root),
        "kind": component.kind,
        "name": component.name,
        "files": sorted(component.files),
        "next": list(component.next),
    }


def _next(component: Component) -> list[str]:
    away = component.next and component.root != Path.cwd()
    return [*([f"cd {shlex.quote(str(component.root))}"] if away else []), *component.next]


def _count(component: Component) -> str:
    return f"{len(component.files)} file{'' if len(component.files) == 1 else 's'}"
