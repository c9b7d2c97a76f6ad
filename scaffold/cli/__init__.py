"""The command line: each command parses, calls one library function and prints. No logic lives here."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from scaffold import __version__
from scaffold.cli import (
    check,
    components,
    doctor,
    fleet,
    layer,
    new,
    template,
    template_lint,
    template_new,
    template_release,
    template_test,
    update,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(new.new)
app.command()(update.update)
app.command()(check.check)
app.command()(components.add)
app.command()(components.remove)
app.command()(doctor.doctor)
template.app.command()(template_new.new)
template.app.command()(template_lint.lint)
template.app.command()(template_test.test)
template.app.command()(template_release.release)
app.add_typer(layer.app, name="layer")
app.add_typer(template.app, name="template")
app.add_typer(fleet.app, name="fleet")


_Misuse: Any = typer.BadParameter.__mro__[2]
"""What typer raises for any command line that makes no sense: ClickException, whose own copy some versions carry."""


def run() -> None:
    """The entry point of the command ``scaffold``. A command line that makes no sense exits with 1: 2 means behind."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name or a line that is no UTF-8 comes out as it is
            stream.reconfigure(errors="surrogateescape")
    try:
        status = app(prog_name="scaffold", standalone_mode=False)
    except _Misuse as error:
        error.show()
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scaffold {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Start PyTorch training repositories from templates, and keep them up to date.

    Example: scaffold new my-project
    """
