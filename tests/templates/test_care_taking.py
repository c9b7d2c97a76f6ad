"""What a project's CI does for its template: tells of a newer one and of drift, and brings updates for review."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

Render = Callable[..., Path]

WORKFLOWS = ".github/workflows"
HASH = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}")


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.fixture(scope="session")
def workflows(project: Path) -> dict[str, dict[str, Any]]:
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted((project / WORKFLOWS).iterdir())}


class TestOnGitHub:
    def test_there_are_three_jobs(self, workflows: dict[str, dict[str, Any]]) -> None:
        """One tests, one looks at the template, one brings updates."""
        jobs = {name: sorted(workflow["jobs"]) for name, workflow in workflows.items()}
        assert jobs == {"ci.yml": ["template", "test"], "template.yml": ["update"]}

    def test_every_action_is_pinned_to_a_commit(self, project: Path, workflows: dict[str, dict[str, Any]]) -> None:
        """A tag can move under a job that may push; a comment says which release the commit is."""
        used = [step["uses"] for workflow in workflows.values() for step in steps(workflow) if "uses" in step]
        assert len(used) == 6
        assert all(HASH.fullmatch(action) for action in used), used
        for name in workflows:
            text = (project / WORKFLOWS / name).read_text()
            assert text.count("uses:") == len(re.findall(r"uses: \S+@[0-9a-f]{40} # v\d+\.\d+\.\d+\n", text))

    def test_no_expression_is_pasted_into_a_command(self, workflows: dict[str, dict[str, Any]]) -> None:
        """A title or a branch name of a stranger would be run as shell code; values go through the environment."""
        for workflow in workflows.values():
            for step in steps(workflow):
                assert "${{" not in step.get("run", ""), step

    def test_only_the_last_steps_of_the_update_hold_a_token(self, workflows: dict[str, dict[str, Any]]) -> None:
        """What pip installs, and what a template brings, runs without one; each job may do what it needs and no more."""
        assert workflows["ci.yml"]["permissions"] == {"contents": "read"}
        assert workflows["template.yml"]["permissions"] == {}
        job = workflows["template.yml"]["jobs"]["update"]
        assert job["permissions"] == {"contents": "write", "issues": "write", "pull-requests": "write"}
        assert [step["name"] for step in steps(workflows["template.yml"]) if "GH_TOKEN" in step.get("env", {})] == [
            "Open a pull request",
            "Open an issue",
        ]
        for workflow in workflows.values():
            for step in steps(workflow):
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False

    def test_every_command_is_valid_shell(self, workflows: dict[str, dict[str, Any]]) -> None:
        for workflow in workflows.values():
            for step in steps(workflow):
                if "run" in step:
                    subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


class TestOnGitLab:
    def test_there_are_the_same_three_jobs(self, render: Render) -> None:
        """The update runs in scheduled pipelines alone, the others in all but those."""
        document = yaml.safe_load((render(ci="gitlab") / ".gitlab-ci.yml").read_text())
        assert sorted(set(document) - {"variables"}) == ["template", "template-update", "test"]
        assert document["template-update"]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
        for name in ("test", "template"):
            assert all("schedule" not in rule["if"] or "!=" in rule["if"] for rule in document[name]["rules"])
        assert document["template"]["artifacts"]["reports"] == {"codequality": "gl-code-quality-report.json"}


class TestLineEndsAndConflicts:
    def test_text_has_lf_on_every_system(self, project: Path, tmp_path: Path) -> None:
        """Also where git is set up as Windows' installer does it, and scripts for Windows keep CRLF."""
        repository = shutil.copytree(project, tmp_path / "repository")
        (repository / "run.bat").write_bytes(b"echo hello\r\n")
        (repository / "model.pt").write_bytes(b"PK\r\n")
        git = [
            "git",
            "-c",
            "core.autocrlf=true",
            "-c",
            "core.safecrlf=false",
            "-c",
            "user.name=a",
            "-c",
            "user.email=b",
        ]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
            subprocess.run([*git, *command], cwd=repository, check=True)
        for name in ("README.md", "run.bat", "model.pt"):
            (repository / name).unlink()
        subprocess.run([*git, "checkout", "-q", "--", "."], cwd=repository, check=True)
        assert b"\r" not in (repository / "README.md").read_bytes()
        assert (repository / "run.bat").read_bytes() == b"echo hello\r\n"
        assert (repository / "model.pt").read_bytes() == b"PK\r\n"

    def test_a_commit_with_conflict_markers_is_stopped(self, project: Path) -> None:
        """The hook's pattern finds what an update leaves, and no file of the project itself."""
        config = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())
        hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
        marker = re.compile(hooks["conflict-markers"]["entry"])
        assert all(marker.match(line) for line in ("<<<<<<< project", ">>>>>>> template v2", "<<<<<<<"))
        lines = [line for path in project.rglob("*") if path.is_file() for line in path.read_text().splitlines()]
        assert not any(marker.match(line) for line in lines)
        assert re.search(hooks["rejected-changes"]["files"], "src/model.py.rej")


