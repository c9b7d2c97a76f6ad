"""``scaffold template lint``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaffold import console
from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.linting.engine import Linted


class Format(str, Enum):
    """How findings are printed."""

    text = "text"
    github = "github"


_RULES = "Ids or their beginnings, separated by commas; repeatable."


def lint(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The template's root.", show_default=False)] = Path(),
    select: Annotated[list[str] | None, typer.Option(metavar="T101,T2", help=f"Only these rules. {_RULES}")] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="T101,T2", help=f"Not these rules. {_RULES}")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="RULE", help="Print what a rule means and how to mute it; lint nothing.")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="github: annotations that GitHub Actions shows beside the lines.")
    ] = Format.text,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look for mistakes in a template, as it lies there: what isn't committed is looked at, too.

    Exits with 1 when there are errors; warnings alone do not fail without --strict.

    Example: scaffold template lint --ignore T702,T703
    """
    with reporting(as_json):
        from scaffold.linting import engine

        if explain is not None:
            page = engine.explain(explain)
            if as_json:
                print_json({"rule": explain, "page": page})
            else:
                typer.echo(page, nl=False)
            return
        linted = engine.lint(path, select=_separate(select), ignore=_separate(ignore))
        if as_json:
            print_json(_document(linted))
        elif form is Format.github:
            _annotate(linted)
        else:
            _show(linted)
        if linted.failed(strict=strict):
            raise typer.Exit(1)


def _separate(given: list[str] | None) -> list[str]:
    return [part.strip() for text in given or [] for part in text.split(",")]


def _show(linted: Linted) -> None:
    for finding in linted.findings:
        typer.echo(console.plain(finding.text()))
    typer.echo(linted.summary())
    for note in linted.notes:
        console.note(note)


def _annotate(linted: Linted) -> None:
    """Paths as GitHub wants them: from the root of the checkout, where the step runs."""
    below = os.path.relpath(linted.root).replace(os.sep, "/")
    for finding in linted.findings:
        typer.echo(console.plain(finding.annotation("" if below == "." else f"{below}/")))
    typer.echo(linted.summary())
    for note in linted.notes:
        console.note(note)


def _document(linted: Linted) -> dict[str, object]:
    return {
        "path": str(linted.root),
        "files": linted.files,
        "errors": linted.errors,
        "warnings": linted.warnings,
        "muted": linted.muted,
        "findings": [finding.entry() for finding in linted.findings],
        "notes": list(linted.notes),
    }
