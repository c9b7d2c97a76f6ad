"""A team's layer on a project: put on, updated with the base, taken off, and used by plain Copier as well."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from scaffold import cli

ANSWERS = "{{ _copier_conf.answers_file }}.jinja"
RECORD = "{{ _copier_answers | to_nice_yaml }}"


@pytest.fixture(scope="module")
def prepared(machine, tmp_path_factory):
    """A base, two layers of which one reads the base's answers, and a committed project of the base."""
    folder = tmp_path_factory.mktemp("prepared")
    base = {
        "copier.yml": "name: world\n",
        ANSWERS: RECORD,
        "hello.txt.jinja": "Hello {{ name }}\n",
        "readme.md": "read\n",
    }
    acme = {
        "copier.yml": "_answers_file: .copier-answers.acme.yml\nteam: acme\n_external_data: {base: .copier-answers.yml}\n",
        ANSWERS: RECORD,
        "acme.txt.jinja": "{{ team }} for {{ _external_data.base.name }}\n",
        "docs/acme.md": "acme\n",
    }
    ci = {
        "copier.yml": "_answers_file: .copier-answers.ci.yml\nrunner: small\n",
        ANSWERS: RECORD,
        "ci.txt.jinja": "{{ runner }}\n",
    }
    for name, files in (("base", base), ("acme", acme), ("ci", ci)):
        write(folder / name, files)
        machine.git("init", "-q", cwd=folder / name)
        release(machine, folder / name, "v1.0.0")
    done = machine.scaffold("new", "p", f"--template={folder / 'base'}", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "p", folder / "layered")
    for name in ("acme", "ci"):
        done = machine.scaffold("layer", "add", str(folder / name), "--yes", cwd=folder / "layered")
        assert done.returncode == 0, done.stderr
        commit(machine, folder / "layered")
    return folder


@pytest.fixture
def place(prepared, machine, tmp_path):
    """One test's own copies of all of them."""
    for name in ("base", "acme", "ci", "p", "layered"):
        shutil.copytree(prepared / name, tmp_path / name)
    for name in ("p", "layered"):
        for answers in (tmp_path / name).glob(".copier-answers*.yml"):
            answers.write_text(answers.read_text().replace(str(prepared), str(tmp_path)))
        commit(machine, tmp_path / name)
    return tmp_path


@pytest.fixture
def project(place):
    return place / "p"


@pytest.fixture
def run(in_process, monkeypatch, capfd):
    def run(*arguments, cwd, code=0):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        status = cli.app(args=list(map(str, arguments)), prog_name="scaffold", standalone_mode=False)
        done = subprocess.CompletedProcess(arguments, status or 0, *capfd.readouterr())
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def layered(place):
    """The project with both layers, committed."""
    return place / "layered"


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def commit(machine, folder):
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", "x", "--allow-empty", cwd=folder)


def release(machine, template, tag):
    commit(machine, template)
    machine.git("tag", tag, cwd=template)


