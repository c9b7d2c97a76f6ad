"""T4: Jinja, in copier.yml, in file names and in files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scaffold.errors import nearest
from scaffold.linting.findings import Fault
from scaffold.linting.jinja import COPIER_NAMES
from scaffold.linting.template import Template

_LONGEST_NAME = 100
_LONGEST_PATH = 200
_IDENTIFIER = re.compile(r"""(?<![\w.'"])[A-Za-z_]\w*""")


def syntax(template: Template) -> Iterator[Fault]:
    if template.jinja.refused:
        message = f"_envops are no settings of Jinja: {template.jinja.refused}"
        yield Fault(**template.config.place("_envops"), message=message, fix="correct them")
    for piece in template.pieces:
        if piece.problem and piece.problem.kind == "syntax":
            message = f"Jinja cannot read it: {piece.problem.message}"
            fix = "correct it; text that only looks like Jinja goes between {% raw %} and {% endraw %}"
            yield Fault(file=piece.file, line=piece.problem.line, message=message, fix=fix)


def unknown_filter(template: Template) -> Iterator[Fault]:
    for piece in template.pieces:
        if piece.problem and piece.problem.kind == "unknown filter":
            message = f"{piece.problem.message.rstrip('.')}: neither Jinja nor Copier has it"
            fix = "correct its name; Copier brings Jinja's and those of jinja2-ansible-filters"
            yield Fault(file=piece.file, line=piece.problem.line, message=message, fix=fix)


def undefined(template: Template) -> Iterator[Fault]:
    questions = template.config.questions
    for piece in template.pieces:
        for name in piece.variables.keys() - piece.known:
            line = piece.variables[name]
            if name in questions and piece.kind == "setting":
                message = f"{name!r} has no value yet here: it is answered only later"
                fix = f"move the question {name!r} up"
            else:
                message = f"{name!r} is neither a question nor one of Copier's variables: it renders as nothing"
                guess = nearest(name, piece.known)
                fix = f"write {guess}" if guess else f"add a question {name!r}"
            yield Fault(file=piece.file, line=line, message=message, fix=fix)


def collision(template: Template) -> Iterator[Fault]:
    for piece in template.pieces:
        if piece.kind == "content" and "${" in piece.text:
            for line in template.jinja.collisions(piece.text):
                message = "Jinja takes what follows the $ for its own, and the ${{ }} that was meant is lost"
                fix = "take .jinja off the file's name, or put it between {% raw %} and {% endraw %}"
                yield Fault(file=piece.file, line=line, message=message, fix=fix)


def needless_suffix(template: Template) -> Iterator[Fault]:
    if template.config.data.get("_templates_suffix") == "":
        return
    for file in template.files:
        text = file.text if file.rendered and file.link is None else None
        if text is not None and not any(mark in text for mark in template.jinja.marks):
            message = "it is rendered, but holds no Jinja"
            yield Fault(file=file.path, message=message, fix="take the suffix off its name")


def not_rendered(template: Template) -> Iterator[Fault]:
    value, block, _ = map(re.escape, template.jinja.marks)
    start = re.compile(rf"(?<!\$)(?:{value}|{block})(.*?)(?:\}}|$)")
    known = COPIER_NAMES - {"now"} | template.config.questions.keys()
    for file in template.files:
        for number, line in enumerate((file.text or "").splitlines(), start=1) if not file.rendered else ():
            inside = (word for match in start.finditer(line) for word in _IDENTIFIER.findall(match[1]))
            name = next((word for word in inside if word in known), None)
            if name:
                message = f"the answer {name!r} is not filled in: the file is copied as it is"
                yield Fault(file=file.path, line=number, message=message, fix="end its name in .jinja")
                break


def long_name(template: Template) -> Iterator[Fault]:
    for file in template.files:
        part = max(file.path.split("/"), key=len)
        if "{%" in part and (len(part) > _LONGEST_NAME or len(file.path) > _LONGEST_PATH):
            message = f"the conditional name has {len(part)} characters, and Windows allows 260 for the whole path"
            fix = "compute the condition in a question with when: false, and use its short name"
            yield Fault(file=file.path, message=message, fix=fix)


def not_utf8(template: Template) -> Iterator[Fault]:
    for file in template.files:
        if file.rendered and file.text is None and template.config.data.get("_templates_suffix") != "":
            message = "it is to be rendered, but is not text in UTF-8"
            yield Fault(file=file.path, message=message, fix="save it as UTF-8, or take the suffix off its name")
