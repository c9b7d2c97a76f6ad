"""The dialogue of `scaffold new`, on a real terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import copier
import copier.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from terminal import BACKSPACES, CTRL_C, CTRL_D, DOWN, ENTER, ESCAPE, SUMMARY, UP, fork, play, run

from scaffold import asking
from scaffold.errors import AnswerError, ScaffoldError, SourceError, UnsafeTemplate
from scaffold.questions import Questionnaire

THREE = """
city: {type: str, default: Oslo}
street: {type: str, default: "{{ city }} street"}
paint: {type: str, choices: {Dark red: red, Light blue: blue}, default: red}
"""
EVERY_KIND = """
_envops: {undefined: jinja2.StrictUndefined}
word: {type: str, default: hello, validator: "{% if word | length > 5 %}at most 5 letters{% endif %}"}
number: {type: int, default: 3}
ratio: {type: float, default: 0.5}
really: {type: bool, default: true}
bare: 7
tree: {type: yaml, default: {a: [1, 2]}}
data: {type: json, default: "{{ [word] | to_json }}"}
where: {type: path, default: "/{{ word }}"}
pairs: {type: str, choices: [[One, "1"], [Two, "2"]], default: "2"}
named: {type: int, choices: {one: 1, two: {value: 2, validator: "{% if number > 5 %}too many{% endif %}"}}, default: 1}
drawn: {type: str, choices: "{{ [word, 'other'] | to_yaml }}", default: other}
many: {type: str, multiselect: true, choices: [x, y, z], default: [x, z]}
only: {type: str, when: "{{ really }}", default: "{{ word }}-{{ number }}"}
sum: {type: int, when: false, default: "{{ number * 2 }}"}
silent: {type: str, ask: false, default: "{{ _folder_name }}"}
hidden: {type: str, secret: true, default: abc}
"""


@pytest.fixture
def form(tmp_path):
    """A questionnaire from the text of a copier.yml."""

    def make(config, **more):
        folder = tmp_path / "questions"
        folder.mkdir(exist_ok=True)
        (folder / "copier.yml").write_text(config)
        return Questionnaire(**{"template": folder, "destination": tmp_path / "my-net", "given": {}, **more})

    return make


class TestAnswersByKeys:
    def test_enter_takes_each_default(self, form):
        reply, _ = talk(form(THREE), ("city", ENTER), ("street", ENTER), ("paint", ENTER), (SUMMARY, ENTER))
        assert reply == {"city": "Oslo", "street": "Oslo street", "paint": "red"}

    def test_arrow_keys_choose(self, form):
        reply, _ = talk(form(THREE), ("city", ENTER), ("street", ENTER), ("paint", DOWN + ENTER), (SUMMARY, ENTER))
        assert reply["paint"] == "blue"

    def test_a_default_follows_the_answers_before_it(self, form):
        reply, _ = talk(
            form(THREE), ("Oslo", BACKSPACES + "Rome\r"), ("Rome street", ENTER), ("paint", ENTER), (SUMMARY, ENTER)
        )
        assert reply["street"] == "Rome street"

    def test_what_was_given_is_not_asked(self, form):
        reply, screen = talk(form(THREE, given={"city": "Bonn", "paint": "blue"}), ("street", ENTER), (SUMMARY, ENTER))
        assert reply == {"city": "Bonn", "street": "Bonn street", "paint": "blue"}
        assert "? city" not in screen

    def test_yes_and_no_several_and_many_lines(self, form):
        """A yes-no question and a choice of several go by arrow keys and space, a long text ends with Ctrl-D."""
        config = """
