"""How long one waits for `scaffold`, beside plain Copier and cookiecutter doing the same work.

    python benchmarks/scaffold_speed.py [--rounds 7]

Each command is a process of its own, from its start to its end; the rounds go through all commands in turn, so that a busy
moment hits all of them. `copier` and `scaffold` render the same release of the same template from the same git repository
and answer with the same files; both are compared. cookiecutter gets a template of as many files, of the same sizes, without
conditions: it has no updates, and is measured when it is installed (`pip install cookiecutter`).

Two more columns are counts, which no load changes: git processes, and processes in all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = 26


@dataclass
class Command:
    """One line of the table."""

    name: str
    work: Callable[[], list[str]]
    """Makes what the command needs, and says how it is called. Not timed."""
    where: Callable[[], Path]
    beside: str | None = None
    """The peer's command that does the same."""
    seconds: list[float] = field(default_factory=list)
    gits: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="scaffold-speed-") as folder:
        bench = Bench(Path(folder))
        commands = bench.commands()
        for command in commands:  # once for the caches, counted
            command.gits = bench.count_gits(command)
        for _ in range(rounds):
            for command in commands:
                command.seconds.append(bench.time(command))
        bench.compare_results()
    show(commands, rounds)


class Bench:
    """A home folder, a template with two releases, and a project made from the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        (self.home / ".gitconfig").write_text(
            "[user]\n\tname = Ada\n\temail = ada@example.com\n[init]\n\tdefaultBranch = main\n"
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "XDG_", "COPIER_"))}
        self.environment = kept | {"HOME": str(self.home), "PYTHONPATH": str(ROOT), "GIT_CONFIG_NOSYSTEM": "1"}
        self.template = folder / "template"
        self._make_template()
        self.made = 0
        self.project = folder / "project"
        self.run(["copier", "copy", "-q", "--defaults", "--vcs-ref", "v1.0.0", str(self.template), str(self.project)])
        self._commit(self.project)
        (self.project / "file_3.py").write_text("# mine\n" + (self.project / "file_3.py").read_text())
        self._commit(self.project)

    def commands(self) -> list[Command]:
        """All that are measured."""
        source, here = str(self.template), lambda: self.folder
        found = [
            Command("scaffold --version", lambda: ["scaffold", "--version"], here, "copier --version"),
            Command("copier --version", lambda: ["copier", "--version"], here),
            Command("scaffold --help", lambda: ["scaffold", "--help"], here, "copier --help"),
            Command("copier --help", lambda: ["copier", "--help"], here),
            Command(
                "scaffold new",
                lambda: ["scaffold", "new", self.fresh(), "--template", source, "--yes"],
                here,
                "copier copy",
            ),
            Command("copier copy", lambda: ["copier", "copy", "-q", "--defaults", source, self.fresh()], here),
            Command("scaffold check", lambda: ["scaffold", "check"], self.copied),
            Command("scaffold check --drift", lambda: ["scaffold", "check", "--drift"], self.copied),
            Command("scaffold update", lambda: ["scaffold", "update"], self.copied, "copier update"),
            Command("copier update", lambda: ["copier", "update", "-q", "--defaults"], self.copied),
        ]
        if importlib.util.find_spec("cookiecutter"):
            other = self._cookiecutter_template()
            out = self.folder / "cookies"
            call = ["cookiecutter", "--no-input", "-f", "-o", str(out), str(other)]
            found.insert(6, Command("cookiecutter", lambda: call, here))
            found.insert(4, Command("cookiecutter --help", lambda: ["cookiecutter", "--help"], here))
        else:
            print("cookiecutter is not installed, and not measured: pip install cookiecutter\n")
        return found

    def fresh(self) -> str:
        self.made += 1
        return str(self.folder / f"new-{self.made}")

    def copied(self) -> Path:
        self.made += 1
        return shutil.copytree(self.project, self.folder / f"copy-{self.made}")

    def time(self, command: Command) -> float:
        where, arguments = command.where(), command.work()
        started = time.perf_counter()
        self.run(arguments, where)
        return time.perf_counter() - started

    def run(self, arguments: list[str], where: Path | None = None, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=where or self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 2):  # 2: check says that the project is behind
            sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")

    def count_gits(self, command: Command) -> int:
        """Through a git that notes each of its calls."""
        tools, log = self.folder / "tools", self.folder / "calls"
        tools.mkdir(exist_ok=True)
        log.write_text("")
        script = tools / "git"
        script.write_text(f'#!/bin/sh\necho call >> "{log}"\nexec "{shutil.which("git")}" "$@"\n')
        script.chmod(0o755)
        self.run(command.work(), command.where(), PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
        return log.read_text().count("call")

    def compare_results(self) -> None:
        """Both updates must have come to the same files, or there is nothing to compare."""
        ours, theirs = self.copied(), self.copied()
        self.run(["scaffold", "update"], ours)
        self.run(["copier", "update", "-q", "--defaults"], theirs)
        first, second = (
            {
                path.relative_to(root): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file() and ".git" not in path.parts
            }
            for root in (ours, theirs)
        )
        if first != second:
            sys.exit("the two updates differ")

    def _make_template(self) -> None:
        self.template.mkdir()
        (self.template / "copier.yml").write_text(
            "_templates_suffix: .jinja\n_exclude: [copier.yml, .git]\nname: {type: str, default: net, help: Its name}\n"
            "_scaffold: {managed: [file_1.py]}\n"
        )
        (self.template / "{{ _copier_conf.answers_file }}.jinja").write_text("{{ _copier_answers | to_nice_yaml -}}\n")
        for number in range(FILES - 1):
            text = "".join(f"VALUE_{line} = {line * number}\n" for line in range(40))
            name = f"file_{number}.py" + (".jinja" if number % 2 else "")
            (self.template / name).write_text(text + ("NAME = {{ name | tojson }}\n" if number % 2 else ""))
        self._commit(self.template, "v1.0.0")
        for number in (1, 2, 3, 4):
            path = next(self.template.glob(f"file_{number}.py*"))
            path.write_text(path.read_text() + f"NEW = {number}\n")
        self._commit(self.template, "v1.1.0")

    def _cookiecutter_template(self) -> Path:
        root = self.folder / "cookiecutter-template"
        inner = root / "{{ cookiecutter.name }}"
        inner.mkdir(parents=True)
        (root / "cookiecutter.json").write_text(json.dumps({"name": "net"}))
        for path in self.template.glob("file_*"):
            text = path.read_text().replace("{{ name | tojson }}", '"{{ cookiecutter.name }}"')
            (inner / path.name.removesuffix(".jinja")).write_text(text)
        return root

    def _commit(self, folder: Path, tag: str | None = None) -> None:
        calls = [["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "state"]]
        for arguments in [*calls, *([["tag", tag]] if tag else [])]:
            subprocess.run(["git", *arguments], cwd=folder, env=self.environment, check=True)


def show(commands: list[Command], rounds: int) -> None:
    """The table: medians, the quickest round, and how they stand to the peer's."""
    medians = {command.name: statistics.median(command.seconds) for command in commands}
    versions = [f"{name} {metadata.version(name)}" for name in ("copier", "typer", "cookiecutter") if _installed(name)]
    git = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout.strip()
    print(
        f"Python {platform.python_version()}, {', '.join(versions)}, {git}; load {os.getloadavg()[0]:.1f}; {rounds} rounds\n"
    )
    print(f"{'command':<24}{'median s':>10}{'quickest':>10}{'git calls':>11}   beside")
    for command in commands:
        ratio = f"{medians[command.name] / medians[command.beside]:.2f} of {command.beside}" if command.beside else ""
        print(
            f"{command.name:<24}{medians[command.name]:>10.2f}{min(command.seconds):>10.2f}{command.gits:>11}   {ratio}"
        )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
