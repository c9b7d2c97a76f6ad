"""A template's questions, as they stand after the answers so far.

What a question says, offers and accepts may depend on the answers before it, and is Jinja of a stranger's. So it is read
by Copier's own classes, for its meaning to be Copier's, in a process with limits, for it to neither hang nor fill this
machine. Copier looks at all answers once more when it renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Not public, and the only way to ask what Copier would ask; a test compares the two for every kind of question.
from copier._main import Worker
from copier._settings import SettingsModel
from copier._types import MISSING
from copier._user_data import AnswersMap
from copier._user_data import Question as CopierQuestion
from copier.errors import UnsafeTemplateError
from plumbum import local

from scaffold import confined, settings
from scaffold.errors import AnswerError, SourceError, UnsafeTemplate, nearest

SECONDS = 5.0
"""For all questions of a template; a usual one takes a hundredth of that."""


class Choice(NamedTuple):
    """One of the answers to choose from."""

    label: str
    value: Any
    refused: str
    """Why it cannot be chosen now; empty when it can."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, evaluated."""

    name: str
    type: str
    """str, int, float, bool, yaml, json or path."""
    help: str
    default: Any
    """None when there is none."""
    required: bool
    """It has no default, or one that it does not accept itself, or one that would take the place of a ``refused``."""
    value: Any
    """The answer, or the default; not of use while there is an ``error``."""
    text: str
    """``value`` as one would type it."""
    choices: tuple[Choice, ...]
    multiselect: bool
    secret: bool
    multiline: bool
    placeholder: str
    applies: bool
    """False: it is not asked, and its value is computed."""
    asks: bool
    """False: its author wants its default to be taken without asking."""
    answered: bool
    error: str
    """Why ``value`` is not accepted."""
    kept: bool
    """``value`` is what the project answered before."""
    refused: str
    """Why what the project answered before is not accepted any more; empty when it is, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Questionnaire:
    """The questions of one template, for one project."""

    template: Path
    """Its plain files."""
    destination: Path
    """The project's path: templates derive names from its last part."""
    given: Mapping[str, Any]
    """Answers that need not be asked for."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Better than the template's own."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """What a project answered before: better still, where it is still accepted."""
    seen: frozenset[str] = frozenset()
    """Questions that the project has had before, though it records no answer: their default is taken."""
    trust: bool = False
    """Its extensions may run."""

    def names(self) -> tuple[str, ...]:
        """Of those that can be answered, in the template's order.

        Raises:
            SourceError: The template is broken.
            UnsafeTemplate: It wants to run commands, or took too long.
        """
        return tuple(confined.run(_names, self, seconds=SECONDS))

    def evaluate(self, answers: Mapping[str, Any]) -> tuple[Question, ...]:
        """All questions, after ``answers`` were given on top.

        Where one cannot be told before an earlier one is answered, they end with the one before it.

        Raises:
            SourceError: The template is broken.
            UnsafeTemplate: It wants to run commands, or took too long.
        """
        plain: list[dict[str, Any]] = confined.run(_evaluate, self, dict(answers), seconds=SECONDS)
        return tuple(Question(**{**one, "choices": tuple(Choice(*c) for c in one["choices"])}) for one in plain)

    def complaint(self, name: str, answer: Any, values: Mapping[str, Any]) -> str:
        """Why ``answer`` to the question ``name`` is not accepted; empty when it is.

        Faster than ``evaluate``: it is called at each key.

        Args:
            values: Of the questions before it.
        """
        return str(confined.run(_complaint, self, name, answer, values, seconds=SECONDS))


class Problem(NamedTuple):
    """What only the user can put right."""

    what: str
    fix: str
    given: bool
    """An answer was given, and is not accepted."""


def problems(
    questions: Iterable[Question], spell: Callable[[str, object], str], recorded: Mapping[str, Any] | None = None
) -> list[Problem]:
    """What stands between these questions and a rendering.

    Args:
        spell: How an answer is typed.
        recorded: What the project answered before.
    """
    found = []
    for question in questions:
        if not question.applies and not question.answered:
            continue
        name, choices = question.name, [str(choice.value) for choice in question.choices if not choice.refused]
        offered = choices[0] if choices else "..."
        if question.error and (question.answered or not question.asks):
            guess: object = nearest(str(question.value), choices) or offered
            why = f"choose one of: {', '.join(choices)}" if choices else question.error
            if question.multiselect:
                guess = f"[{', '.join(choices[:2])}]"
                why = f"it takes a list, as YAML, of: {', '.join(choices)}"
            found.append(Problem(f"{name} cannot be {question.value!r}: {why}.", spell(name, guess), True))
        elif question.refused and not question.answered:
            old = (recorded or {}).get(name)
            why = f"its choices are {', '.join(choices)} now" if choices else question.refused
            found.append(
                Problem(f"{name} was {old!r}: {why}.", spell(name, nearest(str(old), choices) or offered), False)
            )
        elif question.required and not question.answered:
            why = f": choose one of {', '.join(choices)}" if choices else ""
            found.append(Problem(f"{name} has no answer and no default{why}.", spell(name, offered), False))
    return found


def as_error(found: Iterable[Problem]) -> AnswerError:
    """All of them as one."""
    whats, fixes, given = zip(*found, strict=True)
    return AnswerError(
        " ".join(whats),
        why=(
            "the template does not accept that."
            if any(given)
            else "only you know the answer, and nobody is asked here."
        ),
        fix=" ".join(fixes),
    )


def _names(form: Questionnaire) -> list[str]:
    try:
        with _worker(form) as worker:
            return [
                name
                for name, details in worker.template.questions_data.items()
                if details.get("when", True) is not False
            ]
    except Exception as error:  # a stranger's template can make Copier raise anything; all of it is its fault
        raise _broken(error) from error


def _evaluate(form: Questionnaire, answers: dict[str, Any]) -> list[dict[str, Any]]:
    questions: list[dict[str, Any]] = []
    waiting = False
    try:
        with _worker(form) as worker:
            for name, details in worker.template.questions_data.items():
                try:
                    question = _evaluated(worker, name, details, answers)
                except Exception:
                    if waiting:  # for the answer that this one may depend on
                        break
                    raise
                waiting = waiting or bool(question["applies"] and (question["error"] or question["required"]))
                questions.append({**question, "asks": question["asks"] and name not in form.seen})
    except Exception as error:
        raise _broken(error) from error
    return questions


def _complaint(form: Questionnaire, name: str, answer: Any, values: Mapping[str, Any]) -> str:
    try:
        with _worker(form) as worker:
            worker.answers.user.update(values)
            return _fault(_question(worker, name, worker.template.questions_data[name]), answer)
    except Exception as error:
        raise _broken(error) from error


def _worker(form: Questionnaire) -> Worker:
    # This process is ours alone, and its git calls are to be as safe as all others. They see plumbum's environment.
    local.env.update(settings.git_environment())
    worker = Worker(
        src_path=str(form.template),
        dst_path=form.destination,
        data=dict(form.given),
        user_defaults=dict(form.defaults),
        settings=SettingsModel(),
        unsafe=form.trust,
        quiet=True,
    )
    worker._check_unsafe("copy")
    worker.answers = AnswersMap(
        user_defaults=dict(form.defaults),
        init=dict(form.given),
        last=dict(form.recorded),
        metadata=worker.template.metadata,
        external=worker._external_data(),
    )
    return worker


def _evaluated(worker: Worker, name: str, details: Mapping[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """The question ``name``, whose value is then known to those after it."""
    known, question = worker.answers, _question(worker, name, details)
    applies, given = question.get_when(), known.init.pop(name, MISSING)
    refused = _refusal(question, known.last[name]) if name in known.last and applies else ""
    if name in known.last and (not applies or refused):
        del known.last[name]
    default, fault = _default(question)
    typed = answers.get(name, given) if applies else given
    value, error = default, fault
    if typed is not MISSING:
        error = _fault(question, typed)
        value = typed if error else question.parse_answer(typed)
    if value is not MISSING and not error:
        known.user[name] = value
    type_name, shown = question.get_type_name(), applies and value is not MISSING
    return {
        "name": name,
        "type": type_name,
        "help": str(question.render_value(question.help) or "").strip(),
        "default": None if default is MISSING else default,
        "required": default is MISSING or bool(fault or refused),
        "value": None if value is MISSING else value,
        "text": _as_typed(value, type_name, question.get_multiline()) if shown else "",
        "choices": [
            (str(c.title), question.cast_answer(c.value), str(c.disabled or "").strip())
            for c in question._formatted_choices
        ],
        "multiselect": question.multiselect,
        "secret": question.secret,
        "multiline": question.get_multiline(),
        "placeholder": str(question.get_placeholder()),
        "applies": applies,
        "asks": question.get_ask(),
        "answered": typed is not MISSING,
        "error": error,
        "kept": name in known.last and typed is MISSING,
        "refused": refused,
    }


def _question(worker: Worker, name: str, details: Mapping[str, Any]) -> CopierQuestion:
    return CopierQuestion(
        var_name=name,
        answers=worker.answers,
        context=worker._render_context(),
        jinja_env=worker.jinja_env,
        settings=worker.settings,
        **details,
    )


def _default(question: CopierQuestion) -> tuple[Any, str]:
    """What is taken when nothing is answered, and why that is not accepted."""
    try:
        return question.get_default(), ""
    except (ValueError, TypeError) as error:
        return question.render_value(question.default), _words(error, question.var_name)


def _fault(question: CopierQuestion, answer: Any) -> str:
    """Why ``answer`` is not accepted; empty when it is."""
    try:
        question.validate_answer(question.parse_answer(answer))
    except Exception as error:  # noqa: BLE001 - also what a template's own validator stumbles over
        return _words(error, question.var_name)
    return ""


def _refusal(question: CopierQuestion, recorded: Any) -> str:
    """Why an answer from before is not accepted; empty when it is. Of several choices Copier drops those that are gone."""
    if fault := _fault(question, recorded):
        return fault
    if question.multiselect and isinstance(recorded, list):
        gone = [str(each) for each in recorded if not question.parse_answer([each])]
        return f"there is no {', '.join(gone)} any more" if gone else ""
    return ""


def _words(error: Exception, name: str) -> str:
    said = str(error).strip() or "not an answer of the right type"
    for introduction in (f"Validation error for question '{name}': ", f"Invalid choice for '{name}': "):
        said = said.removeprefix(introduction)
    return said


def _as_typed(value: Any, type_name: str, multiline: bool) -> str:
    if value is None:
        return ""
    if type_name == "json":
        return json.dumps(value, indent=2 if multiline else None, ensure_ascii=False)
    if type_name == "yaml":
        text = yaml.safe_dump(value, default_flow_style=not multiline, width=1 << 30, allow_unicode=True)
        return text.removesuffix("\n...\n").strip()
    return str(value)


def _broken(error: Exception) -> Exception:
    if isinstance(error, (OSError, MemoryError)):
        return error
    said = str(error).strip() or type(error).__name__
    if isinstance(error, UnsafeTemplateError):
        return UnsafeTemplate(
            said.splitlines()[0],
            why="tasks, migrations and extensions run commands on your machine, as you.",
            fix="read the template; if you trust it, run the same command again with --trust",
        )
    return SourceError(
        f"The template's questions cannot be read: {said}",
        why="its copier.yml is broken, or made for another version of Copier.",
        fix="tell its author, or use another version of it: --template SOURCE@TAG",
    )
