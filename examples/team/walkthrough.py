"""The whole story of README.md, typed by a program: what it says happens here, or this stops at the first thing that doesn't.

    python examples/team/walkthrough.py ~/acme-walkthrough

Everything lies in the folder that is given, two users' home folders included; the only network is a git server on this
machine. Needs scaffold, treadle, torch, scikit-learn, hatchling, pytest, black and git. A few minutes on two cores;
``--quick`` tries one combination of answers instead of all.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "false",  # it is the value of the setting without its "no"
    "PIP_QUIET": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
"""Nothing is fetched: packages are built from their folders with what this machine has."""
SITE = Path(next(path for path in sys.path if path.endswith("site-packages")))

# What fifty teams have done to their projects, by number.
TEAMS = range(1, 51)
PATIENT = range(36, 43)  # set the line in configs/train.yaml that the release sets as well
ONE_PYTHON = range(43, 48)  # took a Python out of ci.yml, which the template manages
NO_CI = (48,)  # deleted it
BY_COPIER = (49,)  # have updated already, with plain copier
BUSY = (50,)  # are in the middle of an edit of a file that the release changes


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
    programs = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [f"{programs}/git-daemon", "--listen=127.0.0.1", f"--port={port}", "--reuseaddr", "--export-all",
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

    What this machine has (torch and treadle, which are large, and no network) is seen from it, instead of installed again.
    """
    where.types("python -m venv --without-pip .venv")
    [packages] = (where.cwd / ".venv").glob("lib/python*/site-packages")
    (packages / "machine.pth").write_text(f"import site; site.addsitedir({str(SITE)!r})\n", encoding="utf-8")
    own = where.cwd / ".venv"
    path = f"{own / 'bin'}{os.pathsep}{where.environment['PATH']}"
    active = {**where.environment, "VIRTUAL_ENV": str(own), "PATH": path}
    return replace(where, environment=active)


# --- The story ---


