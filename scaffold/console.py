"""What people see. The only user of rich, which is imported when something is drawn."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scaffold.errors import ScaffoldError


def complain(error: ScaffoldError) -> None:
    """Show a mistake on stderr: what, why, fix."""
    print(f"Error: {error}", file=sys.stderr)


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


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
            print(path.read_text(encoding="utf-8"), end="")
        except UnicodeDecodeError:
            print(f"({path.stat().st_size} bytes, not text)")


def answers(given: Mapping[str, Any]) -> None:
    """List answers in two columns."""
    width = max(map(len, given), default=0)
    for name, value in given.items():
        print(f"  {name:<{width}}  {value}")


def confirmed(question: str) -> bool:
    """Ask yes or no on the terminal; Enter means yes."""
    from questionary import confirm

    return bool(confirm(question, default=True, qmark="?").unsafe_ask())


def commands(lines: Iterable[str]) -> None:
    """Print commands to type."""
    for line in lines:
        print(f"  {line}")


def quoted(*words: str) -> str:
    """A command line as one types it."""
    return " ".join(shlex.quote(word) for word in words)
