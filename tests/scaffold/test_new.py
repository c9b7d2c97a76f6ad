"""`scaffold new`: from a path to a project."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scaffold import catalog, creating
from scaffold.errors import AnswerError

FOUR = ["--package-name=net", "--description=It learns.", "--author-name=Ada", "--ci=none"]


@pytest.fixture(scope="module")
def made(machine, tmp_path_factory):
    """One project from the built-in template, and what the command printed."""
    folder = tmp_path_factory.mktemp("projects")
    return folder / "my-net", machine.scaffold("new", "my-net", "--yes", cwd=folder)


class TestANewProject:
    def test_is_made_and_says_what_to_type_next(self, made):
        """The last lines are a tree of what was made, and the next three commands."""
        project, done = made
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "my-net/"
        assert "Made my-net from template base v" in done.stdout
        assert [line.split()[0] for line in lines[-3:]] == ["cd", "python", "python"]
        assert lines[-1].strip() == "python -m my_net fit --config configs/train.yaml"
        assert (project / "src" / "my_net" / "__main__.py").is_file()

    def test_is_a_clean_git_repository_with_one_commit_by_its_user(self, made, machine):
        """`git status` has nothing to say, and the first commit is the user's own."""
        project, _ = made
        assert machine.git("status", "--porcelain", cwd=project) == ""
        assert machine.git("log", "--format=%an", cwd=project) == "Ada Tester"
        assert machine.git("branch", "--show-current", cwd=project) == "main"

    def test_remembers_its_template_in_a_way_that_works_for_others(self, made, machine):
        """The answers name a version and a place under anybody's home, and the place exists."""
        project, _ = made
        answers = (project / ".copier-answers.yml").read_text()
        assert "_src_path: ~/.local/share/treadle-scaffold/templates.bundle" in answers
        assert "_commit: v" in answers
        assert "template: base" in answers
        assert (machine.home / ".local/share/treadle-scaffold/templates.bundle").is_file()

    def test_leaves_no_temporary_folder(self, made):
        """Beside the project lies nothing else."""
        project, _ = made
        assert [entry.name for entry in project.parent.iterdir()] == ["my-net"]

    def test_is_what_plain_copier_makes(self, made, machine, tmp_path):
        """Nothing is added to or changed in what Copier renders, so that updates by either tool agree."""
        project, _ = made
        source = "~/.local/share/treadle-scaffold/templates.bundle"
        done = machine.copier(
            "copy", "--defaults", "--data=author_name=Ada Tester", source, str(tmp_path / "my-net"), cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / "my-net") == contents(project)

    def test_may_lie_deep_in_folders_that_do_not_exist(self, machine, make_template, tmp_path):
        """Missing parents are made, and the ones that exist are left alone."""
        template = make_template()
        done = machine.scaffold("new", "a/b/c", "--template", str(template), "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "a/b/c/hello.txt").read_text() == "Hello world\n"
        assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]

    def test_fills_an_empty_folder_that_one_stands_in(self, machine, make_template, tmp_path):
        """`scaffold new .` works and the folder stays the same folder."""
        template = make_template()
        here = tmp_path / "here"
        here.mkdir()
        inode = here.stat().st_ino
        done = machine.scaffold("new", ".", "--template", str(template), "--yes", cwd=here)
        assert done.returncode == 0, done.stderr
        assert here.stat().st_ino == inode
        assert sorted(entry.name for entry in here.iterdir()) == [".copier-answers.yml", ".git", "hello.txt"]

    def test_without_git_has_no_repository(self, machine, make_template, tmp_path):
        """--no-git renders and stops there."""
        done = machine.scaffold("new", "p", f"--template={make_template()}", "--yes", "--no-git", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "p" / ".git").exists()

    def test_inside_another_repository_says_so(self, machine, make_template, tmp_path):
        """A nested repository is easily made by mistake."""
        template = make_template()
        outer = tmp_path / "outer"
        outer.mkdir()
        machine.git("init", "-q", cwd=outer)
        done = machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=outer)
        assert done.returncode == 0, done.stderr
        assert "inside another" in done.stderr

    def test_ignores_the_repository_of_a_hook_it_is_called_from(self, machine, make_template, tmp_path):
        """git tells its hooks GIT_DIR; a project made by a hook is still a repository of its own."""
        template = make_template()
        done = machine.scaffold(
            "new", "p", f"--template={template}", "--yes", cwd=tmp_path, GIT_DIR=str(template / ".git")
        )
        assert done.returncode == 0, done.stderr
        assert machine.git("rev-list", "--count", "HEAD", cwd=tmp_path / "p") == "1"
        assert machine.git("rev-list", "--count", "HEAD", cwd=template) == "1"


