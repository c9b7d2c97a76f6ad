"""``scaffold template lint``: each rule on a template that has the fault and on one that has not, then the command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from scaffold.errors import TemplateError
from scaffold.linting import engine
from scaffold.linting.engine import Linted
from scaffold.linting.table import RULES

ROOT = Path(__file__).resolve().parents[2]
SHA = "8f4b7f84864484a7bf31766abe9204da3cbe65b3"
ANSWERS = "template/{{ _copier_conf.answers_file }}.jinja"
WORKFLOW = "template/{% if ci == 'github' %}.github{% endif %}/workflows/ci.yml"
MODEL = "template/src/{{ package_name }}/model.py"

CONFIG = """\
_min_copier_version: "9.19.0"
_subdirectory: template
_exclude: [.git, __pycache__]
_scaffold:
  managed: [".github/**"]
project_name:
  type: str
  help: What is it called?
  default: digits
package_name:
  when: false
  default: "{{ project_name | lower }}"
ci:
  help: Where do its tests run?
  choices: [github, none]
  default: github
"""

GOOD: Mapping[str, str | bytes] = {
    "copier.yml": CONFIG,
    "LICENSE": "Free for all.\n",
    "tests/test_template.py": "",
    ANSWERS: "{{ _copier_answers | to_nice_yaml -}}\n",
    "template/README.md.jinja": "# {{ project_name }}\n",
    "template/pyproject.toml.jinja": "[project]\nname = {{ project_name | to_json }}\n",
    "template/configs/train.yaml": "steps: 10\n---\nmodel: !Mine {size: 1}\n",
    MODEL: 'STEPS = "\\d"\n',
    "template/docs/auxiliary.md": "",
    "template/.github/CODEOWNERS": "",
    "template/tests/test_model.py.jinja": "import {{ package_name }}\n",
    WORKFLOW: f"steps:\n  - uses: actions/checkout@v5\n  - uses: acme/deploy@{SHA} # v3\n",
}

Changes = Mapping[str, str | bytes | None]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A fault, and what looks nearly like it."""

    faulty: Changes
    """What to write over the good template; None removes a file."""
    file: str = "copier.yml"
    line: int = 1
    mended: Changes = field(default_factory=dict)
    links: tuple[tuple[str, str], tuple[str, str]] | None = None
    """A link that is a fault and one that is none, each as name and target."""


def config(old: str, new: str) -> dict[str, str]:
    assert old in CONFIG
    return {"copier.yml": CONFIG.replace(old, new)}


def more(text: str) -> dict[str, str]:
    """Copier.yml with these lines at its end, the first of which is line 17."""
    return {"copier.yml": CONFIG + text}


LAYER = "_answers_file: .copier-answers.acme.yml\n"

ODD = {
    "template/{% if ci == 'x' %}.GIT{% endif %}/hooks/a": "",
    "template/docs/aux.md": "",
    "template/a..": "",
    "template/{{ '.g' ~ 'it' }}/config": "[core]\n",
}
BROKEN = {
    "template/a.yaml.jinja": "a: 1\nb: {{ ci }}: x\n",
    "template/a.toml": "a = 1\nb = c\n",
    MODEL: "A = 1\nB = (\n",
    "template/tests/test_model.py.jinja": None,
}
ON_TOP = {
    **more(LAYER + "_external_data: {base: .copier-answers.yml}\n"),
    "template/README.md.jinja": None,
    "template/a.py.jinja": "{% if _external_data.base.package_name %}({% endif %}\n",
}