docs: {type: bool, default: true}
parts: {type: str, multiselect: true, choices: [a, b, c], default: [a, c]}
tree: {type: yaml, multiline: true, default: {x: 1}}
"""
        reply, _ = talk(
            form(config), ("docs", DOWN + ENTER), ("parts", " " + DOWN + " " + ENTER), ("tree", "\ry: 2" + CTRL_D),
            (SUMMARY, ENTER),
        )  # fmt: skip
        assert reply == {"docs": False, "parts": ["b", "c"], "tree": {"x": 1, "y": 2}}

    def test_secrets_are_not_shown(self, form):
        reply, screen = talk(
            form("token: {type: str, secret: true, default: ''}"), ("token", "hunter2\r"), (SUMMARY, ENTER)
        )
        assert reply == {"token": "hunter2"}
        assert "hunter2" not in screen

    def test_a_choice_that_is_ruled_out_says_why_and_is_stepped_over(self, form):
        config = "size: {type: int, choices: {one: 1, two: {value: 2, validator: sold out}, three: 3}, default: 1}"
        reply, screen = talk(form(config), ("size", DOWN + ENTER), (SUMMARY, ENTER))
        assert reply == {"size": 3}
        assert "sold out" in screen


class TestABackStep:
    def test_changes_an_earlier_answer(self, form):
        """Escape at a text and at a choice; what was typed before stands there, to be edited."""
        reply, _ = talk(
            form(THREE),
            ("city", "!\r"),
            ("street", ENTER),
            ("paint", ESCAPE),
            ("street", ESCAPE),
            ("Oslo!", "?\r"),
            ("Oslo!? street", ENTER),
            ("paint", ENTER),
            (SUMMARY, ENTER),
        )
        assert reply == {"city": "Oslo!?", "street": "Oslo!? street", "paint": "red"}

    def test_is_possible_from_the_summary(self, form):
        reply, _ = talk(
            form(THREE), ("city", ENTER), ("street", ENTER), ("paint", ENTER), (SUMMARY, ESCAPE), ("paint", DOWN + ENTER),
            (SUMMARY, ENTER),
        )  # fmt: skip
        assert reply["paint"] == "blue"

    def test_is_shown_where_there_is_one(self, form):
        _, screen = talk(form(THREE), ("city", ESCAPE), (None, ENTER), ("street", CTRL_C))
        first, _, second = screen.partition("street")
        assert "esc: back" not in first
        assert "esc: back" in second

    def test_asks_again_what_an_earlier_answer_made_impossible(self, form):
        """A choice that vanished is not taken, and not lost without a word."""
        config = """
big: {type: bool, default: true}
size: {type: str, choices: "{{ ['l', 'xl'] if big else ['s', 'm'] }}", default: "{{ 'l' if big else 's' }}"}
"""
        reply, screen = talk(
            form(config), ("big", ENTER), ("size", DOWN + ENTER), (SUMMARY, ESCAPE), ("size", ESCAPE),
            ("big", DOWN + ENTER), ("size", DOWN + ENTER), (SUMMARY, ENTER),
        )  # fmt: skip
        assert "size cannot be 'xl': 'xl' is not in ['s', 'm']" in screen
        assert reply == {"big": False, "size": "m"}


class TestAValidator:
    def test_speaks_while_one_types_and_refuses_enter(self, form):
        config = 'word: {type: str, default: a, validator: "{% if word | length > 2 %}at most 2{% endif %}"}'
        reply, _ = talk(form(config), ("word", "bc"), ("at most 2", ENTER), (None, "\x7f\r"), (SUMMARY, ENTER))
        assert reply == {"word": "ab"}

    def test_is_also_the_type(self, form):
        reply, _ = talk(
            form("n: {type: int, default: 1}"), ("n (int)", "x"), ("invalid literal", "\x7f2\r"), (SUMMARY, ENTER)
        )
        assert reply == {"n": 12}

    def test_of_several_choices_is_heard(self, form):
        config = """
parts: {type: str, multiselect: true, choices: [a, b], default: [],
        validator: "{% if not parts %}take one{% endif %}"}
