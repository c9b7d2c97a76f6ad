"""The command line: parse, call one library function, print. No logic lives here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import __version__, console
from scaffold.errors import AnswerError, DestinationError, ScaffoldError

if TYPE_CHECKING:
    from scaffold.creating import Created
    from scaffold.rendering import Rendering

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def run() -> None:
    """The entry point of the command ``scaffold``."""
    app(prog_name="scaffold")


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


@app.command()
def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder to create.", show_default=False)],
    template: Annotated[
        str, typer.Option(metavar="NAME|URL|PATH[@REF]", help="A built-in template, or any git repository.")
    ] = "base",
    package_name: Annotated[str | None, typer.Option(help="Python package; default: derived from PATH.")] = None,
    description: Annotated[str | None, typer.Option(help="One line about the project.")] = None,
    author_name: Annotated[str | None, typer.Option(help="Default: git's user.name.")] = None,
    ci: Annotated[str | None, typer.Option(help="github, gitlab or none.")] = None,
    answers: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Answer any question; repeatable.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take defaults for what is open.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be written; write nothing.")] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="No repository and first commit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; ask nothing.")] = False,
) -> None:
    """Start a training project.

    Example: scaffold new my-project --ci gitlab --yes
    """
    with _reporting(as_json) as done:
        # Imported here: Copier takes five times as long to import as everything else together.
        from scaffold import catalog, creating

        flags = {"package_name": package_name, "description": description, "author_name": author_name, "ci": ci}
        plan = creating.Plan(
            path=path,
            source=catalog.find(template),
            answers={**_pairs(answers or []), **{name: value for name, value in flags.items() if value is not None}},
            ask=not (yes or as_json) and _is_terminal(),
            accept_defaults=yes,
            use_git=not no_git,
        )
        if preview:
            creating.preview(plan, _as_json if as_json else _show_preview)
            return
        created = creating.create(
            plan, _confirm if plan.ask else None, in_place=lambda _: done.append(f"{path} was made, and is whole")
        )
        if as_json:
            _print_json(_describe(created, path))
        else:
            _show_created(created, path)


@app.command()
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
    with _reporting(as_json) as done:
        from scaffold import updating

        updated = updating.update(
            path, to=to, answers=_pairs(answers or []), in_place=lambda where: done.append(f"{where} was updated")
        )
        if as_json:
            _print_json(
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


@contextmanager
def _reporting(as_json: bool) -> Iterator[list[str]]:
    """A user's mistake becomes a message and exit code 1, a stop 130; never a traceback.

    Yields:
        For the block to note what it has done for good, which a stop that comes later does not undo.
    """
    from scaffold.interrupts import unwinding

    done: list[str] = []
    try:
        _require_working_directory()
        with unwinding():
            yield done
    except ScaffoldError as error:
        if as_json:
            _print_json({"error": {"what": error.what, "why": error.why, "fix": error.fix}})
        console.complain(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted: {', '.join(done) or 'nothing was left behind'}.", err=True)
        raise typer.Exit(130) from None


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise DestinationError(
            "The folder you are in does not exist any more.",
            why="paths are read from there.",
            fix="cd to another folder, then run the same command again.",
        ) from None


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise AnswerError(
                f"--set {text!r} is not KEY=VALUE.",
                why="it answers one question of the template.",
                fix="write it like --set ci=github",
            )
        pairs[key.strip()] = value
    return pairs


def _confirm(rendering: Rendering, files: tuple[str, ...]) -> bool:
    console.answers(rendering.answers)
    return console.confirmed(f"Make {rendering.folder.name} with these {len(files)} files?")


def _show_preview(rendering: Rendering, files: tuple[str, ...]) -> None:
    console.tree(rendering.folder.name, files)
    console.contents(rendering.folder, files)


def _as_json(rendering: Rendering, files: tuple[str, ...]) -> None:
    contents = {file: (rendering.folder / file).read_text(encoding="utf-8", errors="replace") for file in files}
    _print_json({"template": rendering.version, "answers": dict(rendering.answers), "files": contents})


def _show_created(created: Created, typed: Path) -> None:
    console.tree(created.path.name, created.files)
    made = f"Made {typed} from template {created.source.name} {created.version or ''}".rstrip()
    typer.echo(f"\n{made}, {len(created.files)} files{', committed to git' if created.commit else ''}. Next:\n")
    console.commands(created.next_commands(typed))
    for text in created.all_notes():
        console.note(text)


def _describe(created: Created, typed: Path) -> dict[str, Any]:
    return {
        "path": str(created.path),
        "template": {"name": created.source.name, "url": created.source.url, "version": created.version},
        "answers": dict(created.answers),
        "files": list(created.files),
        "commit": created.commit,
        "next": created.next_commands(typed),
        "notes": created.all_notes(),
    }


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