PAIRS: dict[str, list[Pair]] = {
    "T101": [
        Pair(faulty=ODD, file="template/{% if ci == 'x' %}.GIT{% endif %}/hooks/a"),
        Pair(faulty=ODD, file="template/docs/aux.md"),
        Pair(faulty=ODD, file="template/a.."),
        Pair(faulty=ODD, file="copier.yml"),
    ],
    "T102": [
        Pair(faulty={}, file="template/data", links=(("template/data", "/srv"), ("template/data", "configs"))),
        Pair(
            faulty={}, file="template/docs/L", links=(("template/docs/L", "../../LICENSE"), ("template/docs/L", "../a"))
        ),
        Pair(faulty={}, file="template/a", links=(("template/a", "a"), ("template/a", "b"))),
    ],
    "T103": [Pair(faulty=more("_tasks: [make]\n"), line=17, mended=more("_tasks: []\n"))],
    "T104": [Pair(faulty=more("_migrations:\n  - command: make\n"), line=17)],
    "T105": [Pair(faulty=more("_jinja_extensions: [jinja2_time.TimeExtension]\n"), line=17)],
    "T106": [
        Pair(faulty=more("key:\n  secret: true\n"), line=17, mended=more('key:\n  secret: true\n  default: ""\n')),
        Pair(faulty=more("_secret_questions: [key]\nkey:\n  type: str\n"), line=18),
    ],
    "T107": [
        Pair(
            faulty=more("api_key:\n  default: x\n"),
            line=17,
            mended=more("api_key:\n  secret: true\n  default: x\nmax_tokens:\n  default: 3\n"),
        ),
        Pair(
            faulty={**more("key: {secret: true, default: x}\n"), "template/env.jinja": "A=1\nKEY={{ key }}\n"},
            file="template/env.jinja",
            line=2,
        ),
    ],
    "T108": [
        Pair(
            faulty={"template/{{ ci | lower }}": ""}, file="template/{{ ci | lower }}", mended={"template/{{ ci }}": ""}
        )
    ],
    "T201": [Pair(faulty={ANSWERS: None})],
    "T202": [
        Pair(faulty={ANSWERS: "name: {{ project_name }}\n"}, file=ANSWERS),
        Pair(
            faulty={ANSWERS: None, ANSWERS.removesuffix(".jinja"): GOOD[ANSWERS]},
            file=ANSWERS.removesuffix(".jinja"),
        ),
    ],
    "T203": [
        Pair(faulty=config("_exclude: [.git, __pycache__]\n", ""), line=2, mended={"copier.yml": "_exclude: []\n"})
    ],
    "T204": [Pair(faulty=config('_min_copier_version: "9.19.0"\n', ""))],
    "T205": [
        Pair(faulty=more("_answers_file: .acme.yml\n"), line=17, mended=more(LAYER)),
        Pair(faulty=more("_external_data: {base: .copier-answers.yml}\n")),
        Pair(faulty=more("_answers_file: .copier-answers.yml\n_scaffold: {overlaps: [a]}\n"), line=17),
    ],
    "T206": [Pair(faulty=ON_TOP, file="template/pyproject.toml.jinja")],
    "T207": [Pair(faulty=config('".github/**"', '".github/**", .gitlab-ci.yml'), line=5)],
    "T208": [
        Pair(faulty=config('".github/**"', '".github/**", "**"'), line=5),
        Pair(faulty=config('".github/**"', "src/digits/**"), line=5),
    ],
    "T209": [
        Pair(faulty=more("_excludes: [docs]\n"), line=17, mended=more("_anchors: [docs]\n_skip_if_exists: [docs]\n")),
        Pair(faulty=config('managed: [".github/**"]', "managed: .github/**"), line=5),
        Pair(faulty=config('_scaffold:\n  managed: [".github/**"]', "_scaffold: managed"), line=4),
    ],
    "T301": [
        Pair(faulty=config("  help: What is it called?\n", ""), line=6),
        Pair(faulty=more("team: platform\n"), line=17, mended=more("team:\n  when: false\n  default: platform\n")),
    ],
    "T302": [
        Pair(
            faulty=more("team:\n  type: str\n"),
            line=17,
            mended=more("team:\n  type: str\n  validator: '{% if not team %}whose?{% endif %}'\nfast:\n  type: bool\n"),
        )
    ],
    "T303": [Pair(faulty=config("  default: github\n", ""), line=13)],
    "T304": [
        Pair(
            faulty={"presets/gpu.yml": "# description: Ours\nci: github\nprojcet_name: x\n"},
            file="presets/gpu.yml",
            line=3,
            mended={"presets/gpu.yml": "ci: none\n", "presets/README.md": "a: b\n"},
        ),
        Pair(faulty={"presets/gpu.yml": "- ci\n"}, file="presets/gpu.yml"),
    ],
    "T401": [
        Pair(
            faulty={"template/README.md.jinja": "# A\n{% if ci %}\n"},
            file="template/README.md.jinja",
            line=2,
            mended={"template/README.md.jinja": "{% raw %}{% if ci %}{% endraw %}\n"},
        ),
        Pair(faulty=config("{{ project_name | lower }}", "{{ project_name | }}"), line=12),
        Pair(faulty={"template/{% if ci %}a": ""}, file="template/{% if ci %}a"),
        Pair(
            faulty=more("_envops:\n  block_start_string: '{{'\n"),
            line=17,
            mended=more("_envops:\n  trim_blocks: true\n"),
        ),
    ],
    "T402": [
        Pair(
            faulty={"template/README.md.jinja": "# A\n\n{{ projcet_name }}\n"},
            file="template/README.md.jinja",
            line=3,
            mended={
                "template/README.md.jinja": "{% for x in range(3) %}{{ x }}{% endfor %}{{ a | default(1) }}"
                "{% if b is defined %}{{ b }}{% endif %}{% set c = 1 %}{{ c }}{{ _copier_conf.src_path }}{{ ci }}\n",
                "template/{% yield part from ['a', 'b'] %}{{ part }}{% endyield %}.md.jinja": "{{ part }}\n",
            },
        ),
        Pair(faulty=config("{{ project_name | lower }}", "{{ ci }}"), line=12),
        Pair(faulty=config("  default: github", "  default: '{{ githup }}'"), line=16),
        Pair(faulty={"template/{{ nmae }}.md": ""}, file="template/{{ nmae }}.md"),
    ],
    "T403": [
        Pair(
            faulty={"template/ci.yml.jinja": "a: {{ ci }}\nb: ${{ matrix.b }}\n"},
            file="template/ci.yml.jinja",
            line=2,
            mended={
                "template/ci.yml.jinja": "a: {{ ci }}\nb: {% raw %}${{ matrix.b }}{% endraw %} {{ '${{' }}\n",
                "template/b.yml": "b: ${{ matrix.b }}\n",
            },
        )
    ],
    "T404": [
        Pair(
            faulty={"template/a.md.jinja": "plain\n"},
            file="template/a.md.jinja",
            mended={"template/a.md": "plain\n", "template/b.md.jinja": "{# why #}\n"},
        )
    ],
    "T405": [
        Pair(
            faulty={"template/a.md": "plain\n# {{ project_name }}\n"},
            file="template/a.md",
            line=2,
            mended={"template/a.md": "${{ matrix.ci }} {{ .Values.ci }} {{ other }} {{ 'ci' }} {%- if message %}\n"},
        ),
        Pair(faulty={"template/a.md": "{%- if ci == 'github' %}\n"}, file="template/a.md"),
    ],
    "T406": [
        Pair(
            faulty={"template/{% if ci == 'github'" + " or ci == 'gitlab'" * 5 + " %}a{% endif %}": ""},
            file="template/{% if ci == 'github'" + " or ci == 'gitlab'" * 5 + " %}a{% endif %}",
            mended={"template/" + "a" * 120: ""},
        )
    ],
    "T407": [
        Pair(
            faulty={"template/README.md.jinja": "# A\n{{ ci | slugify }}\n"},
            file="template/README.md.jinja",
            line=2,
            mended={
                **more("_jinja_extensions: [jinja2_slug.Slug]\n"),
                "template/README.md.jinja": "{{ ci | slugify }}{{ ci | to_json | regex_replace('a', 'b') }}\n",
            },
        )
    ],
    "T408": [
        Pair(
            faulty={"template/a.md.jinja": "é {{ ci }}\n".encode("latin-1")},
            file="template/a.md.jinja",
            mended={"template/a.md": "é\n".encode("latin-1")},
        )
    ],
    "T501": [
        Pair(faulty={WORKFLOW: "steps:\n  - uses: acme/deploy@main\n"}, file=WORKFLOW, line=2),
        Pair(
            faulty={WORKFLOW: "steps:\n  - name: A\n    uses: 'actions/checkout'\n"},
            file=WORKFLOW,
            line=3,
            mended={
                WORKFLOW: "steps:\n  - uses: ./local\n  - uses: docker://alpine:3\n  - uses: a/b@v1\n  # uses: a/b@main\n"
            },
        ),
    ],
    "T502": [
        Pair(faulty={WORKFLOW: "steps:\n  - uses: acme/deploy@v3.1\n"}, file=WORKFLOW, line=2),
    ],
    "T601": [
        Pair(
            faulty=more("port:\n  type: int\n  help: Which?\n  default: none\n"),
            mended={**more("_tasks: [exit 1]\nkey:\n  type: str\n"), "template/a.jinja": "{{ key }}\n"},
        ),
    ],
    "T602": [Pair(faulty=BROKEN, file="template/a.yaml.jinja")],
    "T604": [Pair(faulty=BROKEN, file=MODEL, line=2)],
    "T605": [Pair(faulty=BROKEN)],
    "T701": [
        Pair(
            faulty={"tests/test_template.py": None},
            mended={"tests/test_template.py": None, ".github/workflows/ci.yml": "run: scaffold template test\n"},
        )
    ],
    "T704": [Pair(faulty={"LICENSE": None}, mended={"LICENSE": None, "LICENCE.md": ""})],
    "T705": [
        Pair(
            faulty={"template/a.yaml": "a: 1\ndata: /home/maria/data\n"},
            file="template/a.yaml",
            line=2,
            mended={
                "template/a.yaml": "a: /home/runner/x ~/data https://example.com/home/maria/ ${ROOT}/home/maria/x\n"
            },
        ),
        Pair(faulty={"template/a.yaml": 'data: "C:\\\\Users\\\\Maria\\\\x"\n'}, file="template/a.yaml"),
    ],
}
if sys.version_info >= (3, 11):  # no Python before reads TOML
    PAIRS["T603"] = [Pair(faulty=BROKEN, file="template/a.toml", line=2)]
