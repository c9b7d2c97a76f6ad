"""Where things lie and which limits hold: what this command itself takes from the environment is read here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "treadle-scaffold"
ANSWERS_FILE = ".copier-answers.yml"
SHIPPED_BUNDLE = Path(__file__).with_name("templates.bundle")

# One path on every system, not the system's own data folder: it is written into projects, and a teammate's
# Linux, macOS or Windows machine must find it at the same place.
BUNDLE_FOR_PROJECTS = "~/.local/share/treadle-scaffold/templates.bundle"

# git variables that say which repository to work on: set when scaffold runs inside a git hook, and not meant for us.
_REPOSITORY_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one rendering may take."""

    seconds: float = 60.0
    """From its start to its end; a template of ours takes half a second."""

    memory: int = 1_000_000_000
    """Bytes, beyond what the process has when it starts."""

    files: int = 5_000
    """Files, folders and links together."""

    file_bytes: int = 10_000_000
    """Of the largest file."""

    total_bytes: int = 100_000_000
    """Of all files together."""


def config_folder() -> Path:
    """What the user decided: names for templates, presets, sources that were confirmed."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / DISTRIBUTION


def cache_folder() -> Path:
    """What can be fetched or made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / DISTRIBUTION


def project_bundle() -> Path:
    """The copy of the bundle that projects name as their source."""
    return Path(BUNDLE_FOR_PROJECTS).expanduser()


def source_checkout() -> Path | None:
    """The clone this runs from, when it does: the runtime lies beside the command line there."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "runtime" / "pyproject.toml").is_file() else None


def repository_url() -> str | None:
    """Where this project is published, from the distribution's metadata; None while it is not."""
    try:
        entries = metadata.metadata(DISTRIBUTION).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    for entry in entries:
        label, _, url = str(entry).partition(",")
        if label.strip().lower() == "repository":
            return url.strip()
    return None


def git_environment(*, protocols: str = "https:ssh:file", config: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """The environment for every git process: no prompt, no hook, no monitor, only these transports.

    Args:
        protocols: Transports git may use, separated by colons.
        config: More settings for these processes, over those of every file.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    given = environment.get("GIT_CONFIG_COUNT", "")
    first = int(given) if given.isdigit() else 0
    settings = [("core.hooksPath", os.devnull), ("core.fsmonitor", "false"), *config]
    for number, (key, value) in enumerate(settings, start=first):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    environment["GIT_CONFIG_COUNT"] = str(first + len(settings))
    environment["LANGUAGE"] = "en"
    environment["LC_ALL"] = "C"  # its messages are read, here and there
    environment["GIT_TERMINAL_PROMPT"] = "0"
    environment["GIT_ALLOW_PROTOCOL"] = protocols
    return environment