"""
        reply, _ = talk(form(config), ("parts", ENTER), ("take one", " " + ENTER), (SUMMARY, ENTER))
        assert reply == {"parts": ["a"]}


class TestAtMostFiveQuestions:
    SEVEN = "".join(f"q{n}: {{type: str, default: d{n}}}\n" for n in range(6)) + "last: {type: str}\n"

    def test_are_asked_the_ones_without_a_default_first(self, form):
        steps = [("last", "me\r"), *((f"q{n}", ENTER) for n in range(4))]
        reply, screen = talk(form(self.SEVEN), *steps, (SUMMARY, ENTER))
        assert "? q4" not in screen
        assert reply == {**{f"q{n}": f"d{n}" for n in range(6)}, "last": "me"}

    def test_and_the_others_are_changed_from_the_summary(self, form):
        steps = [("last", "me\r"), *((f"q{n}", ENTER) for n in range(4))]
        reply, _ = talk(
            form(self.SEVEN), *steps, (SUMMARY, DOWN + ENTER), ("Which one", DOWN * 5 + ENTER), ("q5", "!\r"),
            (SUMMARY, ENTER),
        )  # fmt: skip
        assert reply["q5"] == "d5!"

    def test_unless_more_have_none(self, form):
        """Nobody else can answer them."""
        config = "".join(f"q{n}: {{type: str}}\n" for n in range(7))
        reply, _ = talk(form(config), *((f"q{n}", "x\r") for n in range(7)), (SUMMARY, ENTER))
        assert reply == {f"q{n}": "x" for n in range(7)}

    def test_an_empty_one_is_no_answer_when_the_template_says_so(self, form):
        config = (
            "a: {type: str, default: x}\nname: {type: str, default: '', validator: \"{% if not name %}say{% endif %}\"}"
        )
        reply, _ = talk(form(config), ("name", ENTER), ("say", "Ada\r"), ("? a", ENTER), (SUMMARY, ENTER))
        assert reply == {"a": "x", "name": "Ada"}


class TestQuestionsThatDependOnOthers:
    CONFIG = """
_envops: {undefined: jinja2.StrictUndefined}
name: {type: str}
docs: {type: bool, default: false}
site: {type: str, when: "{{ docs }}", default: "{{ name }}.org"}
"""

    def test_are_asked_when_they_apply(self, form):
        """Also when the question cannot even be read before another has an answer."""
        reply, _ = talk(
            form(self.CONFIG), ("name", "ada\r"), ("docs", UP + ENTER), ("ada.org", ENTER), (SUMMARY, ENTER)
        )
        assert reply == {"name": "ada", "docs": True, "site": "ada.org"}

    def test_are_not_asked_when_they_do_not(self, form):
        reply, screen = talk(form(self.CONFIG), ("name", "ada\r"), ("docs", ENTER), (SUMMARY, ENTER))
        assert reply == {"name": "ada", "docs": False}
        assert "site" not in screen


class TestStopping:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3])
    def test_by_ctrl_c_works_at_every_question_and_the_summary(self, form, steps):
        before = [("city", ENTER), ("street", ENTER), ("paint", ENTER)][:steps]
        where = ["city", "street", "paint", SUMMARY][steps]
        reply, _ = talk(form(THREE), *before, (where, CTRL_C))
        assert reply == "KeyboardInterrupt"

    @pytest.mark.parametrize("place", ["city", "paint"])
    def test_by_a_signal_from_elsewhere_works_too(self, form, place):
        """`kill -INT` at a text and at a choice; the terminal is as it was."""
        before = [] if place == "city" else [("city", ENTER), ("street", ENTER)]
        reply, _ = talk(form(THREE), *before, (place, signal.SIGINT))
        assert reply == "KeyboardInterrupt"

    def test_at_the_summary_makes_nothing(self, form):
        reply, _ = talk(form("a: 1"), ("a", ENTER), (SUMMARY, DOWN * 2 + ENTER))
        assert reply == "Declined"


class TestAStrangersQuestions:
    @pytest.mark.parametrize("part", ["default", "help", "when", "choices", "validator"])
    def test_that_loop_for_ever_are_refused_in_bounded_time(self, form, monkeypatch, part):
        monkeypatch.setattr("scaffold.questions.SECONDS", 1.0)
        loop = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
        began = time.monotonic()
        with pytest.raises(UnsafeTemplate, match="longer than 1 s"):
            form(f'q: {{type: str, default: x, {part}: "{loop}"}}'.replace("default: x, default", "default")).evaluate(
                {"q": "y"}
            )
        assert time.monotonic() - began < 10

    def test_that_begin_to_loop_while_one_types_end_the_dialogue(self, form, monkeypatch):
        monkeypatch.setattr("scaffold.questions.SECONDS", 1.0)
        loop = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
        config = f"""q: {{type: str, default: x, validator: "{{% if q == 'xy' %}}{loop}{{% endif %}}"}}"""
        reply, _ = talk(form(config), ("q", "y"))
        assert reply == "UnsafeTemplate"

    def test_that_fill_the_memory_are_refused(self, form):
        with pytest.raises(UnsafeTemplate):
            form("q: {type: str, default: \"{{ 'x' * 9000000000 }}\"}").evaluate({})

    def test_reach_nothing_outside(self, form):
        """Copier's sandbox holds here, too."""
        with pytest.raises(SourceError, match="unsafe"):
            form("q: {type: str, default: \"{{ ''.__class__.__mro__ }}\"}").evaluate({})

    def test_that_need_an_extension_are_refused_before_it_is_imported(self, form, tmp_path, monkeypatch):
        (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UnsafeTemplate, match="--trust"):
            form("_jinja_extensions: [stranger.X]\nq: 1").evaluate({})
        assert not (tmp_path / "ran").exists()

    def test_do_not_steer_the_terminal(self, form):
        config = 'q: {type: str, help: "Clear\\e[2Jed?", default: "a\\e]0;owned\\a"}'
        _, screen = talk(form(config), ("Clear", ENTER), (SUMMARY, CTRL_C))
        assert "\x1b[2Jed" not in screen
        assert "\x1b]0;owned" not in screen

    @pytest.mark.parametrize(
        "config", ["q: {type: nonsense}", "q: {choices: 5}", "a: [", "q: {type: str, default: '{{'}"]
    )
    def test_that_are_broken_are_their_authors_fault(self, form, config):
        with pytest.raises(SourceError, match="tell its author"):
            form(config).evaluate({})


