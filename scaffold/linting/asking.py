"""T3: questions that leave their user, or a machine, without an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scaffold import presets
from scaffold.errors import AnswerError, nearest
from scaffold.linting.config import Question
from scaffold.linting.findings import Fault
from scaffold.linting.template import Template


def no_help(template: Template) -> Iterator[Fault]:
    for question in _asked(template):
        if not question.details.get("help"):
            message = f"the question {question.name!r} has no help: its user sees only that word"
            yield _fault(template, question, message, "add help: with the question as you would ask it")


def neither_default_nor_validator(template: Template) -> Iterator[Fault]:
    for question in _asked(template):
        open_ended = not question.details.keys() & {"default", "validator", "choices"}
        if open_ended and not question.secret and question.details.get("type") != "bool":
            message = f"anything, and nothing, answers {question.name!r}: it has neither default nor validator"
            yield _fault(template, question, message, "add a default, or a validator that says what is missing")


def choices_without_default(template: Template) -> Iterator[Fault]:
    for question in _asked(template):
        if "choices" in question.details and "default" not in question.details:
            message = f"{question.name!r} has choices and no default: without a terminal nothing is chosen"
            yield _fault(template, question, message, "add the default that most users want")


def preset_without_question(template: Template) -> Iterator[Fault]:
    questions = template.config.questions
    for name in (*template.others, *(file.path for file in template.files)):
        if not re.fullmatch(rf"{presets.FOLDER}/[^/]+\.yml", name) or (template.root / name).is_symlink():
            continue
        try:
            answers = presets.read(template.root / name).values
        except AnswerError as error:
            yield Fault(file=name, message=f"nobody can use the preset: {error.why.rstrip('.')}", fix="correct it")
            continue
        for answer in answers:
            if answer not in questions and not answer.startswith("_"):
                guess = nearest(answer, questions)
                message = f"the preset answers {answer!r}, and there is no such question: scaffold new refuses it"
                fix = f"write {guess}" if guess else "leave it out"
                yield Fault(file=name, line=_line(template.lines(name), answer), message=message, fix=fix)


def _line(lines: list[str], key: str) -> int:
    found = (number for number, line in enumerate(lines, start=1) if re.match(rf"[\"']?{re.escape(key)}\b", line))
    return next(found, 1)


def _asked(template: Template) -> Iterator[Question]:
    return (question for question in template.config.questions.values() if question.asked)


def _fault(template: Template, question: Question, message: str, fix: str) -> Fault:
    return Fault(**template.config.place(question.name), message=message, fix=fix)