ELSEWHERE = {"T702", "T703"} | ({"T603"} if sys.version_info < (3, 11) else set())
"""Rules about the repository have tests of their own."""


def write(folder: Path, *changes: Changes, link: tuple[str, str] | None = None) -> Path:
    for name, content in {**GOOD, **{k: v for change in changes for k, v in change.items()}}.items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if link:
        (folder / link[0]).parent.mkdir(parents=True, exist_ok=True)
        (folder / link[0]).symlink_to(link[1])
    return folder


def places(folder: Path, rule: str) -> list[tuple[str, int]]:
    linted = engine.lint(folder, select=[rule])
    assert {found.rule.id for found in linted.findings} <= {rule}
    return [(found.fault.file, found.fault.line) for found in linted.findings]


@pytest.fixture(scope="module")
def linted(tmp_path_factory):
    """Findings of one rule in a template; each template is written and linted once."""
    seen: dict[str, Linted] = {}

    def lint(changes: Changes, link: tuple[str, str] | None, rule: str) -> list[tuple[str, int]]:
        rendered = changes in (ODD, BROKEN, {}) and link is None
        key = f"{changes} {link} {'' if rendered else rule}"
        if key not in seen:
            folder = write(tmp_path_factory.mktemp("template"), changes, link=link)
            seen[key] = engine.lint(folder, select=[] if rendered else [rule])
        return [(one.fault.file, one.fault.line) for one in seen[key].findings if one.rule.id == rule]

    return lint


