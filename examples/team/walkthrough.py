"""The whole story of README.md, typed by a program: what it says happens, or this stops at the first thing that doesn't.

    python examples/team/walkthrough.py ~/acme-walkthrough

Everything lies in the folder that is given, two users' home folders included; the only network is a git server on this
machine. Needs scaffold, treadle, torch, scikit-learn, hatchling, pytest, black and git. A few minutes on two cores;
``--quick`` tries one combination of answers instead of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from shell import NotAsTold, User, empty_repository, environment, expect, git_server, user

HERE = Path(__file__).resolve().parent

# What fifty teams have done to their projects, by number.
TEAMS = range(1, 51)
PATIENT = range(36, 43)  # set the line in configs/train.yaml that the release sets as well
ONE_PYTHON = range(43, 48)  # took a Python out of ci.yml, which the template manages
NO_CI = (48,)  # deleted it
BY_COPIER = (49,)  # have updated already, with plain copier
BUSY = (50,)  # are in the middle of an edit of a file that the release changes


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
    told = newcomer.tells("scaffold doctor --json", code=int(done < 2))  # a project that isn't installed is a problem
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
