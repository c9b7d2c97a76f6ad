"""What goes wrong in a project is said in one message, with exit code 1, and the project is as it was, byte for byte."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scaffold import cli

ANSWERS = ".copier-answers.yml"
CONFIG = """
name: {type: str, default: world}
color: {type: str, default: red, choices: [red, green]}
loud: {type: bool, default: false}
_scaffold: {managed: ["docs/**"]}
"""
IN_A_PROJECT = (
    ("update",),
    ("check", "--drift"),
    ("layer", "list"),
    ("layer", "remove", "acme"),
    ("layer", "add", "{template}"),
)


class Upstream:
    """A template's repository, and its author's releases."""

    def __init__(self, machine, folder):
        self.machine, self.folder = machine, folder
        folder.mkdir(parents=True)
        machine.git("init", "-q", cwd=folder)
        self.write("copier.yml", CONFIG)
        note = "\n# Template commit: {{ _copier_conf.vcs_ref_hash }}\n"
        self.write("{{ _copier_conf.answers_file }}.jinja", "{{ _copier_answers | to_nice_yaml -}}" + note)
        self.write("hello.txt.jinja", "Hello {{ name }}\n")
        self.write("docs/page.md", "one\n")
        self.commit("v1.0.0")

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, tag=None):
        self.machine.git("add", "-A", "-f", cwd=self.folder)
        self.machine.git("commit", "-qm", "change", cwd=self.folder)
        if tag:
            self.machine.git("tag", tag, cwd=self.folder)

    def release(self, tag="v1.1.0", **files):
        """Changed, new and deleted files, and what else is given."""
        self.write("hello.txt.jinja", "Hello {{ name }}, dear\n")
        self.write("new.txt", "new\n")
        (self.folder / "docs/page.md").unlink(missing_ok=True)
        for name, text in files.items():
            self.write(name, text)
        self.commit(tag)


@pytest.fixture(scope="module")
def prepared(machine, tmp_path_factory):
    """A template of one release, and a project of it that its user works on."""
    folder = tmp_path_factory.mktemp("prepared")
    upstream = Upstream(machine, folder / "template")
    done = machine.scaffold("new", "p", f"--template={upstream.folder}", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "p/mine.txt").write_text("mine\n")
    commit(machine, folder / "p")
    return folder


@pytest.fixture
def upstream(prepared, machine, tmp_path):
    copied = object.__new__(Upstream)
    copied.machine, copied.folder = machine, shutil.copytree(prepared / "template", tmp_path / "template")
    return copied


@pytest.fixture
def project(prepared, upstream, machine, tmp_path):
    """One test's own copy of both; the template is where the project says."""
    project = shutil.copytree(prepared / "p", tmp_path / "p")
    answers = project / ANSWERS
    answers.write_text(answers.read_text().replace(str(prepared / "template"), str(upstream.folder)))
    commit(machine, project, "--amend")
    return project


@pytest.fixture
def run(in_process, monkeypatch, capfd):
    """The command line in this process; any error but a user's mistake comes through as it is."""

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        try:
            code = cli.app(args=list(map(str, arguments)), prog_name="scaffold", standalone_mode=False)
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code or 0, out, err)

    return run


def commit(machine, project, *options):
    machine.git("add", "-A", cwd=project)
    machine.git("commit", "-qm", "Mine", *options, cwd=project)


def state(project, machine):
    """All files, git's index, its refs, and what lies in its folder."""
    files = {}
    for path in sorted(project.rglob("*")):
        name = path.relative_to(project).as_posix()
        if path.is_symlink():
            files[name] = str(path.readlink())
        elif path.is_dir():
            files[name] = None
        elif not name.startswith(".git/objects/") and name not in (".git/index", ".git/FETCH_HEAD"):
            files[name] = path.read_bytes(), path.stat().st_mode
    files = {name: content for name, content in files.items() if not name.startswith(".git/objects/")}
    return files, machine.git("ls-files", "--stage", cwd=project), machine.git("for-each-ref", cwd=project)


