"""The dialogue on a terminal: a few questions, a summary, and only then something is made.

At most five questions are asked, those without a usable default first (all of them, if there are more); what is left
takes its default and can be opened from the summary. Escape goes a step back, Ctrl-C stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import questionary
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import PathCompleter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.keys import Keys

from scaffold import console
from scaffold.console import plain
from scaffold.errors import AnswerError, Declined, ScaffoldError, as_flag
from scaffold.questions import Question, Questionnaire, as_error, problems

MOST = 5
"""Questions that are asked before the summary, unless more have no default."""


class _Step(Enum):
    BACK = "back"
    MAKE = "make"
    CHANGE = "change"
    STOP = "stop"


def ask(
    form: Questionnaire,
    *,
    about: Sequence[tuple[str, str]],
    make: str,
    spell: Callable[[str, object], str] = as_flag,
    stopped: str = "Nothing was made.",
) -> Mapping[str, Any]:
    """Ask what is open, then show everything and have it confirmed.

    Args:
        about: What the summary says besides the answers, as rows.
        make: What the summary's first choice is called.
        spell: How an answer is typed on the command line.
        stopped: Said when the user stops at the summary.

    Returns:
        An answer to every question that applies, without those that the project has answered before.

    Raises:
        AnswerError: An answer that was given before is not accepted.
        Declined: The user stopped at the summary. Ctrl-C raises KeyboardInterrupt.
    """
    answers: dict[str, Any] = {}
    asked: list[str] = []
    again: str | None = None
    questions = form.evaluate(answers)
    if wrong := [problem for problem in problems(questions, spell) if problem.given]:
        raise as_error(wrong)
    while True:
        question = next((q for q in questions if q.name == again and q.applies), None) or _next(questions, asked)
        again = None
        if question:
            reply = _put(question, form, questions, back=bool(asked))
            if reply is not _Step.BACK:
                _note_down(answers, question, reply)
                asked = [*(name for name in asked if name != question.name), question.name]
        else:
            reply = _confirm(questions, about, make, back=bool(asked))
        match reply:
            case _Step.BACK:
                again = asked.pop()
                continue
            case _Step.MAKE:
                return {q.name: q.value for q in _open(questions)}
            case _Step.CHANGE:
                _change(form, answers, questions)
            case _Step.STOP:
                raise Declined(stopped, why="you said no.", fix="run the same command again.")
        questions = form.evaluate(answers)


def _open(questions: Iterable[Question]) -> list[Question]:
    """Those that a user may answer now."""
    return [question for question in questions if question.applies and question.asks and not question.kept]


def is_needed(questions: Iterable[Question]) -> bool:
    """Something is open that nobody has answered."""
    return any(not question.answered for question in _open(questions))


def _next(questions: Iterable[Question], asked: Sequence[str]) -> Question | None:
    candidates = _open(questions)
    for question in candidates:
        # Also one whose answer is no longer accepted, after the answer to another changed.
        if question.error or (question.required and not question.answered):
            return question
    if len(asked) >= MOST:
        return None
    return next((q for q in candidates if not q.answered and q.name not in asked), None)


def _note_down(answers: dict[str, Any], question: Question, reply: Any) -> None:
    """An answer that is the default is none: the default may change with the answers before it."""
    if not question.required and reply in (question.default, question.text if not question.answered else None):
        answers.pop(question.name, None)
    else:
        answers[question.name] = reply


def _confirm(questions: Iterable[Question], about: Sequence[tuple[str, str]], make: str, *, back: bool) -> _Step:
    print()
    console.rows([*about, *((_short(q), _shown(q)) for q in _open(questions))])
    print()
    steps = [_Step.MAKE, _Step.CHANGE, _Step.STOP]
    reply = _select("All right?", [(make, ""), ("Change an answer", ""), ("Stop", "")], pointed=0, back=back)
    return reply if isinstance(reply, _Step) else steps[reply]


def _change(form: Questionnaire, answers: dict[str, Any], questions: Sequence[Question]) -> None:
    candidates = _open(questions)
    labels = [(f"{_short(question)}: {_shown(question)}", "") for question in candidates]
    reply = _select("Which one?", [*labels, ("< back", "")], pointed=0, back=True)
    if isinstance(reply, _Step) or reply == len(candidates):
        return
    question = candidates[reply]
    given = _put(question, form, questions, back=True)
    if given is not _Step.BACK:
        answers[question.name] = given


def _put(question: Question, form: Questionnaire, questions: Sequence[Question], *, back: bool) -> Any:
    """Ask one question: the answer, or ``_Step.BACK``."""
    values = {q.name: q.value for q in questions if not q.error and not (q.required and not q.answered)}
    if question.error and question.answered:
        console.note(f"{question.name} cannot be {question.value!r}: {question.error}")
    if question.refused and not question.answered:
        was = form.recorded.get(question.name)
        console.note(f"{question.name} was {was!r}, which is not accepted any more: {question.refused}")
    if question.type == "bool" and not question.choices:
        reply = _select(_message(question), [("Yes", ""), ("No", "")], pointed=0 if question.value else 1, back=back)
        return reply if isinstance(reply, _Step) else reply == 0
    if question.choices and question.multiselect:
        return _check(question, lambda answer: form.complaint(question.name, answer, values), back=back)
    if question.choices:
        at = [number for number, choice in enumerate(question.choices) if choice.value == question.value]
        labels = [(choice.label, choice.refused) for choice in question.choices]
        reply = _select(_message(question), labels, pointed=at[0] if at else 0, back=back)
        return reply if isinstance(reply, _Step) else question.choices[reply].value
    return _type(question, lambda answer: form.complaint(question.name, answer, values), back=back)


def _type(question: Question, complaint: Callable[[Any], str], *, back: bool) -> Any:
    return _run(
        questionary.text(
            _message(question),
            default=question.text,
            instruction=_hint("ctrl-d: done" if question.multiline else "", back),
            validate=_validator(complaint),
            validate_while_typing=True,
            multiline=question.multiline,
            is_password=question.secret,
            placeholder=plain(question.placeholder),
            completer=PathCompleter() if question.type == "path" else None,
            complete_while_typing=False,
        ),
        back=back,
        submit=question.multiline,
    )


def _select(message: str, labels: Sequence[tuple[str, str]], *, pointed: int, back: bool) -> Any:
    """Choose one label by arrow keys: its position, or ``_Step.BACK``. The second of a pair says why it can't be."""
    choices = _choices(labels)
    free = [choice for choice in choices if not choice.disabled]
    if not free:
        raise AnswerError(
            f"{message}: there is nothing to choose.",
            why="; ".join(dict.fromkeys(why for _, why in labels)) or "the template offers no choice.",
            fix="change an earlier answer, or tell the template's author.",
        )
    start = choices[pointed] if choices[pointed] in free else free[0]
    hint = _hint("arrow keys, enter", back)
    return _run(questionary.select(message, choices, default=start, instruction=hint), back=back)


