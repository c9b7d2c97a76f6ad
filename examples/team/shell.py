"""Users at a shell, each with a home of their own, and a git server: what the walk-through needs of a machine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(next(path for path in sys.path if path.endswith("site-packages")))
PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "false",  # it is the value of the setting without its "no"
    "PIP_QUIET": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
"""Nothing is fetched: packages are built from their folders with what this machine has."""


class NotAsTold(Exception):
    """Something came out otherwise than the story has it."""


def expect(told: bool, what: str) -> None:
    if not told:
        raise NotAsTold(what)


@dataclass(frozen=True)
class User:
    """Somebody at a shell."""

    name: str
    folder: Path
    """The walk-through's: what is printed shows it as ``~``."""
    environment: Mapping[str, str]
    cwd: Path

    def at(self, path: Path) -> User:
        return replace(self, cwd=path)

    def types(self, line: str, *, code: int = 0, quiet: bool = False) -> str:
        """Run a command as it would be typed, print it and what it says, and return the latter."""
        if not quiet:
            print(f"{self.name}$ {self._short(line)}", flush=True)
        words = [name for word in shlex.split(line) for name in self._expanded(word)]
        done = subprocess.run(
            [self._program(words[0]), *words[1:]],
            cwd=self.cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if not quiet or done.returncode != code:
            print(self._short(done.stdout), flush=True)
        expect(done.returncode == code, f"`{self._short(line)}` ended with {done.returncode} instead of {code}.")
        return done.stdout

    def tells(self, line: str, *, code: int = 0) -> Any:
        """The JSON document that a command prints."""
        return json.loads(self.types(line, code=code, quiet=True))

    def _expanded(self, word: str) -> list[str]:
        if word.endswith("*"):
            return sorted(str(path.relative_to(self.cwd)) for path in self.cwd.glob(word))
        return [word]

    def _program(self, name: str) -> str:
        return shutil.which(name, path=self.environment["PATH"]) or name

    def _short(self, text: str) -> str:
        return text.replace(str(self.folder), "~").replace(str(ROOT), "CHECKOUT")


def user(name: str, folder: Path) -> User:
    """One with a home of their own, whose git knows them."""
    home = folder / f"home-{name}"
    home.mkdir()
    bin_folder = (
        home / "bin"
    )  # scaffold and copier as these are installed here, and the Python that they are installed in
    bin_folder.mkdir()
    for command, module in {"scaffold": " -m scaffold", "copier": " -m copier", "python": ""}.items():
        program = bin_folder / command
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    config = home / ".gitconfig"
    config.write_text(
        f"[user]\n\tname = {name.title()}\n\temail = {name}@acme.example\n[init]\n\tdefaultBranch = main\n",
        encoding="utf-8",
    )
    strange = ("GIT_", "PIP_", "XDG_", "VIRTUAL_ENV", "CONDA_", "PYTHONPATH", "TREADLE_", "ACME_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    environment |= {
        "HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        **PIP,
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    return User(name, folder, environment, folder)


@contextmanager
def git_server(repositories: Path) -> Iterator[str]:
    """``git daemon`` for a folder of bare repositories, on this machine only; yields its URL."""
    repositories.mkdir()
    told = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    daemon = Path(told, "git-daemon")  # not through git, which would be another process to end
    expect(daemon.is_file(), f"git comes without its daemon here: there is no {daemon}.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(daemon), "--listen=127.0.0.1", f"--port={port}", "--reuseaddr", "--export-all",
         "--enable=receive-pack", f"--base-path={repositories}", str(repositories)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise NotAsTold("git daemon does not answer.")
        yield f"git://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def empty_repository(folder: Path, name: str) -> None:
    """What a git server's page for a new repository does."""
    where = folder / "server" / f"{name}.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(where)], check=True)


def environment(where: User) -> User:
    """``python -m venv .venv``, and the same user with it active.

    It sees what this machine has, instead of installing it again: torch is large, and there is no network.
    """
    where.types("python -m venv --without-pip .venv")
    [packages] = (where.cwd / ".venv").glob("lib/python*/site-packages")
    (packages / "machine.pth").write_text(f"import site; site.addsitedir({str(SITE)!r})\n", encoding="utf-8")
    own = where.cwd / ".venv"
    path = f"{own / 'bin'}{os.pathsep}{where.environment['PATH']}"
    active = {**where.environment, "VIRTUAL_ENV": str(own), "PATH": path}
    return replace(where, environment=active)
