"""Which combinations of answers a template is tested with: every two interesting values meet, and the author's own cases.

``tests/answers.yml`` in the template's repository may add to them::

    values:                # further values of a question
      width: [1, 4096]
    cases:                 # whole combinations; what one leaves out gets its default
      - {ci: none, width: 7}
    exclude:               # combinations that are not meant to work
      - {ci: gitlab, license: none}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scaffold.errors import TemplateError, nearest
from scaffold.questions import Question, Questionnaire
from scaffold.template_testing.draft import Draft
from scaffold.template_testing.pairwise import Row, pairwise

ANSWERS = Path("tests/answers.yml")
PROJECT = "my-project"
"""The folder that every project is made in: templates derive names from it."""

_ODD = ("\"double\" and 'single' quotes", "back\\slash", "Grüße aus Łódź", "🚀 to the moon", "2nd of its name")
_ALL_ODD = "2nd: \"double\" and 'single' quotes, back\\slash, Grüße aus Łódź, {{ braces }} # 🚀"
_LONG = ("A long text that goes on and on, " * 8 + "and ends.", "a_" + "very_" * 15 + "long_name")
_PLAIN = {"int": (1, 0), "float": (0.5, 1.0), "bool": (True,), "json": ({},), "yaml": ({},)}
_PLAIN_TEXT = ("text", "name", "https://example.com", "ada@example.com", "1.0")


class _Default:
    """Not answered: the template's default, whatever it is in that combination."""

    def __repr__(self) -> str:
        return "(default)"


DEFAULT = _Default()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination."""

    number: int
    """From 1; the same for the same template."""
    answers: Mapping[str, Any]
    """What differs from the defaults, or may."""


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What tests/answers.yml says."""

    values: Mapping[str, Sequence[Any]]
    cases: Sequence[Mapping[str, Any]]
    exclude: Sequence[Mapping[str, Any]]


def combinations(draft: Draft) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The combinations, and notes on what they leave out.

    Raises:
        TemplateError: tests/answers.yml is wrong, or a question has no value that is known to be accepted.
        SourceError: The template's questions cannot be read.
    """
    form = Questionnaire(template=draft.files, destination=draft.files.parent / PROJECT, given={}, trust=draft.trust)
    names = form.names()
    given = _given(draft.files / ANSWERS, names)
    values, baseline, doubtful = _values(form, names, given)
    linked = _linked(draft.config, names, given.exclude)
    deciding = doubtful | set().union(*linked.values()) | {name for name, others in linked.items() if others}
    rules = _Rules(form, values, baseline, given.exclude, frozenset(deciding))
    sizes = {name: len(there) for name, there in values.items()}
    covering = pairwise(sizes, effective=rules.effective, linked=linked)
    rows = [row for row in covering.rows if rules.effective({**dict.fromkeys(values, 0), **row}) is not None]
    answers: list[Mapping[str, Any]] = [_answers(row, values) for row in rows]
    answers += [one for one in given.cases if one not in answers]
    if not answers:
        raise TemplateError(
            "No combination of answers is left to test.",
            why=f"{ANSWERS} excludes all of them, or the template accepts none.",
            fix=f"exclude fewer, or add cases in {ANSWERS}",
        )
    # Pairs that cannot be are what conditions and exclusions are for; a value that is in none was meant to be.
    alone = [target[0] for target in covering.impossible if len(target) == 1]
    notes = tuple(f"{name}={values[name][place]!r} is accepted in no combination" for name, place in alone)
    if covering.given_up:
        notes += (f"{len(covering.given_up)} pairs of values were not found a combination for: too many conditions",)
    return tuple(Case(number=n, answers=one) for n, one in enumerate(answers, start=1)), notes


def _given(path: Path, names: Sequence[str]) -> _Given:
    """tests/answers.yml, checked."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _wrong(f"is not YAML: {' '.join(str(error).split())}") from None
    told = {} if told is None else told
    if not isinstance(told, dict) or set(told) - {"values", "cases", "exclude"}:
        raise _wrong("may have values, cases and exclude, and nothing else")
    values, whole, exclude = told.get("values") or {}, told.get("cases") or [], told.get("exclude") or []
    if not isinstance(values, dict) or not all(isinstance(one, list) for one in values.values()):
        raise _wrong("has values that are not a list for each question")
    for what, listed in (("cases", whole), ("exclude", exclude)):
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise _wrong(f"has {what} that are not a list of mappings")
    for name in [*values, *(name for one in [*whole, *exclude] for name in one)]:
        if name not in names:
            guess = nearest(str(name), names)
            raise _wrong(f"names {name!r}, which is no question" + (f"; did you mean {guess}?" if guess else ""))
    return _Given(values=values, cases=whole, exclude=[one for one in exclude if one])


def _wrong(said: str) -> TemplateError:
    return TemplateError(
        f"{ANSWERS} {said}.",
        why="it adds answers to the ones that scaffold template test tries.",
        fix="write it like: {values: {width: [1, 4096]}, cases: [{ci: none}], exclude: [{ci: gitlab, width: 1}]}",
    )