def _check(question: Question, complaint: Callable[[Any], str], *, back: bool) -> Any:
    """Choose any number of them."""
    taken = question.value if isinstance(question.value, list) else []
    choices = _choices([(choice.label, choice.refused) for choice in question.choices])
    for choice, offered in zip(choices, question.choices, strict=True):
        choice.checked = offered.value in taken

    def chosen(positions: Sequence[int]) -> list[Any]:
        return [question.choices[number].value for number in positions]

    judge = _validator(complaint)
    reply = _run(
        questionary.checkbox(
            _message(question),
            choices,
            validate=lambda positions: judge(chosen(positions)),  # type: ignore[arg-type]
            instruction=_hint("space: choose, enter: done", back),
        ),
        back=back,
    )
    return reply if isinstance(reply, _Step) else chosen(reply)


def _choices(labels: Iterable[tuple[str, str]]) -> list[questionary.Choice]:
    """Their values are positions: what stands behind them need not be anything questionary can hold."""
    return [
        questionary.Choice(plain(label), value=number, disabled=plain(why) or None)
        for number, (label, why) in enumerate(labels)
    ]


def _validator(complaint: Callable[[Any], str]) -> Callable[[Any], str | bool]:
    """For questionary: True or what is wrong. A template that misbehaves ends the dialogue."""

    def validate(answer: Any) -> str | bool:
        try:
            return " ".join(plain(complaint(answer)).split()) or True
        except ScaffoldError as error:
            app = get_app()
            if app.is_running and not app.is_done:
                app.exit(exception=error)
            return error.what

    return validate


def _run(prompt: questionary.Question, *, back: bool, submit: bool = False) -> Any:
    """Show the prompt: its answer, or ``_Step.BACK`` after Escape.

    Args:
        submit: Enter starts a new line, so Ctrl-D is what ends the text.
    """
    keys, app = KeyBindings(), prompt.application

    @keys.add(Keys.Escape, eager=True)
    def _back(event: KeyPressEvent) -> None:
        if back:
            event.app.erase_when_done = True
            event.app.exit(result=_Step.BACK)

    @keys.add(Keys.SIGINT)
    @keys.add(Keys.ControlC, eager=True)
    def _stop(event: KeyPressEvent) -> None:
        event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @keys.add(Keys.ControlD, eager=True)
    def _done(event: KeyPressEvent) -> None:
        if submit:
            event.current_buffer.validate_and_handle()

    app.key_bindings = merge_key_bindings([app.key_bindings or KeyBindings(), keys])
    app.ttimeoutlen = 0.05  # a lone Escape is told from an arrow key, which starts with one, by what follows
    return prompt.unsafe_ask()


def _hint(keys: str, back: bool) -> str:
    parts = [*([keys] if keys else []), *(["esc: back"] if back else [])]
    return f"({', '.join(parts)})" if parts else ""


def _message(question: Question) -> str:
    if question.help:
        return plain(question.help)
    return plain(question.name) + (f" ({question.type})" if question.type != "str" else "")


def _short(question: Question) -> str:
    return question.name.replace("_", " ")


def _shown(question: Question) -> str:
    """The answer, for the summary."""
    if question.secret:
        return "(secret)" if question.value else ""
    if question.choices:
        chosen = question.value if question.multiselect and isinstance(question.value, list) else [question.value]
        labels = [choice.label for choice in question.choices if choice.value in chosen]
        return ", ".join(labels) if labels or question.multiselect else question.text
    if question.type == "bool":
        return "yes" if question.value else "no"
    return question.text
