"""`scaffold doctor` says what is wrong with this machine and this project, and what to do, and never falls over itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaffold.doctor import examine, steps
from scaffold.doctor.findings import printable
from scaffold.doctor.onboarding import Check, parse
from scaffold.doctor.python import Distribution, Python, unmet

Machine = Any
GIT = shutil.which("git") or "git"

PYPROJECT = """
[project]
name = "acme-digits"
version = "0.1.0"
requires-python = ">=3.10"
dependencies = ["packaging"]
"""


@pytest.fixture(scope="module")
def originals(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two repositories to copy: a template of one release, and a project without one."""
    folder = tmp_path_factory.mktemp("originals")
    files = {
        "template/copier.yml": "_scaffold:\n  managed: [pyproject.toml]\n",
        "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
        "template/pyproject.toml": PYPROJECT,
        "project/pyproject.toml": PYPROJECT,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for repository in (folder / "template", folder / "project"):
        machine.git("init", "-q", cwd=repository)
        commit(machine, repository)
    machine.git("tag", "v1.0.0", cwd=folder / "template")
    return folder


@pytest.fixture
def project(originals: Path, tmp_path: Path) -> Path:
    """A team's own project, committed, with a space in its path."""
    return Path(shutil.copytree(originals / "project", tmp_path / "my project"))


@pytest.fixture
def templated(machine: Machine, originals: Path, project: Path, tmp_path: Path) -> Path:
    """The same, made from ``template``, which lies beside it."""
    template = shutil.copytree(originals / "template", tmp_path / "template")
    (project / ".copier-answers.yml").write_text(f"_commit: v1.0.0\n_src_path: {template}\n")
    commit(machine, project)
    return project


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment whose Python answers at once, with all that the project needs."""
    return str(fake_python(tmp_path_factory.mktemp("quick"), inventory(packaging={}, **{"acme-digits": {}})))


def commit(machine: Machine, project: Path) -> None:
    machine.git("add", "-A", cwd=project)
    machine.git("commit", "-q", "--allow-empty", "-m", "work", cwd=project)


Doctor = Callable[..., "dict[str, Any]"]


@pytest.fixture
def doctor(machine: Machine, quick: str) -> Doctor:
    """What the doctor says as JSON. Its exit code goes with it, and nothing is a traceback."""

    def run(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
        environment = {"VIRTUAL_ENV": quick, "CONDA_PREFIX": "", **environment}
        done = machine.scaffold("doctor", "--json", *arguments, cwd=folder, **environment)
        assert "Traceback" not in done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if report["problems"] else 0)
        return report

    return run


Examined = Callable[[Path], "list[str]"]


@pytest.fixture
def examined(in_process: None, quick: str, monkeypatch: pytest.MonkeyPatch) -> Examined:
    """The problems that the doctor finds when it is called from Python; many cases are quicker that way."""
    monkeypatch.setenv("VIRTUAL_ENV", quick)

    def problems_of(folder: Path) -> list[str]:
        found = [finding for finding in examine(folder, patience=20).findings if finding.level == "problem"]
        assert all(finding.fix for finding in found)
        return [f"{finding.text} | {finding.fix}" for finding in found]

    return problems_of


def problems(report: dict[str, Any]) -> list[str]:
    checks = [check for step in report["steps"] for check in step["checks"]]
    findings = [finding for section in report["sections"] for finding in section["findings"]] + checks
    assert all(finding["fix"] for finding in findings if finding["level"] == "problem")
    return [f"{finding['text']} | {finding['fix']}" for finding in findings if finding["level"] == "problem"]


def texts(report: dict[str, Any], level: str) -> str:
    found = [f for section in report["sections"] for f in section["findings"] if f["level"] == level]
    return "\n".join(f"{finding['text']} | {finding['fix']}" for finding in found)


def fake_git(folder: Path, script: str) -> str:
    """A PATH on which git is ``script``."""
    folder.mkdir()
    git = folder / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def fake_python(environment: Path, answer: str) -> Path:
    """A virtual environment whose Python does ``answer``, a shell script."""
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    return environment


def inventory(**distributions: dict[str, Any]) -> str:
    """What a Python with these packages answers."""
    facts = {"version": "1", "requires": [], "origin": None, "entry_points": []}
    document = {
        "version": "3.12.1",
        "virtual": True,
        "markers": {"python_version": "3.12", "sys_platform": "linux"},
        "distributions": {name: {**facts, **given} for name, given in distributions.items()},
    }
    return f"cat <<'END'\n{json.dumps(document)}\nEND"


class TestOutsideOfAProject:
    def test_the_machine_is_looked_at(self, doctor, tmp_path):
        """git, scaffold, Copier and the disk are looked at anywhere."""
        report = doctor(tmp_path)
        assert report["path"] is None
        assert [section["title"] for section in report["sections"]] == ["Machine"]
        assert "git version" in texts(report, "ok")
        assert "copier 9." in texts(report, "ok")
        assert "Ada Tester <ada@example.com>" in texts(report, "ok")

    def test_people_get_lines(self, machine, tmp_path):
        """Each line starts with ok, note or problem, and the last one sums up."""
        done = machine.scaffold("doctor", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "  ok       git version" in done.stdout
        assert done.stdout.splitlines()[-1] == "No problem."

    def test_a_folder_that_is_not_there_is_a_mistake(self, machine, tmp_path):
        done = machine.scaffold("doctor", "nowhere", cwd=tmp_path)
        assert done.returncode == 1
        assert "There is no folder nowhere." in done.stderr


class TestGit:
    def test_that_is_missing_is_the_problem_and_the_rest_is_still_looked_at(self, doctor, project, tmp_path):
        """Without git there is no update; packages can be told all the same."""
        report = doctor(project, PATH=str(tmp_path / "nothing"))
        assert any("git was not found on the PATH. | install git" in text for text in problems(report))
        assert "copier 9." in texts(report, "ok")
        assert "Python 3." in texts(report, "ok")

    def test_that_does_not_know_its_user_is_a_problem(self, doctor, tmp_path):
        """A commit needs an author."""
        config = tmp_path / "gitconfig"
        config.write_text("")
        report = doctor(tmp_path, GIT_CONFIG_GLOBAL=str(config))
        [text] = problems(report)
        assert text.startswith("git does not know your name")
        assert "git config --global user.name" in text

    def test_that_is_old_is_told_what_it_lacks(self, doctor, tmp_path):
        """2.30 works; it is told apart what 2.31 and 2.38 would bring."""
        script = f'[ "$1" = --version ] && echo "git version 2.30.2" && exit; exec "{GIT}" "$@"'
        report = doctor(tmp_path, PATH=fake_git(tmp_path / "bin", script))
        notes = texts(report, "note")
        assert "git version 2.30.2; since 2.31" in notes
        assert "since 2.38, updates merge in memory" in notes
        assert report["problems"] == 0

    @pytest.mark.parametrize("script", ["echo nonsense", "exit 9", "kill -9 $$"])
    def test_that_is_broken_is_a_line(self, examined, templated, tmp_path, monkeypatch, script):
        """Whatever it does, the doctor gets through."""
        monkeypatch.setenv("PATH", fake_git(tmp_path / "bin", script))
        assert examined(templated)


class TestAProject:
    def test_is_found_from_a_subfolder(self, doctor, project):
        below = project / "src" / "deep"
        below.mkdir(parents=True)
        assert doctor(below)["path"] == str(project)

    def test_as_it_was_made_is_well(self, doctor, templated):
        """Its template is read, reached and newest, and its managed files are untouched."""
        report = doctor(templated)
        assert problems(report) == []
        assert "base is at v1.0.0, the newest" in texts(report, "ok")
        assert "files that the template manages, and nobody changed: 1" in texts(report, "ok")

    def test_with_changed_managed_files_is_told_which(self, doctor, templated):
        """Drift is worth a note, and no illness."""
        (templated / "pyproject.toml").write_text(PYPROJECT + "# mine\n")
        report = doctor(templated)
        assert "1 managed file not as in the template: pyproject.toml (changed)" in texts(report, "note")
        assert problems(report) == []

    def test_that_is_behind_is_told_how_to_catch_up(self, doctor, machine, templated, tmp_path):
        template = tmp_path / "template"
        (template / "news.txt").write_text("news\n")
        commit(machine, template)
        machine.git("tag", "v1.1.0", cwd=template)
        assert "1 release behind v1.1.0 | scaffold update" in texts(doctor(templated), "note")

    def test_whose_template_is_gone_is_told_so(self, doctor, templated, tmp_path):
        (tmp_path / "template").rename(tmp_path / "elsewhere")
        assert any("_src_path" in text and "There is no template at" in text for text in problems(doctor(templated)))

    def test_whose_template_is_far_away_is_not_asked_about_without_online(self, doctor, machine, templated):
        """The doctor needs no network unless it is told to use it."""
        answers = templated / ".copier-answers.yml"
        answers.write_text("_commit: v1.0.0\n_src_path: https://localhost:1/acme/template.git\n")
        commit(machine, templated)
        assert "https://localhost:1/acme/template.git | scaffold doctor --online" in texts(doctor(templated), "note")
        assert any("localhost" in text for text in problems(doctor(templated, "--online")))

    @pytest.mark.parametrize(
        "answers", ["{{{", "- a\n- list\n", "_src_path: 3\n", "a: &a [*a]\n", "\x00", "_commit: v1\n"]
    )
    def test_with_a_broken_answers_file_is_told_how_to_get_it_back(self, examined, templated, answers):
        (templated / ".copier-answers.yml").write_text(answers)
        assert any(".copier-answers.yml" in text and "git" in text for text in examined(templated))

    def test_with_conflict_markers_is_told_where(self, doctor, machine, project):
        """A text about markers is no conflict; both marks in one file are."""
        (project / "model.py").write_text("<<<<<<< project\na\n=======\nb\n>>>>>>> template v2\n")
        (project / "notes.md").write_text("<<<<<<< is how a conflict begins\n")
        commit(machine, project)
        [text] = [text for text in problems(doctor(project)) if "conflict markers" in text]
        assert "model.py" in text
        assert "notes.md" not in text

    def test_in_the_middle_of_a_merge_is_told_which_files_wait(self, doctor, machine, project):
        for branch, content in (("one", "1\n"), ("two", "2\n")):
            machine.git("checkout", "-q", "-b", branch, "main", cwd=project)
            (project / "same.txt").write_text(content)
            commit(machine, project)
        with pytest.raises(subprocess.CalledProcessError):
            machine.git("merge", "-q", "one", cwd=project)
        found = "\n".join(problems(doctor(project)))
        assert "a merge is not finished | git merge --continue, or git merge --abort" in found
        assert "not merged yet: same.txt" in found

    def test_whose_update_was_killed_is_told_how_to_undo_it(self, doctor, project):
        journal = project / ".git" / "scaffold" / "update.json"
        journal.parent.mkdir()
        journal.write_text('{"state": "applying"}')
        assert any("update was killed" in text and "--abort" in text for text in problems(doctor(project)))

    def test_outside_of_git_is_told_to_begin(self, doctor, project):
        shutil.rmtree(project / ".git")
        assert any("in no git repository" in text and "git init" in text for text in problems(doctor(project)))

    def test_that_cannot_be_written_is_a_problem(self, examined, tmp_path):
        """By its mode, or for root, whom no mode stops, by its mount."""
        folder = tmp_path / "readonly"
        folder.mkdir()
        if os.geteuid() != 0:
            (folder / "ONBOARDING.md").touch()
            folder.chmod(0o555)
            assert any("cannot be written" in text for text in examined(folder))
            return
        if subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True).returncode:
            pytest.skip("needs the right to mount, for a disk that root cannot write")
        try:
            (folder / "ONBOARDING.md").touch()
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            assert any("cannot be written" in text for text in examined(folder))
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def test_under_autocrlf_is_told_unless_its_attributes_decide(self, doctor, machine, project):
        machine.git("config", "core.autocrlf", "true", cwd=project)
        assert "core.autocrlf is true: files get CRLF" in texts(doctor(project), "note")
        (project / ".gitattributes").write_text("* text=auto eol=lf\n")
        assert "core.autocrlf is true, but .gitattributes decides" in texts(doctor(project), "ok")

    def test_without_a_template_is_examined_for_the_rest(self, doctor, project):
        """A team's own repository with a pyproject.toml or an ONBOARDING.md will do."""
        report = doctor(project)
        assert report["path"] == str(project)
        assert "this project has no template" in texts(report, "note")

    def test_is_left_as_it_was(self, doctor, machine, templated):
        before = machine.git("status", "--porcelain", "--ignored", cwd=templated)
        doctor(templated)
        assert machine.git("status", "--porcelain", "--ignored", cwd=templated) == before


class TestThePythonOfTheProject:
    def test_is_the_one_of_its_own_environment(self, doctor, project):
        """Nobody has to activate it to be told what it lacks: here torch, and everything else."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=project, check=True)
        report = doctor(project, VIRTUAL_ENV="")
        assert f"at {project}/.venv/bin/python" in texts(report, "ok")
        assert "torch is not installed there" in texts(report, "note")
        assert "treadle is not installed there" in texts(report, "note")
        assert any("packages is missing or of another version: packaging |" in text for text in problems(report))

    def test_that_is_active_goes_before_it(self, doctor, project, tmp_path):
        fake_python(project / ".venv", "exit 1")
        active = fake_python(tmp_path / "active", inventory(packaging={"version": "24.0"}))
        report = doctor(project, VIRTUAL_ENV=str(active))
        assert f"Python 3.12.1 at {active}/bin/python" in texts(report, "ok")
        assert "has a .venv of its own" in texts(report, "note")

    def test_that_the_repository_brings_along_is_not_started(self, doctor, machine, project):
        """It may be anybody's program."""
        fake_python(project / ".venv", f"touch '{project}/started'")
        commit(machine, project)
        assert any("was not started" in text for text in problems(doctor(project, VIRTUAL_ENV="")))
        assert not (project / "started").exists()

    def test_that_does_not_answer_is_waited_for_only_so_long(self, doctor, project):
        """Not even when something it started holds on to its output."""
        fake_python(project / ".venv", "sleep 50 & sleep 50")
        report = doctor(project, "--timeout", "0.5", VIRTUAL_ENV="")
        assert any("did not answer within 0.5 s" in text for text in problems(report))

    @pytest.mark.parametrize("answer", ["echo '['", "echo 3", "exit 7", "kill -9 $$", "echo '{}'"])
    def test_that_answers_nonsense_is_a_line(self, examined, project, monkeypatch, answer):
        monkeypatch.setenv("VIRTUAL_ENV", str(fake_python(project / ".venv", answer)))
        assert examined(project)

    def test_that_is_too_old_for_the_project_is_a_problem(self, doctor, project):
        (project / "pyproject.toml").write_text(PYPROJECT.replace(">=3.10", ">=3.13"))
        fake_python(project / ".venv", inventory(packaging={}))
        assert any("but the project needs >=3.13" in text for text in problems(doctor(project, VIRTUAL_ENV="")))

    def test_whose_torch_is_broken_is_a_line_and_the_rest_is_told(self, doctor, project):
        """An import that ends the process is no end of the doctor."""
        answer = inventory(torch={"version": "2.9"}, packaging={})
        fake_python(project / ".venv", f'case "$2" in *get_num_threads*) echo "no libc10" >&2; exit 1;; esac\n{answer}')
        report = doctor(project, VIRTUAL_ENV="")
        assert any("was asked for its devices, and failed: no libc10" in text for text in problems(report))
        assert "its packages are there" in texts(report, "ok")

    def test_with_the_project_of_another_folder_is_a_problem(self, doctor, project):
        """A copied checkout imports the code of the first one."""
        origin = json.dumps({"url": "file:///home/ada/other%20one", "dir_info": {"editable": True}})
        fake_python(project / ".venv", inventory(packaging={}, **{"acme-digits": {"origin": origin}}))
        assert any(
            "is /home/ada/other one, not this folder" in text for text in problems(doctor(project, VIRTUAL_ENV=""))
        )

    @pytest.mark.parametrize(
        "text", ["[project", "project = 3", "[project]\ndependencies = ['!!']", "[project]\nname = 3"]
    )
    def test_meets_a_broken_pyproject_without_falling_over(self, examined, project, text):
        (project / "pyproject.toml").write_text(text)
        assert examined(project)


class TestRequirements:
    def python(self, **versions: tuple[str, tuple[str, ...]]) -> Python:
        return Python(
            executable=Path("python"),
            version="3.12.1",
            virtual=True,
            distributions={
                name: Distribution(name=name, version=version, requires=requires, origin=None, entry_points=())
                for name, (version, requires) in versions.items()
            },
            markers={"python_version": "3.12", "sys_platform": "linux"},
        )

    def test_are_followed_through_extras_and_markers(self):
        """An extra that was asked for counts, one for another system does not."""
        python = self.python(
            treadle=("0.1.0", ("torch>=2.6", "jsonargparse>=4 ; extra == 'cli'", "onnx ; extra == 'export'")),
            torch=("2.5", ("triton ; sys_platform == 'win32'",)),
        )
        found = [str(one) for one in unmet(["treadle[cli]>=0.1", "tomli ; python_version < '3.11'"], python)]
        assert found == ["torch>=2.6 for treadle (there is 2.5)", "jsonargparse>=4 for treadle"]

    def test_that_go_round_in_circles_end(self):
        python = self.python(a=("1", ("b",)), b=("1", ("a", "not a requirement at all")))
        assert list(unmet(["a"], python)) == []

    def test_take_a_release_candidate_and_a_local_build(self):
        assert list(unmet(["torch>=2.6"], self.python(torch=("2.13.0+cpu", ())))) == []
        assert list(unmet(["torch>=2.6"], self.python(torch=("2.13.0rc1", ())))) == []


class TestOnboarding:
    STEPS = textwrap.dedent("""\
        # Welcome

        ## 1. Have git

        <!-- doctor: command git -->
        <!-- doctor: git-identity -->

        ## 2. Get access

        <!-- doctor: env ACME_TOKEN -->
        <!--
        doctor: remote origin
        doctor: plugin acme_policies
        -->

        ## 3. Have lunch

        ## 4. Train

        <!-- doctor: file runs/*/metrics.csv -->
        <!-- doctor: installed packaging>=1 -->
        <!-- doctor: python >=3.10 -->
        """)

    def test_shows_what_is_done_and_what_is_next(self, doctor, quick, machine, project):
        """A step that is not done yet is no problem: the exit code is that of the rest."""
        (project / "ONBOARDING.md").write_text(self.STEPS)
        report = doctor(project)
        assert [step["state"] for step in report["steps"]] == ["done", "open", "unchecked", "open"]
        assert report["next"] == 2
        assert report["problems"] == 0
        done = machine.scaffold("doctor", cwd=project, VIRTUAL_ENV=quick)
        assert "  done     1. Have git" in done.stdout
        assert "  next     2. Get access\n           ACME_TOKEN is not set\n" in done.stdout
        assert "  -        3. Have lunch" in done.stdout
        assert "  open     4. Train\n           there is no runs/*/metrics.csv" in done.stdout

    def test_moves_on_when_a_step_was_done(self, doctor, machine, project):
        """Once the variable is set, the remote is there, the plugin installed and a run finished, all is done."""
        (project / "ONBOARDING.md").write_text(self.STEPS)
        (project / "runs" / "version_0").mkdir(parents=True)
        (project / "runs" / "version_0" / "metrics.csv").write_text("step,loss\n")
        machine.git("remote", "add", "origin", "https://localhost/acme.git", cwd=project)
        point = {"group": "treadle.callbacks", "name": "time-limit", "value": "acme_policies.limits:TimeLimit"}
        fake_python(project / ".venv", inventory(packaging={}, **{"acme-policies": {"entry_points": [point]}}))
        report = doctor(project, VIRTUAL_ENV="", ACME_TOKEN="s3cret")
        assert [step["state"] for step in report["steps"]] == ["done", "done", "unchecked", "done"]
        assert report["next"] is None
        assert "s3cret" not in json.dumps(report)

    def test_names_the_check_that_was_probably_meant(self, doctor, project):
        """A misspelled check would otherwise never be done."""
        (project / "ONBOARDING.md").write_text("1. Go <!-- doctor: comand git --> <!-- doctor: xyz -->\n")
        report = doctor(project)
        assert any("'comand' | did you mean command, as in: command git" in text for text in problems(report))
        assert any("'xyz' | there are: command, python," in text for text in problems(report))

    @pytest.mark.parametrize(
        "check",
        [
            "command /bin/sh",
            "command git --version",
            "command",
            "file ../secret",
            "file /etc/passwd",
            "file ~/.ssh/id_rsa",
            "file C:/x",
            "file **/x",
            "env A B",
            "git-identity x",
            "python three",
            "installed a b",
            "plugin",
            "remote --all x",
        ],
    )
    def test_refuses_what_a_check_does_not_take(self, tmp_path, check):
        """Nothing is run and nothing outside of the project is looked at, whatever a stranger's file says."""
        [step] = parse(f"1. Go <!-- doctor: {check} -->")
        python = Python(executable=Path("x"), version="3.12", virtual=True, distributions={}, markers={})
        there = steps.Surroundings(root=tmp_path, variables=dict(os.environ), python=python)
        [finding] = steps.verify(step, there).findings
        assert finding.level == "problem", finding

    def test_every_check_there_is_has_an_example_that_it_takes(self, tmp_path):
        python = Python(executable=Path("x"), version="3.12", virtual=True, distributions={}, markers={})
        there = steps.Surroundings(root=tmp_path, variables=dict(os.environ), python=python)
        for example in steps.EXAMPLES.values():
            [step] = parse(f"1. Go <!-- doctor: {example} -->")
            assert [finding.level for finding in steps.verify(step, there).findings] != ["problem"], example

    @pytest.mark.parametrize(
        "wanted, level",
        [
            ("a", "ok"),
            ("a>=1", "ok"),
            ("a>=2", "note"),
            ("b", "note"),
            ("a[fast]", "note"),
            ("b; python_version < '3'", "ok"),
        ],
    )
    def test_looks_for_a_package_and_its_extras_alone(self, tmp_path, wanted, level):
        """That something it needs is of the wrong version is told above, once, and not in each step."""
        requires = ("c", "speed ; extra == 'fast'")
        there = Distribution(name="a", version="1", requires=requires, origin=None, entry_points=())
        python = Python(
            executable=Path("x"),
            version="3.12",
            virtual=True,
            distributions={"a": there},
            markers={"python_version": "3.12"},
        )
        [step] = parse(f"1. Go <!-- doctor: installed {wanted} -->")
        surroundings = steps.Surroundings(root=tmp_path, variables={}, python=python)
        assert [finding.level for finding in steps.verify(step, surroundings).findings] == [level]

    def test_checks_are_listed_in_the_help(self, machine, tmp_path):
        """Whoever writes the file finds them there."""
        shown = " ".join(machine.scaffold("doctor", "--help", cwd=tmp_path).stdout.split())
        listed = shown.partition("There are: ")[2].partition("Example:")[0]
        assert [check.split()[0] for check in listed.rstrip(". ").split(", ")] == list(steps.EXAMPLES)

    def test_of_a_stranger_sends_nothing_to_the_terminal(self, machine, quick, project):
        """No escape sequence of a title or a check is passed on."""
        (project / "ONBOARDING.md").write_text("1. \x1b[2Jgone\x07 <!-- doctor: \x1b]0;title\x07 x -->\n")
        done = machine.scaffold("doctor", cwd=project, VIRTUAL_ENV=quick)
        assert "gone" in done.stdout
        assert not set(done.stdout) & {"\x1b", "\x07"}

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"\xef\xbb\xbf## 1. Go\n"])
    def test_may_be_any_bytes(self, examined, project, content):
        (project / "ONBOARDING.md").write_bytes(content)
        assert examined(project) == []
        assert len(examine(project).steps) == content.count(b"Go")


