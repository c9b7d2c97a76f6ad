"""Several projects in one git repository: each is updated, and undone, for itself."""

from __future__ import annotations

import json

import pytest

NAMES = ("one", "two", "three", "four")


@pytest.fixture
def template(machine, make_template):
    """v1.1.0 changes the file that v1.0.0 has."""
    folder = make_template({"hello.txt.jinja": "Hello {{ name }}\n"})
    (folder / "hello.txt.jinja").write_text("Hello {{ name }}, again\n")
    machine.git("commit", "-qam", "more", cwd=folder)
    machine.git("tag", "v1.1.0", cwd=folder)
    return folder


@pytest.fixture
def repository(machine, template, tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    machine.git("init", "-q", cwd=root)
    for name in NAMES:
        done = machine.scaffold("new", name, "--template", f"{template}@v1.0.0", "--yes", "--no-git", cwd=root)
        assert done.returncode == 0, done.stderr
    (root / "Icon\r").write_text("macOS makes one in each folder\n")
    (root / "line\nend").write_text("and nobody forbids this\n")
    machine.git("add", "-A", cwd=root)
    machine.git("commit", "-qm", "all", cwd=root)
    return root


def status(machine, root):
    return machine.git("status", "--porcelain", "-z", cwd=root).split("\0")[:-1]


def test_all_are_updated_at_once_one_after_the_other(machine, repository):
    """`fleet` runs several processes; those that share a repository wait for each other."""
    done = machine.scaffold("fleet", "update", ".", "--jobs", "4", "--json", cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["counts"] == {"updated": 4}
    changed = [entry[3:] for entry in status(machine, repository)]
    assert sorted(changed) == sorted(
        f"{name}/{file}" for name in NAMES for file in (".copier-answers.yml", "hello.txt")
    )
    assert (repository / "Icon\r").is_file()
    assert (repository / "line\nend").is_file()


def test_an_abort_undoes_the_project_that_it_is_called_in(machine, repository):
    for name in ("one", "two"):
        assert machine.scaffold("update", name, cwd=repository).returncode == 0
    done = machine.scaffold("update", "one", "--abort", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert (repository / "one/hello.txt").read_text() == "Hello world\n"
    assert (repository / "two/hello.txt").read_text() == "Hello world, again\n"
    assert machine.scaffold("update", "two", "--abort", cwd=repository).returncode == 0
    assert status(machine, repository) == []


def test_a_project_that_is_not_committed_yet_is_named(machine, template, repository):
    done = machine.scaffold("new", "five", "--template", f"{template}@v1.0.0", "--yes", "--no-git", cwd=repository)
    assert done.returncode == 0, done.stderr
    done = machine.scaffold("update", "five", cwd=repository)
    assert done.returncode == 1
    assert "not as it was committed" in done.stderr
