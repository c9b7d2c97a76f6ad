"""``python -m scaffold`` is the command ``scaffold``."""

from scaffold.cli import run

run()
