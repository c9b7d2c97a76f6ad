"""``scaffold check``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold.cli.reporting import one_of, print_json, reporting

if TYPE_CHECKING:
    from scaffold.checking import Checked


class Form(str, Enum):
    """How the findings are printed."""

    text = "text"
    github = "github"
    gitlab = "gitlab"


def check(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The project.", show_default=False)] = Path(),
    drift: Annotated[
        bool, typer.Option("--drift", help="Also look whether files that the template manages were changed.")
    ] = False,
    allow_behind: Annotated[
        bool, typer.Option("--allow-behind", help="Say that it is behind, and exit with 0 all the same.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Put changed managed files back as the template has them; not committed.")
    ] = False,
    form: Annotated[
        Form, typer.Option("--format", help="github: annotations. gitlab: a code quality report, as JSON.")
    ] = Form.text,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Is the project behind its templates, or were managed files changed?

    Exits with 0 when neither, 2 when one of the two, or when conflicts wait to be resolved.

    Example: scaffold check --drift
    """
    with reporting(as_json):
        from scaffold import annotations, checking

        one_of(json=as_json, format=form is not Form.text)
        checked = checking.check(path, drift=drift, restore=restore)
        if as_json:
            print_json(described(checked))
        elif form is Form.text:
            _show(checked, restored=restore)
        else:
            typer.echo(annotations.github(checked) if form is Form.github else annotations.gitlab(checked))
        if (checked.behind and not allow_behind) or checked.unresolved or (checked.drifted and not restore):
            raise typer.Exit(2)


def described(checked: Checked) -> dict[str, Any]:
    """As JSON."""
    return {
        "path": str(checked.path),
        "behind": checked.behind,
        "layers": [
            {
                "name": layer.name,
                "template": layer.template,
                "version": layer.version,
                "newest": layer.newest,
                "behind": layer.behind,
            }
            for layer in checked.layers
        ],
        "drifted": [{"path": each.path, "kind": each.kind} for each in checked.drifted],
        "managed": checked.managed,
        "unresolved": list(checked.unresolved),
    }


def _show(checked: Checked, *, restored: bool) -> None:
    for layer in checked.layers:
        name = "template" if layer.name == "base" else f"layer {layer.name}:"
        far = (
            f"{layer.behind} release{'s' * (layer.behind > 1)} behind {layer.newest}" if layer.behind else "the newest"
        )
        typer.echo(f"{name} {layer.template} {layer.version}: {far}")
    for each in checked.drifted:
        typer.echo(f"{each.kind:<7}  {each.path}, which the template manages{': put back' if restored else ''}")
    if checked.managed is not None and not checked.drifted:
        count = checked.managed
        typer.echo(f"{count} managed file{'s' * (count != 1)}, unchanged" if count else "the template manages no files")
    for file in checked.unresolved:
        typer.echo(f"unresolved  {file}: decide, then git add {file}")
    if checked.behind:
        typer.echo("To see what is new: scaffold update --diff")
    if checked.drifted and not restored:
        typer.echo("To have them as the template has them: scaffold check --restore")
