"""`scaffold add` and `scaffold remove`: components of a project that is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import black
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaffold import projects
from scaffold.components import adding, kinds, naming, writing
from scaffold.errors import AnswerError, DestinationError, ProjectError, TemplateError, UnsafeTemplate

NAMES = {
    "model": "WideNet",
    "datamodule": "more-digits",
    "callback": "batch_count",
    "experiment": "longer",
    "logger": "json-rows",
}


@pytest.fixture(scope="module")
def plain(machine, tmp_path_factory):
    """A new project, as the command makes it. Tests take copies."""
    folder = tmp_path_factory.mktemp("plain")
    done = machine.scaffold("new", "my-net", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "my-net"


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Where projects of a few files are made, to render for."""
    return tmp_path_factory.mktemp("frame")


@pytest.fixture
def project(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "my-net")


@pytest.fixture(scope="module")
def full(plain, machine, tmp_path_factory):
    """A project with one component of each kind, and what the command said of each."""
    project = shutil.copytree(plain, tmp_path_factory.mktemp("full") / "my-net")
    return project, {kind: machine.scaffold("add", kind, name, cwd=project) for kind, name in NAMES.items()}


def state(project: Path) -> dict[str, str]:
    """Every file and folder but git's, with its contents."""
    paths = (path for path in project.rglob("*") if ".git" not in path.relative_to(project).parts)
    return {str(path.relative_to(project)): path.read_text() if path.is_file() else "" for path in paths}