@pytest.fixture
def assert_refused(run, machine):
    """Run a command, and see that it says what, why and the fix, and changes nothing."""

    def check(*arguments, expected, cwd):
        before = state(cwd, machine)
        done = run(*arguments, cwd=cwd)
        assert_message(done, expected)
        assert state(cwd, machine) == before
        return done.stderr

    return check


def assert_message(done, expected):
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(expected, done.stderr), done.stderr
    assert done.stderr.count("Error: ") == 1, done.stderr
    assert "\n  why: " in done.stderr
    assert "\n  fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


class TestNoGit:
    @pytest.mark.parametrize("command", IN_A_PROJECT, ids=" ".join)
    def test_is_said_before_anything_else(self, project, upstream, machine, run, monkeypatch, tmp_path, command):
        (tmp_path / "empty").mkdir()
        before = state(project, machine)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path / "empty"))
            done = run(*(word.format(template=upstream.folder) for word in command), cwd=project)
        assert_message(done, "git was not found on the PATH")
        assert state(project, machine) == before

    def test_is_what_a_fleet_reports_of_each_project(self, project, machine, run, monkeypatch, tmp_path):
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        done = run("fleet", "check", project, cwd=tmp_path)
        assert done.returncode == 1
        assert "git was not found" in done.stdout


class TestAFolder:
    @pytest.mark.parametrize("command", IN_A_PROJECT, ids=" ".join)
    def test_that_is_no_project_is_named(self, run, tmp_path, command):
        done = run(*(word.format(template=tmp_path) for word in command), cwd=tmp_path)
        assert_message(done, "is not in a project made by scaffold")

    def test_that_holds_no_projects_is_no_fleet(self, run, tmp_path):
        assert_message(run("fleet", "update", tmp_path, cwd=tmp_path), "is no project made by scaffold, and holds none")

    def test_that_is_not_there_is_no_project_either(self, run, tmp_path):
        assert_message(run("check", "nowhere", cwd=tmp_path), "nowhere is not in a project")
        assert_message(run("fleet", "check", "nowhere", cwd=tmp_path), "nowhere is no project")

    def test_without_a_repository_cannot_be_updated(self, project, run):
        shutil.rmtree(project / ".git")
        assert_message(run("update", cwd=project), "not in a git repository")

    def test_without_a_commit_cannot_be_updated(self, project, run, machine):
        shutil.rmtree(project / ".git")
        machine.git("init", "-q", cwd=project)
        assert_message(run("update", cwd=project), "has no commit yet")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
GOOD = "_commit: v1.0.0\n_src_path: {template}\n"


