"""``scaffold fleet``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.fleet import Outcome

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The same for many projects at once.",
)

_Places = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Projects, or folders of projects.", show_default=False)
]
_Jobs = Annotated[int | None, typer.Option("--jobs", "-j", metavar="N", min=1, help="At once; default: one per CPU.")]
_Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write one HTML page.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def check(
    places: _Places,
    drift: Annotated[
        bool, typer.Option("--drift/--no-drift", help="Also look whether managed files were changed.")
    ] = True,
    jobs: _Jobs = None,
    html: _Html = None,
    as_json: _Json = False,
) -> None:
    """Which projects are behind their templates, and which have changed what these manage?

    Exits with 0 when none, 2 when some, 1 when one could not be looked at.

    Example: scaffold fleet check ~/work --html fleet.html
    """

    def work(paths: Sequence[Path], seen: Callable[[Outcome], None] | None) -> list[Outcome]:
        from scaffold import fleet

        return fleet.check(paths, drift=drift, jobs=jobs, seen=seen)

    _run("check", places, work, html, as_json)


@app.command()
def update(
    places: _Places,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Default: the newest release. Of a layer: NAME=VERSION.")
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only say what would happen; write nothing.")] = False,
    jobs: _Jobs = None,
    html: _Html = None,
    as_json: _Json = False,
) -> None:
    """Update projects. Nothing is committed.

    Exits with 0 when all merged clean, 3 when conflicts are left in some, 2 when some have drifted, 1 when one failed.

    Example: scaffold fleet update ~/work/* --html fleet.html
    """

    def work(paths: Sequence[Path], seen: Callable[[Outcome], None] | None) -> list[Outcome]:
        from scaffold import fleet

        return fleet.update(paths, to=to, dry_run=stat, jobs=jobs, seen=seen)

    _run("update", places, work, html, as_json)


def _run(
    command: str,
    places: Sequence[Path],
    work: Callable[[Sequence[Path], Callable[[Outcome], None] | None], list[Outcome]],
    html: Path | None,
    as_json: bool,
) -> None:
    with reporting(as_json):
        from scaffold import fleet, fleet_page

        paths = fleet.gather(places)
        if html is not None:
            fleet_page.require_place(html)
        outcomes = work(paths, None if as_json else _show)
        counted = fleet.counts(outcomes)
        if html is not None:
            fleet_page.write(html, outcomes, command=command)
        if as_json:
            print_json({"projects": [_described(outcome) for outcome in outcomes], "counts": counted})
        else:
            summary = ", ".join(f"{count} {status}" for status, count in counted.items())
            if also := fleet.also_drifted(outcomes):
                summary += f"; {also} of them drifted as well"
            typer.echo(f"{len(outcomes)} project{'s' * (len(outcomes) != 1)}: {summary}")
            if html is not None:
                typer.echo(f"The page: {html}")
        if code := fleet.exit_code(outcomes):
            raise typer.Exit(code)


def _show(outcome: Outcome) -> None:
    from scaffold import fleet

    versions = ", ".join(
        f"{'' if name == 'base' else f'{name} '}{one}" + (f" -> {other}" if other != one else "")
        for name, (one, other) in fleet.steps(outcome).items()
    )
    details = {
        "conflicts": ", ".join(outcome.conflicts),
        "drifted": ", ".join(outcome.drifted),
        "updated": f"{len(outcome.changed)} file{'s' * (len(outcome.changed) != 1)}",
        "failed": outcome.error.get("what", ""),
    }.get(outcome.status, "")
    if outcome.status != "drifted" and outcome.drifted:
        details = "; drifted: ".join(filter(None, [details, ", ".join(outcome.drifted)]))
    typer.echo(f"{outcome.status:<9}  {outcome.path}  {'  '.join(filter(None, [versions, details]))}")


def _described(outcome: Outcome) -> dict[str, Any]:
    return {
        "path": str(outcome.path),
        "status": outcome.status,
        "versions": dict(outcome.versions),
        "before": dict(outcome.before),
        "newest": dict(outcome.newest),
        "changed": list(outcome.changed),
        "conflicts": list(outcome.conflicts),
        "drifted": list(outcome.drifted),
        "error": dict(outcome.error) or None,
    }
