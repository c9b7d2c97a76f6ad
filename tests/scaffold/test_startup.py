"""Asking for help or the version costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaffold import __version__

# Not pydantic: some versions of Typer import it themselves to describe a command.
COMMANDS = (
    "",
    "new",
    "update",
    "check",
    "add",
    "remove",
    "doctor",
    "layer",
    "layer add",
    "layer remove",
    "layer list",
    "template",
    "template list",
    "template show",
    "template add",
    "template remove",
    "template new",
    "template lint",
    "template test",
    "template release",
    "fleet",
    "fleet check",
    "fleet update",
)
HEAVY = ("copier", "questionary", "prompt_toolkit", "jinja2", "yaml", "torch", "rich", "treadle")


@pytest.mark.parametrize("arguments", [["--version"], *([*command.split(), "--help"] for command in COMMANDS)])
def test_imports_nothing_heavy(machine, arguments, tmp_path):
    """Neither Copier nor what asks questions, renders or draws is imported to print a few lines."""
    program = (
        "import json, sys\nfrom scaffold.cli import run\n"
        "try:\n    run()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=machine.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == []


def test_version_is_one_line(machine, tmp_path):
    assert machine.scaffold("--version", cwd=tmp_path).stdout == f"scaffold {__version__}\n"


def test_help_has_an_example_for_each_command(machine, tmp_path):
    for command in COMMANDS:
        if command not in ("layer", "template", "fleet"):  # whose commands have one each
            assert "Example: scaffold " in machine.scaffold(*command.split(), "--help", cwd=tmp_path).stdout, command


def test_a_mistyped_option_is_refused_with_the_nearest_one(machine, tmp_path):
    done = machine.scaffold("new", "p", "--previw", cwd=tmp_path)
    assert done.returncode == 1
    assert "--preview" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_runs_in_a_checkout(machine):
    """The tests test this checkout, not an installed copy."""
    program = "import scaffold; print(scaffold.__file__)"
    done = subprocess.run([sys.executable, "-c", program], env=machine.environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()).parents[1] == Path(__file__).resolve().parents[2]