class TestAnswersEditedByHand:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"- a\n- b\n",
            b"just text",
            b"{",
            b"a: b: c",
            b"\x00\x01\x02",
            b"_commit: v1.0.0\n",
            b"_src_path: 3\n_commit: v1.0.0\n",
            b"_src_path: [a]\n_commit: v1.0.0\n",
            b"_src_path: /t\n_commit: [v1]\n",
            b"_src_path: /t\n_commit: {a: b}\n",
            b"_src_path: /t\n_commit: v1\n3: x\n",
            b"_src_path: /t\n_commit: v1\nname: \xff\xfe\n",
            b"_src_path: /t\n_commit: v1\nname: !!python/object/apply:os.system [touch pwned]\n",
            b"? [a, b]\n: c\n",
            b"_src_path: /t\n_commit: v1\nname: 2026-99-99T00:00:00\n_x: !!timestamp 2026-99-99\n",
            b"_src_path: /t\n_commit: v1\nn: " + b"[" * 20_000,
            b"_src_path: /t\n_commit: v1\n" + BOMB.encode(),
            b"_src_path: /t\n_commit: v1\n# " + b"x" * 1_100_000,
        ],
        ids=lambda text: repr(text[:60]),
    )
    def test_into_nonsense_cannot_be_read(self, project, machine, assert_refused, text):
        (project / ANSWERS).write_bytes(text)
        for command in (["update"], ["check"], ["layer", "list"]):
            said = assert_refused(*command, expected="cannot be read", cwd=project)
            assert f"git -C {project} checkout HEAD -- {ANSWERS}" in said
            assert len(said) < 2_000
        assert not (project / "pwned").exists()

    def test_into_the_middle_of_a_merge_is_told_from_nonsense(self, project, assert_refused):
        text = (project / ANSWERS).read_text()
        (project / ANSWERS).write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n")
        assert_refused("update", expected="holds conflict markers", cwd=project)
        assert_refused("check", expected="holds conflict markers", cwd=project)

    @pytest.mark.parametrize("value", ["[red]", "{a: b}", "null"])
    def test_into_what_the_template_does_not_take(self, project, upstream, machine, run, value):
        """Said, or replaced by what the template takes; never a crash."""
        upstream.release()
        text = (project / ANSWERS).read_text()
        (project / ANSWERS).write_text(
            text.replace("color: red", f"color: {value}").replace("loud: false", "loud: [x]")
        )
        commit(machine, project)
        before = state(project, machine)
        for command in (["update"], ["check", "--drift"]):
            done = run(*command, cwd=project)
            assert done.returncode in (0, 1, 2), done.stderr
            if done.returncode == 1:
                assert_message(done, "color|loud")
                assert state(project, machine) == before

    def test_with_unknown_names_is_updated_all_the_same(self, project, upstream, machine, run):
        """An answer to a question of long ago hinders nobody."""
        upstream.release()
        with (project / ANSWERS).open("a") as file:
            file.write("long_gone: 3\n")
        commit(machine, project)
        done = run("update", cwd=project)
        assert done.returncode in (0, 3), done.stderr
        assert (project / "new.txt").exists()

    def test_with_a_name_that_is_no_layer_is_no_layer(self, project, run):
        (project / ".copier-answers.a b.yml").write_text("nonsense")
        assert run("check", cwd=project).returncode == 0

    def test_of_a_layer_into_nonsense_names_its_file(self, project, assert_refused):
        (project / ".copier-answers.acme.yml").write_text("nonsense")
        said = assert_refused("update", expected=r"\.copier-answers\.acme\.yml cannot be read", cwd=project)
        assert "checkout" not in said  # it is not committed

    @pytest.mark.parametrize(
        "commit", ["--upload-pack=touch pwned", "HEAD:x", "v1.0.0;touch pwned", "../x", "v1..v2", "@{-1}", "'\\e[2J'"]
    )
    def test_into_a_version_that_is_none(self, project, assert_refused, commit):
        text = (
            (project / ANSWERS)
            .read_text()
            .replace("_commit: v1.0.0", f'_commit: "{commit}"'.replace("\"'", '"').replace("'\"", '"'))
        )
        (project / ANSWERS).write_text(re.sub("# Template commit.*\n", "", text))
        assert_refused("update", expected="does not have version|cannot be read", cwd=project)
        assert not list(project.rglob("pwned"))


