"""A project from template 0.1.0, edited by its user, brought to 0.2.0: by plain `copier update`, and by ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scaffold import bundle, settings

ROOT = Path(__file__).resolve().parents[2]
NEWER = "0.2.0"


@pytest.fixture(scope="module")
def original(machine, tmp_path_factory):
    """Made by `scaffold new`, then worked on and committed."""
    folder = tmp_path_factory.mktemp("original") / "my-net"
    done = machine.scaffold("new", "my-net", "--yes", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    with (folder / "src/my_net/model.py").open("a") as file:
        file.write("\n\nMINE = 1\n")
    (folder / "mine.txt").write_text("mine\n")
    commit(machine, folder)
    return folder


@pytest.fixture(scope="module")
def original_release(machine, tmp_path_factory):
    """The shipped bundle with template 0.2.0 after it, and the tree it was made of: a changed, a new and a deleted
    file, and a new question."""
    folder = tmp_path_factory.mktemp("release")
    tree, file = folder / "tree", folder / "templates.bundle"
    # From the release, not from this checkout, whose templates may be ahead of it: only what is changed here differs.
    machine.git("clone", "-q", str(settings.SHIPPED_BUNDLE), str(tree), cwd=folder)
    shutil.rmtree(tree / ".git")
    base = tree / "templates/base"
    with (tree / "copier.yml").open("a") as questions:
        questions.write("\nlicense:\n  type: str\n  default: MIT\n  choices: [MIT, BSD]\n")
    with (base / "pyproject.toml.jinja").open("a") as text:
        text.write("\n# changed by template 0.2.0\n")
    (base / "new.md.jinja").write_text("{{ project_name }} under {{ license }}\n")
    (base / ".pre-commit-config.yaml").unlink()
    shutil.copyfile(settings.SHIPPED_BUNDLE, file)
    bundle.release(file, tree, NEWER)
    return file, tree


@pytest.fixture
def project(original, tmp_path):
    """One test's own copy of the project."""
    return shutil.copytree(original, tmp_path / "my-net")


@pytest.fixture
def released(fresh_machine, original_release, tmp_path):
    """0.2.0 is on this test's machine; returns a tree to make further releases of."""
    file, tree = original_release
    installed = fresh_machine.home / ".local/share/treadle-scaffold/templates.bundle"
    installed.parent.mkdir(parents=True)
    shutil.copyfile(file, installed)
    return shutil.copytree(tree, tmp_path / "tree")


def commit(machine, folder):
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", "Mine", cwd=folder)


def assert_updated(project):
    """What 0.2.0 changed has come, and what the user wrote has stayed."""
    assert "# changed by template 0.2.0" in (project / "pyproject.toml").read_text()
    assert (project / "new.md").read_text() == "my-net under MIT\n"
    assert not (project / ".pre-commit-config.yaml").exists()
    assert (project / "src/my_net/model.py").read_text().endswith("\n\nMINE = 1\n")
    assert (project / "mine.txt").read_text() == "mine\n"
    assert f"_commit: v{NEWER}" in (project / ".copier-answers.yml").read_text()
    assert not list(project.rglob("*.rej"))


class TestPlainCopierUpdate:
    def test_brings_the_new_version_and_keeps_the_edits(self, fresh_machine, project, released):
        """The real command, without --trust and without a network: git may read files, nothing else."""
        fresh_machine.environment["GIT_ALLOW_PROTOCOL"] = "file"
        done = fresh_machine.copier("update", "--defaults", cwd=project)
        assert done.returncode == 0, done.stderr
        assert_updated(project)
        commit(fresh_machine, project)
        assert fresh_machine.git("status", "--porcelain", cwd=project) == ""

    def test_is_a_no_op_after_ours(self, fresh_machine, project, released):
        """Either tool may be used next."""
        assert fresh_machine.scaffold("update", cwd=project).returncode == 0
        commit(fresh_machine, project)
        done = fresh_machine.copier("update", "--defaults", cwd=project)
        assert done.returncode == 0, done.stderr
        assert fresh_machine.git("status", "--porcelain", cwd=project) == ""