class TestAdd:
    def test_writes_the_layers_files_and_its_answers_beside_the_bases(self, place, project, machine, run):
        done = run("layer", "add", place / "acme", "--set", "team=blue", cwd=project)
        assert (project / "acme.txt").read_text() == "blue for world\n"
        answers = (project / ".copier-answers.acme.yml").read_text()
        assert "team: blue" in answers
        assert f"_src_path: {place / 'acme'}" in answers
        assert "added     acme.txt" in done.stdout
        assert machine.git("status", "--porcelain", cwd=project).count("A  ") == 3

    def test_previews(self, place, project, machine, run):
        done = run("layer", "add", place / "acme", "--diff", cwd=project)
        assert "+acme for world" in done.stdout
        assert machine.git("status", "--porcelain", cwd=project) == ""

    def test_refuses_to_write_over_the_bases_or_the_users_files(self, place, project, machine, run):
        write(place / "ci", {"hello.txt": "mine\n"})
        release(machine, place / "ci", "v1.1.0")
        assert "would write over hello.txt" in run("layer", "add", place / "ci", cwd=project, code=1).stderr
        write(project, {"ci.txt": "the user's\n"})
        commit(machine, project)
        assert "ci.txt" in run("layer", "add", f"{place / 'ci'}@v1.0.0", cwd=project, code=1).stderr
        assert machine.git("status", "--porcelain", cwd=project) == ""

    def test_writes_over_them_when_told_to(self, place, project, machine, run):
        write(place / "ci", {"hello.txt": "Hello from ci\n"})
        release(machine, place / "ci", "v1.1.0")
        run("layer", "add", place / "ci", "--allow-overlap", cwd=project)
        assert (project / "hello.txt").read_text() == "Hello from ci\n"

    def test_writes_over_what_its_author_says_it_does(self, place, project, machine, run):
        config = (place / "ci/copier.yml").read_text() + "_scaffold: {overlaps: [hello.*]}\n"
        write(place / "ci", {"hello.txt": "Hello from ci\n", "copier.yml": config})
        release(machine, place / "ci", "v1.1.0")
        run("layer", "add", place / "ci", cwd=project)
        assert (project / "hello.txt").read_text() == "Hello from ci\n"

    def test_refuses_what_is_no_layer(self, place, project, machine, run):
        assert (
            "does not say what its layer is called" in run("layer", "add", place / "base", cwd=project, code=1).stderr
        )
        (place / "ci" / ANSWERS).unlink()
        release(machine, place / "ci", "v1.1.0")
        assert "does not record its answers" in run("layer", "add", place / "ci", cwd=project, code=1).stderr
        wrong = run("layer", "add", place / "acme", "--set", "teem=x", cwd=project, code=1).stderr
        assert "teem" in wrong
        assert "team" in wrong

    def test_takes_a_layer_once(self, layered, place, run):
        assert "has a layer acme already" in run("layer", "add", place / "acme", cwd=layered, code=1).stderr


class TestList:
    def test_names_each_layer_and_its_files(self, layered, run):
        told = json.loads(run("layer", "list", "--json", cwd=layered).stdout)
        assert [(layer["name"], layer["version"]) for layer in told] == [
            ("base", "v1.0.0"),
            ("acme", "v1.0.0"),
            ("ci", "v1.0.0"),
        ]
        assert told[1]["files"] == [".copier-answers.acme.yml", "acme.txt", "docs/acme.md"]
        assert "acme.txt" not in told[0]["files"]
        assert "  docs/acme.md" in run("layer", "list", cwd=layered).stdout


class TestUpdate:
    def test_brings_all_layers_at_once_and_needs_no_commit_between(self, layered, place, machine, run):
        """The layer reads the base's new answers in the same update."""
        write(place / "base", {"hello.txt.jinja": "Good day {{ name }}\n"})
        write(place / "acme", {"docs/acme.md": "acme, new\n"})
        write(place / "ci", {"ci.txt.jinja": "{{ runner }}, new\n"})
        for name in ("base", "acme", "ci"):
            release(machine, place / name, "v1.1.0")
        head = machine.git("rev-parse", "HEAD", cwd=layered)
        done = run("update", "--set", "name=moon", cwd=layered)
        assert "acme from v1.0.0 to v1.1.0" in done.stdout
        assert (layered / "hello.txt").read_text() == "Good day moon\n"
        assert (layered / "acme.txt").read_text() == "acme for moon\n"
        assert (layered / "docs/acme.md").read_text() == "acme, new\n"
        assert (layered / "ci.txt").read_text() == "small, new\n"
        assert machine.git("rev-parse", "HEAD", cwd=layered) == head
        run("update", "--abort", cwd=layered)
        assert machine.git("status", "--porcelain", cwd=layered) == ""

    def test_to_a_version_of_one_layer_leaves_the_others(self, layered, place, machine, run):
        for name in ("base", "acme"):
            write(place / name, {"new.txt" if name == "base" else "newer.txt": "new\n"})
            release(machine, place / name, "v1.1.0")
            release(machine, place / name, "v1.2.0")
        run("update", "--to", "acme=1.1.0", cwd=layered)
        assert (layered / "newer.txt").exists()
        assert not (layered / "new.txt").exists()
        assert "_commit: v1.1.0" in (layered / ".copier-answers.acme.yml").read_text()
        assert "_commit: v1.0.0" in (layered / ".copier-answers.yml").read_text()

    def test_to_a_version_of_a_layer_that_is_none_names_those_there_are(self, layered, run):
        said = run("update", "--to", "acne=v1.1.0", cwd=layered, code=1).stderr
        assert "base, acme, ci" in said
        assert "--to acme=v1.1.0" in said

    def test_in_which_two_layers_claim_one_file_is_the_later_ones(self, layered, place, machine, run):
        """Nobody was asked about it when they were put on; it is not lost without a word."""
        write(place / "acme", {"both.txt": "acme\n"})
        write(place / "ci", {"both.txt": "ci\n"})
        for name in ("acme", "ci"):
            release(machine, place / name, "v1.1.0")
        run("update", cwd=layered)
        assert (layered / "both.txt").read_text() == "ci\n"