@pytest.mark.usefixtures("in_process")
class TestEachRule:
    @pytest.mark.parametrize(
        "rule, pair",
        [pytest.param(rule, pair, id=f"{rule}-{n}") for rule in PAIRS for n, pair in enumerate(PAIRS[rule])],
    )
    def test_finds_the_fault_where_it_is_and_nothing_where_it_is_not(self, rule: str, pair: Pair, linted) -> None:
        """A template with the fault has the finding, at its line; the same without it, or what only looks alike, has none."""
        faulty, mended = pair.links or (None, None)
        assert (pair.file, pair.line) in linted(pair.faulty, faulty, rule)
        assert linted(pair.mended, mended, rule) == []

    def test_has_such_a_pair_and_a_page(self) -> None:
        """No rule is without a test, and none without a page that says what, why, how to do better and how to mute."""
        ids = [rule.id for rule in RULES]
        assert sorted(ids) == ids
        assert len(set(ids)) == len(ids)
        assert PAIRS.keys() | ELSEWHERE == set(ids)
        folder = Path(engine.__file__).with_name("pages")
        assert {page.stem for page in folder.iterdir()} == set(ids)
        for rule in RULES:
            page = engine.explain(rule.id)
            assert page.startswith(f"# {rule.id}: {rule.title}\n\nSeverity: {rule.severity}\n")
            for heading in ("## Why it matters", "## Bad", "## Good", "## Muting", f"ignore: [{rule.id}]"):
                assert heading in page


