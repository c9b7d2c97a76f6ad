"""Answers from a file, and from files with a short name."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaffold import catalog, fetching, presets
from scaffold.errors import AnswerError

CONFIG = """
_subdirectory: template
name: {type: str, default: world}
size: {type: int, default: 1}
ci: {type: str, choices: [github, gitlab], default: github}
parts: {type: str, multiselect: true, choices: [a, b], default: []}
author_name: {type: str, default: the template's}
"""


@pytest.fixture(scope="module")
def template(machine, tmp_path_factory):
    """One with two presets."""
    folder = tmp_path_factory.mktemp("templates") / "template"
    (folder / "presets").mkdir(parents=True)
    (folder / "copier.yml").write_text(CONFIG)
    (folder / "template").mkdir()
    (folder / "template" / "{{ _copier_conf.answers_file }}.jinja").write_text("{{ _copier_answers | to_nice_yaml }}")
    (folder / "presets" / "service.yml").write_text("# description: A service of ours.\nci: gitlab\nsize: 2\nname: s\n")
    (folder / "presets" / "wrong.yml").write_text("nmae: s\n")
    (folder / "presets" / "link.yml").symlink_to("/etc/passwd")
    machine.git("init", "-q", cwd=folder)
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-q", "-m", "template", cwd=folder)
    machine.git("tag", "v1.0.0", cwd=folder)
    return folder


@pytest.fixture
def new(machine, template, tmp_path):
    """`scaffold new p --preview --json --yes` with more arguments: the command's result and the answers."""

    def run(*arguments, **environment):
        done = machine.scaffold(
            "new", "p", f"--template={template}", "--preview", "--json", "--yes", *arguments, cwd=tmp_path, **environment
        )  # fmt: skip
        return done, json.loads(done.stdout).get("answers")

    return run


class TestAnAnswersFile:
    def test_answers_questions_with_values_of_their_types(self, new, tmp_path):
        (tmp_path / "answers.yml").write_text("size: 3\nparts: [b]\n")
        done, answers = new("--answers", "answers.yml")
        assert done.returncode == 0, done.stderr
        assert answers == {"name": "world", "size": 3, "ci": "github", "parts": ["b"], "author_name": "Ada Tester"}

    def test_may_be_another_projects(self, machine, new, template, tmp_path):
        """What Copier notes there for itself is left out."""
        arguments = ("new", "old", f"--template={template}", "--yes", "--set", "size=5", "--no-git")
        assert machine.scaffold(*arguments, cwd=tmp_path).returncode == 0
        done, answers = new("--answers", "old/.copier-answers.yml")
        assert done.returncode == 0, done.stderr
        assert answers["size"] == 5

    def test_needs_no_yes_when_it_answers_everything(self, machine, template, tmp_path):
        (tmp_path / "all.yml").write_text("{name: n, size: 1, ci: gitlab, parts: [], author_name: A}")
        arguments = ("new", "p", f"--template={template}", "--answers=all.yml", "--no-git")
        done = machine.scaffold(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "ci: gitlab" in (tmp_path / "p" / ".copier-answers.yml").read_text()

    def test_with_an_unknown_question_names_the_nearest_one(self, new, tmp_path):
        (tmp_path / "answers.yml").write_text("siez: 3\n")
        done, _ = new("--answers", "answers.yml")
        assert done.returncode == 1
        assert "answers.yml: the template has no question called 'siez'" in done.stderr
        assert "write size: instead of siez: there" in done.stderr

    def test_with_an_answer_that_is_not_accepted_names_the_choices(self, new, tmp_path):
        (tmp_path / "answers.yml").write_text("ci: gitlob\n")
        done, _ = new("--answers", "answers.yml")
        assert done.returncode == 1
        assert "github, gitlab" in done.stderr

    def test_that_is_not_there_is_named(self, new):
        done, _ = new("--answers", "nowhere.yml")
        assert done.returncode == 1
        assert "Cannot read the answers in nowhere.yml: No such file" in done.stderr


class TestAPreset:
    def test_is_found_in_the_template(self, new):
        done, answers = new("--preset", "service")
        assert done.returncode == 0, done.stderr
        assert (answers["ci"], answers["size"], answers["name"]) == ("gitlab", 2, "s")

    def test_is_found_in_the_users_settings(self, new, tmp_path):
        own = tmp_path / "config" / "treadle-scaffold" / "presets"
        own.mkdir(parents=True)
        (own / "mine.yml").write_text("# description: Mine.\nname: me\n")
        done, answers = new("--preset", "mine", XDG_CONFIG_HOME=str(tmp_path / "config"))
        assert done.returncode == 0, done.stderr
        assert answers["name"] == "me"

    def test_can_be_tried_by_its_author_before_it_is_committed(self, machine, make_template, tmp_path):
        template = make_template()
        (template / "presets").mkdir()
        (template / "presets" / "draft.yml").write_text("name: you\n")
        arguments = ("new", "p", "--template=template@HEAD", "--yes", "--no-git", "--preset=draft")
        done = machine.scaffold(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "p" / "hello.txt").read_text() == "Hello you\n"

    def test_is_any_file(self, new, tmp_path):
        (tmp_path / "team.yml").write_text("name: us\n")
        _, answers = new("--preset", "team.yml")
        assert answers["name"] == "us"

    def test_that_there_is_not_names_those_that_there_are(self, new):
        done, _ = new("--preset", "servise")
        assert done.returncode == 1
        assert "fix: --preset service" in done.stderr
        assert "service, wrong" in done.stderr

    @pytest.mark.parametrize("name", ["../../etc/passwd", "-x", "HEAD:x"])
    def test_with_a_name_that_leads_elsewhere_is_taken_for_a_file(self, new, name):
        done, _ = new(f"--preset={name}")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Cannot read" in done.stderr

    def test_that_is_a_link_is_not_followed(self, new):
        """git hands out where it leads to, which is no answer."""
        done, _ = new("--preset", "link")
        assert done.returncode == 1
        assert "not a YAML mapping" in done.stderr
        assert "root:" not in done.stderr

    def test_with_an_unknown_question_is_refused(self, new):
        done, _ = new("--preset", "wrong")
        assert done.returncode == 1
        assert "the template has no question called 'nmae'" in done.stderr

    def test_is_listed_with_where_it_stands_and_what_it_is_for(self, in_process, template, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        own = tmp_path / "treadle-scaffold" / "presets" / "mine.yml"
        own.parent.mkdir(parents=True)
        own.write_text("# description: Mine.\n")
        found = presets.available(fetching.fetch(catalog.find(str(template))))
        assert [(p.name, p.description, p.place) for p in found] == [
            ("link", "", "template"),
            ("mine", "Mine.", str(own)),
            ("service", "A service of ours.", "template"),
            ("wrong", "", "template"),
        ]

    def test_says_what_it_is_for_in_its_first_line(self):
        assert presets.describe(b"# description: For services.\nci: x\n") == "For services."
        assert presets.describe(b"ci: x\n# description: no\n") == ""


class TestPrecedence:
    def test_is_flags_then_answers_then_preset_then_git_then_the_template(self, new, tmp_path):
        (tmp_path / "answers.yml").write_text("size: 3\nname: from answers\n")
        _, answers = new("--preset=service", "--answers=answers.yml", "--set", "name=from set")
        assert answers == {
            "name": "from set",
            "size": 3,
            "ci": "gitlab",
            "author_name": "Ada Tester",
            "parts": [],
        }
        _, answers = new("--author-name=me")
        assert answers["author_name"] == "me"


class TestAHostileFile:
    @pytest.mark.parametrize(
        "content, reason",
        [
            (b"- a", "not a YAML mapping"),
            (b"just text", "not a YAML mapping"),
            (b"1: x", "'1' is a key, and keys are words"),
            (b"true: x", "'true' is a key"),
            (b"? [a]\n: x", "a list or mapping is a key"),
            (b"a: {2: x}", "'2' is a key"),
            (b"<<: {a: b}", "'<<' is a key"),
            (b"a: 1\na: 2", "answers 'a' twice"),
            (b"a: 1\n---\nb: 1", "another document"),
            (b"a: !!python/object/apply:os.system ['touch pwned']", "not plain YAML"),
            (b"!!python/object/apply:os.system ['touch pwned']", "not a YAML mapping"),
            (b"a: &a [*a]", "not plain YAML"),
            (b"a: &a x\nb: [" + b"*a, " * 21 + b"]", "more than 20 aliases"),
            (b"a: " + b"[" * 10_000, "nested more than 20 deep"),
            (b"a: 2020-13-45", "month"),
            (b"a: " + b"9" * 10_000, "not plain YAML"),
            (b"\xff\xfe\xfd", "not plain YAML"),
            (b"a: \x00", "not plain YAML"),
            (b"a: b: c", "line 1"),
            (b"x" * 1_000_001, "larger than 1,000,000 bytes"),
        ],
    )
    def test_is_refused_with_the_reason(self, content, reason):
        with pytest.raises(AnswerError, match=reason):
            presets.parse(content, "answers.yml")

    def test_of_billions_of_laughs_ends_soon(self, monkeypatch):
        """Within the few aliases that are allowed, repeated by the largest text."""
        monkeypatch.setattr(presets, "SECONDS", 2.0)
        levels = [b"l0: &l0 [" + b"x" * 900_000 + b"]"]
        levels += [b"l%d: &l%d [*l%d, *l%d]" % (n, n, n - 1, n - 1) for n in range(1, 11)]
        began = time.monotonic()
        with pytest.raises(AnswerError, match="too long or too much memory"):
            presets.parse(b"\n".join(levels), "answers.yml")
        assert time.monotonic() - began < 15

    def test_with_a_number_that_takes_for_ever_ends_soon(self, monkeypatch):
        """YAML counts 1:1:1:1 in sixties."""
        monkeypatch.setattr(presets, "SECONDS", 1.0)
        with pytest.raises(AnswerError, match="too long"):
            presets.parse(b"a: 1" + b":1" * 400_000, "answers.yml")

    def test_with_terminal_commands_in_it_shows_none(self, new, tmp_path):
        (tmp_path / "answers.yml").write_text('"\\e]0;owned\\a": 1\n')
        done, _ = new("--answers", "answers.yml")
        assert done.returncode == 1
        assert "\x1b" not in done.stderr

    @given(content=st.binary(max_size=200) | st.text(alphabet="ab:&*![]{}?-'\"\n <1.", max_size=60).map(str.encode))
    def test_of_any_content_is_read_or_refused(self, content):
        """Nothing else is ever raised."""
        try:
            values = presets._parse(content, "answers.yml")
        except AnswerError:
            return
        assert all(isinstance(name, str) for name in values)
