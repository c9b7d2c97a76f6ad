"""``scaffold template release``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.authoring.releasing import Released
    from scaffold.authoring.suggesting import Suggestion


def release(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Such as 1.2.0; without it, one is suggested.")
    ] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="Only say which version would fit, and why.")] = False,
    notes: Annotated[str | None, typer.Option(metavar="TEXT", help="One more line for the changelog.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Release the template one stands in: date its changelog, commit that, make the tag. The push is left to you.

    Example: scaffold template release 1.2.0
    """
    with reporting(as_json) as done:
        from scaffold.authoring import releasing, repository, suggesting

        if version is None or suggest:
            suggestion = suggesting.suggest(repository.find(Path()))
            if as_json:
                print_json({"suggestion": _suggested(suggestion)})
            else:
                _show_suggestion(suggestion)
            return
        released = releasing.release(
            Path(),
            version,
            lint=_errors,
            more=notes,
            dry=dry_run,
            in_place=lambda tag: done.append(f"{tag} was made, and is whole"),
        )
        if as_json:
            print_json(_describe(released))
        else:
            _show(released)


def _errors(root: Path) -> list[str]:
    from scaffold.linting import engine

    return [finding.text() for finding in engine.lint(root).findings if finding.rule.severity == "error"]


def _show_suggestion(suggestion: Suggestion) -> None:
    if suggestion.since:
        typer.echo(f"{suggestion.version} would fit, a {suggestion.size} step from {suggestion.since}:")
    else:
        typer.echo(f"{suggestion.version} would fit:")
    for reason in suggestion.reasons:
        typer.echo(f"  - {console.plain(reason)}")
    typer.echo(f"\nTo release it: scaffold template release {suggestion.version}")


def _show(released: Released) -> None:
    typer.echo(console.plain(released.message))
    if released.dry:
        typer.echo(
            f"\n{released.tag} can be released: nothing was changed. Without --dry-run, to send it afterwards:\n"
        )
    else:
        typer.echo(f"\nMade the tag {released.tag}, here only. To send it to others:\n")
    console.commands(released.push)
    for text in released.notes:
        console.note(text)


def _suggested(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "version": suggestion.version,
        "size": suggestion.size,
        "since": suggestion.since,
        "reasons": list(suggestion.reasons),
    }


def _describe(released: Released) -> dict[str, Any]:
    return {
        "path": str(released.root),
        "tag": released.tag,
        "commit": released.commit,
        "message": released.message,
        "push": list(released.push),
        "suggestion": _suggested(released.suggestion),
        "notes": list(released.notes),
        "dry_run": released.dry,
    }
