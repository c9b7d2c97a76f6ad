"""``scaffold doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.doctor import Report
    from scaffold.doctor.findings import Finding

_COLOURS = {"ok": "green", "done": "green", "note": "yellow", "next": "yellow", "problem": "red"}


def doctor(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The project.", show_default=False)] = Path(),
    online: Annotated[bool, typer.Option("--online", help="Also ask templates on other machines for news.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for Python and torch.", min=0.1)] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look at this machine and this project, verify the steps of ONBOARDING.md, and say what to do about each problem.

    Exits with 0 when there is no problem, else with 1. A step that is not done yet is none.

    A step is checked by comments in the file, like <!-- doctor: command git -->. There are: command NAME,
    python >=3.10, installed PACKAGE>=1.0, env NAME, file runs/*/metrics.csv, git-identity, plugin NAME, remote NAME.

    Example: scaffold doctor
    """
    with reporting(as_json):
        from scaffold.doctor import examine

        report = examine(path, online=online, patience=timeout)
        if as_json:
            print_json(_as_json(report))
        else:
            _show(report)
        if report.problems:
            raise typer.Exit(1)


def _show(report: Report) -> None:
    for section in report.sections:
        typer.echo(f"{section.title}")
        for finding in section.findings:
            _line(finding.level, finding.text)
            if finding.fix:
                typer.echo(f"{'':11}{finding.fix}")
    if report.root is None:
        typer.echo("Not in a project: that is all. scaffold new makes one.")
    if report.steps:
        typer.echo("ONBOARDING.md")
    for verified in report.steps:
        state = {"done": "done", "unchecked": "-"}.get(verified.state, "open")
        step = verified.step
        _line("next" if verified is report.next_step else state, f"{step.number}. {step.title}")
        for finding in verified.findings:
            if finding.level != "ok":
                typer.echo(f"{'':11}{finding.text}{f': {finding.fix}' if finding.fix else ''}")
    count = report.problems
    typer.echo("No problem." if not count else f"{count} problem{'s' * (count > 1)}.")


def _line(word: str, text: str) -> None:
    typer.echo(f"  {typer.style(f'{word:<7}', fg=_COLOURS.get(word))}  {text}")


def _as_json(report: Report) -> dict[str, Any]:
    upcoming = report.next_step
    return {
        "path": str(report.root) if report.root else None,
        "problems": report.problems,
        "sections": [
            {"title": section.title, "findings": [_finding(finding) for finding in section.findings]}
            for section in report.sections
        ],
        "steps": [
            {
                "number": verified.step.number,
                "title": verified.step.title,
                "state": verified.state,
                "checks": [_finding(finding) for finding in verified.findings],
            }
            for verified in report.steps
        ],
        "next": upcoming.step.number if upcoming else None,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {"level": finding.level, "text": finding.text, "fix": finding.fix}