class TestGivenAnswers:
    def test_that_are_not_accepted_are_named_before_anything_is_asked(self, form):
        with pytest.raises(AnswerError, match="paint cannot be 'bleu'") as caught:
            asking.ask(form(THREE, given={"paint": "bleu"}), about=[], make="Make it")
        assert caught.value.fix == "--set paint=blue"

    def test_that_nobody_is_asked_for_are_checked_as_well(self, form):
        """Else five questions would be answered for nothing."""
        config = (
            "name: {type: str, ask: false, default: 'a b', validator: \"{% if ' ' in name %}no spaces{% endif %}\"}"
        )
        with pytest.raises(AnswerError, match="no spaces"):
            asking.ask(form(config), about=[], make="Make it")

    def test_recorded_before_are_defaults_where_they_are_still_accepted(self, form):
        recorded = {"city": "Bern", "paint": "green"}
        city, street, paint = form(THREE, recorded=recorded, defaults={"city": "Graz"}).evaluate({})
        assert (city.default, street.default, paint.default) == ("Bern", "Bern street", "red")


ANSWERS = {
    "word": st.sampled_from(["hi", "much too long", "", "1"]),
    "number": st.sampled_from([1, "2", "x", 6, 2.5]),
    "ratio": st.sampled_from([1, "0.25", "y"]),
    "really": st.sampled_from([True, "no", "", "yes"]),
    "bare": st.sampled_from([8, "9", "z"]),
    "tree": st.sampled_from([{"b": 1}, "[1, 2]", "{", None]),
    "data": st.sampled_from(['{"a": 1}', "nope"]),
    "where": st.sampled_from(["a/b"]),
    "pairs": st.sampled_from(["1", "One", 2]),
    "named": st.sampled_from([1, "2", 3]),
    "drawn": st.sampled_from(["hello", "other", "hi"]),
    "many": st.sampled_from([["z", "x"], "[y]", [], ["q"], "x"]),
    "only": st.sampled_from(["o"]),
    "silent": st.sampled_from(["s"]),
    "hidden": st.sampled_from(["h"]),
}


class TestEveryKindOfQuestion:
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(answers=st.fixed_dictionaries({}, optional=ANSWERS))
    def test_means_what_it_means_to_copier(self, form, answers):
        """The same answers give the same values, or are refused by both."""
        ours = form(EVERY_KIND, given=answers)
        questions = ours.evaluate({})
        theirs = by_copier(ours, answers)
        if theirs is None:
            assert any(question.error for question in questions)
        else:
            assert {question.name: question.value for question in questions} == theirs

    def test_as_a_users_default_means_that_too(self, form):
        ours = form(EVERY_KIND, defaults={"word": "you"})
        assert {q.name: q.value for q in ours.evaluate({})} == by_copier(ours, {}, user_defaults={"word": "you"})