class TestNames:
    @pytest.mark.parametrize(
        "folder, package",
        [("my-net", "my_net"), ("3d-net", "project_3d_net"), ("class", "class_project"), ("torch", "torch_project")],
    )
    def test_that_are_no_package_become_one(self, machine, tmp_path, folder, package):
        """A folder may be called anything; its package is one that can be imported beside torch."""
        done = machine.scaffold("new", folder, "--yes", "--json", "--preview", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document["answers"]["package_name"] == package
        assert f"src/{package}/__init__.py" in document["files"]

    def test_given_by_the_user_are_refused_when_they_cannot_be_imported(self, machine, tmp_path):
        """A package chosen on purpose is not changed behind one's back."""
        done = machine.scaffold("new", "p", "--package-name", "torch", "--yes", cwd=tmp_path)
        assert_refused(done, "package_name cannot be 'torch'", tmp_path)

    @pytest.mark.parametrize(
        "package", ["3d", "class", "json", "JSON", "test", "treadle", "a-b", "a.b", "é", "a\n", ""]
    )
    def test_of_every_other_kind_are_refused_too(self, in_process, tmp_path, package):
        source, answers = catalog.find("base"), {"package_name": package}
        plan = creating.Plan(path=tmp_path / "p", source=source, answers=answers, ask=False, accept_defaults=True)
        with pytest.raises(AnswerError, match="package_name"):
            creating.create(plan)
        assert list(tmp_path.iterdir()) == []

    def test_of_the_standard_library_are_all_reserved(self):
        """A package called like a module of Python's own would hide it, in every Python we support."""
        import yaml

        questions = yaml.safe_load((Path(__file__).parents[2] / "copier.yml").read_text())
        ours = set(questions["reserved_names"]["default"])
        assert {name for name in sys.stdlib_module_names if not name.startswith("_")} <= ours


class TestAnswers:
    def test_come_from_flags(self, machine, tmp_path):
        """With every question answered by a flag, not even --yes is needed."""
        done = machine.scaffold("new", "p", *FOUR, "--preview", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)["answers"]
        assert answers["package_name"] == "net"
        assert answers["description"] == "It learns."
        assert answers["author_name"] == "Ada"
        assert answers["ci"] == "none"

    def test_come_from_set(self, machine, make_template, tmp_path):
        """Any template's question can be answered with --set."""
        template = make_template()
        done = machine.scaffold("new", "p", f"--template={template}", "--set", "name=Ada=1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "p/hello.txt").read_text() == "Hello Ada=1\n"

    def test_missing_without_a_terminal_are_named(self, machine, tmp_path):
        """Nothing waits for an answer that nobody can give."""
        done = machine.scaffold("new", "p", "--ci=none", cwd=tmp_path)
        assert_refused(done, "--yes", tmp_path)
        for flag in ("--package-name p", "--description 'A training project.'", "--author-name 'Ada Tester'"):
            assert flag in done.stderr

    def test_to_an_unknown_question_name_the_nearest_one(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--set", "pakage_name=x", "--yes", cwd=tmp_path)
        assert_refused(done, "--set package_name=x", tmp_path)

    def test_that_are_no_choice_name_the_choices(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--ci", "gitlob", "--yes", cwd=tmp_path)
        assert_refused(done, "--ci gitlab", tmp_path)
        assert "github, gitlab, none" in done.stderr

    def test_without_an_equals_sign_are_explained(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--set", "ci", "--yes", cwd=tmp_path)
        assert_refused(done, "--set ci=github", tmp_path)

    def test_required_by_the_template_are_named(self, machine, make_template, tmp_path):
        """--yes cannot answer a question without a default."""
        template = make_template(config="name:\n  type: str\n")
        done = machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=tmp_path)
        assert_refused(done, "--set name=", tmp_path, besides={"template"})

    def test_of_the_wrong_type_are_named_together_with_all_that_is_missing(self, machine, make_template, tmp_path):
        """And not as a mistake of the template; how a list is typed is said."""
        config = "n: {type: int, default: 3}\nm: {type: str, multiselect: true, choices: [a, b], default: [a]}\nx: {type: str}\n"
        arguments = ("new", "p", f"--template={make_template(config=config)}", "--yes")
        done = machine.scaffold(*arguments, "--set", "n=abc", "--set", "m=a,b", cwd=tmp_path)
        assert_refused(done, "n cannot be 'abc'", tmp_path, besides={"template"})
        assert "m cannot be 'a,b': it takes a list" in done.stderr
        assert "--set m='[a, b]' --set x=..." in done.stderr
        assert "broken" not in done.stderr

    @pytest.mark.parametrize(
        "given, expected",
        [
            (("--ci=github", "--set=ci=none"), "--ci github and --set ci=none"),
            (("--set=ci=github", "--set=ci=none"), "--set ci=github and --set ci=none"),
            (("--description=x", "--set=description=y"), "--description x and --set description=y"),
        ],
    )
    def test_that_contradict_each_other_are_refused(self, machine, tmp_path, given, expected):
        assert_refused(machine.scaffold("new", "p", *given, "--yes", cwd=tmp_path), expected, tmp_path)


class TestARepositoryWithoutAnyFile:
    """As `git init`, or a clone of an empty one, leaves it."""

    @pytest.fixture
    def repository(self, machine, make_template, tmp_path):
        make_template()
        repository = tmp_path / "p"
        repository.mkdir()
        machine.git("init", "-q", "-b", "trunk", cwd=repository)
        machine.git("remote", "add", "origin", "https://example.com/x.git", cwd=repository)
        machine.git("config", "user.name", "Grace", cwd=repository)
        return repository

    def fill(self, machine, repository, *more):
        arguments = ("new", "p", "--template=./template", "--yes", *more)
        return machine.scaffold(*arguments, cwd=repository.parent)

    def test_is_filled_and_keeps_its_branch_its_remote_and_its_settings(self, machine, repository):
        done = self.fill(machine, repository)
        assert done.returncode == 0, done.stderr
        assert machine.git("status", "--porcelain", "--branch", cwd=repository) == "## trunk"
        assert machine.git("log", "--format=%an", cwd=repository) == "Grace"
        assert machine.git("remote", "get-url", "origin", cwd=repository) == "https://example.com/x.git"
        assert sorted(entry.name for entry in repository.iterdir()) == [".copier-answers.yml", ".git", "hello.txt"]
        assert "inside another" not in done.stderr

    def test_is_filled_on_top_of_its_commits(self, machine, repository):
        machine.git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=repository)
        assert self.fill(machine, repository).returncode == 0
        assert machine.git("log", "--format=%s", cwd=repository) == "Start from template ./template v1.0.0\nnothing"
        assert machine.git("status", "--porcelain", cwd=repository) == ""

    def test_gets_no_commit_without_git(self, machine, repository):
        assert self.fill(machine, repository, "--no-git").returncode == 0
        assert machine.git("status", "--porcelain", cwd=repository) == "?? .copier-answers.yml\n?? hello.txt"

    def test_is_as_it_was_when_the_template_fails(self, machine, repository):
        done = self.fill(machine, repository, "--set", "nome=x")
        assert done.returncode == 1
        assert [entry.name for entry in repository.iterdir()] == [".git"]
        assert machine.git("status", "--porcelain", "--branch", cwd=repository) == "## No commits yet on trunk"


class TestTheMessageOfATemplate:
    CONFIG = (
        '_message_after_copy: "Hi {{ name }}\\e[2J in {{ _copier_conf.dst_path }}"\nname: {type: str, default: you}\n'
    )

    def test_comes_last_and_does_not_steer_the_terminal(self, machine, make_template, tmp_path):
        template = make_template(config=self.CONFIG)
        done = machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=tmp_path)
        assert done.stderr == f"note: Hi you\ufffd[2J in {tmp_path / 'p'}\n"


class TestPreview:
    def test_shows_names_and_contents_and_writes_nothing(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--yes", "--preview", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "pyproject.toml" in done.stdout
        assert 'name = "p"' in done.stdout
        assert list(tmp_path.iterdir()) == []


class TestJson:
    def test_is_one_document_on_stdout(self, machine, make_template, tmp_path):
        template = make_template()
        done = machine.scaffold("new", "p", f"--template={template}", "--yes", "--json", cwd=tmp_path)
        document = json.loads(done.stdout)
        assert document["path"] == str(tmp_path / "p")
        assert document["files"] == [".copier-answers.yml", "hello.txt"]
        assert document["commit"] == machine.git("rev-parse", "HEAD", cwd=tmp_path / "p")
        assert document["template"] == {
            "name": str(template),
            "url": str(template),
            "version": "v1.0.0",
            "commit": machine.git("rev-parse", "v1.0.0", cwd=template),
        }

    def test_carries_errors_too(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--template", "bass", "--yes", "--json", cwd=tmp_path)
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["fix"] == "--template base"


def assert_refused(done, expected, folder, besides=frozenset()):
    """Exit code 1, one short message with what, why and fix, and nothing left behind."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert expected in done.stderr
    assert "why:" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert {entry.name for entry in folder.iterdir()} == set(besides)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }
