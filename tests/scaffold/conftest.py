"""A home folder of our own, the real command as a subprocess, and templates made for one test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Machine:
    """A user's machine: an empty home, git with a name, no repository of the surroundings in the way."""

    home: Path
    environment: dict[str, str]

    def scaffold(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the real command, without a terminal."""
        return subprocess.run(
            [sys.executable, "-m", "scaffold", *arguments],
            cwd=cwd,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def copier(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the real, plain copier command."""
        return subprocess.run(
            [sys.executable, "-m", "copier", *arguments],
            cwd=cwd,
            env={**self.environment, "COPIER_CACHE_DIR": str(self.home / "copier")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def git(self, *arguments: str, cwd: Path) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return _machine(tmp_path_factory.mktemp("home"))


@pytest.fixture
def fresh_machine(tmp_path: Path) -> Machine:
    """One whose home is nobody else's."""
    home = tmp_path / "home"
    home.mkdir()
    return _machine(home)


def _machine(home: Path) -> Machine:
    config = home / ".gitconfig"
    config.write_text("[user]\n\tname = Ada Tester\n\temail = ada@example.com\n[init]\n\tdefaultBranch = main\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "XDG_"))}
    environment |= {
        "HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::DeprecationWarning:scaffold",
        "COLUMNS": "120",
    }
    return Machine(home, environment)


@pytest.fixture
def in_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine for code called in this process."""
    for name in set(os.environ) - set(machine.environment):
        monkeypatch.delenv(name)
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)


TemplateMaker = Callable[..., Path]


@pytest.fixture
def make_template(machine: Machine, tmp_path: Path) -> TemplateMaker:
    """A template repository, tagged v1.0.0; every name and content may hold Jinja."""

    def make(
        files: Mapping[str, str] | None = None,
        *,
        config: str = "name:\n  type: str\n  default: world\n",
        links: Mapping[str, str] | None = None,
        folder: str = "template",
    ) -> Path:
        template = tmp_path / folder
        template.mkdir(parents=True)
        answers = {"{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}"}
        everything = {"copier.yml": config, **answers, **(files or {"hello.txt.jinja": "Hello {{ name }}\n"})}
        for name, text in everything.items():
            path = template / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for name, target in (links or {}).items():
            (template / name).parent.mkdir(parents=True, exist_ok=True)
            (template / name).symlink_to(target)
        machine.git("init", "-q", cwd=template)
        machine.git("add", "-A", "-f", cwd=template)
        machine.git("commit", "-q", "-m", "template", cwd=template)
        machine.git("tag", "v1.0.0", cwd=template)
        return template

    return make


@pytest.fixture
def wrapped_git(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A git that stops at one of its commands until it is killed.

    Returns:
        Of the call: the folder to put first on the PATH, and a file that appears when git has stopped.
    """

    def wrap(stop_at: str) -> tuple[Path, Path]:
        folder, reached = tmp_path / "bin", tmp_path / "reached"
        folder.mkdir()
        script = folder / "git"
        script.write_text(
            "#!/bin/sh\n"
            f'for word in "$@"; do if [ "$word" = "{stop_at}" ]; then touch "{reached}"; exec sleep 60; fi; done\n'
            f'exec "{shutil.which("git")}" "$@"\n'
        )
        script.chmod(0o755)
        return folder, reached

    return wrap