def assert_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """One message with what, why and fix; exit code 1; never a traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")
    assert "\n  why: " in done.stderr
    assert "\n  fix: " in done.stderr
    for text in said:
        assert text in done.stderr


class TestEachKind:
    @pytest.mark.parametrize(
        "kind, files, following",
        [
            (
                "model",
                ["configs/models/wide_net.yaml", "src/my_net/wide_net.py", "tests/test_wide_net.py"],
                "python -m my_net.wide_net fit --config configs/train.yaml --config configs/models/wide_net.yaml",
            ),
            (
                "datamodule",
                ["configs/datamodules/more_digits.yaml", "src/my_net/more_digits.py", "tests/test_more_digits.py"],
                "python -m my_net.more_digits fit --config configs/train.yaml --config configs/datamodules/more_digits.yaml",
            ),
            (
                "callback",
                ["configs/experiments/batch_count.yaml", "src/my_net/batch_count.py", "tests/test_batch_count.py"],
                "python -m my_net fit --config configs/train.yaml --config configs/experiments/batch_count.yaml",
            ),
            (
                "experiment",
                ["configs/experiments/longer.yaml", "tests/test_longer.py"],
                "python -m my_net fit --config configs/train.yaml --config configs/experiments/longer.yaml",
            ),
            (
                "logger",
                ["configs/experiments/json_rows.yaml", "src/my_net/json_rows.py", "tests/test_json_rows.py"],
                "python -m my_net fit --config configs/train.yaml --config configs/experiments/json_rows.yaml",
            ),
        ],
    )
    def test_is_added_and_says_what_to_type_next(self, full, kind, files, following):
        """Source, config and test are there, and the last line is a command."""
        project, said = full
        assert said[kind].returncode == 0, said[kind].stderr
        assert said[kind].stdout.splitlines()[-1].strip() == following
        for file in files:
            assert (project / file).is_file()

    def test_changes_nothing_that_was_there(self, full, machine):
        """git knows of new files only, and nothing temporary is among them."""
        project, _ = full
        status = machine.git("status", "--porcelain", "-uall", cwd=project).splitlines()
        assert {line[:2] for line in status} == {"??"}
        assert len(status) == 14 + len(NAMES)  # and a record for each
        assert not [line for line in status if ".scaffold-component" in line]

    def test_is_clean_and_its_tests_pass(self, full, machine):
        """black, ruff, mypy and pytest as in the project's CI. Its tests train two steps with the new config."""
        project, _ = full
        new = [f"tests/test_{naming.parse(name).snake}.py" for name in NAMES.values()]
        old = "tests/test_train.py::TestTheCommandLine::test_reads_every_overlay"
        environment = {
            **machine.environment,
            "PYTHONPATH": str(project / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        lines = [
            ["black", "--check", "."],
            ["ruff", "check", "--no-cache"],
            ["mypy", f"--cache-dir={project.parent / 'mypy'}"],
            ["pytest", "-q", "-p", "no:cacheprovider", *new, old],
        ]
        tools = [
            subprocess.Popen(
                [sys.executable, "-m", *line],
                cwd=project,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in lines
        ]
        said = [tool.communicate(timeout=240)[0] for tool in tools]
        assert [tool.returncode for tool in tools] == [0] * len(tools), "\n".join(said)


class TestAddAndRemove:
    def test_are_mirrors(self, full, plain, machine, tmp_path):
        """Each component taken away again, by any spelling of its name, leaves the project as it was: no empty folder."""
        project = shutil.copytree(full[0], tmp_path / "my-net")
        spellings = {**NAMES, "model": "wide-net", "logger": "JsonRows"}
        for kind, name in spellings.items():
            done = machine.scaffold("remove", kind, name, cwd=project / "src")
            assert done.returncode == 0, done.stderr
        assert state(project) == state(plain)

    def test_as_a_preview_change_nothing(self, full, project, plain, machine):
        """What would be written is shown whole, what would be removed is listed."""
        done = machine.scaffold("add", "experiment", "longer", str(project), "--preview", cwd=project.parent)
        assert done.returncode == 0, done.stderr
        assert "--- configs/experiments/longer.yaml\n" in done.stdout
        assert "seed_everything: 1" in done.stdout
        assert state(project) == state(plain)
        before = state(full[0])
        done = machine.scaffold("remove", "experiment", "longer", "--preview", cwd=full[0])
        assert "Would remove experiment longer, 2 files." in done.stdout
        assert state(full[0]) == before

    def test_speak_json(self, project, machine):
        """Files and next commands for a machine; a mistake as well."""
        done = machine.scaffold("add", "experiment", "Longer", "--json", cwd=project)
        told = json.loads(done.stdout)
        assert (told["kind"], told["name"]) == ("experiment", "longer")
        assert told["files"] == ["configs/experiments/longer.yaml", "tests/test_longer.py"]
        assert told["next"]
        told = json.loads(machine.scaffold("add", "experiment", "Longer", "--json", cwd=project).stdout)
        assert "is there already" in told["error"]["what"]
        told = json.loads(machine.scaffold("add", "--list", "--json", cwd=project.parent).stdout)
        assert {kind["kind"] for kind in told["kinds"]} == set(NAMES)


@pytest.mark.usefixtures("in_process")
class TestRemove:
    @pytest.fixture
    def longer(self, project):
        adding.add("experiment", "longer", project)
        return project

    def test_refuses_what_was_changed_and_shows_it(self, longer, machine):
        """Nothing is removed, not even the files that are as they were."""
        overlay = longer / "configs/experiments/longer.yaml"
        overlay.write_text(overlay.read_text() + "model: {hidden: 7}\n")
        before = state(longer)
        done = machine.scaffold("remove", "experiment", "longer", cwd=longer)
        assert_refused(done, "configs/experiments/longer.yaml changed since", "+model: {hidden: 7}")
        assert state(longer) == before

    def test_knows_files_of_an_older_scaffold(self, longer, machine):
        """Whose text was another: the record has its hash."""
        old = "# from another time\n"
        (longer / "configs/experiments/longer.yaml").write_text(old)
        record = longer / ".scaffold/components/experiment-longer.json"
        told = json.loads(record.read_text())
        told["sha256"]["configs/experiments/longer.yaml"] = adding.record.digest(old)
        record.write_text(json.dumps(told))
        done = machine.scaffold("remove", "experiment", "longer", cwd=longer)
        assert done.returncode == 0, done.stderr
        assert not record.exists()

    def test_needs_no_record_where_the_files_are_what_it_would_write(self, longer, plain, machine):
        shutil.rmtree(longer / ".scaffold")
        assert machine.scaffold("remove", "experiment", "longer", cwd=longer).returncode == 0
        assert state(longer) == state(plain)

    def test_does_not_mind_other_line_ends_or_a_file_that_is_gone(self, longer, plain, machine):
        """git may have checked it out with the one, the user deleted the other."""
        overlay = longer / "configs/experiments/longer.yaml"
        overlay.write_bytes(overlay.read_bytes().replace(b"\n", b"\r\n"))
        (longer / "tests/test_longer.py").unlink()
        assert machine.scaffold("remove", "experiment", "longer", cwd=longer).returncode == 0
        assert state(longer) == state(plain)

    def test_names_what_there_is_instead(self, longer, machine):
        done = machine.scaffold("remove", "experiment", "longre", cwd=longer)
        assert_refused(done, "no experiment called longre", "fix: scaffold remove experiment longer")
        done = machine.scaffold("remove", "callback", "longer", cwd=longer)
        assert_refused(done, "no callback called longer", "fix: scaffold remove experiment longer")

    @pytest.mark.parametrize("path", ["../outside", "/etc/hostname", ".git/config"])
    def test_deletes_nothing_elsewhere_whatever_a_record_says(self, longer, machine, path):
        """Records come with a clone, and a clone comes from anybody."""
        outside = longer.parent / "outside"
        outside.write_text("mine")
        record = longer / ".scaffold/components/experiment-longer.json"
        record.write_text(json.dumps({"sha256": {path: adding.record.digest("mine")}}))
        assert_refused(machine.scaffold("remove", "experiment", "longer", cwd=longer), "cannot be read")
        assert outside.read_text() == "mine"

    def test_takes_no_path_for_a_kind(self, longer, machine):
        assert_refused(machine.scaffold("remove", "../../x", "y", cwd=longer), "not a kind of component")

    def test_follows_no_link_out_of_the_project(self, longer, machine):
        """The records may lie behind one."""
        (longer / ".scaffold").rename(longer.parent / "elsewhere")
        (longer / ".scaffold").symlink_to(longer.parent / "elsewhere")
        before = state(longer.parent)
        assert_refused(machine.scaffold("remove", "experiment", "longer", cwd=longer), "is a link out of the project")
        assert state(longer.parent) == before

    def test_refuses_a_record_that_is_no_record(self, longer, machine):
        (longer / ".scaffold/components/experiment-longer.json").write_text("[]")
        assert_refused(machine.scaffold("remove", "experiment", "longer", cwd=longer), "git checkout HEAD --")


class TestAName:
    @pytest.mark.parametrize("typed", ["my-model", "MyModel", "my_model", "myModel", "My-Model", "my__model_"])
    def test_has_many_spellings(self, typed):
        assert naming.parse(typed) == naming.Name(snake="my_model", camel="MyModel")

    def test_of_an_abbreviation_is_split_where_the_next_word_begins(self):
        assert naming.parse("HTTPServer2") == naming.Name(snake="http_server2", camel="HttpServer2")

    @pytest.mark.parametrize(
        "typed, why",
        [
            ("class", "a word of Python's own"),
            ("None", "a word of Python's own"),
            ("match", "a word of Python's own"),
            ("random", "is a module"),
            ("torch", "is a module"),
            ("list", "hide what Python calls"),
            ("runtime-error", "hide what Python calls"),
            ("callback", "under that name"),
            ("test-net", "take it for a test"),
            ("testing", "take it for a test"),
            ("x" * 41, "40 is the most"),
            ("9lives", "a letter first"),
            ("../x", "a letter first"),
            ("größe", "a letter first"),
            ("a\nb", "a letter first"),
            ("", "a letter first"),
            ("_", "a letter first"),
        ],
    )
    def test_that_would_hide_or_break_something_is_refused(self, typed, why):
        with pytest.raises(AnswerError) as error:
            naming.parse(typed)
        assert why in error.value.why
        assert error.value.fix


class TestTheCode:
    """What is written is clean whatever the names are."""

    @given(
        kind=st.sampled_from(sorted(NAMES)),
        words=st.lists(st.text("abcxyz019", min_size=1, max_size=19), min_size=1, max_size=8),
        package=st.from_regex(r"[a-z][a-z0-9_]{0,59}", fullmatch=True),
        classes=st.tuples(st.text("ABCabc", min_size=1, max_size=60), st.text("ABCabc", min_size=1, max_size=60)),
    )
    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
    def test_is_as_black_writes_it(self, frame, kind, words, package, classes):
        """No line is longer than 120 either."""
        name = naming.parse(("n" + "-".join(words))[: naming.LONGEST])
        files = render(frame, kind, name, package, *classes)
        for file, text in files.items():
            if file.endswith(".py"):
                assert black.format_str(text, mode=black.Mode(line_length=120)) == text
                assert max(map(len, text.splitlines())) <= 120

    @pytest.mark.parametrize("length", [1, naming.LONGEST])
    def test_is_sorted_as_ruff_wants_it(self, frame, tmp_path, length):
        """With the shortest and the longest names, by the project's own rules."""
        (tmp_path / "ruff.toml").write_text(
            'line-length = 120\nsrc = ["src"]\nlint.select = ["E", "F", "I", "UP", "B", "SIM", "RUF"]\n'
        )
        for kind in NAMES:
            name = naming.parse((f"n{kind}" + "x" * 40)[: max(length, 3)])
            for file, text in render(frame, kind, name, "p" * length, "Zmodel" * 8, "DATA").items():
                path = tmp_path / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        line = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def render(frame: Path, kind: str, name: naming.Name, package: str, model: str, data: str) -> dict[str, str]:
    """The files of a component of a project whose package and classes have these names."""
    root = frame / package
    code = f"from .data import {data} as D\nfrom {package}.model import {model} as M\n\nmain(data=D, model=M)\n"
    for file, text in {"configs/train.yaml": "", f"src/{package}/__main__.py": code}.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    base = projects.Applied(
        name="base", answers_file="", src_path="", commit="", template_hash=None, answers={"package_name": package}
    )
    project = projects.Project(root=root, layers=(base,))
    if name.camel in (model, data):
        name = naming.parse(f"{name.snake[:30]}_other")
    return dict(adding.rendered(kinds.built_in()[kind], name, project).files)


class TestARefusal:
    """One message, and the project is as it was."""

    @pytest.mark.parametrize(
        "line, said",
        [
            (["modle", "x"], ["no kind of component called 'modle'", "fix: scaffold add model NAME"]),
            (["model"], ["No NAME was given for the model"]),
            ([], ["No KIND was given"]),
            (["model", "data"], ["src/my_net/data.py is there already"]),
            (["callback", "train"], ["tests/test_train.py is there already"]),
            (["experiment", "wider"], ["configs/experiments/wider.yaml is there already"]),
            (["model", "digit-classifier"], ["DigitClassifier is what the project has already", "call it my-digit-"]),
            (["model", "x", ".."], ["is not in a project made by scaffold"]),
        ],
    )
    def test_says_what_is_wrong_with_the_command(self, project, plain, machine, line, said):
        assert_refused(machine.scaffold("add", *line, cwd=project), *said)
        assert state(project) == state(plain)

    @pytest.mark.parametrize(
        "code, said",
        [
            ("print('hello')\n", "it has no call like main(MyModel, MyData)"),
            ("main(Net, Points)\n", "Net is not imported from the package my_net"),
            ("from x import Net, Points\nmain(Net, Points)\n", "Net is not imported from the package my_net"),
            ("def (:\n", "it cannot be read"),
        ],
    )
    def test_says_what_a_variant_of_the_model_needs(self, project, machine, code, said):
        """The project's own command line is read to see which classes it trains."""
        (project / "src/my_net/__main__.py").write_text(code)
        before = state(project)
        assert_refused(machine.scaffold("add", "model", "wide", cwd=project), "__main__.py", said)
        assert state(project) == before

    @pytest.mark.usefixtures("in_process")
    def test_says_what_a_project_lacks(self, project):
        """A package, its name in the answers, the config that an overlay is laid over."""
        answers = project / ".copier-answers.yml"
        named = answers.read_text()
        (project / "configs/train.yaml").unlink()
        refused(project, "has no configs/train.yaml")
        answers.write_text(named.replace("package_name: my_net", "package_name: ../../x"))
        refused(project, "package_name is '../../x'")
        answers.write_text(named.replace("package_name: my_net", "package_name: other"))
        refused(project, "has no folder src/other")
        answers.write_text(named.replace("package_name: my_net\n", ""))
        refused(project, "has no Python package that is known")

    @pytest.mark.usefixtures("in_process")
    def test_says_what_is_in_the_way(self, project):
        """A link out of the project, a file for a folder, a package of that name."""
        (project / "src/my_net/longer").mkdir()
        with pytest.raises(ProjectError, match="src/my_net/longer is there already"):
            adding.add("callback", "longer", project)
        shutil.rmtree(project / "configs/experiments")
        (project / "configs/experiments").write_text("")
        refused(project, "configs/experiments is a file")
        (project / "configs/experiments").unlink()
        (project / "configs/experiments").symlink_to("/tmp")
        refused(project, "configs/experiments is a link out of the project")


def refused(project: Path, said: str) -> None:
    before = state(project)
    with pytest.raises(ProjectError) as error:
        adding.add("experiment", "longer", project)
    assert said in error.value.what
    assert state(project) == before


class TestWriting:
    """All files or none."""

    def test_that_fails_in_the_middle_undoes_its_beginning(self, tmp_path):
        """The folders that were made for it as well; the file that was faster stays."""
        (tmp_path / "b").write_text("another's")
        with pytest.raises(DestinationError, match="there already"):
            writing.write(tmp_path, {"deep/er/a": "1", "b": "2", "c": "3"}, lambda: None)
        assert state(tmp_path) == {"b": "another's"}

    def test_that_is_stopped_is_whole(self, tmp_path):
        """A Ctrl-C while files move takes effect when all are there."""
        told = []

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            told.append("whole")

        with pytest.raises(KeyboardInterrupt):
            writing.write(tmp_path, {"a": "1", "deep/b": "2"}, stop)
        assert told == ["whole"]
        assert state(tmp_path) == {"a": "1", "deep": "", "deep/b": "2"}

    def test_that_is_stopped_before_leaves_nothing(self, tmp_path):
        """While files are being written, elsewhere."""
        with pytest.raises(KeyboardInterrupt):
            writing.write(tmp_path, Stopping({"a": "1", "b": "2"}), lambda: None)
        assert state(tmp_path) == {}

    def test_removal_that_fails_in_the_middle_puts_back(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/a").write_text("1")
        with pytest.raises(DestinationError):
            writing.remove(tmp_path, ["deep/a", "gone"], lambda: None)
        assert state(tmp_path) == {"deep": "", "deep/a": "1"}


class Stopping(dict[str, str]):
    """Files, of which the second is never written: Ctrl-C comes first."""

    def items(self):
        for number, item in enumerate(super().items()):
            if number:
                os.kill(os.getpid(), signal.SIGINT)
            yield item


class TestTheDisk:
    def test_that_is_full_or_read_only_changes_nothing(self, project, plain, machine, tmp_path):
        """In clear words."""
        with disk(tmp_path / "disk", "size=512k") as root:
            there = shutil.copytree(project, root / "p", ignore=shutil.ignore_patterns(".git"))
            before = state(there)
            with (root / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(b"x" * 4096):
                    pass
            assert_refused(machine.scaffold("add", "model", "wide", cwd=there), f"The disk of {there} is full")
            assert state(there) == before
            subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
            assert_refused(machine.scaffold("add", "model", "wide", cwd=there), f"Cannot write in {there}: Read-only")
            assert state(there) == before


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk of its own")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


SLURM = {
    "src/{{ package_name }}/__init__.py": "",
    "components/slurm/component.yml": (
        'help: A job script for our cluster.\nneeds: ["src/{{ package }}"]\nnext: ["sbatch jobs/{{ name }}.sh"]\n'
    ),
    "components/slurm/jobs/{{ name }}.sh.jinja": "#!/bin/sh\npython -m {{ package }} # {{ class_name }}\n",
    "components/slurm/jobs/{{ name }}.txt": "${{ as it is }}\n",
}
CONFIG = 'package_name:\n  type: str\n  default: net\n_exclude: ["components", "copier.yml", ".git"]\n'


class TestATeamsOwnKind:
    @pytest.fixture
    def of_team(self, machine, make_template, tmp_path):
        """Makes a project from a template with these files besides."""

        def make(files: dict[str, str]) -> Path:
            template = make_template({**SLURM, **files}, config=CONFIG)
            done = machine.scaffold("new", "job", "--template", str(template), "--yes", "--no-git", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            return tmp_path / "job"

        return make

    def test_is_listed_added_and_removed(self, of_team, machine):
        """Like one of ours; a file without .jinja is taken as it is."""
        project = of_team({"components/model/component.yml": "help: Ours.\n", "components/model/x": ""})
        before = state(project)
        listed = machine.scaffold("add", "--list", cwd=project)
        assert "slurm       A job script for our cluster. (from base)" in listed.stdout
        assert "Ours." not in listed.stdout
        assert "note: model is that of scaffold; the template base has one of that name too." in listed.stderr
        done = machine.scaffold("add", "slurm", "big-run", cwd=project)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].strip() == "sbatch jobs/big_run.sh"
        assert (project / "jobs/big_run.sh").read_text() == "#!/bin/sh\npython -m net # BigRun\n"
        assert (project / "jobs/big_run.txt").read_text() == "${{ as it is }}\n"
        assert machine.scaffold("remove", "slurm", "big-run", cwd=project).returncode == 0
        assert state(project) == before

    def test_is_that_of_the_version_the_project_is_at(self, of_team, machine, tmp_path):
        """What the team changed since comes with an update. Removal needs the template no more."""
        project = of_team({})
        template = tmp_path / "template"
        (template / "components/slurm/jobs/{{ name }}.txt").write_text("new\n")
        machine.git("commit", "-q", "-am", "new", cwd=template)
        machine.git("tag", "v2.0.0", cwd=template)
        assert machine.scaffold("add", "slurm", "run", cwd=project).returncode == 0
        assert (project / "jobs/run.txt").read_text() == "${{ as it is }}\n"
        shutil.rmtree(template)
        assert machine.scaffold("remove", "slurm", "run", cwd=project).returncode == 0
        assert_refused(machine.scaffold("add", "slurm", "run", cwd=project), "There is no template at")
        listed = machine.scaffold("add", "--list", cwd=project)
        assert listed.returncode == 0
        assert "note: the template base could not be asked" in listed.stderr

    @pytest.mark.parametrize(
        "file, content, error",
        [
            (".git/hooks/post-checkout", "", UnsafeTemplate),
            ("{{ '..' }}/{{ name }}", "", UnsafeTemplate),
            (".copier-answers.yml", "", UnsafeTemplate),
            (".scaffold/components/model-x.json", "", UnsafeTemplate),
            ("x.jinja", "{{ ''.__class__.__mro__ }}", TemplateError),
            ("x.jinja", "{{ unknown }}", TemplateError),
            ("x.jinja", "{% for", TemplateError),
            ("x.jinja", "{{ 'a' * 10**10 }}", UnsafeTemplate),
            ("jobs/{{ name }}.sh", "", UnsafeTemplate),  # a second time
        ],
    )
    @pytest.mark.usefixtures("in_process")
    def test_may_do_no_harm(self, tmp_path, file, content, error):
        """Templates come from strangers, and their components with them."""
        folder = tmp_path / "components"
        for path, text in {**SLURM, f"components/slurm/{file}": content}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        [kind] = kinds.read(folder, origin="acme")
        with pytest.raises(error):
            kinds.render(kind, {"name": "x", "class_name": "X", "package": "p", "import_line": ""})

    @pytest.mark.parametrize(
        "description, said",
        [
            ("help: [", "cannot be read"),
            ("- help", "has no help"),
            ("help: x\nneeds: a", "needs in component.yml is not a list"),
            ("help: x\nclasses: maybe", "neither true nor false"),
            ("help: x\nquestions: {}", "has questions, which means nothing"),
        ],
    )
    def test_that_is_broken_says_where(self, tmp_path, description, said):
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm/component.yml").write_text(description)
        (tmp_path / "slurm/x").write_text("")
        with pytest.raises(TemplateError) as error:
            kinds.read(tmp_path, origin="acme")
        assert said in error.value.what
        assert "slurm" in error.value.what

    def test_cannot_write_to_the_terminal(self, tmp_path):
        """What its author says is shown without what a terminal would obey."""
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm/component.yml").write_text('help: "a\\e]0;owned\\a job"\n')
        (tmp_path / "slurm/x").write_text("")
        assert kinds.read(tmp_path, origin="acme")[0].help == "a]0;owned job"
