"""What the base template renders to, whatever is answered."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Render = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

GITHUB = ".github/workflows/ci.yml"
GITLAB = ".gitlab-ci.yml"

LONG_NAME = "a_rather_long_package_name_for_a_project"
NAMES = ["my_project", "x", "Zebra9", LONG_NAME]

HOSTILE = [
    "quotes \" and ' and \"\"\" and '''",
    "backslashes \\ and \\n and \\u0041 and a last one \\",
    "Ünïcödé, 日本語, 🚀 and a right-to-left mark \u200f",
    "{{ 7 * 7 }} and {% raw %} and {# no comment #} and ${{ secrets.TOKEN }}",
    "# no comment, key: value, [table] and - list",
    "yes",
]


def files(project: Path) -> dict[str, str]:
    return {
        str(path.relative_to(project)): path.read_text(encoding="utf-8")
        for path in sorted(project.rglob("*"))
        if path.is_file() and not {"runs", "__pycache__", ".mypy_cache", ".ruff_cache"} & set(path.parts)
    }


def parse(name: str, text: str) -> object:
    """What a tool reads from the file, or the tool's own error."""
    match Path(name).suffix:
        case ".py":
            return ast.parse(text)
        case ".toml":
            return tomllib.loads(text)
        case ".yaml" | ".yml":
            return yaml.safe_load(text)
    return text


class TestTheDefaultProject:
    def test_is_small_enough_to_be_read(self, project: Path) -> None:
        """About twenty files, no empty folder, and a README that fits on one screen."""
        assert len(files(project)) <= 22
        assert len((project / "README.md").read_text().splitlines()) <= 60
        assert [folder for folder in project.rglob("*") if folder.is_dir() and not any(folder.iterdir())] == []

    def test_remembers_its_template(self, project: Path) -> None:
        """The answers file is what an update starts from."""
        answers = yaml.safe_load((project / ".copier-answers.yml").read_text())
        assert answers["template"] == "base"
        assert answers["package_name"] == "my_project"

    def test_explains_every_key_of_its_configuration_that_a_newcomer_could_wonder_about(self, project: Path) -> None:
        """The default configuration names the value of every argument of the project's model and data."""
        config = yaml.safe_load((project / "configs/train.yaml").read_text())
        source = {name: (project / f"src/my_project/{name}.py").read_text() for name in ("model", "data")}
        for name, text in source.items():
            [constructor] = [
                node
                for top in ast.parse(text).body
                if isinstance(top, ast.ClassDef) and ast.unparse(top.bases[0]).startswith("treadle.")
                for node in top.body
                if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            ]
            defaults = [ast.literal_eval(value) for value in constructor.args.defaults]
            arguments = [argument.arg for argument in constructor.args.args[1:]]
            assert config[name] == dict(zip(arguments, defaults, strict=True))

    def test_ends_every_file_with_one_newline_and_no_line_with_a_space(self, project: Path) -> None:
        """What an editor would change on saving is a diff nobody wants."""
        for name, text in files(project).items():
            assert not re.search(r"[ \t]$", text, re.MULTILINE), name
            assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name


class TestAnyAnswer:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_comes_out_as_it_was_typed(self, render: Render, text: str) -> None:
        """A description or a name may hold quotes, backslashes or braces: every file stays valid and says just that."""
        project = render(description=text, author_name=text)
        for name, content in files(project).items():
            parse(name, content)
        pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert pyproject["description"] == text
        assert pyproject["authors"] == [{"name": text}]
        assert text in (project / "README.md").read_text(encoding="utf-8")
        assert text in (project / "LICENSE").read_text(encoding="utf-8")

    @pytest.mark.parametrize("package_name", NAMES)
    def test_leaves_no_template_syntax_behind(self, render: Render, package_name: str) -> None:
        """No file name and no line still waits to be rendered, but for the expressions that GitHub evaluates."""
        for name, text in files(render(package_name=package_name)).items():
            for where in (name, text.replace("${{", "")):
                assert not re.search(r"\{\{|\{%|\{#|\.jinja", where), name

    @pytest.mark.parametrize("package_name", NAMES)
    def test_is_formatted_and_sorted(self, render: Render, in_project: Run, package_name: str) -> None:
        """black and ruff, with the project's own settings, have nothing to say, however long the package's name is."""
        project = render(package_name=package_name)
        for check in (["black", "--check", "--quiet", "."], ["ruff", "check", "."]):
            done = in_project(project, *check)
            assert done.returncode == 0, done.stdout + done.stderr


class TestAnAnswerThatWillNotDo:
    @pytest.mark.parametrize(
        "question, answer, said",
        [
            ("package_name", "1bad", "use a-z"),
            ("package_name", "my-net", "use a-z"),
            ("package_name", "nät", "use a-z"),
            ("package_name", "torch", "taken"),
            ("package_name", "class", "taken"),
            ("project_name", "my/net", "use a-z"),
            ("project_name", "net-", "use a-z"),
            ("description", "two\nlines", "one line"),
            ("author_name", "  ", "give a name"),
            ("author_name", "Ada\x07", "one line"),
        ],
    )
    def test_is_refused_in_a_line_that_a_terminal_shows_whole(
        self, render: Render, question: str, answer: str, said: str
    ) -> None:
        """The prompt wraps nothing: what does not fit into 80 columns is not there."""
        with pytest.raises(ValueError, match=f"^Validation error for question '{question}': {said}") as refused:
            render(**{question: answer})
        [line] = str(refused.value).splitlines()
        assert len(line) < 80


class TestTheChoiceOfCI:
    @pytest.mark.parametrize("ci, present", [("github", {GITHUB}), ("gitlab", {GITLAB}), ("none", set())])
    def test_brings_just_its_own_file(self, render: Render, ci: str, present: set[str]) -> None:
        """Nobody deletes the files of a service they do not use."""
        project = render(ci=ci)
        assert {name for name in files(project) if "ci.yml" in name} == present
        assert (project / ".github").exists() == (ci == "github")

    @pytest.mark.parametrize("ci", ["github", "gitlab"])
    def test_runs_what_the_readme_says(self, render: Render, ci: str) -> None:
        """The checks before a commit and those after it are the same four."""
        project = render(ci=ci)
        workflow = yaml.safe_load((project / (GITHUB if ci == "github" else GITLAB)).read_text())
        steps = (
            [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
            if ci == "github"
            else workflow["test"]["script"]
        )
        assert [step for step in steps if step and not step.startswith("pip")] == [
            "black --check .",
            "ruff check .",
            "mypy",
            "pytest",
        ]

    def test_gives_github_read_access_only(self, project: Path) -> None:
        """A pull request's code runs there: it may read, and nothing else."""
        workflow = yaml.safe_load((project / GITHUB).read_text())
        assert workflow["permissions"] == {"contents": "read"}
        assert all("permissions" not in job for job in workflow["jobs"].values())


class TestAPreset:
    @pytest.mark.parametrize(
        "path", sorted((Path(__file__).parents[2] / "presets").iterdir()), ids=lambda path: path.name
    )
    def test_answers_questions_that_there_are(self, render: Render, path: Path) -> None:
        """It says in its first line what it is for; what it answers is recorded in the project as it stands there."""
        text = path.read_text()
        assert re.match(r"# description: \S.*\.\n", text)
        answers = yaml.safe_load(text)
        recorded = yaml.safe_load((render(**answers) / ".copier-answers.yml").read_text())
        assert {name: recorded[name] for name in answers} == answers
