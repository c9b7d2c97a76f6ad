"""A template that runs commands: nothing of it runs without a word, and with it nothing of the user's is lost either."""

from __future__ import annotations

import pytest

CONFIG = """\
name:
  type: str
  default: world
_tasks:
  - "echo {{ _copier_operation }} >> tasks.txt"
_migrations:
  - version: v1.1.0
    before: ["echo migrated > migrated.txt"]
"""


@pytest.fixture
def template(machine, make_template):
    """v1.1.0 deletes a file, renames another and changes a third."""
    text = "".join(f"line {number}\n" for number in range(12))
    folder = make_template(
        {"gone.txt": text, "old name.txt": text + "o\n", "changed.txt": text}, config=CONFIG, folder="with tasks"
    )
    (folder / "gone.txt").unlink()
    (folder / "old name.txt").rename(folder / "new name.txt")
    (folder / "changed.txt").write_text("line of the template\n" + text)
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", "next", cwd=folder)
    machine.git("tag", "v1.1.0", cwd=folder)
    return folder


@pytest.fixture
def project(machine, template, tmp_path):
    done = machine.scaffold("new", "p", "--template", f"{template}@v1.0.0", "--yes", "--trust", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    project = tmp_path / "p"
    assert (project / "tasks.txt").read_text() == "copy\n"
    for name in ("gone.txt", "old name.txt", "changed.txt"):
        with (project / name).open("a") as file:
            file.write(f"mine in {name}\n")
    machine.git("commit", "-qam", "mine", cwd=project)
    return project


class TestWithoutAWord:
    def test_it_is_not_made(self, machine, template, tmp_path):
        done = machine.scaffold("new", "p", "--template", str(template), "--yes", cwd=tmp_path)
        assert done.returncode == 1
        assert "--trust" in done.stderr
        assert not (tmp_path / "p").exists()

    def test_it_is_not_updated(self, machine, project):
        done = machine.scaffold("update", cwd=project)
        assert done.returncode == 1
        assert "scaffold update --trust" in done.stderr
        assert machine.git("status", "--porcelain", cwd=project) == ""
        assert not (project / "migrated.txt").exists()

    def test_it_is_checked(self, machine, project):
        """Looking runs no commands."""
        done = machine.scaffold("check", "--drift", cwd=project)
        assert done.returncode == 2, done.stderr
        assert "1 release behind v1.1.0" in done.stdout
        assert (project / "tasks.txt").read_text() == "copy\n"


class TestWithTrust:
    def test_commands_run_and_no_edit_is_lost(self, machine, project):
        """Plain Copier would delete the edited files without a word."""
        done = machine.scaffold("update", "--trust", cwd=project)
        assert done.returncode == 3, done.stdout + done.stderr
        assert (project / "migrated.txt").read_text() == "migrated\n"
        for name in ("gone.txt", "old name.txt"):
            assert (project / name).read_text().endswith(f"mine in {name}\n")
            assert f"conflict  {name}  (modify/delete)" in done.stdout
        assert (project / "new name.txt").is_file()
        text = (project / "changed.txt").read_text()
        assert text.startswith("line of the template\n")
        assert text.endswith("mine in changed.txt\n")

    def test_a_preview_runs_them_in_a_clone_only(self, machine, project):
        done = machine.scaffold("update", "--trust", "--stat", cwd=project)
        assert done.returncode == 3, done.stdout + done.stderr
        assert not (project / "migrated.txt").exists()
        assert machine.git("status", "--porcelain", cwd=project) == ""
