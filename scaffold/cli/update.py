"""``scaffold update``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import confirm_source, is_terminal, one_of, pairs, print_json, reporting

if TYPE_CHECKING:
    from scaffold.updating import Updated


def update(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The project.", show_default=False)] = Path(),
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Default: the newest release. Of a layer: NAME=VERSION."),
    ] = None,
    answers: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Answer a question anew; repeatable.")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes as a patch; write nothing.")] = False,
    stat: Annotated[bool, typer.Option("--stat", help="Show which files would change; write nothing.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Undo the last update, which is not committed yet.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let the template's tasks and migrations run commands here.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take defaults for new questions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; ask nothing.")] = False,
) -> None:
    """Bring a project, with all its layers, to the newest version of its templates. Nothing is committed.

    Exits with 0 when all is merged or there is nothing to do, 3 when conflicts are left for you to resolve.

    Example: scaffold update --diff
    """
    with reporting(as_json) as done:
        from scaffold import updating

        one_of(abort=abort, diff=diff, stat=stat)
        one_of(abort=abort, to=to is not None)
        one_of(abort=abort, set=bool(answers))
        if abort:
            _abort(path, as_json)
            return
        ask = is_terminal() and not (yes or as_json)
        updated = updating.update(
            path,
            to=to,
            answers=pairs(answers or []),
            dry_run=diff or stat,
            show="diff" if diff else "stat" if stat else None,
            trust_tasks=trust,
            ask=ask and not (diff or stat),
            confirm=lambda template: confirm_source(template, ask=ask),
            in_place=lambda where: done.append(f"{where} was updated"),
        )
        if as_json:
            print_json(described(updated))
        else:
            show(updated)
        if updated.conflicts:
            raise typer.Exit(3)


def described(updated: Updated) -> dict[str, Any]:
    """As JSON."""
    return {
        "path": str(updated.path),
        "from": dict(updated.before),
        "to": dict(updated.after),
        "changes": [
            {"path": change.path, "kind": change.kind, "before": change.before, "reason": change.reason}
            for change in updated.changes
        ],
        "conflicts": list(updated.conflicts),
        "notes": list(updated.notes),
        "difference": updated.difference,
        "written": not updated.dry,
    }


def show(updated: Updated) -> None:
    """For people to read."""
    if updated.difference:
        # A patch for a program is byte for byte; a terminal would obey what a stranger's template has in it.
        typer.echo(console.plain(updated.difference) if sys.stdout.isatty() else updated.difference, nl=False)
    if not updated.changes:
        versions = ", ".join(v if name == "base" else f"{name} {v}" for name, v in updated.after.items())
        typer.echo(f"{updated.path} is at template {versions}: nothing to do.")
    else:
        what = "; ".join(_steps(updated)) or "the answers are new"
        typer.echo(f"{'Would update' if updated.dry else 'Updated'} {updated.path}: {what}.")
        for change in updated.changes:
            renamed = f" (was {change.before})" if change.before else ""
            reason = f"  ({change.reason})" if change.reason else ""
            typer.echo(f"  {change.kind:<8}  {change.path}{renamed}{reason}")
    for note in updated.notes:
        console.note(note)
    if updated.dry or not updated.changes:
        return
    if updated.conflicts:
        typer.echo("Resolve the conflicts, then: git add -A && git commit")
        typer.echo("  in a file, between <<<<<<< and >>>>>>>; modify/delete: git add it to keep it, or git rm it")
    else:
        typer.echo("Look at it with git diff HEAD, then: git add -A && git commit")
    typer.echo("To undo it all: scaffold update --abort")


def _steps(updated: Updated) -> Iterator[str]:
    """What happens to each layer."""
    for name, version in updated.after.items():
        layer = "template" if name == "base" else f"layer {name}"
        before = updated.before.get(name)
        if before is None:
            yield f"{layer} {version} is new"
        elif before != version:
            yield f"{layer} from {before} to {version}"
    yield from (f"layer {name} goes" for name in updated.before if name not in updated.after)


def _abort(path: Path, as_json: bool) -> None:
    from scaffold import updating

    undone = updating.abort(path)
    if as_json:
        print_json({"path": str(undone.path), "files": list(undone.files), "kept": undone.kept})
        return
    typer.echo(f"Undid the update of {undone.path}: {len(undone.files)} files are as they were.")
    if undone.kept:
        typer.echo(f"What you wrote into them since is kept: git show {undone.kept[:12]}")
