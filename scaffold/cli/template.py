"""``scaffold template``: names for templates, and what authors of templates need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaffold import console
from scaffold.cli.reporting import print_json, reporting

if TYPE_CHECKING:
    from scaffold.catalog import Description, Entry, Question
    from scaffold.fetching import Template

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Templates: find them, name them, write your own.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("list")
def list_(
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch the shared catalogs anew.")] = False,
    as_json: _Json = False,
) -> None:
    """List the names of templates: built-in ones, your own, those of shared catalogs.

    Example: scaffold template list
    """
    with reporting(as_json):
        from scaffold import catalog

        listing = catalog.listing(refresh=refresh)
        if as_json:
            print_json(
                {
                    "templates": [_entry(entry) for entry in listing.entries],
                    "catalogs": list(listing.catalogs),
                    "problems": list(listing.problems),
                }
            )
        else:
            width = max(len(entry.name) for entry in listing.entries)
            for entry in listing.entries:
                first, *more = _lines(entry)
                typer.echo(console.plain(f"{entry.name:<{width}}  {first}"))
                for line in more:
                    typer.echo(console.plain(f"{'':<{width}}  {line}"))
        for problem in listing.problems:
            console.note(problem)


@app.command()
def show(
    template: Annotated[str, typer.Argument(metavar="NAME|URL|PATH[@REF]", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Show a template: its versions, its questions and what it brings.

    Example: scaffold template show base
    """
    with reporting(as_json):
        from scaffold import catalog, fetching, trust

        fetched = fetching.fetch(catalog.find(template))
        description = catalog.describe(fetched.config, fetched.mirror, None if fetched.draft else fetched.commit)
        if as_json:
            print_json(
                {
                    "name": fetched.source.name,
                    "source": fetched.source.url,
                    "version": fetched.version,
                    "commit": fetched.commit,
                    "releases": list(fetched.releases),
                    "known": trust.known(fetched.source),
                    **asdict(description),
                }
            )
        else:
            _show(fetched, description, template)


@app.command()
def add(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    source: Annotated[str | None, typer.Argument(metavar="URL|PATH[@REF]", show_default=False)] = None,
    commit: Annotated[str | None, typer.Option(metavar="HASH", help="The only commit it may ever mean.")] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="One line about it.", show_default=False)] = "",
    shared: Annotated[
        str | None,
        typer.Option("--catalog", metavar="FILE|URL", help="Take on all names of a shared catalog instead."),
    ] = None,
) -> None:
    """Give a template a short name, or take on the names of a team's catalog.

    Example: scaffold template add acme https://git.example.com/platform/template
    """
    if shared is not None:
        if name or source or commit or description:
            raise typer.BadParameter("--catalog FILE|URL goes alone: the names are in the catalog.")
    elif name is None or source is None:
        raise typer.BadParameter("give a NAME and a SOURCE, or --catalog FILE|URL.")
    with reporting(as_json=False):
        from scaffold import catalog

        if shared is not None:
            place, entries, problems = catalog.subscribe(shared)
            names = ", ".join(entry.name for entry in entries) or "none yet"
            typer.echo(console.plain(f"Names from {place}: {names}."))
            for problem in problems:
                console.note(problem)
        elif name is not None and source is not None:
            entry = catalog.add(name, source, commit=commit, description=description)
            typer.echo(console.plain(f"{name} is {entry.address} now. Use it: scaffold new PATH --template {name}"))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME|CATALOG", help="A name of yours, or a shared catalog.")],
) -> None:
    """Take a name out of your catalog, or leave a shared one. Projects are not touched.

    A URL that you once confirmed is asked about again.

    Example: scaffold template remove acme
    """
    with reporting(as_json=False):
        from scaffold import trust

        typer.echo(console.plain(trust.remove(name)))


# Commands for authors, each in its own module, are registered here.


def _lines(entry: Entry) -> Iterator[str]:
    pin = f", pinned to {entry.commit[:12]}" if entry.commit else ""
    hidden = "; another one of this name goes first" if entry.hidden else ""
    if entry.description:
        yield entry.description
    if entry.origin == "built in":
        yield "built in"
    else:
        yield f"{entry.address}{pin} ({'yours' if entry.origin == 'yours' else f'from {entry.origin}'}{hidden})"


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "source": entry.address,
        "commit": entry.commit,
        "description": entry.description,
        "from": entry.origin,
        "hidden": entry.hidden,
    }


def _show(fetched: Template, description: Description, typed: str) -> None:
    facts = {
        "source": fetched.source.url,
        "version": fetched.version,
        "commit": fetched.commit,
        "releases": ", ".join(fetched.releases) or "none",
        "presets": ", ".join(description.presets),
        "managed": ", ".join(description.managed),
    }
    console.rows((name, fact) for name, fact in facts.items() if fact)
    typer.echo("\nQuestions" if description.questions else "\nIt asks nothing.")
    console.rows((question.name, _asked(question)) for question in description.questions)
    if description.needs_trust:
        typer.echo(f"\nIt has {', '.join(description.needs_trust)}, which run commands: it needs --trust.")
    command = "scaffold layer add" if description.layer else "scaffold new PATH --template"
    typer.echo(f"\nUse it: {command} {console.quoted(typed)}")


def _asked(question: Question) -> str:
    choices = f"one of {', '.join(question.choices)}" if question.choices else ""
    # What is computed from other answers is a program, and no help here.
    default = f"default: {'computed' if '{%' in question.default else question.default}" if question.default else ""
    facts = "; ".join(filter(None, (choices, default)))
    return f"{question.help} ({facts})" if facts else question.help
