"""``scaffold template test``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaffold.cli.reporting import print_json, reporting

__test__: dict[str, str] = {}
"""Tells pytest, by whose rules this file and its function are a test, that they are none."""


def test(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The template.", show_default=False)] = Path(),
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Only these of: rendered, parsed, black, typed, installed, trained, tests, updated. "
            "Default: all but tests.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only rendered, parsed and black.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The tests of each project as well.")] = False,
    only: Annotated[list[int] | None, typer.Option(metavar="N", help="Only combination N; repeatable.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", metavar="N", min=1, help="Combinations at once; default: one per CPU.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run what went well before, too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where this machine lacks a tool.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="For one stage of one combination.")] = 600,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Leave the projects there.")] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="The Python to check, install and train with; default: this one.")
    ] = None,
    form: Annotated[
        tuple[str, Path] | None, typer.Option("--format", metavar="junit FILE", help="Write a report for CI as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Try a template of your own: combinations of answers in which every two values meet, through all stages.

    Its files are taken as they are now, committed or not. Add values, cases and exclusions in tests/answers.yml.

    THIS RUNS WHAT THE TEMPLATE RENDERS, as you and without a sandbox: only for templates that you wrote or have read.

    Exits with 1 when anything failed.

    Example: scaffold template test --quick
    """
    with reporting(as_json) as done:
        import sys

        from scaffold import template_testing
        from scaffold.errors import TemplateError
        from scaffold.template_testing import report

        if form and form[0] != "junit":
            raise TemplateError(
                f"--format {form[0]}: there is no such format.",
                why="the one for CI is junit; --json prints a document of our own.",
                fix=f"--format junit {form[1]}",
            )
        if sum(map(bool, (stages, quick, full))) > 1:
            raise TemplateError(
                "--stages, --quick and --full say different things.",
                why="each of them chooses the stages.",
                fix="give one of them.",
            )
        if keep:
            done.append(f"projects are in {keep}")
        chosen = tuple(name.strip() for name in stages.split(",") if name.strip()) if stages else None
        whole = tuple(template_testing.STAGES) if full else template_testing.USUAL
        options = template_testing.Options(
            stages=chosen or (template_testing.QUICK if quick else whole),
            only=only or (),
            jobs=jobs,
            cache=not no_cache,
            strict=strict,
            timeout=timeout,
            keep=keep,
            python=python or sys.executable,
        )
        told = template_testing.run(
            path, options, lambda one, of: typer.echo(report.line(one, of), err=True) if sys.stderr.isatty() else None
        )
        if form:
            report.junit(told, form[1])
        if as_json:
            print_json(report.document(told))
        else:
            for text in report.table(told):
                typer.echo(text)
        if not told.good:
            raise typer.Exit(1)
