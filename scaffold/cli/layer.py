"""``scaffold layer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaffold.cli.reporting import confirm_source, is_terminal, pairs, print_json, reporting
from scaffold.cli.update import described, show

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A team's templates on top of the base one.",
)

_Path = Annotated[Path, typer.Argument(metavar="[PATH]", help="The project.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_Diff = Annotated[bool, typer.Option("--diff", help="Show the changes as a patch; write nothing.")]


@app.command()
def add(
    template: Annotated[
        str, typer.Argument(metavar="NAME|URL|PATH[@REF]", help="The layer's template.", show_default=False)
    ],
    path: _Path = Path(),
    name: Annotated[str | None, typer.Option(help="Default: what the template calls itself.")] = None,
    answers: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Answer a question of it; repeatable.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Answers with a name, of the template or your own.")
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="It may write over files of the layers below.")
    ] = False,
    diff: _Diff = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Put a template on top of a project. Nothing is committed.

    Exits with 0 when all is merged, 3 when conflicts are left for you to resolve.

    Example: scaffold layer add https://example.com/acme/ci-layer
    """
    with reporting(as_json) as done:
        from scaffold import layers

        ask = is_terminal() and not yes and not as_json
        added = layers.add(
            path,
            template,
            name=name,
            answers=pairs(answers or []),
            preset=preset,
            allow_overlap=allow_overlap,
            ask=ask and not diff,
            dry_run=diff,
            show="diff" if diff else None,
            confirm=lambda found: confirm_source(found, ask=ask),
            in_place=lambda where: done.append(f"{where} has the layer"),
        )
        print_json(described(added)) if as_json else show(added)
        if added.conflicts:
            raise typer.Exit(3)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The layer.", show_default=False)],
    path: _Path = Path(),
    diff: _Diff = False,
    as_json: _Json = False,
) -> None:
    """Take a layer off a project: its files go, those that you changed are left for you to decide. Nothing is committed.

    Exits with 0 when all is merged, 3 when conflicts are left for you to resolve.

    Example: scaffold layer remove acme
    """
    with reporting(as_json) as done:
        from scaffold import layers

        removed = layers.remove(
            path,
            name,
            dry_run=diff,
            show="diff" if diff else None,
            in_place=lambda where: done.append(f"{where} no longer has the layer"),
        )
        print_json(described(removed)) if as_json else show(removed)
        if removed.conflicts:
            raise typer.Exit(3)


@app.command("list")
def list_layers(path: _Path = Path(), as_json: _Json = False) -> None:
    """Show the layers of a project, and which files each writes.

    Example: scaffold layer list
    """
    with reporting(as_json):
        from scaffold import layers

        found = layers.listed(path)
        if as_json:
            print_json([{**vars(layer), "files": list(layer.files)} for layer in found])
            return
        for layer in found:
            typer.echo(f"{layer.name}  {layer.template} {layer.version}, {layer.answers_file}")
            for file in layer.files:
                typer.echo(f"  {file}")