class TestARelease:
    def test_that_is_missing_is_found(self, machine, tmp_path: Path, in_process: None) -> None:
        """A template that is no repository, or has no tag that is a version, is told so."""
        folder = write(tmp_path / "template")
        assert places(folder, "T702") == [("copier.yml", 1)]
        commit(machine, folder)
        machine.git("tag", "nightly", cwd=folder)
        assert places(folder, "T702") == [("copier.yml", 1)]
        assert places(folder, "T703") == []
        machine.git("tag", "v1.0.0", cwd=folder)
        assert places(folder, "T702") == []

    def test_that_lacks_what_was_changed_is_found(self, machine, tmp_path: Path, in_process: None) -> None:
        """Changes of what projects get count, committed or not; others, such as the template's own README, do not."""
        folder = write(tmp_path / "template")
        commit(machine, folder)
        machine.git("tag", "v1.0.0", cwd=folder)
        (folder / "LICENSE").write_text("Free for some.\n")
        assert places(folder, "T703") == []
        (folder / "template" / "configs" / "train.yaml").write_text("steps: 11\n")
        (found,) = engine.lint(folder, select=["T703"]).findings
        assert "template/configs/train.yaml" in found.fault.message
        commit(machine, folder)
        assert places(folder, "T703") == [("copier.yml", 1)]
        machine.git("tag", "v1.0.1", cwd=folder)
        assert places(folder, "T703") == []
        (folder / "template" / "new.md").write_text("")
        assert places(folder, "T703") == [("copier.yml", 1)]


def commit(machine, folder: Path) -> None:
    machine.git("init", "-q", cwd=folder)
    machine.git("add", "-A", "-f", cwd=folder)
    machine.git("commit", "-q", "-m", "template", cwd=folder)


@pytest.fixture
def good(machine, tmp_path: Path) -> Path:
    """A template with nothing to find, released."""
    folder = write(tmp_path / "good")
    commit(machine, folder)
    machine.git("tag", "v1.0.0", cwd=folder)
    return folder


class TestATemplateAsItLies:
    def test_without_a_fault_has_no_finding(self, machine, good: Path) -> None:
        """All rules together find nothing in a good template, and linting leaves no trace in it."""
        done = machine.scaffold("template", "lint", str(good), "--strict", cwd=good.parent)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing found in 9 files.\n", "")
        assert machine.git("status", "--porcelain", "--ignored", cwd=good) == ""

    def test_counts_with_what_is_not_committed_and_without_what_git_ignores(self, machine, good: Path) -> None:
        """A new file is linted before its first commit; a cache that git ignores never is."""
        (good / ".git" / "info" / "exclude").write_text("cache/\n")
        for name in ("template/new.md.jinja", "template/cache/old.md.jinja"):
            (good / name).parent.mkdir(exist_ok=True)
            (good / name).write_text("{{ typo }}\n")
        done = machine.scaffold("template", "lint", "--select", "T402", cwd=good)
        assert done.returncode == 1
        assert done.stdout.startswith("template/new.md.jinja:1  T402 error  'typo' is neither")
        assert "1 error, 0 warnings in 10 files" in done.stdout

    def test_of_our_own_has_no_error(self, machine) -> None:
        """The template that comes with scaffold passes its own rules."""
        done = machine.scaffold("template", "lint", str(ROOT), "--strict", "--ignore", "T702,T703", cwd=ROOT)
        assert done.returncode == 0, done.stdout

    def test_that_lies_on_another_is_seen_on_top_of_it(self, tmp_path: Path, in_process: None) -> None:
        """A layer is rendered where the base's answers are, needs no tests of its own, and may overlap where it says so."""
        folder = write(tmp_path / "layer", ON_TOP, {"template/tests/test_model.py.jinja": None})
        (folder / "copier.yml").write_text(f"{ON_TOP['copier.yml']}_scaffold: {{overlaps: [configs/, '*.toml']}}\n")
        found = engine.lint(folder, select=["T206", "T604", "T605"]).findings
        assert [(one.rule.id, one.fault.file) for one in found] == [
            ("T604", "template/a.py.jinja"),
            ("T206", MODEL),
            ("T206", WORKFLOW),
        ]

    def test_may_have_names_that_no_terminal_can_print(self, tmp_path: Path) -> None:
        """A name that is no UTF-8, or has more than one line, is shown in a way that can be printed."""
        folder = write(tmp_path / "template")
        for name in (b"\xff.md.jinja", b"a\nb.md.jinja"):
            (folder / "template" / os.fsdecode(name)).write_text("plain\n")
        texts = [found.text() for found in engine.lint(folder, select=["T404"]).findings]
        assert [text.split(":")[0] for text in texts] == ["template/a\\nb.md.jinja", "template/\\udcff.md.jinja"]

    def test_is_not_written_to(self, tmp_path: Path, in_process: None) -> None:
        """The trial is without tasks, and yet what a linked copier.yml leads to stays as it is."""
        folder = write(tmp_path / "template", {"copier.yml": None})
        real = tmp_path / "real.yml"
        real.write_text(f"{CONFIG}_tasks: [exit 1]\n")
        (folder / "copier.yml").symlink_to(real)
        assert engine.lint(folder, select=["T6"]).findings == ()
        assert real.read_text() == f"{CONFIG}_tasks: [exit 1]\n"

    def test_may_hold_what_takes_years_to_compute(self, tmp_path: Path) -> None:
        """Jinja is read and not run, and what YAML repeats is read once."""
        laughs = "_a: &a [x, x]\n" + "".join(
            f"_{new}: &{new} [{', '.join(f'*{old}' for _ in range(9))}]\n" for old, new in pairwise("abcdefghij")
        )
        years = "{{ 9 ** (9 ** 9) }}{% if 9 ** (9 ** 9) ~ typo %}{{ 9 ** (9 ** 9) | string }}{% endif %}\n"
        config = f"{laughs}_tasks: *j\nq: {{default: *j, help: '{{{{ typo }}}}'}}\n"
        folder = write(tmp_path / "template", {"copier.yml": CONFIG + config, "template/a.jinja": years})
        found = engine.lint(folder, select=["T4", "T103"]).findings
        assert [(one.rule.id, one.fault.file) for one in found] == [
            ("T103", "copier.yml"),
            ("T402", "copier.yml"),
            ("T402", "template/a.jinja"),
        ]


