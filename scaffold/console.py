"""What people see. The only user of rich, which is imported when something is drawn."""

from __future__ import annotations

import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from scaffold.errors import ScaffoldError


def plain(text: object) -> str:
    """The text without what a terminal takes for a command, or that turns its direction: strangers wrote some of it."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") else "\ufffd" for c in str(text))


def complain(error: ScaffoldError) -> None:
    """Show a mistake on stderr: what, why, fix."""
    print(f"Error: {plain(error)}", file=sys.stderr)


def note(text: str) -> None:
    print(f"note: {plain(text)}", file=sys.stderr)


def tree(root: str, files: Iterable[str]) -> None:
    """Draw ``files``, paths with slashes, as a tree."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    top = Tree(Text(f"{root}/", style="bold"), guide_style="dim")
    branches = {"": top}
    for file in files:
        *folders, name = file.split("/")
        here = ""
        for folder in folders:
            above, here = here, f"{here}/{folder}"
            if here not in branches:
                branches[here] = branches[above].add(Text(f"{folder}/", style="bold"))
        branches[here].add(Text(name))
    Console(highlight=False, soft_wrap=True).print(top)


def contents(folder: Path, files: Iterable[str]) -> None:
    """Print each file below ``folder`` under a line with its name."""
    for file in files:
        path = folder / file
        print(f"\n--- {file}")
        if path.is_symlink():
            print(f"(link to {path.readlink()})")
            continue
        try:
            print(plain(path.read_text(encoding="utf-8")), end="")
        except UnicodeDecodeError:
            print(f"({path.stat().st_size} bytes, not text)")


def rows(lines: Iterable[tuple[str, object]]) -> None:
    """List pairs in two columns, a line each; a long text is cut."""
    shown = [(plain(name), " ".join(plain(value).split())) for name, value in lines]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"  {name:<{width}}  {value if len(value) <= 200 else value[:199] + '…'}".rstrip())


def confirmed(question: str, *, default: bool = True) -> bool:
    """Ask yes or no on the terminal; Enter means ``default``."""
    from questionary import confirm

    return bool(confirm(plain(question), default=default, qmark="?").unsafe_ask())


def commands(lines: Iterable[str]) -> None:
    """Print commands to type."""
    for line in lines:
        print(f"  {line}")


def quoted(*words: str) -> str:
    """A command line as one types it."""
    return " ".join(shlex.quote(word) for word in words)
