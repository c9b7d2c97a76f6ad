"""``scaffold update``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaffold.cli.reporting import pairs, print_json, reporting


def update(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The project.", show_default=False)] = Path(),
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="Default: the newest release.")] = None,
    answers: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Answer a question anew; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Bring a project to the newest version of its template.

    Exits with 0 when all is merged or there is nothing to do, 3 when conflicts are left for you to resolve.

    Example: scaffold update --to 0.2.0
    """
    with reporting(as_json) as done:
        from scaffold import updating

        updated = updating.update(
            path, to=to, answers=pairs(answers or []), in_place=lambda where: done.append(f"{where} was updated")
        )
        if as_json:
            print_json(
                {
                    "path": str(updated.path),
                    "from": updated.before,
                    "to": updated.after,
                    "changed": list(updated.changed),
                    "conflicts": list(updated.conflicts),
                }
            )
        else:
            for line in updated.summary():
                typer.echo(line)
        if updated.conflicts:
            raise typer.Exit(3)
