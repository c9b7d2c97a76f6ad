"""`scaffold template test`: combinations of answers, each through the stages of a project's life."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scaffold.errors import TemplateError
from scaffold.template_testing import draft as drafts
from scaffold.template_testing.cases import DEFAULT
from scaffold.template_testing.cases import combinations as found

ROOT = Path(__file__).resolve().parents[2]
ANSWERS_FILE = {"project/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}"}


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def template(root, config, files=None):
    """A template's plain files; what a project gets lies in its folder project/."""
    project = {f"project/{name}": text for name, text in (files or {}).items()}
    return write(root, {"copier.yml": f"_subdirectory: project\n{config}", **ANSWERS_FILE, **project})


def release(machine, root, tag):
    if not (root / ".git").exists():
        machine.git("init", "-q", cwd=root)
    machine.git("add", "-A", cwd=root)
    machine.git("commit", "-q", "-m", tag, cwd=root)
    machine.git("tag", tag, cwd=root)


def start(machine, *arguments, cwd, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "scaffold", "template", "test", *map(str, arguments)],
        cwd=cwd,
        env={**machine.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(machine, *arguments, cwd, **environment):
    """The real command: its exit code, and what it printed."""
    process = start(machine, *arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def statuses(done):
    """Of each combination, named by its answers: stage to status."""
    return [
        (one["answers"], {stage: result["status"] for stage, result in one["stages"].items()})
        for one in json.loads(done.stdout)["combinations"]
    ]


PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "net"
version = {% if fault == "installed" %}"none"{% else %}"1.0"{% endif %}

[tool.hatch.build.targets.wheel]
packages = ["net"]

[tool.mypy]
files = ["net"]
strict = true
"""
FAULTS = ["no", "rendered", "parsed", "black", "typed", "installed", "trained", "tests", "updated"]
FAULTY = f"""\
_scaffold:
  try: [python, -m, net, "{{fault}}"]
fault:
  type: str
  default: "no"
  choices: {json.dumps(FAULTS)}
"""
FAULTY_FILES = {
    "pyproject.toml.jinja": PYPROJECT,
    "net/__init__.py.jinja": 'colour{% if fault == "black" %}   {% endif %} = {% if fault == "black" %}'
    "'red'{% else %}\"red\"{% endif %}\n",
    "net/__main__.py.jinja": 'import sys\n\nsys.exit("loss is NaN" if sys.argv[1] == "trained" else 0)\n',
    "net/size.py.jinja": 'size: int = {% if fault == "typed" %}"large"{% else %}1{% endif %}\n',
    "test_net.py.jinja": 'import net\n\n\ndef test_colour() -> None:\n    assert net.colour == "'
    '{% if fault == "tests" %}blue{% else %}red{% endif %}"\n',
    "ci.yml.jinja": 'a: {% if fault == "parsed" %}[{% endif %}1\n',
    "README.md.jinja": '{% if fault == "rendered" %}{{ 1 // 0 }}{% endif %}\n',
    # Not the same twice, so what a project has and what it is said to have been made with are two things.
    "stamp.txt.jinja": '{% if fault == "updated" %}{{ range(100000) | random }}{% endif %}\n',
}


@pytest.fixture(scope="module")
def faulty(machine, tmp_path_factory):
    """A template with one fault for each stage, tested whole; and what the command said, twice."""
    root = template(tmp_path_factory.mktemp("faulty") / "faulty", FAULTY, FAULTY_FILES)
    release(machine, root, "v1.0.0")
    write(root, {"project/stamp.txt.jinja": "stamped\n"})  # and not committed
    report = root.parent / "report.xml"
    # Each stage where its fault is, and where there is none; all stages for all faults would only take longer.
    text = _numbers("no", "rendered", "parsed", "black", "typed"), "--stages=parsed,black,typed"
    life = _numbers("no", "installed", "trained", "tests", "updated"), "--stages=installed,trained,tests,updated"
    runs = [
        run(machine, root, *only, stages, "--json", "--format", "junit", report, cwd=root.parent)
        for only, stages in (life, text)
    ]
    table = run(machine, root, *_numbers("no", "black"), "--quick", cwd=root.parent)
    assert [done.returncode for done in (*runs, table)] == [1, 1, 1], table.stderr
    return root, [one for done in runs for one in json.loads(done.stdout)["combinations"]], report, table


def _numbers(*faults):
    return [f"--only={FAULTS.index(fault) + 1}" for fault in faults]


class TestEachStage:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_finds_the_fault_that_is_there_for_it_and_no_other(self, faulty, fault):
        """A combination fails at its stage, what needs that stage is skipped, and all else goes on."""
        _, combinations, _, _ = faulty
        for got in (one["stages"] for one in combinations if one["answers"] == {"fault": fault}):
            with_status = {
                status: {stage for stage, result in got.items() if result["status"] == status}
                for status in ("FAILED", "skipped")
            }
            needs = {"rendered": set(got) - {"rendered"}, "installed": {"trained", "tests"}}
            assert with_status == {"FAILED": {fault} - {"no"}, "skipped": needs.get(fault, set())}

    def test_says_why_and_what_ran(self, faulty):
        """The output of the tool is there, the first words of it as a reason, and for an update the files."""
        _, combinations, _, _ = faulty
        results = {one["answers"]["fault"]: one["stages"] for one in combinations}
        assert "division" in results["rendered"]["rendered"]["why"]
        assert "ci.yml" in results["parsed"]["parsed"]["why"]
        assert "-colour    = 'red'" in results["black"]["black"]["output"]
        assert results["black"]["black"]["command"] == "python -m black --check --diff ."
        assert "Incompatible types" in results["typed"]["typed"]["output"]
        assert results["trained"]["trained"]["why"] == "loss is NaN"
        assert results["trained"]["trained"]["command"] == "python -m net trained"
        assert results["updated"]["updated"]["why"] == "from v1.0.0: conflicts in stamp.txt"

    def test_is_a_case_in_the_report_for_ci(self, faulty):
        """JUnit's file has a suite for each combination, with its failures and what was skipped."""
        _, _, report, _ = faulty
        suites = ElementTree.parse(report).getroot().findall("testsuite")  # noqa: S314 - our own
        assert [suite.get("failures") for suite in suites] == ["0", "1", "1", "1", "1"]
        failure = suites[FAULTS.index("black")].find("testcase[@name='black']/failure")
        assert failure is not None
        assert "would reformat" in failure.text

    def test_is_a_column_of_the_table(self, faulty):
        """One row for each combination; below it each failure with its output and the command that repeats it."""
        root, _, _, done = faulty
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["#", "answers", "rendered", "parsed", "black", "time"]
        assert lines[1].split()[:5] == ["1", "fault=no", "cached", "cached", "cached"]
        assert lines[2].split()[:5] == ["4", "fault=black", "cached", "cached", "FAILED"]
        assert f"    again:   scaffold template test {root} --only 4 --stages black --keep kept" in lines
        assert "    | -colour    = 'red'" in lines
        assert lines[-1].startswith("2 combinations, 1 with a failure; stages: 0 ok, 5 cached, 1 FAILED, 0 skipped; ")

    def test_leaves_the_author_s_repository_alone(self, faulty, machine):
        """Nothing was committed or tagged there, nothing staged."""
        root, *_ = faulty
        assert machine.git("status", "--porcelain", cwd=root) == "M project/stamp.txt.jinja"
        assert machine.git("tag", cwd=root) == "v1.0.0"
        assert machine.git("log", "--oneline", "--all", cwd=root).count("\n") == 0


class TestWhatWentWellBefore:
    CONFIG = "_scaffold:\n  try: [python, try.py]\nsize:\n  type: int\n  default: 1\n  choices: [1, 2]\n"
    TRY = "import os\nwith open(os.environ['MARKER'], 'a') as file:\n    file.write('x')\n"

    def test_is_not_run_again_until_it_changes(self, machine, tmp_path):
        """A second run starts no process; a changed template, or --no-cache, starts all."""
        root = template(tmp_path / "counted", self.CONFIG, {"try.py": self.TRY})
        marker = tmp_path / "marker"

        def ran(*options):
            done = run(machine, root, "--stages", "trained", "--json", *options, cwd=tmp_path, MARKER=str(marker))
            assert done.returncode == 0, done.stdout + done.stderr
            return len(marker.read_text()), json.loads(done.stdout)["counts"]["cached"]

        assert ran() == (2, 0)
        assert ran() == (2, 4)
        assert ran("--no-cache") == (4, 0)
        write(root, {"project/new.txt": "new\n"})
        assert ran() == (6, 0)

    def test_is_remembered_only_when_it_went_well(self, machine, tmp_path):
        """A failure is tried again, and its output is there again."""
        root = template(tmp_path / "failing", self.CONFIG, {"try.py": self.TRY + "raise SystemExit('no')\n"})
        marker = tmp_path / "marker"
        for times in (1, 2):
            done = run(machine, root, "--only=1", "--stages=trained", cwd=tmp_path, MARKER=str(marker))
            assert done.returncode == 1
            assert "1 trained FAILED: no" in done.stdout
            assert len(marker.read_text()) == times


class TestSeveralAtOnce:
    TRY = (
        "import os, pathlib, sys, time\n"
        "there = pathlib.Path(os.environ['MARKER'])\n"
        "(there / str(os.getpid())).touch()\n"
        "end = time.monotonic() + 30\n"
        "while len(list(there.iterdir())) < 2:\n"
        "    if time.monotonic() > end:\n"
        "        sys.exit('nobody came')\n"
        "    time.sleep(0.05)\n"
    )

    def test_they_meet(self, machine, tmp_path):
        """With --jobs 2, two combinations wait for each other and both get through."""
        config = "_scaffold:\n  try: [python, try.py]\nflag:\n  type: bool\n  default: true\n"
        root = template(tmp_path / "meeting", config, {"try.py": self.TRY})
        there = tmp_path / "there"
        there.mkdir()
        done = run(machine, root, "--stages=trained", "--jobs=2", cwd=tmp_path, MARKER=str(there))
        assert done.returncode == 0, done.stdout


def gone(pid):
    """Whether a process ends within some seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def hanging(tmp_path):
    """A template whose training starts a child, writes down both process ids, and hangs."""
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "with open(os.environ['MARKER'], 'w') as file:\n"
        "    file.write(f'{os.getpid()} {child.pid} done')\n"
        "time.sleep(300)\n"
    )
    config = "_scaffold:\n  try: [python, try.py]\nname:\n  type: int\n  default: 1\n"
    return template(tmp_path / "hanging", config, {"try.py": code})


class TestATrainingThatHangs:
    def test_ends_at_the_time_limit_with_all_its_children(self, machine, hanging, tmp_path):
        """--timeout holds for each stage, says so, and nothing runs on."""
        marker = tmp_path / "marker"
        done = run(machine, hanging, "--stages=trained", "--timeout=6", cwd=tmp_path, MARKER=str(marker))
        assert done.returncode == 1
        assert "trained FAILED: took longer than --timeout allows" in done.stdout
        assert all(gone(pid) for pid in marker.read_text().split()[:2])

    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
    def test_is_ended_by_a_stop_and_leaves_nothing(self, machine, hanging, tmp_path, stop):
        """Ctrl-C ends all processes, removes what was written, and exits as interrupted."""
        marker, scratch = tmp_path / "marker", tmp_path / "scratch"
        scratch.mkdir()
        process = start(
            machine, hanging, "--stages=trained", "--no-cache", cwd=tmp_path, MARKER=str(marker), TMPDIR=str(scratch)
        )
        try:
            end = time.monotonic() + 60
            while not (marker.is_file() and marker.read_text().endswith("done")):
                assert time.monotonic() < end, process.poll()
                time.sleep(0.05)
            process.send_signal(stop)
            _, err = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        assert process.returncode == 128 + stop, err
        assert "Traceback" not in err
        assert all(gone(pid) for pid in marker.read_text().split()[:2])
        assert list(scratch.iterdir()) == []


class TestUpdatedFromEachRelease:
    def test_a_project_of_every_release_becomes_what_a_new_one_is(self, machine, tmp_path):
        """New questions, new choices, moved and deleted files: each release is tried with the answers it knows."""
        root = template(tmp_path / "growing", "size:\n  type: int\n  default: 1\n", {"a.txt.jinja": "{{ size }}\n"})
        release(machine, root, "v1.0.0")
        template(root, "size:\n  type: int\n  default: 1\nci:\n  type: str\n  choices: [a, b]\n  default: a\n")
        write(root, {"project/b.txt.jinja": "{{ size }} {{ ci }}\n"})
        (root / "project/a.txt.jinja").unlink()
        release(machine, root, "v1.1.0")
        template(root, "size:\n  type: int\n  default: 2\nci:\n  type: str\n  choices: [a, c]\n  default: a\n")
        done = run(machine, root, "--stages=updated", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        document = json.loads(done.stdout)
        whys = {one["answers"]["ci"]: one["stages"]["updated"]["why"] for one in document["combinations"]}
        assert whys == {"a": "", "c": "v1.1.0: ci cannot be 'c'."}

    def test_a_release_that_cannot_be_rendered_any_more_is_named(self, machine, tmp_path):
        """The failure says which tag, and what is wrong with it."""
        root = template(tmp_path / "broken", "size:\n  type: int\n  default: 1\n", {"a.txt.jinja": "{% endif %}\n"})
        release(machine, root, "v0.9.0")
        write(root, {"project/a.txt.jinja": "{{ size }}\n"})
        release(machine, root, "v1.0.0")
        done = run(machine, root, "--stages=updated", cwd=tmp_path)
        assert done.returncode == 1
        assert "1 updated FAILED: from v0.9.0: The template broken cannot be rendered" in done.stdout
        assert "from v1.0.0" not in done.stdout


@pytest.fixture
def combinations(in_process, tmp_path):
    """The combinations of a template with these questions, and with this tests/answers.yml."""

    def find(config, answers=None):
        root = template(tmp_path / "asking", config, {})
        if answers is not None:
            write(root, {"tests/answers.yml": answers})
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        there, notes = found(drafts.make(root, scratch))
        return [dict(case.answers) for case in there], notes

    return find


class TestTheCombinations:
    def test_of_no_questions_are_one(self, combinations):
        """A template that asks nothing is tested once."""
        assert combinations("") == ([{}], ())

    def test_hold_every_choice_both_booleans_and_the_number_s_default(self, combinations):
        """Every two of them meet."""
        there, _ = combinations(
            "ci:\n  type: str\n  choices: {GitHub: github, GitLab: gitlab, none: none}\n  default: none\n"
            "docs:\n  type: bool\n  default: false\nwidth:\n  type: int\n  default: 8\n"
        )
        assert len(there) == 6
        assert {(one["ci"], one["docs"]) for one in there} == {
            (ci, docs) for ci in ("github", "gitlab", "none") for docs in (True, False)
        }

    def test_try_a_text_with_all_that_is_odd_and_a_long_one(self, combinations):
        """Beside the default, a free text is quotes, a backslash, umlauts, an emoji, a leading digit; and long."""
        there, _ = combinations("title:\n  type: str\n  default: Net\n")
        assert len(there) == 3
        assert there[0] == {}
        assert all(part in there[1]["title"] for part in ("'", '"', "\\", "ü", "🚀"))
        assert there[1]["title"][0].isdigit()
        assert len(there[2]["title"]) > 200

    def test_leave_out_what_a_validator_refuses(self, combinations):
        """Where not all odd things are accepted at once, those that are; an identifier is tried with a long one."""
        there, notes = combinations(
            "title:\n  type: str\n  default: Net\n"
            "  validator: \"{% if '\\\\\\\\' in title %}no backslash{% endif %}\"\n"
            "package:\n  type: str\n  default: net\n"
            "  validator: \"{% if package | regex_search('[^a-z_]') %}letters{% endif %}\"\n"
        )
        titles = {one.get("title") for one in there}
        assert any('"double"' in title for title in titles if title)
        assert not any("\\" in title for title in titles if title)
        assert {one.get("package", "net").strip("abcdefghijklmnopqrstuvwxyz_") for one in there} == {""}
        assert any(len(one.get("package", "")) > 60 for one in there)
        assert notes == ()

    def test_answer_a_question_only_where_it_applies(self, combinations):
        """`when` is respected, also where it names a computed value."""
        there, _ = combinations(
            "cluster:\n  type: str\n  choices: [none, slurm]\n  default: none\n"
            "batch:\n  type: bool\n  when: false\n  default: \"{{ cluster != 'none' }}\"\n"
            "nodes:\n  type: int\n  choices: [1, 2]\n  default: 1\n  when: '{{ batch }}'\n"
        )
        assert sorted(there, key=str) == [
            {"cluster": "none"},
            {"cluster": "slurm", "nodes": 1},
            {"cluster": "slurm", "nodes": 2},
        ]

    def test_take_values_cases_and_exclusions_from_the_author(self, combinations):
        """tests/answers.yml adds values and whole combinations, and takes out what is not meant to work."""
        there, notes = combinations(
            "ci:\n  type: str\n  choices: [a, b]\n  default: a\nwidth:\n  type: int\n  default: 8\n",
            "values: {width: [1, -1]}\ncases: [{ci: b, width: 77}]\nexclude: [{ci: b, width: 1}]\n",
        )
        assert there[-1] == {"ci": "b", "width": 77}
        pairs = [(one["ci"], one.get("width", DEFAULT)) for one in there[:-1]]
        assert sorted(pairs, key=str) == sorted(
            [("a", DEFAULT), ("b", DEFAULT), ("a", 1), ("a", -1), ("b", -1)], key=str
        )
        assert notes == ()

    def test_name_a_value_that_is_never_accepted(self, combinations):
        """An author's value that the template refuses is no silent gap."""
        config = "width:\n  type: int\n  default: 8\n  validator: '{% if width < 1 %}too small{% endif %}'\n"
        there, notes = combinations(config, "values: {width: [-1, 2]}\n")
        assert there == [{}, {"width": 2}]
        assert notes == ("width=-1 is accepted in no combination",)

    @pytest.mark.parametrize(
        "answers, said",
        [
            ("- a\n", "may have values, cases and exclude"),
            ("value: {}\n", "may have values, cases and exclude"),
            ("values: {widht: [1]}\n", "did you mean width?"),
            ("values: {width: 1}\n", "not a list for each question"),
            ("cases: [3]\n", "cases that are not a list of mappings"),
            ("a: [\n", "is not YAML"),
            ("exclude: [{width: 8}]\n", "No combination of answers is left"),
        ],
    )
    def test_are_refused_when_the_author_s_file_is_wrong(self, combinations, answers, said):
        """The mistake is named, before anything is rendered."""
        with pytest.raises(TemplateError, match=said.replace("?", r"\?")):
            combinations("width:\n  type: int\n  default: 8\n", answers)

    def test_need_an_answer_where_there_is_no_default(self, combinations):
        """One is made up, or asked of the author when none is accepted."""
        assert combinations("mail:\n  type: str\n  validator: \"{% if '@' not in mail %}mail{% endif %}\"\n")[0] == [
            {"mail": "ada@example.com"}
        ]


class TestMistakes:
    @pytest.mark.parametrize(
        "arguments, said",
        [
            (["nowhere"], "There is no folder nowhere."),
            (["plain"], "plain is not a template."),
            (["ok", "--stages=blak"], "fix: --stages black"),
            (["ok", "--quick", "--full"], "say different things"),
            (["ok", "--only=2", "--quick"], "There is no combination 2."),
            (["ok", "--quick", "--keep=plain"], "is there already"),
            (["ok", "--quick", "--format", "html", "a"], "there is no such format"),
            (["ok", "--quick", "--format", "junit", "no/a.xml"], "Cannot write no/a.xml"),
            (["ok", "--python=nopython"], "nopython is not a Python that runs."),
        ],
    )
    def test_are_one_error_with_a_fix(self, machine, tmp_path, arguments, said):
        """What, why and the fix; never a traceback."""
        template(tmp_path / "ok", "")
        write(tmp_path, {"plain/a.txt": ""})
        done = run(machine, *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
        assert "  fix: " in done.stderr
        assert "Traceback" not in done.stderr


class TestWhatThisMachineLacks:
    PYPROJECT = (
        '[build-system]\nrequires = ["{backend}"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "net"\nversion = "1"\ndependencies = ["torch-for-potatoes>=1"]\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["net"]\n'
    )

    def needy(self, tmp_path, backend):
        files = {"pyproject.toml": self.PYPROJECT.format(backend=backend), "net/__init__.py": ""}
        return template(tmp_path / "needy", "_scaffold:\n  try: [python, -c, pass]\n", files)

    def test_is_said_and_fails_only_when_strict(self, machine, tmp_path):
        """A stage that cannot run is skipped with its reason; with --strict it has failed."""
        root = self.needy(tmp_path, "no-such-backend")
        done = run(machine, root, "--stages=installed", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "installed, skipped: no-such-backend is not installed (all)" in done.stdout
        strict = run(machine, root, "--stages=installed", "--strict", cwd=tmp_path)
        assert strict.returncode == 1
        assert "1 installed FAILED: no-such-backend is not installed" in strict.stdout

    def test_may_be_what_the_project_itself_depends_on(self, machine, tmp_path):
        """A project is not trained without its dependencies, and they are named."""
        done = run(machine, self.needy(tmp_path, "hatchling"), "--stages=trained", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "trained, skipped: torch-for-potatoes is not installed (all)" in done.stdout


class TestProjectsThatAreKept:
    def test_lie_there_to_look_at(self, machine, tmp_path):
        """--keep leaves the project of the chosen combination in a folder with its number."""
        root = template(
            tmp_path / "ok", "n:\n  type: int\n  choices: [1, 2]\n  default: 1\n", {"n.txt.jinja": "{{ n }}\n"}
        )
        done = run(machine, root / "project", "--quick", "--only=2", "--keep=kept", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "kept/2/my-project/n.txt").read_text() == "2\n"
        assert [entry.name for entry in (tmp_path / "kept").iterdir()] == ["2"]


class TestOurOwnTemplate:
    def test_trains_two_steps(self, machine, tmp_path):
        """The first combination of the base template is rendered, installed and trained."""
        pytest.importorskip("torch")
        done = run(machine, ROOT, "--only=1", "--stages=parsed,black,installed,trained", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        ((_, got),) = statuses(done)
        assert set(got.values()) == {"ok"}
