"""Starting a template of one's own, as its author does: at the command line, and then with what was made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scaffold.authoring import skeletons, starting
from scaffold.errors import TemplateError
from scaffold.linting import engine

RUNTIME = Path(__file__).parents[2] / "runtime"
KINDS = {"scratch": (), "fork": ("--from", "base"), "layer": ("--layer",)}
NAME = {"scratch": "acme", "fork": "acme-base", "layer": "acme-rules"}


@pytest.fixture(scope="module")
def started(machine, tmp_path_factory):
    """A template of each kind, just made, and what the command said. Tests read them, and change nothing."""
    folder = tmp_path_factory.mktemp("templates")
    return {
        kind: (folder / NAME[kind], machine.scaffold("template", "new", NAME[kind], *options, cwd=folder))
        for kind, options in KINDS.items()
    }


class TestANewTemplate:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_a_clean_repository_with_one_commit_and_no_tag(self, started, machine, kind):
        """It is the author's from the first commit on, and not released yet."""
        template, done = started[kind]
        assert done.returncode == 0, done.stderr
        assert f"Made the template {NAME[kind]}, " in done.stdout
        assert machine.git("status", "--porcelain", "--ignored", cwd=template) == ""
        assert machine.git("log", "--format=%an", cwd=template) == "Ada Tester"
        assert machine.git("tag", cwd=template) == ""

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_nothing_that_lint_would_find(self, started, in_process, kind):
        """Neither an error nor a warning, before its author has typed a word; all that is muted is that it has no release."""
        template, _ = started[kind]
        linted = engine.lint(template)
        assert [finding.text() for finding in linted.findings] == []
        assert (linted.muted, linted.notes) == (1, ())
        assert linted.files >= 4

    @pytest.mark.parametrize("kind, which", [("scratch", ""), ("layer", ""), ("fork", "Choice or Presets")])
    def test_passes_its_own_tests(self, started, machine, kind, which):
        """Every combination of choices, hostile texts and presets render to valid, formatted files."""
        template, _ = started[kind]
        done = python(machine, template, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_formatted_and_leaves_nothing_to_fill_in(self, started, machine, kind):
        """black and ruff have nothing to say about its own code, and no @WORD@ is left anywhere."""
        template, _ = started[kind]
        for check in (["black", "--check", "-q", "."], ["ruff", "check", "--no-cache", "-q", "."]):
            done = python(machine, template, "-m", *check)
            assert done.returncode == 0, done.stdout + done.stderr
        for file in machine.git("ls-files", "-z", cwd=template).split("\0"):
            if file:
                assert not re.search(r"@[A-Z_]+@", f"{file} {(template / file).read_text()}"), file
                assert not file.endswith(".skeleton")

    @pytest.mark.parametrize("kind", KINDS)
    def test_explains_itself_to_its_author(self, started, kind):
        """The README says how to check, change and release; CI pins its actions to commits."""
        template, _ = started[kind]
        readme = (template / "README.md").read_text()
        for command in (
            "scaffold template lint",
            "scaffold template test",
            "scaffold template release",
            "presets/NAME",
        ):
            assert command in readme
        workflow = yaml.safe_load((template / ".github/workflows/ci.yml").read_text())
        used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
        assert used
        assert all(len(action.partition("@")[2]) == 40 for action in used)
        assert workflow["permissions"] == {"contents": "read"}
        config = yaml.safe_load((template / "copier.yml").read_text())
        assert config["_scaffold"]["managed"]
        assert list((template / "presets").glob("*.yml"))

    def test_says_what_to_type_next(self, started):
        _, done = started["scratch"]
        assert [line.strip() for line in done.stdout.splitlines()[-3:]] == [
            "cd acme",
            "scaffold template lint",
            "scaffold template test",
        ]

    def test_leaves_no_temporary_folder(self, started):
        template, _ = started["scratch"]
        assert {entry.name for entry in template.parent.iterdir()} == set(NAME.values())


class TestAProjectFromATemplateMadeFromScratch:
    def test_trains_two_steps(self, started, machine, tmp_path):
        """`scaffold new --template acme`, then the debug run of its README, with the runtime of this repository."""
        template, _ = started["scratch"]
        done = machine.scaffold("new", "my-net", f"--template={template}", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        project = tmp_path / "my-net"
        assert f"# Template commit: {head(machine, template)}" in (project / ".copier-answers.yml").read_text()
        configs = ("--config=configs/train.yaml", "--config=configs/debug.yaml")
        done = python(
            machine,
            project,
            "-m",
            "my_net",
            "fit",
            *configs,
            PYTHONPATH=f"{project / 'src'}:{RUNTIME}",
            OMP_NUM_THREADS="1",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(project.glob("debug/runs/*/checkpoints/last.ckpt"))
        assert machine.git("status", "--porcelain", cwd=project) == ""


class TestAFork:
    def test_has_the_files_of_the_built_in_template_and_says_so(self, started, machine, tmp_path):
        """A project from it is the one from base, but for where it comes from."""
        template, _ = started["fork"]
        assert "a fork of `base v" in (template / "README.md").read_text()
        for name, source in (("base", "base"), ("fork", str(template))):
            done = machine.scaffold("new", f"{name}/net", f"--template={source}", "--yes", "--no-git", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        ours, theirs = contents(tmp_path / "fork/net"), contents(tmp_path / "base/net")
        assert ours.keys() == theirs.keys()
        assert {name for name in ours if ours[name] != theirs[name]} == {".copier-answers.yml"}

    def test_of_settings_that_are_there_keeps_them(self):
        """Where the built-in templates say what is managed, the fork says the same."""
        config = (
            "_subdirectory: 'x'\n_scaffold: # ours\n  managed: [a]\ntemplate:\n  choices: [base]\n\nci:\n  type: str\n"
        )
        fork = yaml.safe_load(skeletons.alone(config, "base", "v1.0.0"))
        assert fork["_subdirectory"] == "template"
        assert fork["_scaffold"]["managed"] == ["a"]
        assert fork["template"]["when"] is False
        assert fork["ci"] == {"type": "str"}


class TestALayer:
    def test_goes_on_top_of_a_base_project_and_writes_only_files_of_its_own(self, started, machine, tmp_path):
        """By plain Copier too: no file of the base is touched, and its answers are read."""
        template, _ = started["layer"]
        done = machine.scaffold("new", "net", "--ci=github", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        done = machine.copier("copy", "--defaults", "--vcs-ref=HEAD", str(template), "net", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        changed = machine.git("status", "--porcelain", "-uall", cwd=tmp_path / "net").splitlines()
        assert changed == [
            "?? .copier-answers.acme-rules.yml",
            "?? .github/workflows/acme-rules.yml",
            "?? configs/experiments/acme-rules.yaml",
            "?? docs/acme-rules.md",
        ]
        assert "python -m net fit" in (tmp_path / "net/configs/experiments/acme-rules.yaml").read_text()

    def test_brings_no_workflow_where_the_base_has_another_ci(self, started, machine, tmp_path):
        template, _ = started["layer"]
        (tmp_path / "net").mkdir()
        (tmp_path / "net/.copier-answers.yml").write_text("ci: gitlab\npackage_name: net\n")
        done = machine.copier("copy", "--defaults", "--vcs-ref=HEAD", str(template), "net", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "net/.github").exists()

    @pytest.mark.parametrize("name, file", [("wider", "experiments/wider.yaml"), ("ci", "workflows/ci.yml")])
    def test_cannot_bear_the_name_of_a_file_of_the_base(self, in_process, tmp_path, name, file):
        with pytest.raises(TemplateError, match=file):
            starting.start(starting.Plan(path=tmp_path / "t", name=name, layer=True))
        assert list(tmp_path.iterdir()) == []


class TestStartingIsRefused:
    @pytest.mark.parametrize(
        "name", ["Acme", "a_b", "-a", "a-", "a--b", "3d", "", "é", "con", "a/b", "a" * 41, "base", "a\n"]
    )
    def test_for_a_name_that_is_none(self, in_process, tmp_path, name):
        """It stands in file names, URLs and headings of every project."""
        with pytest.raises(TemplateError, match="called"):
            starting.start(starting.Plan(path=tmp_path / "t", name=name))
        assert list(tmp_path.iterdir()) == []

    def test_not_for_a_folder_whose_name_can_be_made_one(self, in_process, tmp_path):
        assert starting.start(starting.Plan(path=tmp_path / "My Template_2")).name == "my-template-2"

    def test_for_a_folder_that_is_not_empty(self, machine, tmp_path):
        (tmp_path / "t").mkdir()
        (tmp_path / "t/mine.txt").touch()
        done = machine.scaffold("template", "new", "t", cwd=tmp_path)
        assert_refused(done, "is not empty")
        assert [entry.name for entry in (tmp_path / "t").iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize(
        "options, said", [(["--from", "bass"], "--from base"), (["--from", "base", "--layer"], "do not go together")]
    )
    def test_for_options_that_make_no_sense(self, machine, tmp_path, options, said):
        done = machine.scaffold("template", "new", "t", *options, cwd=tmp_path)
        assert_refused(done, said)
        assert list(tmp_path.iterdir()) == []

    def test_without_a_git_identity(self, machine, tmp_path):
        """Named at once; without git it goes through, and says what that means."""
        nobody = {"GIT_CONFIG_GLOBAL": os.devnull}
        done = machine.scaffold("template", "new", "t", cwd=tmp_path, **nobody)
        assert_refused(done, "git config --global user.name")
        assert list(tmp_path.iterdir()) == []
        done = machine.scaffold("template", "new", "t", "--no-git", "--json", cwd=tmp_path, **nobody)
        document = json.loads(done.stdout)
        assert document["commit"] is None
        assert any("released by a git tag" in note for note in document["notes"])
        assert not (tmp_path / "t/.git").exists()

    def test_by_a_stop_which_leaves_nothing_behind(self, machine, tmp_path, wrapped_git):
        """SIGTERM in the middle of the first commit."""
        folder, reached = wrapped_git("commit")
        work = tmp_path / "work"
        work.mkdir()
        process = stopped_at(machine, ["template", "new", "t"], work, folder, reached)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
        assert list(work.iterdir()) == []


def assert_refused(done, expected):
    """Exit code 1, one short message with what, why and fix."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert expected in done.stderr
    assert "why:" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def head(machine, repository):
    return machine.git("rev-parse", "HEAD", cwd=repository)


def python(machine, cwd, *arguments, **environment):
    """Run Python as the author or the project's owner does."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**machine.environment, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def stopped_at(machine, arguments, cwd, folder, reached):
    """The command in a process group of its own, once its git has got to where it waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scaffold", *arguments],
        cwd=cwd,
        env={**machine.environment, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not reached.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