def make_policies(platform: User) -> None:
    title("The platform group: a policy package")
    package = platform.cwd / "acme-policies"
    shutil.copytree(HERE / "acme-policies", package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    there = environment(platform.at(package))
    there.types("python -m pip install -e .")
    there.types("python -m pytest -q")


def make_template(platform: User, server: str, quick: bool) -> None:
    title("The platform group: a template, and its first release")
    platform.types("scaffold template new acme --from base --yes")
    there = platform.at(platform.cwd / "acme")
    shutil.copy(HERE / "acme" / "research.yml", there.cwd / "presets" / "research.yml")
    shutil.copy(HERE / "acme" / "ONBOARDING.md.jinja", there.cwd / "template" / "ONBOARDING.md.jinja")
    there.types(f"git apply {HERE / 'acme' / '1.0.patch'}")
    there.types("scaffold template lint")
    there.types(f"scaffold template test --quick{' --only 1' * quick}")
    there.types("git add -A")
    there.types('git commit -q -m "What is Acme\'s own"')
    there.types("scaffold template release")
    there.types("scaffold template release 1.0.0 --notes 'With the policies of Acme, and an onboarding.'")
    push(there, server, "acme", "1.0.0")


def make_layer(platform: User, server: str, quick: bool) -> None:
    title("The platform group: a layer with its CI")
    platform.types("scaffold template new acme-ci --layer --yes")
    there = platform.at(platform.cwd / "acme-ci")
    [workflow] = there.cwd.glob("template/*/workflows/acme-ci.yml")
    shutil.copy(HERE / "acme-ci" / "acme-ci.yml", workflow)
    there.types("scaffold template lint")
    there.types(f"scaffold template test --quick{' --only 1' * quick}")
    there.types('git commit -q -a -m "The CI of Acme"')
    there.types("scaffold template release 1.0.0")
    push(there, server, "acme-ci", "1.0.0")


def push(there: User, server: str, name: str, version: str) -> None:
    empty_repository(there.folder, name)
    there.types(f"git remote add origin {server}/{name}.git")
    there.types(f"git push -q -u --atomic origin main v{version}")


def make_catalog(platform: User, server: str) -> None:
    title("The platform group: a catalog, the one thing that others need to know")
    there = platform.at(platform.cwd / "catalog")
    there.cwd.mkdir()
    templates = {"acme": "Training projects at Acme.", "acme-ci": "The layer with Acme's CI."}
    lines = [f"  {name}: {{source: {server}/{name}.git, description: {text}}}\n" for name, text in templates.items()]
    (there.cwd / "catalog.yml").write_text(f"templates:\n{''.join(lines)}", encoding="utf-8")
    empty_repository(there.folder, "catalog")
    there.types("git init -q")
    there.types("git add catalog.yml")
    there.types('git commit -q -m "The templates of Acme"')
    there.types(f"git remote add origin {server}/catalog.git")
    there.types("git push -q -u origin main")


def steps(newcomer: User, done: int, of: int = 5) -> None:
    """Doctor says that so many steps are done, and which is next."""
    told = json.loads(subprocess.run(
        [newcomer._program("scaffold"), "doctor", "--json"], cwd=newcomer.cwd, env=newcomer.environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    ).stdout)  # fmt: skip
    states = [step["state"] for step in told["steps"]]
    expect(states == ["done"] * done + ["open"] * (of - done), f"doctor finds the steps {states}, {done} being done.")
    expect(told["next"] == (done + 1 if done < of else None), f"doctor says that step {told['next']} is next.")
    print(f"(doctor: {done} of {of} steps are done)\n", flush=True)


def onboard(newcomer: User, server: str) -> User:
    title("A newcomer: from nothing to a first run")
    newcomer.types(f"scaffold template add --catalog {server}/catalog.git")
    newcomer.types("scaffold template list")
    newcomer.types("scaffold new my-project --template acme --preset research --yes")
    there = newcomer.at(newcomer.cwd / "my-project")
    there.types("scaffold doctor", code=1)
    steps(there, done=1)

    there = environment(there)
    there.types(f"python -m pip install {there.folder / 'platform' / 'acme-policies'} -e .")
    steps(there, done=2)

    there.types("scaffold layer add acme-ci --yes")
    there.types("git add -A")
    there.types('git commit -q -m "Take Acme\'s CI"')
    steps(there, done=3)

    said = there.types("python -m my_project fit --config configs/train.yaml --trainer.max_steps 20")
    listed = "policies: acme-policies 1.0.0 (allowed-precision, time-limit, record-of-runs)"
    expect(listed in said, f"the run does not begin with {listed}.")
    record = (there.cwd / "runs" / "acme-runs.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line)["event"] for line in record]
    expect(events == ["begin", "end"], f"the record of runs has {events}.")
    said = there.types("python -m my_project fit --config configs/train.yaml --trainer.precision 16-true", code=1)
    expect("Acme does not train in 16-true." in said, "float16 is not refused.")
    steps(there, done=4)

    empty_repository(there.folder, "my-project")
    there.types(f"git remote add origin {server}/my-project.git")
    there.types("git push -q -u origin main")
    steps(there, done=5)
    there.types("scaffold doctor")
    there.types("scaffold check --drift")
    return there


def found_teams(project: User, teams: Path) -> None:
    """Fifty projects as they are a while later: each the newcomer's, with another team's edits."""
    title("A while later: fifty projects")
    for number in TEAMS:
        team = project.at(teams / f"team-{number:02}")
        skip = shutil.ignore_patterns(".venv", "runs", "__pycache__")
        shutil.copytree(project.cwd, team.cwd, ignore=skip)
        change(team.cwd, "README.md", "# my-project", f"# Project of team {number}")
        (team.cwd / "configs" / "experiments" / f"team-{number}.yaml").write_text(
            f"# Ours.\n\nmodel:\n  hidden: {64 + number}\n", encoding="utf-8"
        )
        if number in PATIENT:
            change(team.cwd, "configs/train.yaml", "patience: 8", "patience: 12")
        if number in ONE_PYTHON:
            change(team.cwd, ".github/workflows/ci.yml", '["3.10", "3.13"]', '["3.13"]')
        if number in NO_CI:
            (team.cwd / ".github" / "workflows" / "ci.yml").unlink()
        team.types("git add -A", quiet=True)
        team.types(f'git commit -q -m "What is of team {number}"', quiet=True)
    for number in BUSY:
        change(teams / f"team-{number:02}", "configs/train.yaml", "max_epochs: 20", "max_epochs: 3")
    print(f"{len(TEAMS)} projects, from team-01 to team-{TEAMS[-1]}\n", flush=True)


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    expect(old in text, f"{name} has no {old!r}.")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def release_change(platform: User, quick: bool) -> None:
    title("The platform group: a second release")
    there = platform.at(platform.cwd / "acme")
    there.types(f"git apply {HERE / 'acme' / '1.1.patch'}")
    there.types("git add -A")
    there.types('git commit -q -m "Less patience, a longer time limit for CI, a smaller model"')
    there.types(f"scaffold template test --stages rendered,updated{' --only 1' * quick}")
    there.types("scaffold template release")
    there.types("scaffold template release 1.1.0 --notes 'Runs end after 5 validations without a gain, not 8.'")
    there.types("git push --quiet --atomic origin main v1.1.0")


def update_by_copier(team: User) -> None:
    title("The way there and back: plain copier")
    team.types("scaffold check", code=2)
    team.types("copier update --defaults --quiet")
    team.types("git add -A")
    team.types('git commit -q -m "Update the template"')
    team.types("scaffold update")
    expect(not team.types("git status --porcelain", quiet=True), "scaffold update changed what copier had updated.")


def take_fleet(platform: User, teams: Path) -> None:
    title("The platform group: fifty projects at once")
    here = platform.at(teams.parent)
    count = {"behind": len(TEAMS) - len(BY_COPIER), "current": len(BY_COPIER)}
    told = here.tells("scaffold fleet check teams --no-drift --json", code=2)
    expect(told["counts"] == count, f"before the update, the fleet is {told['counts']}.")
    said = here.types("scaffold fleet update teams --html fleet.html", code=1)
    summary = "50 projects: 1 current, 41 updated, 7 conflicts, 1 failed; 6 of them drifted as well"
    expect(summary in said, f"the update does not end with: {summary}")

    # Who has conflicts resolves them, who was busy gives that edit up; the rest is looked at and committed.
    for number in TEAMS:
        team = here.at(teams / f"team-{number:02}")
        if number in PATIENT:
            team.types("git checkout --ours configs/train.yaml", quiet=True)
        if number in BUSY:
            team.types("git checkout configs/train.yaml", quiet=True)
            team.types("scaffold update", quiet=True)
        team.types("git add -A", quiet=True)
        if number not in BY_COPIER:
            team.types('git commit -q -m "Update the template"', quiet=True)
    said = here.types("scaffold fleet check teams/team-4* --html fleet-later.html", code=2)
    expect("10 projects: 4 current, 6 drifted" in said, "of the teams 40 to 49, not 4 are current and 6 drifted.")


def title(text: str) -> None:
    print(f"## {text}\n", flush=True)


def walk(folder: Path, *, quick: bool) -> None:
    folder.mkdir(parents=True)
    platform, newcomer = user("platform", folder), user("newcomer", folder)
    for one in (platform, newcomer):
        (folder / one.name).mkdir()
    platform, newcomer = platform.at(folder / "platform"), newcomer.at(folder / "newcomer")
    with git_server(folder / "server") as server:
        make_policies(platform)
        make_template(platform, server, quick)
        make_layer(platform, server, quick)
        make_catalog(platform, server)
        project = onboard(newcomer, server)
        teams = folder / "platform" / "teams"
        found_teams(newcomer.at(project.cwd), teams)
        release_change(platform, quick)
        update_by_copier(newcomer.at(teams / f"team-{BY_COPIER[0]:02}"))
        take_fleet(platform, teams)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="Where to work; must not be there yet.")
    parser.add_argument("--quick", action="store_true", help="Try the templates with one combination of answers.")
    given = parser.parse_args(arguments)
    folder = given.folder.expanduser().resolve()
    if folder.exists():
        parser.error(f"{folder} is there already. Choose another one: nothing is overwritten.")
    try:
        walk(folder, quick=given.quick)
    except NotAsTold as error:
        print(f"NOT AS TOLD: {error}", file=sys.stderr)
        return 1
    print(f"All as told. The pages: {folder}/platform/fleet.html and fleet-later.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
