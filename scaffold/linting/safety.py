"""T1: what a template could do to the machine or to the people of those who use it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scaffold.errors import UnsafeTemplate
from scaffold.linting.config import Question
from scaffold.linting.findings import Fault
from scaffold.linting.template import Template

_SECRET = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|credential|token|(?:api|access|auth|private|secret)_?(?:key|token))$",
    re.IGNORECASE,
)
_NOT_ON_WINDOWS = re.compile(r'[<>:"\\|?*]|[. ]$')


def unsafe_path(template: Template) -> Iterator[Fault]:
    fix = "rename it"
    for file in template.files:
        if file.refused and file.link is None:
            yield Fault(
                file=file.path, message=f"a project may not hold {file.plain_target!r}: {file.refused}", fix=fix
            )
    failure = template.outcome.failure
    if isinstance(failure, UnsafeTemplate):
        message = f"the default answers give a path that is refused: {failure.what} {failure.why}"
        yield Fault(file=template.config.file, message=message, fix=fix)


def link_out(template: Template) -> Iterator[Fault]:
    for file in template.files:
        if file.refused and file.link is not None:
            message = f"it links to {file.link}: {file.refused}"
            yield Fault(file=file.path, message=message, fix="copy the file instead, or link inside of the project")


def tasks(template: Template) -> Iterator[Fault]:
    return _needs_trust(template, "_tasks", "tasks run commands on the machine of everyone who uses the template")


def migrations(template: Template) -> Iterator[Fault]:
    return _needs_trust(template, "_migrations", "migrations run commands on the machine of everyone who updates")


def extensions(template: Template) -> Iterator[Fault]:
    return _needs_trust(template, "_jinja_extensions", "Jinja extensions run Python code that must be installed first")


def _needs_trust(template: Template, key: str, effect: str) -> Iterator[Fault]:
    if template.config.data.get(key):
        message = f"{effect}, and make plain Copier ask for --trust"
        yield Fault(**template.config.place(key), message=message, fix=f"render files instead, and remove {key}")


def secret_without_default(template: Template) -> Iterator[Fault]:
    for question in template.config.questions.values():
        if question.secret and "default" not in question.details:
            message = f"the secret question {question.name!r} has no default, which Copier refuses"
            yield _at(template, question, message, 'add default: ""')


def secret_recorded(template: Template) -> Iterator[Fault]:
    questions = template.config.questions.values()
    for question in questions:
        if question.asked and not question.secret and _SECRET.search(question.name):
            message = f"the answer to {question.name!r} is recorded in every project, for all who read it"
            yield _at(template, question, message, "add secret: true, or don't ask for it")
    secret = {question.name for question in questions if question.secret}
    for piece in template.pieces:
        for name in secret & piece.variables.keys() if piece.kind != "setting" else ():
            message = f"the secret {name!r} is written into the project, where git keeps it"
            fix = "read it from the environment when the project runs"
            yield Fault(file=piece.file, line=piece.variables[name], message=message, fix=fix)


def not_on_windows(template: Template) -> Iterator[Fault]:
    for file in template.files:
        bad = next((part for part in file.path.split("/") if _NOT_ON_WINDOWS.search(part)), None)
        if bad and not file.refused:
            message = f"the template cannot be checked out on Windows: no file there may be called {bad!r}"
            fix = "use ' for quotes, and a computed question (when: false) in place of filters and comparisons"
            yield Fault(file=file.path, message=message, fix=fix)


def _at(template: Template, question: Question, message: str, fix: str) -> Fault:
    return Fault(**template.config.place(question.name), message=message, fix=fix)