def by_copier(form, answers, **more):
    """What Copier makes of the answers; None when it refuses them."""
    with TemporaryDirectory() as folder:
        try:
            worker = copier.run_copy(
                str(form.template), Path(folder) / "my-net", answers, defaults=True, quiet=True, pretend=True, **more
            )
        except (ValueError, copier.errors.CopierError):
            return None
        combined = worker.answers.combined
        return {name: combined[name] for name in worker.template.questions_data}


class TestTheCommand:
    """`scaffold new` on a terminal, from its first question to its last line."""

    FOUR = ("--package-name=net", "--description=It learns.", "--author-name=Ada", "--ci=none")

    def test_asks_what_is_open_shows_a_summary_and_makes_the_project(self, machine, tmp_path):
        code, screen = run(
            machine, tmp_path, ["new", "p", *self.FOUR[:3]], ("tests run", DOWN + ENTER), (SUMMARY, ENTER)
        )
        assert code == 0, screen
        assert "Python package" not in screen
        assert "template      base v" in screen
        assert "GitLab CI" in screen
        assert "python -m net fit" in screen
        assert "ci: gitlab" in (tmp_path / "p" / ".copier-answers.yml").read_text()
        assert [entry.name for entry in tmp_path.iterdir()] == ["p"]

    def test_makes_the_same_project_as_without_a_terminal(self, machine, tmp_path):
        code, screen = run(
            machine, tmp_path, ["new", "a/p"], ("package", ENTER), ("one line", ENTER), ("Who", ENTER), ("tests", ENTER),
            (SUMMARY, ENTER),
        )  # fmt: skip
        assert code == 0, screen
        assert machine.scaffold("new", "b/p", "--yes", cwd=tmp_path).returncode == 0
        first, second = (machine.git("rev-parse", "HEAD^{tree}", cwd=tmp_path / side / "p") for side in "ab")
        assert first == second

    def test_makes_nothing_when_stopped_at_the_summary(self, machine, tmp_path):
        code, screen = run(machine, tmp_path, ["new", "p", *self.FOUR], (SUMMARY, DOWN * 2 + ENTER))
        assert code == 1, screen
        assert "Nothing was made" in screen
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("steps", [0, 3, 4])
    def test_leaves_nothing_behind_after_ctrl_c_at_any_question(self, machine, tmp_path, steps):
        places = ["package", "one line", "Who", "tests", SUMMARY]
        keys = [(place, ENTER) for place in places[:steps]]
        code, screen = run(machine, tmp_path, ["new", "p"], *keys, (places[steps], CTRL_C))
        assert code == 130, screen
        assert "nothing was left behind" in screen
        assert "Traceback" not in screen
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number, expected", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
    def test_leaves_nothing_behind_after_a_signal_either(self, machine, tmp_path, number, expected):
        """A closed window, say."""
        code, screen = run(machine, tmp_path, ["new", "p"], ("package", ENTER), ("one line", number))
        assert code == expected, screen
        assert "Traceback" not in screen
        assert list(tmp_path.iterdir()) == []

    def test_writes_nothing_while_it_asks(self, machine, tmp_path):
        """Killed at a question, when nothing can be cleaned up any more, it leaves nothing either."""
        code, screen = run(machine, tmp_path, ["new", "p"], ("package", signal.SIGKILL))
        assert code == -signal.SIGKILL, screen
        assert list(tmp_path.iterdir()) == []

    def test_previews_without_writing(self, machine, tmp_path):
        code, screen = run(machine, tmp_path, ["new", "p", "--preview", *self.FOUR], ("Show it", ENTER))
        assert code == 0, screen
        assert "--- pyproject.toml" in screen
        assert list(tmp_path.iterdir()) == []

    def test_does_not_ask_when_git_does_not_know_who_commits(self, machine, tmp_path):
        """One learns of it before five questions, not after."""
        code, screen = run(machine, tmp_path, ["new", "p"], GIT_CONFIG_GLOBAL=os.devnull)
        assert code == 1, screen
        assert "git does not know your name" in screen
        assert "package" not in screen

    def test_names_a_wrong_flag_before_asking(self, machine, tmp_path):
        code, screen = run(machine, tmp_path, ["new", "p", "--set", "pakage_name=x"])
        assert code == 1
        assert "--set package_name=x" in screen
        code, screen = run(machine, tmp_path, ["new", "p", "--ci", "gitlob"])
        assert code == 1
        assert "--ci gitlab" in screen


