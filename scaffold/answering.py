"""What the layers of a project answer to the questions of their new versions: what is recorded, where it is still
accepted, what the command line gives, and what is asked for the rest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from scaffold.errors import SourceError
from scaffold.fetching import Template
from scaffold.questions import Problem, Question, Questionnaire, as_error, problems
from scaffold.rendering import scratch
from scaffold.steps import Step


def settle(
    steps: Sequence[Step], root: Path, *, ask: bool = False, make: str = "Update", trust: bool = False
) -> list[Step]:
    """The steps, each with the answers that its new version is to be rendered with.

    Args:
        root: The project's folder.
        ask: Ask on the terminal what is open; otherwise it gets its default.
        make: What the summary's first choice is called.
        trust: The templates' extensions may run.

    Raises:
        AnswerError: What nobody can be asked for is missing, or a given answer is not accepted; all of it is named.
        Declined: The user stopped at the summary.
    """
    settled: list[Step] = []
    open_problems: list[Problem] = []
    with scratch() as place:
        project = place / root.name
        project.mkdir()
        for step in steps:
            if step.new is None or (step.new.commands and not trust):
                settled.append(step)
                continue
            form = _form(step, step.new, place / "templates" / step.name, project, trust)
            try:
                questions: Sequence[Question] = form.evaluate({})
            except SourceError:
                if open_problems:  # it may read the answers that are missing below it
                    break
                raise
            found = problems(questions, as_set, form.recorded)
            if ask and not any(problem.given for problem in found):
                step, questions = _ask(step, form, questions, make)
            else:
                open_problems += found
            _write_down(step, questions, project)
            settled.append(replace(step, kept={q.name: form.recorded[q.name] for q in questions if q.kept}))
    if open_problems:
        raise as_error(open_problems)
    return settled


def as_set(question: str, value: object) -> str:
    """What to type to answer ``question``, of whichever layer it is."""
    return "--set " + (f"{question}={value}" if str(value) == "..." else shlex.quote(f"{question}={value}"))


def _form(step: Step, new: Template, template: Path, project: Path, trust: bool) -> Questionnaire:
    template.parent.mkdir(exist_ok=True)
    new.unpack(template)
    recorded = step.applied.answers if step.applied else {}
    before = step.old.config if step.old else {}
    secret = {name for name, details in new.config.items() if isinstance(details, dict) and details.get("secret")}
    secret |= set(new.config.get("_secret_questions") or ())
    return Questionnaire(
        template=template,
        destination=project,
        given={name: value for name, value in step.answers.items() if name in new.config},
        recorded={name: value for name, value in recorded.items() if name in new.config},
        # Secrets are never recorded, and would be asked for at every update; a layer that stays has nothing new.
        seen=frozenset(name for name in before if name not in recorded and (step.idle or name in secret)),
        trust=trust,
    )


def _ask(step: Step, form: Questionnaire, questions: Sequence[Question], make: str) -> tuple[Step, Sequence[Question]]:
    from scaffold import asking  # takes a while to import

    if step.new is None or not asking.is_needed(questions):
        return step, questions
    before = f"{step.applied.commit} -> " if step.applied else ""
    about = [("template" if step.name == "base" else "layer", f"{step.new.source.name} {before}{step.new.version}")]
    given = asking.ask(form, about=about, make=make, spell=as_set, stopped="Nothing was changed.")
    return replace(step, answers={**step.answers, **given}), form.evaluate(given)


def _write_down(step: Step, questions: Sequence[Question], project: Path) -> None:
    """Where the layers above, whose questions may speak of these answers, look for them."""
    answers = {q.name: q.value for q in questions if q.applies and not q.secret and not q.error}
    file = project / step.answers_file
    if file.resolve().is_relative_to(project.resolve()):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(answers), encoding="utf-8")
