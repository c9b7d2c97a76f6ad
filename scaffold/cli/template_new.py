"""``scaffold template new``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import is_terminal, print_json, reporting

if TYPE_CHECKING:
    from scaffold.authoring.starting import Started


def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder to create.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="What the template is called: a-z, 0-9, hyphens. Default: the folder's name.")
    ] = None,
    fork_of: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Begin with the files of a built-in template: base.")
    ] = None,
    layer: Annotated[bool, typer.Option("--layer", help="A layer on top of base, with a team's own rules.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="No repository and first commit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; ask nothing.")] = False,
) -> None:
    """Start a template of your own: with tests, CI, and a project that trains.

    Example: scaffold template new acme --from base
    """
    with reporting(as_json) as done:
        from scaffold.authoring import starting

        started = starting.start(
            starting.Plan(path=path, name=name, fork_of=fork_of, layer=layer, use_git=not no_git),
            _confirm if is_terminal() and not (yes or as_json) else None,
            in_place=lambda _: done.append(f"{path} was made, and is whole"),
        )
        if as_json:
            print_json(_describe(started, path))
        else:
            _show(started, path)


def _confirm(name: str, files: tuple[str, ...]) -> bool:
    return console.confirmed(f"Make the template {name} with {len(files)} files?")


def _show(started: Started, typed: Path) -> None:
    console.tree(started.path.name, started.files)
    committed = ", committed to git" if started.commit else ""
    what = started.made_from.replace("`", "")
    typer.echo(f"\nMade the template {started.name}, {what}, {len(started.files)} files{committed}. Next:\n")
    console.commands(started.next_commands(typed))
    for text in started.notes():
        console.note(text)


def _describe(started: Started, typed: Path) -> dict[str, Any]:
    return {
        "path": str(started.path),
        "name": started.name,
        "kind": started.kind,
        "files": list(started.files),
        "commit": started.commit,
        "next": started.next_commands(typed),
        "notes": started.notes(),
    }
