"""``scaffold new``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import is_terminal, pairs, print_json, reporting

if TYPE_CHECKING:
    from scaffold.creating import Created
    from scaffold.rendering import Rendering


def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder to create.", show_default=False)],
    template: Annotated[
        str, typer.Option(metavar="NAME|URL|PATH[@REF]", help="A built-in template, or any git repository.")
    ] = "base",
    package_name: Annotated[str | None, typer.Option(help="Python package; default: derived from PATH.")] = None,
    description: Annotated[str | None, typer.Option(help="One line about the project.")] = None,
    author_name: Annotated[str | None, typer.Option(help="Default: git's user.name.")] = None,
    ci: Annotated[str | None, typer.Option(help="github, gitlab or none.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Answer any question; repeatable.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers in a YAML file, a line for each question.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A named set of answers, the template's or yours.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take defaults for what is open.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be written; write nothing.")] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="No repository and first commit.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let the template run its tasks and extensions on this machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; ask nothing.")] = False,
) -> None:
    """Start a training project.

    Example: scaffold new my-project --ci gitlab --yes
    """
    with reporting(as_json) as done:
        # Imported here: Copier takes five times as long to import as everything else together.
        from scaffold import catalog, creating

        flags = {"package_name": package_name, "description": description, "author_name": author_name, "ci": ci}
        plan = creating.Plan(
            path=path,
            source=catalog.find(template),
            answers=pairs(settings or [], flags),
            answers_file=answers,
            preset=preset,
            ask=not (yes or as_json) and is_terminal(),
            accept_defaults=yes,
            use_git=not no_git,
            trust=trust,
        )
        if preview:
            creating.preview(plan, _as_json if as_json else _show_preview)
            return
        created = creating.create(plan, in_place=lambda _: done.append(f"{path} was made, and is whole"))
        if as_json:
            print_json(_describe(created, path))
        else:
            _show_created(created, path)


def _show_preview(rendering: Rendering, files: tuple[str, ...]) -> None:
    console.tree(rendering.folder.name, files)
    console.contents(rendering.folder, files)
    for text in rendering.notes:
        console.note(text)


def _as_json(rendering: Rendering, files: tuple[str, ...]) -> None:
    contents = {file: (rendering.folder / file).read_text(encoding="utf-8", errors="replace") for file in files}
    print_json({"template": rendering.version, "answers": dict(rendering.answers), "files": contents})


def _show_created(created: Created, typed: Path) -> None:
    console.tree(created.path.name, created.files)
    made = f"Made {typed} from template {created.source.name} {created.version} ({created.template_commit[:12]})"
    typer.echo(
        f"\n{console.plain(made)}, {len(created.files)} files{', committed to git' if created.commit else ''}. Next:\n"
    )
    console.commands(created.next_commands(typed))
    for text in created.all_notes():
        console.note(text)


def _describe(created: Created, typed: Path) -> dict[str, Any]:
    return {
        "path": str(created.path),
        "template": {
            "name": created.source.name,
            "url": created.source.url,
            "version": created.version,
            "commit": created.template_commit,
        },
        "answers": dict(created.answers),
        "files": list(created.files),
        "commit": created.commit,
        "next": created.next_commands(typed),
        "notes": created.all_notes(),
    }