def _values(
    form: Questionnaire, names: Sequence[str], given: _Given
) -> tuple[dict[str, list[Any]], dict[str, Any], set[str]]:
    """The interesting values of each question, an answer to those that have no default, and the questions of whose
    values some may be refused."""
    values: dict[str, list[Any]] = {}
    baseline: dict[str, Any] = {}
    doubtful: set[str] = set()

    def ask(name: str, answers: Mapping[str, Any]) -> Question | None:
        asked = replace(form, given={**baseline, **answers}).evaluate({})
        return next((question for question in asked if question.name == name), None)

    def accepted(name: str, candidates: Sequence[Any]) -> list[Any]:
        # Given, not answered: that is judged even where the question does not apply.
        return [one for one in candidates if (question := ask(name, {name: one})) and not question.error]

    for name in names:
        question = ask(name, {})
        if question is None:
            raise _no_answer(name, "it cannot be told before another question is answered")
        there = list(_interesting(question, partial(accepted, name)))
        for extra in given.values.get(name, ()):
            if not any(_same(extra, one) for one in there):
                there.append(extra)
                doubtful |= set() if accepted(name, [extra]) else {name}
        if not there:
            raise _no_answer(name, question.error or "it has no default")
        values[name] = there
        if there[0] is not DEFAULT and question.required:
            baseline[name] = there[0]
    return values, baseline, doubtful


def _interesting(question: Question, accepted: Callable[[Sequence[Any]], list[Any]]) -> Iterator[Any]:
    if question.choices:
        offered = [choice.value for choice in question.choices if not choice.refused]
        if question.multiselect:
            yield DEFAULT
            yield from (one for one in accepted([offered, []]) if one != question.default)
        else:
            yield from offered
        return
    if question.type == "bool":
        yield from accepted([True, False])
        return
    if not question.required:
        yield DEFAULT
    else:
        yield from accepted(_PLAIN.get(question.type, _PLAIN_TEXT))[:1]
    if question.type != "str" or question.secret or not question.asks:
        return
    # One value with all that is odd keeps the number of combinations small; where it is refused, what is left of it.
    text = f"{_ALL_ODD}\nsecond line" if question.multiline else _ALL_ODD
    yield from accepted([text]) or accepted(_ODD)
    yield from accepted(_LONG)[:1]


def _no_answer(name: str, why: str) -> TemplateError:
    return TemplateError(
        f"No answer to the question {name!r} is known to be accepted.",
        why=f"{why}.",
        fix=f"give it a default, or name some in {ANSWERS}: {{values: {{{name}: [...]}}}}",
    )


def _linked(
    config: Mapping[str, Any], names: Sequence[str], exclude: Sequence[Mapping[str, Any]]
) -> dict[str, frozenset[str]]:
    """For each question those that may decide whether it applies, or whether both are accepted together.

    Read off the names in the template's expressions: rather too many than too few.
    """
    questions = {str(name): details for name, details in config.items() if not str(name).startswith("_")}

    def mentioned(asked: str, *keys: str) -> set[str]:
        details = questions[asked]
        found = [details.get(key) for key in keys] if isinstance(details, dict) else [details]
        text = " ".join(_expressions(found))
        return {name for name in questions if name != asked and re.search(rf"\b{re.escape(name)}\b", text)}

    edges = {asked: mentioned(asked, "when", "default") for asked in questions}
    together = [{asked, *mentioned(asked, "validator", "choices")} for asked in questions]
    for group in [*together, *(set(one) for one in exclude)]:
        for name in group:
            edges[name] |= group - {name}

    def reached(name: str) -> frozenset[str]:
        seen, pending = {name}, [name]
        while pending:
            new = edges[pending.pop()] - seen
            seen |= new
            pending += new
        return frozenset((seen - {name}) & set(names))

    return {name: reached(name) for name in names}


def _expressions(found: Any) -> Iterator[str]:
    """The Jinja in a question's details."""
    if isinstance(found, str) and "{" in found:
        yield found
    elif isinstance(found, dict):
        yield from _expressions([*found, *found.values()])
    elif isinstance(found, list):
        for one in found:
            yield from _expressions(one)


class _Rules:
    """What of a row counts, as the template's own conditions say. Each combination of linked answers is asked once."""

    def __init__(
        self,
        form: Questionnaire,
        values: Mapping[str, Sequence[Any]],
        baseline: Mapping[str, Any],
        exclude: Sequence[Mapping[str, Any]],
        linked: frozenset[str],
    ) -> None:
        self.linked = linked
        self._form, self._values, self._baseline, self._exclude = form, values, baseline, exclude
        self._known: dict[tuple[tuple[str, int], ...], frozenset[str] | None] = {}

    def effective(self, row: Row) -> Row | None:
        key = tuple((name, row[name]) for name in row if name in self.linked)
        if key not in self._known:
            self._known[key] = self._applying(dict(key))
        applying = self._known[key]
        return None if applying is None else {name: value for name, value in row.items() if name in applying}

    def _applying(self, linked: Row) -> frozenset[str] | None:
        asked = self._form.evaluate({**self._baseline, **_answers(linked, self._values)})
        there = {question.name: question for question in asked}
        if any(name not in there for name in self._values):
            return None
        applying = {name: there[name] for name in self._values if there[name].applies}
        if any(question.error or (question.required and not question.answered) for question in applying.values()):
            return None
        for excluded in self._exclude:
            if all(name in applying and _same(applying[name].value, value) for name, value in excluded.items()):
                return None
        return frozenset(applying)


def _answers(row: Row, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    chosen = {name: values[name][place] for name, place in row.items()}
    return {name: value for name, value in chosen.items() if value is not DEFAULT}


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)  # 1 is not true
