"""`scaffold update` and `scaffold layer add` ask what is new, on a real terminal; without one they name all that is open."""

from __future__ import annotations

import shutil

import pytest
from terminal import CTRL_C, DOWN, ENTER, ESCAPE, SUMMARY, readable, run

ANSWERS = {"{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}"}
FIRST = """
name: {type: str, default: world}
paint: {type: str, choices: [red, green], default: red}
token: {type: str, secret: true, default: ''}
"""
SECOND = """
_message_after_update: "Hello {{ name }}\\e[2J, look at {{ _copier_conf.dst_path }}"
name: {type: str, default: world}
paint: {type: str, choices: [red, green], default: red}
city: {type: str, default: "{{ name }}-town", validator: "{% if city | length > 20 %}at most 20{% endif %}"}
size: {type: str, help: "How big?", choices: {Small: s, Large: l}, default: s}
token: {type: str, secret: true, default: ''}
"""
THIRD = """
name: {type: str, default: world}
paint: {type: str, choices: [blue, violet], default: blue}
street: {type: str}
house: {type: int}
"""
LAYER = """
_answers_file: .copier-answers.acme.yml
_external_data: {base: .copier-answers.yml}
team: {type: str, help: "Which team?", default: "team-{{ _external_data.base.name }}"}
floor: {type: int}
"""