class TestATemplateNotUsedBefore:
    @pytest.fixture
    def remote(self, make_template, tmp_path):
        """A template on another machine, which git reaches over ssh: its URL, commit, and git's environment."""
        template = make_template()
        ssh = tmp_path / "ssh"
        ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
        ssh.chmod(0o755)
        return f"ssh://git@example.invalid{template}/.git", {"GIT_SSH_COMMAND": str(ssh), "GIT_SSH_VARIANT": "ssh"}

    def test_is_named_with_its_commit_and_confirmed_once(self, fresh_machine, remote, tmp_path):
        url, ssh = remote
        commit = fresh_machine.git("rev-parse", "v1.0.0", cwd=tmp_path / "template")
        code, screen = run(
            fresh_machine, tmp_path, ["new", "p", f"--template={url}"], ("trust its authors", "n"), **ssh
        )
        assert code == 1, screen
        assert url in screen
        assert commit in screen
        assert "Nothing was made" in screen
        code, screen = run(
            fresh_machine, tmp_path, ["new", "p", f"--template={url}"], ("trust its authors", "y"), ("name", ENTER),
            (SUMMARY, ENTER), **ssh,
        )  # fmt: skip
        assert code == 0, screen
        code, screen = run(
            fresh_machine, tmp_path, ["new", "q", f"--template={url}"], ("name", ENTER), (SUMMARY, ENTER), **ssh
        )
        assert code == 0, screen
        assert "trust" not in screen

    def test_is_taken_with_a_note_when_nobody_can_be_asked(self, fresh_machine, remote, tmp_path):
        """A script's --yes is no word of a person: the next one on a terminal is asked."""
        url, ssh = remote
        done = fresh_machine.scaffold("new", "p", f"--template={url}", "--yes", cwd=tmp_path, **ssh)
        assert done.returncode == 0, done.stderr
        assert f"note: {url} was not used before" in done.stderr
        run(fresh_machine, tmp_path, ["new", "q", f"--template={url}"], ("trust its authors", CTRL_C), **ssh)
        assert not (tmp_path / "q").exists()


class TestATemplateWithTasks:
    CONFIG = "_tasks: ['touch ran']\nname: {type: str, default: world}\n"

    def test_is_refused_before_anything_is_asked(self, machine, make_template, tmp_path):
        template = make_template(config=self.CONFIG)
        code, screen = run(machine, tmp_path, ["new", "p", f"--template={template}"])
        assert code == 1, screen
        assert "--trust" in screen
        assert not (tmp_path / "p").exists()

    def test_is_run_when_it_is_trusted(self, machine, make_template, tmp_path):
        template = make_template(config=self.CONFIG)
        code, screen = run(
            machine, tmp_path, ["new", "p", f"--template={template}", "--trust"], ("name", ENTER), (SUMMARY, ENTER)
        )
        assert code == 0, screen
        assert (tmp_path / "p" / "ran").exists()


def talk(form, *steps):
    """Hold the dialogue on a pseudo terminal: its answers, or the name of what it raised, and all that was on screen."""
    reading, writing = os.pipe()
    child, terminal = fork()
    if child == 0:
        try:
            reply = asking.ask(form, about=[], make="Make it")
        except (ScaffoldError, KeyboardInterrupt) as error:
            reply = type(error).__name__
        except BaseException as error:  # noqa: BLE001 - told by the parent
            reply = repr(error)
        sys.stdout.flush()
        cooked = bool(termios.tcgetattr(0)[3] & termios.ECHO)
        os.write(writing, json.dumps([reply, cooked]).encode())
        os._exit(0)
    os.close(writing)
    _, screen = play(child, terminal, steps)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        reply, cooked = json.load(pipe)
    assert cooked, "the terminal was left in raw mode"
    return reply, screen
