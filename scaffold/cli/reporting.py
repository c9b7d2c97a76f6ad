"""What all commands share: mistakes and stops become exit codes, results become JSON."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scaffold import console
from scaffold.errors import AnswerError, Declined, DestinationError, ScaffoldError, UpdateError, as_flag

if TYPE_CHECKING:
    from scaffold.fetching import Template


@contextmanager
def reporting(as_json: bool) -> Iterator[list[str]]:
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
        _complain(error, as_json)
        raise typer.Exit(1) from None
    except BrokenPipeError:  # whoever reads the output has seen enough
        raise
    except OSError as error:
        _complain(_refused(error), as_json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted: {', '.join(done) or 'nothing was left behind'}.", err=True)
        raise typer.Exit(130) from None


def _complain(error: ScaffoldError, as_json: bool) -> None:
    if as_json:
        print_json({"error": {"what": error.what, "why": error.why, "fix": error.fix}})
    console.complain(error)


def _refused(error: OSError) -> ScaffoldError:
    """What the operating system would not do."""
    place = os.fsdecode(error.filename) if error.filename else "a file"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DestinationError(
        f"Cannot read or write {place}: {error.strerror or error}.",
        why="the disk is full." if full else "the operating system refused.",
        fix="free some space." if full else "see who owns it and what it is: ls -ld " + shlex.quote(place),
    )


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise DestinationError(
            "The folder you are in does not exist any more.",
            why="paths are read from there.",
            fix="cd to another folder, then run the same command again.",
        ) from None


def confirm_source(template: Template, *, ask: bool) -> None:
    """Name a source that was not used before, with its commit; on a terminal, once, ask whether to use it.

    Raises:
        Declined: The answer is no.
    """
    from scaffold import trust

    if trust.known(template.source):
        return
    console.note(f"{template.source.name} at commit {template.commit[:12]} is a source that you have not used before.")
    if ask:
        if not console.confirmed("Use it?"):
            raise Declined("Nothing was changed.", why="you said no.", fix="run the same command again.")
        trust.remember(template.source, template.commit)


def one_of(**given: bool) -> None:
    """Raises UpdateError when several of these options are given, which say different things."""
    both = [f"--{name.replace('_', '-')}" for name, wanted in given.items() if wanted]
    if len(both) > 1:
        raise UpdateError(
            f"{' and '.join(both)} say different things.",
            why="one command does one of them.",
            fix=f"take only {both[0]}",
        )


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def pairs(texts: list[str], flags: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The answers of ``--set``, and of the options that answer a question each.

    Raises:
        AnswerError: One is not KEY=VALUE, or two of them contradict each other.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    typed = {name: as_flag(name, value) for name, value in given.items()}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise AnswerError(
                f"--set {text!r} is not KEY=VALUE.",
                why="it answers one question of the template.",
                fix="write it like --set ci=github",
            )
        name, option = key.strip(), f"--set {shlex.quote(text)}"
        if given.setdefault(name, value) != value:
            raise AnswerError(
                f"{typed[name]} and {option} answer one question in two ways.",
                why=f"{name} is asked once.",
                fix=f"leave one of them out, for example {option}",
            )
        typed.setdefault(name, option)
    return given


def print_json(document: Any) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    typer.echo(text.encode("utf-8", "replace").decode())  # no file name or line of a stranger's breaks the document