@pytest.fixture(scope="module")
def place(machine, tmp_path_factory):
    """A template with three versions, a layer, and a project of the first version."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("base", "acme"):
        (folder / name).mkdir()
        machine.git("init", "-q", cwd=folder / name)
    release(machine, folder / "base", "v1.0.0", FIRST, **{"a.txt.jinja": "{{ name }}, {{ paint }}\n"})
    done = machine.scaffold("new", "p", f"--template={folder / 'base'}", "--yes", "--set=paint=green", cwd=folder)
    assert done.returncode == 0, done.stderr
    second = {"b.txt.jinja": "{{ city }}, {{ size }}\n"}
    release(machine, folder / "base", "v2.0.0", SECOND, **second)
    release(machine, folder / "base", "v3.0.0", THIRD, **{"b.txt.jinja": "{{ street }} {{ house }}\n"})
    release(machine, folder / "acme", "v1.0.0", LAYER, **{"acme.txt.jinja": "{{ team }}, {{ floor }}\n"})
    return folder


@pytest.fixture
def project(place, tmp_path):
    return shutil.copytree(place / "p", tmp_path / "p")


def release(machine, template, tag, config, **files):
    for name, text in {"copier.yml": config, **ANSWERS, **files}.items():
        (template / name).write_text(text)
    machine.git("add", "-A", cwd=template)
    machine.git("commit", "-qm", tag, cwd=template)
    machine.git("tag", tag, cwd=template)


def untouched(machine, project):
    return machine.git("status", "--porcelain", cwd=project) == ""


class TestAnUpdateOnATerminal:
    def test_asks_what_is_new_and_nothing_else(self, machine, project):
        """Recorded answers are known, also to the defaults of the new questions; a secret is not asked each time."""
        code, screen = run(
            machine, project, ["update", "--to", "2.0.0"], ("world-town", "!\r"), ("How big", DOWN + ENTER), (SUMMARY, ENTER)
        )  # fmt: skip
        assert code == 0, screen
        assert (project / "b.txt").read_text() == "world-town!, l\n"
        assert (project / "a.txt").read_text() == "world, green\n"
        assert "? name" not in screen
        assert "? paint" not in screen
        assert "token" not in screen
        assert "city: world-town!" in (project / ".copier-answers.yml").read_text()

    def test_goes_back_and_hears_validators(self, machine, project):
        code, screen = run(
            machine, project, ["update", "--to", "2.0.0"], ("world-town", "-of-the-north"), ("at most 20", "\x7f" * 9 + "\r"),
            ("How big", ESCAPE), ("city", "?\r"), ("How big", ENTER), (SUMMARY, ENTER),
        )  # fmt: skip
        assert code == 0, screen
        assert (project / "b.txt").read_text() == "world-town-of-?, s\n"

    def test_asks_for_a_choice_that_vanished_in_the_same_dialogue(self, machine, project):
        code, screen = run(
            machine, project, ["update"], ("paint", DOWN + ENTER), ("street", "Elm\r"), ("house", "7\r"), (SUMMARY, ENTER)
        )  # fmt: skip
        assert code == 0, screen
        assert "paint was 'green', which is not accepted any more" in screen
        assert (project / "a.txt").read_text() == "world, violet\n"
        assert (project / "b.txt").read_text() == "Elm 7\n"

    def test_does_not_ask_what_set_gives(self, machine, project):
        given = ["--set", "paint=blue", "--set", "street=Elm", "--set", "house=7"]
        code, screen = run(machine, project, ["update", *given])
        assert code == 0, screen
        assert SUMMARY not in screen

    @pytest.mark.parametrize("option", ["--yes", "--diff", "--stat"])
    def test_asks_nothing_with(self, machine, project, option):
        """A preview, too, takes the defaults, and says so."""
        code, screen = run(machine, project, ["update", "--to", "2.0.0", option])
        assert code == 0, screen
        assert "new question city: answered 'world-town'. Another answer: --set city=..." in screen
        assert (project / "b.txt").exists() == (option == "--yes")

    @pytest.mark.parametrize("keys, expected", [(CTRL_C, 130), (DOWN * 2 + ENTER, 1)])
    def test_stopped_at_the_summary_changes_nothing(self, machine, project, keys, expected):
        code, screen = run(
            machine, project, ["update", "--to", "2.0.0"], ("city", ENTER), ("How big", ENTER), (SUMMARY, keys)
        )
        assert code == expected, screen
        assert "Nothing was changed" in screen or "nothing was left behind" in screen
        assert untouched(machine, project)

    def test_ends_with_the_authors_message_which_does_not_steer_the_terminal(self, machine, project):
        code, screen = run(machine, project, ["update", "--to", "2.0.0", "--yes"])
        assert code == 0, screen
        assert f"note: Hello world\ufffd[2J, look at {project}" in readable(screen.encode()).replace("\r\n", "\n")
        assert "\x1b[2J" not in screen


class TestAnUpdateWithoutATerminal:
    def test_names_all_that_is_open_at_once(self, machine, project):
        done = machine.scaffold("update", cwd=project)
        assert done.returncode == 1
        assert "paint was 'green': its choices are blue, violet now." in done.stderr
        assert "fix: --set paint=blue --set street=... --set house=..." in done.stderr
        assert untouched(machine, project)

    def test_takes_what_it_was_told_to_type(self, machine, project):
        given = ("--set", "paint=blue", "--set", "street=Elm", "--set", "house=7")
        done = machine.scaffold("update", *given, cwd=project)
        assert done.returncode == 0, done.stderr
        assert (project / "b.txt").read_text() == "Elm 7\n"

    def test_says_what_an_answer_cannot_be(self, machine, project):
        given = ("--set", "paint=blue", "--set", "street=Elm", "--set", "house=x")
        done = machine.scaffold("update", *given, cwd=project)
        assert done.returncode == 1
        assert "house cannot be 'x'" in done.stderr
        assert "broken" not in done.stderr


class TestALayerAdded:
    def test_asks_the_layers_questions_which_know_the_bases_answers(self, machine, place, project):
        code, screen = run(
            machine, project, ["layer", "add", str(place / "acme")], ("floor", "3\r"), ("Which team", "!\r"), (SUMMARY, ENTER)
        )  # fmt: skip
        assert code == 0, screen
        assert (project / "acme.txt").read_text() == "team-world!, 3\n"
        assert "? paint" not in screen

    def test_asks_nothing_with_yes_and_names_what_has_no_default(self, machine, place, project):
        code, screen = run(machine, project, ["layer", "add", str(place / "acme"), "--yes"])
        assert code == 1, screen
        assert "floor has no answer and no default" in screen
        assert "--set floor=..." in screen
        assert untouched(machine, project)