class TestRemove:
    def test_takes_the_layers_files_and_its_answers(self, layered, run):
        done = run("layer", "remove", "acme", cwd=layered)
        assert "deleted   acme.txt" in done.stdout
        assert not (layered / "acme.txt").exists()
        assert not (layered / "docs").exists()
        assert not (layered / ".copier-answers.acme.yml").exists()
        assert (layered / "ci.txt").exists()
        assert (layered / "hello.txt").exists()

    def test_leaves_files_that_were_edited_for_the_user_to_decide(self, layered, machine, run):
        (layered / "docs/acme.md").write_text("acme\nmine\n")
        commit(machine, layered)
        done = run("layer", "remove", "acme", cwd=layered, code=3)
        assert "conflict  docs/acme.md" in done.stdout
        assert "mine" in (layered / "docs/acme.md").read_text()
        assert not (layered / "acme.txt").exists()
        run("update", "--abort", cwd=layered)
        assert machine.git("status", "--porcelain", cwd=layered) == ""

    def test_gives_back_what_the_layer_lay_over(self, place, project, machine, run):
        write(place / "ci", {"hello.txt": "Hello from ci\n"})
        release(machine, place / "ci", "v1.1.0")
        run("layer", "add", place / "ci", "--allow-overlap", cwd=project)
        commit(machine, project)
        run("layer", "remove", "ci", cwd=project)
        assert (project / "hello.txt").read_text() == "Hello world\n"

    def test_of_the_base_or_of_none_is_refused(self, layered, run):
        assert "The base is no layer" in run("layer", "remove", "base", cwd=layered, code=1).stderr
        assert "its layers are: acme, ci" in run("layer", "remove", "nothing", cwd=layered, code=1).stderr


class TestPlainCopier:
    def test_takes_over_after_ours_and_before_it(self, layered, place, machine, run):
        write(place / "acme", {"docs/acme.md": "acme, new\n"})
        release(machine, place / "acme", "v1.1.0")
        run("update", cwd=layered)
        commit(machine, layered)
        again = machine.copier("update", "--defaults", "-a", ".copier-answers.acme.yml", cwd=layered)
        assert again.returncode == 0, again.stderr
        assert machine.git("status", "--porcelain", cwd=layered) == "", "a no-op after ours"
        write(place / "acme", {"docs/acme.md": "acme, newer\n"})
        release(machine, place / "acme", "v1.2.0")
        theirs = machine.copier("update", "--defaults", "-a", ".copier-answers.acme.yml", cwd=layered)
        assert theirs.returncode == 0, theirs.stderr
        assert (layered / "docs/acme.md").read_text() == "acme, newer\n"
        commit(machine, layered)
        assert "nothing to do" in run("update", cwd=layered).stdout