class TestATemplate:
    def test_that_is_gone_is_named(self, project, upstream, assert_refused):
        shutil.rmtree(upstream.folder)
        for command in (["update"], ["check"], ["layer", "list"], ["layer", "add", str(upstream.folder)]):
            said = assert_refused(*command, expected="no template at", cwd=project)
            assert str(upstream.folder) in said

    def test_that_moved_is_found_where_the_committed_answers_say(self, project, upstream, machine, run):
        moved = upstream.folder.rename(upstream.folder.with_name("moved"))
        upstream.folder = moved
        upstream.release()
        replace(project, "/template", "/moved")
        commit(machine, project)
        done = run("update", cwd=project)
        assert done.returncode == 0, done.stderr
        assert (project / "new.txt").exists()

    def test_that_moved_to_another_host_needs_a_commit_first(self, project, upstream, machine, assert_refused, run):
        upstream.release()
        with served(upstream) as url:
            replace(project, str(upstream.folder), url)
            assert_refused("update", expected="names another host than it did in the last commit", cwd=project)
            commit(machine, project)
            done = run("update", cwd=project)
            assert done.returncode == 0, done.stderr
            assert (project / "new.txt").exists()

    def test_whose_server_is_down_is_named(self, project, upstream, machine, assert_refused, run):
        with served(upstream) as url:
            replace(project, str(upstream.folder), url)
            commit(machine, project)
            assert run("check", "--drift", cwd=project).returncode == 0
        for command in (["update"], ["check"], ["layer", "add", url]):
            said = assert_refused(*command, expected="git could not get the template", cwd=project)
            assert f"git ls-remote {url.removeprefix('git+')}" in said

    def test_that_was_rewritten_is_refused_by_the_recorded_commit(self, project, upstream, machine, assert_refused):
        before = machine.git("rev-parse", "v1.0.0", cwd=upstream.folder)
        upstream.write("hello.txt.jinja", "touch pwned\n")
        upstream.commit()
        machine.git("tag", "-f", "v1.0.0", cwd=upstream.folder)
        now = machine.git("rev-parse", "v1.0.0", cwd=upstream.folder)
        for command in (["update"], ["check", "--drift"], ["layer", "list"]):
            said = assert_refused(*command, expected="is not what this project was made from", cwd=project)
            assert before[:12] in said
            assert now[:12] in said

    def test_that_was_rewritten_is_refused_by_what_was_seen_before(
        self, project, upstream, machine, assert_refused, run
    ):
        """A project that does not record the commit is protected on every machine that has seen the release."""
        with served(upstream) as url:
            text = (project / ANSWERS).read_text().replace(str(upstream.folder), url)
            (project / ANSWERS).write_text(re.sub("# Template commit.*\n", "", text))
            commit(machine, project)
            run("update", cwd=project)
            before = machine.git("rev-parse", "v1.0.0", cwd=upstream.folder)
            upstream.write("hello.txt.jinja", "touch pwned\n")
            upstream.commit()
            machine.git("tag", "-f", "v1.0.0", cwd=upstream.folder)
            machine.git("update-server-info", cwd=upstream.folder)
            said = assert_refused("update", expected="was rewritten: v1.0.0 was", cwd=project)
            assert before[:12] in said

    def test_whose_default_branch_is_not_there_has_its_releases(self, upstream, machine, run, tmp_path):
        """As on a server where the first push named another branch."""
        machine.git("symbolic-ref", "HEAD", "refs/heads/nowhere", cwd=upstream.folder)
        with served(upstream) as url:
            done = run("new", tmp_path / "q", "--template", url, "--yes", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert run("check", "--drift", cwd=tmp_path / "q").returncode == 0

    def test_that_was_rewritten_in_two_steps_is_refused_as_well(self, upstream, machine, run, tmp_path):
        """The release is taken away, everybody fetches, and another one comes under its name."""
        upstream.release()
        with served(upstream) as url:
            for steps, expected in (
                ([], 0),
                ([("tag", "-d", "v1.1.0")], 0),
                ([("commit", "-q", "--allow-empty", "-m", "x"), ("tag", "v1.1.0")], 1),
            ):
                for step in steps:
                    machine.git(*step, cwd=upstream.folder)
                machine.git("update-server-info", cwd=upstream.folder)
                done = run("new", tmp_path / "q", "--template", url, "--yes", "--preview", cwd=tmp_path)
                assert done.returncode == expected, done.stdout + done.stderr
        assert_message(done, r"was rewritten: v1\.1\.0 was")

    def test_without_the_recorded_version_says_which_ones_there_are(self, project, upstream, machine, assert_refused):
        upstream.release()
        (project / ANSWERS).write_text(re.sub("# Template commit.*\n", "", (project / ANSWERS).read_text()))
        machine.git("tag", "-d", "v1.0.0", cwd=upstream.folder)
        said = assert_refused("update", expected=r"does not have version v1\.0\.0 any more", cwd=project)
        assert "its releases are v1.1.0" in said

    def test_whose_tag_is_gone_is_found_by_the_recorded_commit(self, project, upstream, machine, run):
        upstream.release()
        machine.git("tag", "-d", "v1.0.0", cwd=upstream.folder)
        done = run("update", cwd=project)
        assert done.returncode == 0, done.stderr
        assert (project / "new.txt").exists()

    def test_that_needs_a_newer_scaffold_says_so(self, project, upstream, assert_refused):
        upstream.release(**{"copier.yml": CONFIG + '_scaffold: {requires: ">=99"}\n'})
        assert "pip install -U" in assert_refused("update", expected="needs scaffold >=99", cwd=project)
        assert_refused("layer", "add", upstream.folder, expected="needs scaffold >=99", cwd=project)

    def test_that_needs_nonsense_is_its_authors_mistake(self, project, upstream, assert_refused):
        upstream.release(**{"copier.yml": CONFIG + '_scaffold: {requires: "soon"}\n'})
        assert_refused("update", expected="which is no range of versions", cwd=project)

    def test_that_needs_a_newer_copier_says_so(self, project, upstream, assert_refused):
        upstream.release(**{"copier.yml": CONFIG + '_min_copier_version: "99.0.0"\n'})
        assert_refused("update", expected="99", cwd=project)

    def test_that_is_older_is_no_update(self, project, upstream, machine, run, assert_refused):
        upstream.release()
        assert run("update", cwd=project).returncode == 0
        commit(machine, project)
        said = assert_refused("update", "--to", "v1.0.0", expected="an update only goes forward", cwd=project)
        assert "git revert" in said

    @pytest.mark.parametrize(
        "wanted", ["v9", "-x", "--upload-pack=touch pwned", "", "v1.0.0 v1.1.0", "acme=v1", "=", "a=b=c"]
    )
    def test_has_no_such_version(self, project, upstream, assert_refused, wanted):
        upstream.release()
        assert_refused("update", f"--to={wanted}", expected="has no (version|layer)|names no version", cwd=project)

    def test_at_a_commit_between_releases_is_brought_to_the_next_one(self, upstream, run, tmp_path, machine):
        """Plain Copier calls that a downgrade."""
        upstream.write("between.txt", "between\n")
        upstream.commit()
        done = run("new", "q", f"--template={upstream.folder}@HEAD", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "q/between.txt").exists()
        assert run("update", cwd=tmp_path / "q").returncode == 0  # the newest release is behind it
        assert (tmp_path / "q/between.txt").exists()
        upstream.release()
        done = run("check", cwd=tmp_path / "q")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "1 release behind v1.1.0" in done.stdout
        done = run("update", cwd=tmp_path / "q")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "_commit: v1.1.0" in (tmp_path / "q" / ANSWERS).read_text()

    @pytest.mark.parametrize(
        "files, expected",
        [
            ({"bad.jinja": "{{ name | no_such_filter }}"}, "cannot be rendered"),
            ({"bad.jinja": "{% if %}"}, "cannot be rendered"),
            ({"bad.jinja": "{{ 1 / 0 }}"}, "cannot be rendered"),
            ({"bad.jinja": "{% include 'nowhere' %}"}, "cannot be rendered"),
            ({"copier.yml": "a: b: c"}, "cannot be read"),
            ({"copier.yml": "- a\n- b\n"}, "cannot be re"),
            ({"copier.yml": CONFIG + "_subdirectory: nowhere\n"}, "cannot be rendered|does not"),
            ({"copier.yml": CONFIG + "wanted: {type: str}\n"}, "wanted has no answer"),
            (
                {"copier.yml": CONFIG + "odd: {type: str, default: x, validator: never}\n"},
                "odd has no (usable )?answer",
            ),
            ({"copier.yml": CONFIG + "odd: {type: no_such_type, default: x}\n"}, "cannot be re"),
        ],
        ids=str,
    )
    def test_whose_new_version_is_broken_changes_nothing(self, project, upstream, assert_refused, files, expected):
        upstream.release(**files)
        assert_refused("update", expected=expected, cwd=project)

    @pytest.mark.parametrize(
        "name, target",
        [
            (".git/hooks/post-checkout", None),
            ("{{ '.git' }}/config", None),
            ("{{ 'git~1' }}/config", None),
            ("{{ 'nul.txt' }}", None),
            ("link", "/etc/passwd"),
            ("link", ".git/config"),
            ("link", "../../outside"),
        ],
    )
    def test_whose_new_version_attacks_changes_nothing(self, project, upstream, machine, assert_refused, name, target):
        upstream.write("copier.yml", CONFIG + "_preserve_symlinks: true\n")
        place = upstream.folder / name
        if target:
            place.symlink_to(target)
        elif name.startswith(".git/"):
            # git adds no such path; an attacker's server sends it all the same. Copier sees a file of that name.
            upstream.write(name.replace(".git/", "{{ '.git' }}/"), "touch pwned")
        else:
            upstream.write(name, "touch pwned")
        upstream.release()
        assert_refused("update", expected="The template (tried to write|reaches outside)", cwd=project)

    def test_that_dropped_the_users_choice_names_those_there_are(self, project, upstream, assert_refused):
        upstream.release(**{"copier.yml": CONFIG.replace("[red, green]", "[green, blue]").replace("red", "blue")})
        said = assert_refused("update", expected="color was 'red'", cwd=project)
        assert "green, blue" in said

    def test_that_dropped_the_users_choice_asks_on_a_terminal(self, project, upstream, machine):
        upstream.write("color.txt.jinja", "{{ color }}\n")
        upstream.release(**{"copier.yml": CONFIG.replace("[red, green]", "[green, blue]").replace("red", "blue")})
        code, shown = on_a_terminal(machine, ["update"], project, {"[0;1m color": "\r", "All right?": "\r"})
        assert code == 0, shown
        assert (project / "color.txt").read_text() == "blue\n"
        assert "color: blue" in (project / ANSWERS).read_text()


class TestATemplateThatRunsCommands:
    TASKS = CONFIG + "_tasks: ['touch task.txt']\n"
    MIGRATIONS = CONFIG + "_migrations: [{version: v1.1.0, before: ['touch migration.txt']}]\n"

    @pytest.mark.parametrize("config", [TASKS, MIGRATIONS], ids=["tasks", "migrations"])
    def test_is_refused_unless_trusted(self, project, upstream, assert_refused, config):
        upstream.release(**{"copier.yml": config})
        assert "--trust" in assert_refused("update", expected="runs commands", cwd=project)

    def test_runs_them_in_a_clone_and_brings_what_they_made(self, project, upstream, machine, run):
        config = self.TASKS + "_migrations: [{version: v1.1.0, command: 'pwd > where.txt'}]\n"
        upstream.release(**{"copier.yml": config})
        before = machine.git("rev-parse", "HEAD", cwd=project)
        done = run("update", "--trust", cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (project / "task.txt").exists()
        assert (project / "new.txt").exists()
        assert Path((project / "where.txt").read_text().strip()) != project
        assert not Path((project / "where.txt").read_text().strip()).exists()
        assert machine.git("rev-parse", "HEAD", cwd=project) == before
        assert (project / "mine.txt").read_text() == "mine\n"

    def test_that_fail_leave_the_project_alone(self, project, upstream, assert_refused):
        upstream.release(**{"copier.yml": CONFIG + "_tasks: ['touch half.txt', 'false']\n"})
        assert_refused("update", "--trust", expected="task|command|false", cwd=project)

    def test_can_be_previewed_and_undone(self, project, upstream, machine, run):
        upstream.release(**{"copier.yml": self.TASKS})
        before = state(project, machine)
        done = run("update", "--trust", "--stat", cwd=project)
        assert done.returncode == 0, done.stderr
        assert "task.txt" in done.stdout
        assert state(project, machine) == before
        assert run("update", "--trust", cwd=project).returncode == 0
        assert run("update", "--abort", cwd=project).returncode == 0
        assert state(project, machine) == before


class TestARepository:
    def test_without_a_branch_is_updated_as_any_other(self, project, upstream, machine, run):
        """Detached HEAD: nothing is committed, so there is nothing to lose."""
        upstream.release()
        machine.git("checkout", "-q", "--detach", cwd=project)
        done = run("update", cwd=project)
        assert done.returncode == 0, done.stderr
        assert (project / "new.txt").exists()

    @pytest.mark.parametrize("what", ["merge", "rebase", "cherry-pick", "revert"])
    def test_in_the_middle_of_something_is_left_alone(self, project, upstream, machine, assert_refused, what):
        upstream.release()
        machine.git("checkout", "-qb", "other", cwd=project)
        (project / "mine.txt").write_text("theirs\n")
        commit(machine, project)
        machine.git("checkout", "-q", "-", cwd=project)
        (project / "mine.txt").write_text("ours\n")
        commit(machine, project)
        target = {"merge": "other", "rebase": "other", "cherry-pick": "other", "revert": "HEAD~1"}[what]
        subprocess.run(["git", what, target], cwd=project, env=machine.environment, capture_output=True, check=False)
        assert f"git {what} --abort" in assert_refused("update", expected=f"in the middle of a {what}", cwd=project)
        assert_refused("layer", "add", upstream.folder, expected=f"in the middle of a {what}", cwd=project)

    def test_with_unresolved_conflicts_is_left_alone(self, project, upstream, machine, assert_refused, run):
        upstream.release()
        blob = machine.git("hash-object", "-w", "mine.txt", cwd=project)
        lines = "".join(f"100644 {blob} {stage}\tmine.txt\n" for stage in (1, 2, 3))
        subprocess.run(
            ["git", "update-index", "--index-info"],
            cwd=project,
            env=machine.environment,
            input=lines,
            text=True,
            check=True,
        )
        assert_refused("update", expected=r"unresolved conflicts: mine\.txt", cwd=project)
        done = run("check", cwd=project)
        assert done.returncode == 2
        assert "unresolved  mine.txt" in done.stdout

    def test_that_another_git_works_in_is_left_alone(self, project, upstream, assert_refused):
        upstream.release()
        (project / ".git/index.lock").touch()
        assert "index.lock" in assert_refused("update", expected="Another git command is at work", cwd=project)

    def test_that_is_damaged_is_said(self, project, upstream, assert_refused, machine, run):
        upstream.release()
        (project / ".git/index").write_bytes(b"rubbish")
        assert_message(run("update", cwd=project), "git .* failed: .*index")

    def test_without_an_index_is_said_or_updated(self, project, upstream, run):
        """All files are then deleted, as git sees it."""
        upstream.release()
        (project / ".git/index").unlink()
        done = run("update", cwd=project)
        assert_message(done, "")

    def test_with_a_read_only_file_that_would_change_is_left_alone(self, project, upstream, assert_refused):
        upstream.release()
        (project / "hello.txt").chmod(0o444)
        assert "chmod u+w" in assert_refused("update", expected=r"hello\.txt is read-only", cwd=project)

    def test_whose_file_became_a_folder_is_left_alone(self, project, upstream, assert_refused):
        upstream.release()
        (project / "new.txt").mkdir()
        (project / "new.txt/mine").write_text("mine\n")
        assert_refused("update", expected=r"not committed: new\.txt/mine", cwd=project)


class TestTheDisk:
    """Each is mounted for one test, which needs root."""

    @pytest.mark.parametrize("command", [["update"], ["layer", "add", "{layer}"]], ids=" ".join)
    def test_of_the_project_that_is_full_keeps_it_as_it_was(
        self, project, upstream, machine, tmp_path, assert_refused, command
    ):
        upstream.release(**{"large.txt": os.urandom(300_000).hex()})
        layer = Upstream(machine, tmp_path / "layer")
        layer.write("copier.yml", "_answers_file: .copier-answers.acme.yml\n")
        (layer.folder / "hello.txt.jinja").unlink()
        layer.write("docs/page.md", "")
        layer.machine.git("rm", "-q", "--cached", "docs/page.md", cwd=layer.folder)
        (layer.folder / "docs/page.md").unlink()
        layer.write("large.txt", os.urandom(300_000).hex())
        layer.commit("v1.1.0")
        with small_disk(tmp_path / "disk", "size=700k") as disk:
            there = shutil.copytree(project, disk / "p")
            assert_refused(*(word.format(layer=layer.folder) for word in command), expected="disk is full", cwd=there)

    def test_of_the_work_tree_that_fills_up_while_files_are_written(
        self, project, upstream, machine, tmp_path, assert_refused
    ):
        """Git's own folder is elsewhere and has room: everything is ready but the last step."""
        upstream.release(**{"large.txt": "x" * 600_000})
        with small_disk(tmp_path / "disk", "size=400k") as disk:
            there = disk / "p"
            machine.git("clone", "-q", f"--separate-git-dir={tmp_path / 'git'}", str(project), str(there), cwd=tmp_path)
            assert_refused("update", expected="disk is full", cwd=there)
            assert machine.git("status", "--porcelain", cwd=there) == ""
            assert sorted(path.name for path in (tmp_path / "git").iterdir() if path.name == "scaffold") == []

    def test_that_is_read_only_is_said(self, project, upstream, tmp_path, machine, run):
        upstream.release()
        with small_disk(tmp_path / "disk", "size=4m") as disk:
            there = shutil.copytree(project, disk / "p")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            before = state(there, machine)
            assert_message(run("update", cwd=there), "read-only|Read-only")
            assert run("check", cwd=there).returncode == 2
            assert state(there, machine) == before
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

    @pytest.mark.parametrize(
        "command",
        [["update"], ["check", "--drift"], ["layer", "list"], ["layer", "add", "{template}", "--name=x"],
         ["new", "../q", "--template={template}", "--yes"]],
        ids=" ".join,
    )  # fmt: skip
    def test_for_temporary_files_that_is_full_is_named(
        self, project, upstream, tmp_path, monkeypatch, machine, run, command
    ):
        upstream.release(**{"large.txt": "x" * 300_000})
        with small_disk(tmp_path / "disk", "size=16k,nr_inodes=60") as disk:
            monkeypatch.setenv("TMPDIR", str(disk))
            monkeypatch.setattr("tempfile.tempdir", None)
            before = state(project, machine)
            done = run(*(word.format(template=upstream.folder) for word in command), cwd=project)
            assert_message(done, "full")
            assert state(project, machine) == before
            assert not (tmp_path / "q").exists()
            assert list(disk.iterdir()) == []


def replace(project, old, new):
    text = (project / ANSWERS).read_text()
    assert old in text
    (project / ANSWERS).write_text(text.replace(old, new))


@contextmanager
def served(upstream):
    """The template over http on this machine, for the time of a block."""
    handler = partial(_Silent, directory=str(upstream.folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    upstream.machine.git("update-server-info", cwd=upstream.folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"git+http://127.0.0.1:{server.server_address[1]}/{upstream.folder.name}/.git"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextmanager
def small_disk(folder, options):
    """A disk of its own size, for the time of a block."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount, for a disk of its own")
    try:
        yield folder
    finally:
        os.chdir("/")
        subprocess.run(["umount", str(folder)], check=True)


def on_a_terminal(machine, arguments, cwd, answers):
    """The real command at a terminal of its own; each of ``answers`` is typed once its question is shown."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(cwd)
        os.execve(
            sys.executable, [sys.executable, "-m", "scaffold", *arguments], {**machine.environment, "TERM": "xterm"}
        )
    shown, until = "", time.monotonic() + 20
    pending = dict(answers)
    while time.monotonic() < until:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if ready:
            try:
                part = os.read(terminal, 65_536)
            except OSError:  # its end, on Linux
                break
            if not part:
                break
            if b"\x1b[6n" in part:
                os.write(terminal, b"\x1b[1;1R")  # where the cursor is
            shown += part.decode(errors="replace")
        for question in [question for question in pending if question in shown]:
            os.write(terminal, pending.pop(question).encode())
    else:
        os.kill(process, signal.SIGKILL)  # it waits for something else
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown
