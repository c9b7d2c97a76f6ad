"""`scaffold check`: how far behind its templates a project is, what of their files was changed, and how CI is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from scaffold import cli

ANSWERS = ".copier-answers.yml"
CONFIG = 'name: world\n_scaffold: {managed: [".github/**", "ruff.toml"], generated: ["uv.lock"]}\n'


@pytest.fixture(scope="module")
def prepared(machine, tmp_path_factory):
    """A template of one release, and a committed project of it."""
    folder = tmp_path_factory.mktemp("prepared")
    template = folder / "template"
    files = {
        "copier.yml": CONFIG,
        "{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
        ".github/workflows/ci.yml": "on: push\njobs: {}\n",
        "ruff.toml.jinja": "# {{ name }}\nline-length = 120\n",
        "README.md": "read\n",
        "uv.lock": "1\n",
    }
    for name, text in files.items():
        (template / name).parent.mkdir(parents=True, exist_ok=True)
        (template / name).write_text(text)
    machine.git("init", "-q", cwd=template)
    release(machine, template, "v1.0.0")
    done = machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def template(prepared, tmp_path):
    return shutil.copytree(prepared / "template", tmp_path / "template")


@pytest.fixture
def project(prepared, template, machine, tmp_path):
    project = shutil.copytree(prepared / "p", tmp_path / "p")
    answers = (project / ANSWERS).read_text()
    (project / ANSWERS).write_text(answers.replace(str(prepared / "template"), str(template)))
    commit(machine, project)
    return project


@pytest.fixture
def run(in_process, monkeypatch, capfd):
    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = cli.app(args=list(map(str, arguments)), prog_name="scaffold", standalone_mode=False)
        return subprocess.CompletedProcess(arguments, code or 0, *capfd.readouterr())

    return run


def commit(machine, folder):
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", "x", "--allow-empty", cwd=folder)


def release(machine, template, *tags):
    for tag in tags:
        commit(machine, template)
        machine.git("tag", tag, cwd=template)


class TestHowFarBehind:
    def test_counts_the_releases_in_between(self, project, template, machine, run):
        release(machine, template, "v1.1.0", "v1.2.0", "v2.0.0")
        done = run("check", cwd=project)
        assert done.returncode == 2
        assert "v1.0.0: 3 releases behind v2.0.0" in done.stdout
        assert "scaffold update --diff" in done.stdout
        told = json.loads(run("check", "--json", cwd=project).stdout)
        assert told["behind"] is True
        assert (told["layers"][0]["behind"], told["layers"][0]["newest"]) == (3, "v2.0.0")

    def test_is_nothing_at_the_newest_release(self, project, run):
        done = run("check", cwd=project)
        assert done.returncode == 0
        assert "v1.0.0: the newest" in done.stdout

    def test_goes_by_version_not_by_date_or_alphabet(self, project, template, machine, run):
        release(machine, template, "v1.10.0", "v1.9.0", "v0.9.0", "nonsense")
        assert "2 releases behind v1.10.0" in run("check", cwd=project).stdout

    def test_does_not_count_prereleases(self, project, template, machine, run):
        release(machine, template, "v1.1.0rc1", "v1.1.0.dev1", "v2.0.0-alpha.1")
        assert run("check", cwd=project).returncode == 0

    def test_of_a_prerelease_is_its_release(self, project, template, machine, run):
        (project / ANSWERS).write_text((project / ANSWERS).read_text().replace("v1.0.0", "v1.1.0rc1"))
        release(machine, template, "v1.1.0rc1", "v1.1.0")
        assert "1 release behind v1.1.0" in run("check", cwd=project).stdout

    def test_is_nothing_where_the_template_has_no_releases(self, template, machine, run, tmp_path):
        machine.git("tag", "-d", "v1.0.0", cwd=template)
        done = run("new", "q", "--template", template, "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert run("check", cwd=tmp_path / "q").returncode == 0

    def test_is_told_of_every_layer(self, project, template, machine, run):
        release(machine, template, "v1.1.0")
        text = (project / ANSWERS).read_text()
        (project / ".copier-answers.acme.yml").write_text(text.replace("v1.0.0", "v1.1.0"))
        told = json.loads(run("check", "--json", cwd=project).stdout)
        assert [(layer["name"], layer["behind"]) for layer in told["layers"]] == [("base", 1), ("acme", 0)]


class TestDrift:
    def test_is_a_managed_file_that_was_changed_or_deleted(self, project, machine, run):
        (project / "ruff.toml").write_text("mine\n")
        (project / ".github/workflows/ci.yml").unlink()
        (project / "README.md").write_text("mine, and nobody minds\n")
        (project / "uv.lock").write_text("2\n")
        done = run("check", "--drift", cwd=project)
        assert done.returncode == 2
        assert "changed  ruff.toml" in done.stdout
        assert "deleted  .github/workflows/ci.yml" in done.stdout
        assert "README.md" not in done.stdout
        assert "uv.lock" not in done.stdout
        assert run("check", cwd=project).returncode == 0, "only looked for when asked"

    def test_is_none_in_a_project_as_it_was_made(self, project, run):
        done = run("check", "--drift", cwd=project)
        assert done.returncode == 0
        assert "2 managed files, unchanged" in done.stdout

    def test_is_none_where_only_line_ends_differ(self, project, run):
        for name in ("ruff.toml", ".github/workflows/ci.yml"):
            (project / name).write_bytes((project / name).read_bytes().replace(b"\n", b"\r\n"))
        assert run("check", "--drift", cwd=project).returncode == 0

    def test_is_measured_against_the_projects_own_version_and_answers(self, project, template, machine, run):
        (template / "ruff.toml.jinja").write_text("another\n")
        release(machine, template, "v1.1.0")
        told = json.loads(run("check", "--drift", "--json", cwd=project).stdout)
        assert (told["drifted"], told["managed"], told["behind"]) == ([], 2, True)

    def test_finds_a_link_in_the_place_of_a_file(self, project, run):
        (project / "ruff.toml").unlink()
        (project / "ruff.toml").symlink_to("README.md")
        assert "changed  ruff.toml" in run("check", "--drift", cwd=project).stdout

    def test_changes_nothing_in_the_project(self, project, machine, run):
        (project / "ruff.toml").write_text("mine\n")
        before = machine.git("status", "--porcelain", cwd=project)
        run("check", "--drift", cwd=project)
        assert machine.git("status", "--porcelain", cwd=project) == before


class TestRestore:
    def test_puts_committed_changes_back_and_commits_nothing(self, project, machine, run):
        (project / "ruff.toml").write_text("mine\n")
        shutil.rmtree(project / ".github")
        (project / "README.md").write_text("mine\n")
        commit(machine, project)
        head = machine.git("rev-parse", "HEAD", cwd=project)
        done = run("check", "--restore", cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ruff.toml, which the template manages: put back" in done.stdout
        assert (project / "ruff.toml").read_text() == "# world\nline-length = 120\n"
        assert (project / ".github/workflows/ci.yml").exists()
        assert (project / "README.md").read_text() == "mine\n"
        assert machine.git("rev-parse", "HEAD", cwd=project) == head

    def test_refuses_what_could_not_be_got_back(self, project, run):
        (project / "ruff.toml").write_text("mine, not committed\n")
        done = run("check", "--restore", cwd=project)
        assert done.returncode == 1
        assert "ruff.toml was changed and not committed" in done.stderr
        assert (project / "ruff.toml").read_text() == "mine, not committed\n"

    def test_does_not_write_through_a_link(self, project, machine, run, tmp_path):
        (tmp_path / "outside").mkdir()
        shutil.rmtree(project / ".github")
        (project / ".github").symlink_to(tmp_path / "outside")
        commit(machine, project)
        done = run("check", "--restore", cwd=project)
        assert done.returncode == 1
        assert "a link leads out of it" in done.stderr
        assert list((tmp_path / "outside").iterdir()) == []


class TestAnnotations:
    @pytest.fixture
    def found(self, project, template, machine):
        """One release behind, one managed file changed, one conflict."""
        release(machine, template, "v1.1.0")
        (project / "ruff.toml").write_text("mine\n")
        blob = machine.git("hash-object", "-w", "README.md", cwd=project)
        lines = "".join(f"100644 {blob} {stage}\tREADME.md\n" for stage in (1, 2, 3))
        command = ["git", "update-index", "--index-info"]
        subprocess.run(command, cwd=project, env=machine.environment, input=lines, text=True, check=True)
        return project

    def test_for_github_are_its_workflow_commands(self, found, template, run):
        done = run("check", "--drift", "--format=github", cwd=found)
        assert done.returncode == 2
        assert done.stdout.splitlines() == [
            f"::warning file=.copier-answers.yml,title=template-behind::{template} v1.0.0 is 1 release behind v1.1.0. Run: scaffold update",
            "::error file=README.md,title=template-conflict::A conflict waits to be resolved here.",
            "::error file=ruff.toml,title=template-drift::The template manages ruff.toml, and it was changed here.",
            "3 findings",
        ]

    def test_for_gitlab_are_its_report_of_code_quality(self, found, run):
        done = run("check", "--drift", "--format=gitlab", cwd=found)
        assert done.returncode == 2
        report = json.loads(done.stdout)
        told = [(each["check_name"], each["severity"], each["location"]) for each in report]
        assert told == [
            ("template-behind", "minor", {"path": ".copier-answers.yml", "lines": {"begin": 1}}),
            ("template-conflict", "major", {"path": "README.md", "lines": {"begin": 1}}),
            ("template-drift", "major", {"path": "ruff.toml", "lines": {"begin": 1}}),
        ]
        prints = {each["fingerprint"] for each in report}
        assert len(prints) == 3
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in prints)
        assert {
            each["fingerprint"] for each in json.loads(run("check", "--drift", "--format=gitlab", cwd=found).stdout)
        } == prints

    def test_of_nothing_are_none(self, project, run):
        assert run("check", "--drift", "--format=github", cwd=project).stdout == "0 findings\n"
        assert json.loads(run("check", "--drift", "--format=gitlab", cwd=project).stdout) == []

    def test_cannot_be_forged_by_the_name_of_a_file(self):
        """A line break or a comma in it would start another command, or another property."""
        from pathlib import Path

        from scaffold import annotations, checking

        drift = checking.Drift(path="a,title=x::y\n::error::forged%0A", kind="changed")
        checked = checking.Checked(path=Path(), layers=(), drifted=(drift,), managed=1, unresolved=())
        first, last = annotations.github(checked).splitlines()
        assert first.startswith("::error file=a%2Ctitle=x%3A%3Ay%0A%3A%3Aerror%3A%3Aforged%250A,title=template-drift::")
        assert last == "1 finding"