class TestTheCommand:
    def test_fails_on_errors_and_only_when_told_on_warnings(self, machine, good: Path) -> None:
        """A warning alone exits with 0, with --strict with 1."""
        (good / "LICENSE").unlink()
        assert machine.scaffold("template", "lint", "--select", "T7", cwd=good).returncode == 0
        done = machine.scaffold("template", "lint", "--select", "T7", "--strict", cwd=good)
        assert done.returncode == 1
        assert done.stdout.splitlines()[0].startswith("copier.yml:1  T704 warning  ")
        assert done.stdout.splitlines()[1].endswith("scaffold template lint --explain T704")

    def test_prints_json(self, machine, good: Path) -> None:
        """--json is one document, with what a machine needs of each finding."""
        (good / WORKFLOW).write_text("steps:\n  - uses: acme/deploy@main\n")
        done = machine.scaffold("template", "lint", "--json", "--select", "T5", cwd=good)
        document = json.loads(done.stdout)
        assert (done.returncode, document["errors"], document["warnings"]) == (1, 1, 0)
        (found,) = document["findings"]
        assert (found["rule"], found["severity"], found["file"], found["line"]) == ("T501", "error", WORKFLOW, 2)
        assert found["message"]
        assert found["fix"]

    def test_prints_annotations_for_github(self, machine, good: Path) -> None:
        """Each is one line with its special characters escaped, and names the file from where the step runs."""
        (good / "template" / "a,b.md.jinja").write_text("{{ 100 % typo }}\n")
        done = machine.scaffold("template", "lint", "good", "--format", "github", "--select=T402", cwd=good.parent)
        first = done.stdout.splitlines()[0]
        assert first.startswith(
            "::error file=good/template/a%2Cb.md.jinja,line=1,title=T402 A variable that has no value::"
        )

    def test_explains_a_rule_anywhere(self, machine, tmp_path: Path) -> None:
        """--explain needs no template."""
        done = machine.scaffold("template", "lint", "--explain", "T403", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("# T403: ${{ in a file that is rendered\n")


@pytest.mark.usefixtures("in_process")
class TestMuting:
    def test_in_the_line_mutes_that_rule_there(self, tmp_path: Path) -> None:
        """A comment mutes the rules that it names, in its own line and nowhere else."""
        text = "{{ a }}{# scaffold: ignore T403, T402 #}\n{{ b }}{# scaffold: ignore T401 #}\n{{ c }}\n"
        linted = engine.lint(write(tmp_path, {"template/a.jinja": text}), select=["T402"])
        assert [found.fault.line for found in linted.findings] == [2, 3]
        assert linted.muted == 1
        assert "(1 muted)" in linted.summary()

    def test_in_copier_yml_mutes_a_rule_or_a_family(self, tmp_path: Path) -> None:
        """_scaffold: {lint: {ignore: [...]}} is the author's word for the whole template."""
        quiet = config('managed: [".github/**"]', "lint: {ignore: [T402, T7]}")
        linted = engine.lint(
            write(tmp_path, quiet, {"template/a.jinja": "{{ a }}\n", "LICENSE": None}), select=["T402", "T7"]
        )
        assert linted.findings == ()
        assert linted.muted == 3

    def test_of_a_rule_that_does_not_exist_is_noted(self, tmp_path: Path) -> None:
        """A misspelt id mutes nothing, and the author hears of it."""
        quiet = config('managed: [".github/**"]', "lint: {ignore: [T42]}")
        (note,) = engine.lint(write(tmp_path, quiet), select=["T301"]).notes
        assert "T42" in note


class TestBadInput:
    @pytest.mark.parametrize(
        "content, said",
        [
            pytest.param(None, "folder is not a template: it has no copier.yml.", id="an empty folder"),
            pytest.param(b"a: 1\nb: }\n", "copier.yml:2 cannot be read: ", id="unreadable YAML"),
            pytest.param(b"- a: 1\n- b\n", "copier.yml:1 cannot be read: it is not a mapping", id="a list"),
            pytest.param("a: é\n".encode("latin-1"), "copier.yml:1 cannot be read: it is not UTF-8", id="not UTF-8"),
            pytest.param(b"a: \0\n", "copier.yml:1 cannot be read: ", id="no text"),
        ],
    )
    def test_that_is_no_template_is_refused(self, tmp_path: Path, content: bytes | None, said: str) -> None:
        """What cannot be linted at all is a mistake, with the line where there is one."""
        folder = tmp_path / "folder"
        folder.mkdir()
        if content is not None:
            (folder / "copier.yml").write_bytes(content)
        with pytest.raises(TemplateError) as raised:
            engine.lint(folder)
        assert said in raised.value.what

    @pytest.mark.parametrize("select, guess", [("T943", "T403"), ("X7", "T7"), ("", "T1"), ("t201", "T201")])
    def test_that_is_no_rule_is_refused(self, tmp_path: Path, select: str, guess: str) -> None:
        """A misspelt id selects, ignores and explains nothing; the nearest one is named."""
        for call in (
            lambda: engine.lint(tmp_path, select=["T1", select]),
            lambda: engine.lint(tmp_path, ignore=[select]),
            lambda: engine.explain(select),
        ):
            with pytest.raises(TemplateError) as raised:
                call()
            assert repr(select) in raised.value.what
            assert guess in raised.value.fix

    def test_is_said_in_three_lines(self, machine, tmp_path: Path) -> None:
        """The command says what, why and the fix, and exits with 1."""
        done = machine.scaffold("template", "lint", "nowhere", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: There is no folder nowhere.\n  why: ")
        assert len(done.stderr.splitlines()) == 3

    @pytest.mark.usefixtures("in_process")
    @pytest.mark.parametrize(
        "text",
        [
            "_scaffold: {lint: 3, managed: [1], overlaps: {a: b}}\n",
            "_subdirectory: 5\n_exclude: no\n_templates_suffix: [a]\n_answers_file: {}\n",
            "_envops: [a]\n_tasks: {a: b}\n_external_data: [x]\n_secret_questions: 7\n",
            "a: &a [*a]\n",
            "b: {a: &a {c: *a}}\n",
            "? [1, 2]\n: 3\n",
            "d: 2024-13-45\n",
            "q: {choices: 7, type: [a], when: {b: c}, default: null}\n1: 2\n",
            "!include other.yml\n",
            "!include copier.yml\n",
            "",
        ],
    )
    def test_of_any_shape_never_makes_the_linter_itself_fail(self, tmp_path: Path, text: str) -> None:
        """A copier.yml that is not what Copier expects gives findings, or is refused with a reason."""
        (tmp_path / "copier.yml").write_text(text)
        try:
            said = [finding.text() for finding in engine.lint(tmp_path, ignore=["T206", "T6"]).findings]
        except TemplateError as error:
            said = [error.what]
        assert said