class TestParsing:
    def test_takes_numbered_headings_for_steps_and_leaves_the_lists_in_them(self):
        text = (
            "# Hello\n## 1. Install\n1. first this\n2. then that <!-- doctor: command git -->\n### Step 2: Train ##\n"
        )
        first, second = parse(text)
        assert (first.number, first.title, first.checks) == (1, "Install", (Check(name="command", argument="git"),))
        assert (second.number, second.title) == (2, "Train")

    def test_takes_a_numbered_list_where_no_heading_has_a_number(self):
        """A check on a line of its own belongs to the step above it."""
        one, two = parse("# Steps\n1. **Get** `git`\n   <!-- doctor: command git -->\n2) Run\n")
        assert (one.title, len(one.checks), two.title, len(two.checks)) == ("Get git", 1, "Run", 0)

    @pytest.mark.parametrize(
        "code",
        [
            "```\n{}\n```",
            "~~~ text\n{}\n~~~~",
            "````\n```\n{}\n````",
            "   ```html\n   {}\n   ```",
            "- ```\n  {}\n  ```",
            "```\n{}\n",
            "`{}`",
            "<!--\n```\n-->\n```\n{}\n```",
        ],
    )
    def test_takes_no_check_from_code(self, code):
        """A text about checks has examples."""
        [step] = parse("1. Go\n" + code.format("<!-- doctor: command git -->"))
        assert step.checks == ()

    def test_takes_the_checks_after_code(self):
        [step] = parse("1. Go\n```\n1. no step\n```\n`code` <!-- doctor: env A -->\n")
        assert step.checks == (Check(name="env", argument="A"),)

    def test_takes_no_step_from_a_comment(self):
        assert parse("<!--\n1. Not yet\n-->\n") == ()

    def test_keeps_the_checks_before_the_first_step(self):
        [before] = parse("<!-- doctor: command git -->\n")
        assert (before.number, len(before.checks)) == (0, 1)

    @settings(deadline=None)
    @given(
        st.one_of(
            st.text(),
            st.lists(
                st.sampled_from(
                    ["1. x", "## 2. y", "```", "~~~", "`", "<!--", "-->", "doctor: ", "command git", "\n", " "]
                )
            ).map("".join),
        )
    )
    def test_never_raises_and_never_finds_more_than_there_is(self, text):
        """Any text at all is a file without mistakes, with at most as many checks as it says `doctor:`."""
        found = parse(text)
        assert sum(len(step.checks) for step in found) <= text.lower().count("doctor")
        assert all(step.title == printable(step.title) for step in found)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(sorted(steps.EXAMPLES.values())), max_size=8), st.integers(1, 9999))
    def test_finds_every_check_where_it_stands(self, checks, number):
        """Written the plain way, each check comes back as it was written, in order."""
        text = f"## {number}. Title\n" + "".join(f"\ntext\n<!-- doctor: {check} -->\n" for check in checks)
        [step] = parse(text)
        assert [str(check) for check in step.checks] == checks
        assert step.number == number

    def test_takes_a_lone_backtick_for_a_backtick(self):
        [step] = parse("1. Don`t panic <!-- doctor: env A -->")
        assert step.checks == (Check(name="env", argument="A"),)

    def test_is_quick_on_hostile_text(self):
        """Many half-open things, on one line or on many, take seconds at the most."""
        began = time.process_time()
        for piece in ("<!--", "`", "1. ", "`<!--", "`<!--`", "<!-- doctor: x -->", "# 1. ", "```x", "   ", "~", "-->"):
            for end in ("", "\n"):
                parse((piece + end) * (200_000 // len(piece + end)))
        assert time.process_time() - began < 10