class TestScaffoldUpdate:
    def test_brings_the_new_version_and_keeps_the_edits(self, fresh_machine, project, released):
        done = fresh_machine.scaffold("update", "--json", cwd=project)
        assert done.returncode == 0, done.stderr
        assert_updated(project)
        document = json.loads(done.stdout)
        assert (document["from"], document["to"]) == ({"base": "v0.1.0"}, {"base": "v0.2.0"})
        changed = [".copier-answers.yml", ".pre-commit-config.yaml", "new.md", "pyproject.toml"]
        assert [change["path"] for change in document["changes"]] == changed
        assert document["conflicts"] == []

    def test_finds_nothing_to_do_at_the_newest_version(self, fresh_machine, project):
        done = fresh_machine.scaffold("update", str(project), cwd=project.parent)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" in done.stdout
        assert fresh_machine.git("status", "--porcelain", cwd=project) == ""

    def test_goes_to_the_wanted_version(self, fresh_machine, project, released):
        (released / "templates/base/newest.md").touch()
        bundle.release(fresh_machine.home / ".local/share/treadle-scaffold/templates.bundle", released, "0.3.0")
        done = fresh_machine.scaffold("update", "--to", NEWER, cwd=project)
        assert done.returncode == 0, done.stderr
        assert_updated(project)
        assert not (project / "newest.md").exists()

    def test_answers_a_new_question_with_set(self, fresh_machine, project, released):
        done = fresh_machine.scaffold("update", "--set", "license=BSD", cwd=project)
        assert done.returncode == 0, done.stderr
        assert (project / "new.md").read_text() == "my-net under BSD\n"

    def test_works_in_a_folder_of_a_larger_repository(self, fresh_machine, project, released, tmp_path):
        """Files are named from the project's folder, and the rest of the repository is left alone."""
        shutil.rmtree(project / ".git")
        fresh_machine.git("init", "-q", cwd=tmp_path)
        fresh_machine.git("add", "my-net", cwd=tmp_path)
        fresh_machine.git("commit", "-qm", "Mine", cwd=tmp_path)
        done = fresh_machine.scaffold("update", "my-net", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_updated(project)
        assert "pyproject.toml" in [change["path"] for change in json.loads(done.stdout)["changes"]]

    def test_works_for_a_teammate_who_never_made_a_project(self, fresh_machine, project, tmp_path):
        """Their machine has no copy of the bundle yet."""
        assert not (fresh_machine.home / ".local").exists()
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 0, done.stderr
        assert (fresh_machine.home / ".local/share/treadle-scaffold/templates.bundle").is_file()


class TestAConflict:
    def test_is_named_and_left_for_the_user(self, fresh_machine, project, released):
        """Both sides wrote at the same place: exit code 3, the file named, both sides in it."""
        with (project / "pyproject.toml").open("a") as file:
            file.write("\n# mine at the same place\n")
        commit(fresh_machine, project)
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "conflict  pyproject.toml" in done.stdout
        text = (project / "pyproject.toml").read_text()
        assert "# mine at the same place" in text
        assert "# changed by template 0.2.0" in text
        assert "<<<<<<<" in text

    def test_in_a_file_the_user_deleted_is_none(self, fresh_machine, project, released):
        """What the user deleted stays deleted."""
        (project / "pyproject.toml").unlink()
        commit(fresh_machine, project)
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (project / "pyproject.toml").exists()


class TestAWorkTreeWithOpenWork:
    """Nobody has to commit first, unless the update would change the very file."""

    def test_keeps_it_beside_the_update(self, fresh_machine, project, released):
        (project / "unfinished.py").write_text("half\n")
        (project / "src/my_net/model.py").write_text("other\n")
        fresh_machine.git("add", "src", cwd=project)
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "# changed by template 0.2.0" in (project / "pyproject.toml").read_text()
        assert (project / "unfinished.py").read_text() == "half\n"
        status = fresh_machine.git("status", "--porcelain", cwd=project).splitlines()
        assert {"M  src/my_net/model.py", "?? unfinished.py"} <= set(status)

    def test_is_named_where_the_update_would_change_it(self, fresh_machine, project, released):
        (project / "pyproject.toml").write_text("mine\n")
        (project / "new.md").write_text("mine, and git does not know it\n")
        before = fresh_machine.git("status", "--porcelain", cwd=project)
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 1
        assert "not committed: new.md, pyproject.toml" in done.stderr
        assert fresh_machine.git("status", "--porcelain", cwd=project) == before

    def test_a_file_that_git_ignores_is_left_alone(self, fresh_machine, project, released):
        with (project / ".git/info/exclude").open("a") as file:
            file.write("new.md\n")
        (project / "new.md").write_text("mine, and ignored\n")
        done = fresh_machine.scaffold("update", cwd=project)
        assert done.returncode == 0, done.stderr
        assert "new.md is left alone" in done.stderr
        assert (project / "new.md").read_text() == "mine, and ignored\n"
        assert "# changed by template 0.2.0" in (project / "pyproject.toml").read_text()


class TestAShellWithNonsenseInGitsVariables:
    def test_makes_no_difference(self, fresh_machine, project, released):
        done = fresh_machine.scaffold("update", cwd=project, GIT_CONFIG_COUNT="nonsense")
        assert done.returncode == 0, done.stdout + done.stderr
        assert_updated(project)


class TestUpdateFromAFolderInTheProject:
    def test_updates_the_project(self, fresh_machine, project, released):
        done = fresh_machine.scaffold("update", cwd=project / "src")
        assert done.returncode == 0, done.stdout + done.stderr
        assert_updated(project)


class TestWhatCannotBeUpdated:
    def assert_refused(self, done, expected):
        assert done.returncode == 1, done.stdout + done.stderr
        assert expected in done.stderr
        assert "fix:" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_folder_that_is_no_project(self, machine, tmp_path):
        self.assert_refused(machine.scaffold("update", cwd=tmp_path), "not in a project made by scaffold")

    def test_a_project_without_git(self, machine, answered):
        project = answered("_commit: v0.1.0\n_src_path: x\n")
        shutil.rmtree(project / ".git")
        self.assert_refused(machine.scaffold("update", cwd=project), "not in a git repository")

    def test_a_project_without_a_version(self, machine, answered):
        done = machine.scaffold("update", cwd=answered("_src_path: x\n"))
        self.assert_refused(done, "does not say which version")

    @pytest.mark.parametrize("text", ["", "- a\n", "_commit: v1\n", "{", "_src_path: 3\n_commit: x\n"])
    def test_a_project_with_broken_answers(self, machine, answered, text):
        self.assert_refused(machine.scaffold("update", cwd=answered(text)), "cannot be read")

    @pytest.mark.parametrize(
        "source, expected",
        [
            ("/nowhere/at/all", "no template at /nowhere"),
            ("--upload-pack=touch pwned", "taken for an option"),
            ("ext::sh -c touch% pwned", "not supported"),
            ("https://me:secret@example.com/x.git", "user name or password"),
        ],
    )
    def test_a_project_with_a_source_that_cannot_be_used(self, machine, answered, source, expected):
        project = answered(f"_commit: v0.1.0\n_src_path: '{source}'\n")
        self.assert_refused(machine.scaffold("update", cwd=project), expected)
        assert not (project / "pwned").exists()

    def test_a_project_of_a_version_this_scaffold_has_not_got(self, machine, answered):
        project = answered("_commit: v9.9.9\n_src_path: ~/.local/share/treadle-scaffold/templates.bundle\n")
        done = machine.scaffold("update", cwd=project)
        self.assert_refused(done, "pip install -U treadle-scaffold")

    def test_to_an_unknown_version_names_the_nearest(self, fresh_machine, project, released):
        done = fresh_machine.scaffold("update", "--to", "0.2.1", cwd=project)
        self.assert_refused(done, "--to v0.2.0")

    def test_to_an_older_version(self, fresh_machine, project, released):
        assert fresh_machine.scaffold("update", cwd=project).returncode == 0
        commit(fresh_machine, project)
        done = fresh_machine.scaffold("update", "--to", "0.1.0", cwd=project)
        self.assert_refused(done, "an update only goes forward")

    def test_to_a_version_that_dropped_the_users_choice(self, fresh_machine, project, released):
        """Copier would answer with the default, without a word."""
        text = (released / "copier.yml").read_text().replace("GitHub Actions: github", "Forgejo: forgejo")
        (released / "copier.yml").write_text(text.replace("default: github", "default: forgejo"))
        bundle.release(fresh_machine.home / ".local/share/treadle-scaffold/templates.bundle", released, "0.3.0")
        done = fresh_machine.scaffold("update", cwd=project)
        self.assert_refused(done, "its choices are forgejo, gitlab, none now")
        assert fresh_machine.git("status", "--porcelain", cwd=project) == ""

    def test_to_a_version_that_attacks(self, fresh_machine, project, released):
        """A template that was good yesterday is looked at again today."""
        evil = released / "templates/base/{{ 'git~1' }}/hooks/pre-commit"
        evil.parent.mkdir(parents=True)
        evil.write_text("touch pwned")
        bundle.release(fresh_machine.home / ".local/share/treadle-scaffold/templates.bundle", released, "0.3.0")
        done = fresh_machine.scaffold("update", cwd=project)
        self.assert_refused(done, "only git may write")
        assert fresh_machine.git("status", "--porcelain", cwd=project) == ""


class TestAPublishedRepository:
    def test_is_what_projects_name_and_is_not_asked(self, fresh_machine, tmp_path):
        """Once the metadata has a URL it is written into projects, and git reads the bundle in its place."""
        metadata = tmp_path / "site" / "treadle_scaffold-0.1.0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(
            "Metadata-Version: 2.1\nName: treadle-scaffold\nVersion: 0.1.0\n"
            "Project-URL: Repository, https://github.com/nobody-at-all/no-such-repository\n"
        )
        path = f"{tmp_path / 'site'}:{ROOT}"
        done = fresh_machine.scaffold("new", "p", "--yes", cwd=tmp_path, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        answers = (tmp_path / "p/.copier-answers.yml").read_text()
        assert "_src_path: https://github.com/nobody-at-all/no-such-repository\n" in answers
        assert not (fresh_machine.home / ".local").exists()
        done = fresh_machine.scaffold("update", cwd=tmp_path / "p", PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" in done.stdout


@pytest.fixture
def answered(machine, tmp_path):
    """A committed project that has nothing but answers."""

    def make(text):
        project = tmp_path / "answered"
        project.mkdir()
        (project / ".copier-answers.yml").write_text(text)
        machine.git("init", "-q", cwd=project)
        commit(machine, project)
        return project

    return make