class TestTheAnswersFile:
    def test_has_the_form_that_renovate_reads(self, released: Path) -> None:
        """Its manager for Copier takes files of this name, with these keys at the top, a URL and a version."""
        names = [path.relative_to(released).as_posix() for path in released.rglob("*")]
        [name] = [name for name in names if re.search(r"(^|/)\.copier-answers(\..+)?\.ya?ml", name)]
        answers = yaml.safe_load((released / name).read_text())
        assert list(answers)[:2] == ["_commit", "_src_path"]
        assert answers["_commit"] == "v0.1.0"
        assert isinstance(answers["_src_path"], str)
        assert "Renovate" in (released / "README.md").read_text()


def git(*arguments: str, cwd: Path) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    done = subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True, text=True, env=plain())
    return done.stdout.strip()


def plain() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GIT_", "CI"))}
    return inherited | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": "0"}


@pytest.fixture(scope="module")
def releases(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template in git, as v0.1.0."""
    folder = tmp_path_factory.mktemp("releases") / "template"
    shutil.copytree(template, folder)
    git("init", "-q", "-b", "main", cwd=folder)
    return release(folder, "v0.1.0")


def release(template: Path, version: str) -> Path:
    git("add", "-A", cwd=template)
    git("commit", "-q", "-m", version, cwd=template)
    git("tag", version, cwd=template)
    return template


@pytest.fixture(scope="module")
def released(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project at v0.1.0, for either service."""
    folder = tmp_path_factory.mktemp("released") / "my-project"
    copier.run_copy(str(releases), folder, defaults=True, quiet=True, vcs_ref="v0.1.0")
    git("init", "-q", "-b", "main", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "-m", "first", cwd=folder)
    return folder


class Service:
    """A project with its origin on this machine, and a job's surroundings: scaffold and a gh that writes down its calls."""

    def __init__(self, released: Path, releases: Path, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "template"
        shutil.copytree(releases, self.template)
        self.origin = folder / "origin.git"
        self.project = folder / "my-project"
        shutil.copytree(released, self.project)
        answers = self.project / ".copier-answers.yml"
        answers.write_text(answers.read_text().replace(str(releases), str(self.template)))
        git("commit", "-q", "-a", "-m", "the template's place", cwd=self.project)
        git("clone", "-q", "--bare", str(self.project), str(self.origin), cwd=folder)
        git("config", "receive.advertisePushOptions", "true", cwd=self.origin)
        git("remote", "add", "origin", str(self.origin), cwd=self.project)
        tools = folder / "bin"
        tools.mkdir()
        self.calls = folder / "calls.txt"
        (tools / "gh").write_text(f'#!/bin/sh\necho "$@" >> "{self.calls}"\n')
        (tools / "scaffold").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scaffold "$@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.environment = plain() | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RUNNER_TEMP": str(folder),
            "GITHUB_OUTPUT": str(folder / "output.txt"),
            "GITHUB_REPOSITORY": "ada/my-project",
            "BRANCH": "template-update",
            "MAY_CHANGE_WORKFLOWS": "false",
            "CI_SERVER_URL": f"file://{folder}",
            "CI_PROJECT_PATH": "origin",
            "CI_DEFAULT_BRANCH": "main",
            "TEMPLATE_TOKEN": "s3cret",
        }

    def change(self, name: str, old: str, new: str, *, version: str = "v0.2.0") -> None:
        """Release a version in which a file of the base template reads ``new`` for ``old``."""
        path = self.template / "templates/base" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        release(self.template, version)

    def shell(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.project,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run(self, **environment: str) -> str:
        """Run the steps of GitHub's job that its conditions let through; what Update made of it."""
        workflow = yaml.safe_load((self.project / WORKFLOWS / "template.yml").read_text())
        result = ""
        for step in steps(workflow):
            condition = step.get("if", "true")
            match = re.fullmatch(r"steps\.update\.outputs\.result (==|!=) '([\w-]+)'", condition)
            wanted = match is None or ((match[1] == "==") == (result == match[2]))
            if "run" not in step or step["run"].startswith("pip ") or not wanted:
                continue
            done = self.shell(step["run"], **environment)
            assert done.returncode == 0, (step, done.stdout, done.stderr)
            if step.get("id") == "update":
                result = Path(self.environment["GITHUB_OUTPUT"]).read_text().strip().removeprefix("result=")
        return result

    def said(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""

    def pushed(self) -> str:
        """The summary of what is on the branch, empty when there is none."""
        branches = git("branch", "--list", "template-update", cwd=self.origin)
        return git("log", "-1", "--stat", "template-update", cwd=self.origin) if branches else ""


@pytest.fixture
def github(released: Path, releases: Path, tmp_path: Path) -> Service:
    return Service(released, releases, tmp_path)


class TestTheWeeklyUpdateOnGitHub:
    def test_does_nothing_when_there_is_nothing_new(self, github: Service) -> None:
        assert github.run() == "nothing"
        assert github.pushed() == github.said() == ""

    def test_opens_a_pull_request_that_says_what_changed(self, github: Service) -> None:
        """The template's improvement is on a branch of its own; the body has the summary of the diff."""
        github.change(".gitignore", ".DS_Store", ".DS_Store\nThumbs.db")
        assert github.run() == "pull-request"
        assert ".gitignore" in github.pushed()
        assert "pr create --head template-update --title Update the template" in github.said()
        body = (github.folder / "body.md").read_text()
        assert "v0.2.0" in body
        assert ".gitignore" in body

    def test_opens_an_issue_that_lists_the_conflicts(self, github: Service) -> None:
        """Markers on a branch would be merged by somebody sooner or later: nothing is pushed."""
        github.change("configs/debug.yaml", "max_epochs: 1", "max_epochs: 2")
        path = github.project / "configs/debug.yaml"
        path.write_text(path.read_text().replace("max_epochs: 1", "max_epochs: 3"))
        git("commit", "-q", "-a", "-m", "mine", cwd=github.project)
        assert github.run() == "issue"
        assert github.pushed() == ""
        assert "issue create --title Update the template by hand: scaffold update" in github.said()
        assert "- `configs/debug.yaml`" in (github.folder / "body.md").read_text()

    def test_opens_an_issue_for_workflows_it_may_not_push(self, github: Service) -> None:
        """GitHub refuses them from a job's own token; with a token that may, they come along."""
        name = "{% if ci == 'github' %}.github{% endif %}/workflows/ci.yml"
        github.change(name, "timeout-minutes: 20", "timeout-minutes: 30")
        assert github.run() == "issue"
        assert github.pushed() == ""
        git("reset", "-q", "--hard", cwd=github.project)
        git("switch", "-q", "main", cwd=github.project)
        git("branch", "-q", "-D", "template-update", cwd=github.project)
        Path(github.environment["GITHUB_OUTPUT"]).unlink()
        assert github.run(MAY_CHANGE_WORKFLOWS="true") == "pull-request"
        assert "ci.yml" in github.pushed()


class TestTheScheduledUpdateOnGitLab:
    @pytest.fixture
    def gitlab(self, released: Path, releases: Path, tmp_path: Path) -> Service:
        service = Service(released, releases, tmp_path)
        with_gitlab = tmp_path / "with-gitlab"
        copier.run_copy(str(releases), with_gitlab, data={"ci": "gitlab"}, defaults=True, quiet=True)
        shutil.copy(with_gitlab / ".gitlab-ci.yml", tmp_path / "ci.yml")
        return service

    def script(self, gitlab: Service, job: str) -> str:
        lines = yaml.safe_load((gitlab.folder / "ci.yml").read_text())[job]["script"]
        return "\n".join(line for line in lines if not line.startswith("pip "))

    def test_pushes_a_branch_that_asks_for_a_merge_request(self, gitlab: Service) -> None:
        """The commit's message, which GitLab takes for the description, has the summary of the diff."""
        gitlab.change(".gitignore", ".DS_Store", ".DS_Store\nThumbs.db")
        hook = gitlab.origin / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\nenv | grep ^GIT_PUSH_OPTION_ > options.txt\n")
        hook.chmod(0o755)
        done = gitlab.shell(self.script(gitlab, "template-update"))
        assert done.returncode == 0, done.stderr
        assert re.search(r"\.gitignore +\| 1 \+", git("log", "-1", "--format=%B", "template-update", cwd=gitlab.origin))
        options = (gitlab.origin / "options.txt").read_text()
        assert "=merge_request.create\n" in options
        assert "=merge_request.target=main\n" in options
        assert "s3cret" not in done.stdout + done.stderr

    def test_gives_git_the_token_and_no_command_line(self, gitlab: Service) -> None:
        """A command line can be read by every process of a machine; git asks for the password instead."""
        [line] = [line for line in self.script(gitlab, "template-update").splitlines() if "credential.helper" in line]
        options = line.partition(" push ")[0]
        done = gitlab.shell(f"printf 'protocol=https\\nhost=localhost\\n\\n' | {options} credential fill")
        assert "password=s3cret\n" in done.stdout

    def test_ends_well_when_there_is_nothing_new(self, gitlab: Service) -> None:
        done = gitlab.shell(self.script(gitlab, "template-update"))
        assert done.returncode == 0, done.stderr
        assert gitlab.pushed() == ""

    def test_fails_with_the_names_of_files_in_conflict(self, gitlab: Service) -> None:
        gitlab.change("configs/debug.yaml", "max_epochs: 1", "max_epochs: 2")
        path = gitlab.project / "configs/debug.yaml"
        path.write_text(path.read_text().replace("max_epochs: 1", "max_epochs: 3"))
        git("commit", "-q", "-a", "-m", "mine", cwd=gitlab.project)
        done = gitlab.shell(self.script(gitlab, "template-update"))
        assert done.returncode == 3
        assert "configs/debug.yaml" in done.stdout
        assert gitlab.pushed() == ""


class TestTheLookAtTheTemplate:
    def command(self, project: Path) -> str:
        workflow = yaml.safe_load((project / WORKFLOWS / "ci.yml").read_text())
        return str(workflow["jobs"]["template"]["steps"][-1]["run"])

    def test_shows_drift_in_a_managed_file_and_blocks_nobody(self, github: Service) -> None:
        """An annotation names the file; the project's own files may change as they like."""
        for name in (".gitattributes", "configs/train.yaml"):
            with (github.project / name).open("a") as file:
                file.write("# mine\n")
        done = github.shell(self.command(github.project))
        assert done.returncode == 0, done.stdout + done.stderr
        assert ".gitattributes" in done.stdout
        assert "train.yaml" not in done.stdout

    def test_fails_when_it_could_not_look(self, github: Service) -> None:
        shutil.rmtree(github.template)
        assert github.shell(self.command(github.project)).returncode == 1
