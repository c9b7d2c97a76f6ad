"""T2: what a project must know of its template to be updated, and what copier.yml says to Copier and to scaffold."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from scaffold import projects
from scaffold.linting.config import as_strings
from scaffold.linting.findings import Fault
from scaffold.linting.template import File, Template
from scaffold.patterns import matches

_SETTINGS = [
    "_answers_file",
    "_envops",
    "_exclude",
    "_external_data",
    "_jinja_extensions",
    "_message_after_copy",
    "_message_after_update",
    "_message_before_copy",
    "_message_before_update",
    "_migrations",
    "_min_copier_version",
    "_preserve_symlinks",
    "_scaffold",
    "_secret_questions",
    "_skip_if_exists",
    "_subdirectory",
    "_tasks",
    "_templates_suffix",
]
_LISTS = ("managed", "generated", "overlaps")
_USERS = ("README.md", "src/package/model.py", "configs/train.yaml", "pyproject.toml")


def not_recorded(template: Template) -> Iterator[Fault]:
    if not any(_is_answers_file(template, file) for file in template.files):
        name = "{{ _copier_conf.answers_file }}" + str(template.config.data.get("_templates_suffix", ".jinja"))
        message = "no file records the answers, so no project can ever be updated"
        yield Fault(file=template.config.file, message=message, fix=f"add a file called '{name}' to the template")


def not_printed(template: Template) -> Iterator[Fault]:
    for file in template.files:
        if _is_answers_file(template, file) and "_copier_answers" not in (file.text or ""):
            message = "the answers file does not print _copier_answers, so no project can ever be updated"
            yield Fault(file=file.path, message=message, fix="put {{ _copier_answers | to_nice_yaml -}} in it")
        elif _is_answers_file(template, file) and not file.rendered:
            message = "the answers file is not rendered, so it holds Jinja and no answers"
            yield Fault(file=file.path, message=message, fix="end its name in .jinja")


def _is_answers_file(template: Template, file: File) -> bool:
    return "_copier_conf.answers_file" in file.target or file.target == template.answers_file


def empties_exclude(template: Template) -> Iterator[Fault]:
    if template.config.data.get("_subdirectory") and "_exclude" not in template.config.data:
        message = "_subdirectory empties Copier's own list of what to leave out: caches and .DS_Store are copied"
        fix = 'add _exclude: [.git, .DS_Store, __pycache__, "*.py[co]"]'
        yield Fault(**template.config.place("_subdirectory"), message=message, fix=fix)


def no_min_version(template: Template) -> Iterator[Fault]:
    if "_min_copier_version" not in template.config.data:
        message = "an older Copier will try the template and fail in the middle, or render it differently"
        yield Fault(file=template.config.file, message=message, fix='add _min_copier_version: "9.19.0"')


def layer_answers_file(template: Template) -> Iterator[Fault]:
    name = projects.layer_name(template.answers_file)
    if name is None:
        message = f"no project is found by {template.answers_file}: neither a base nor a layer is called that"
    elif name == "base" and template.is_layer:
        message = f"a layer that writes {template.answers_file} takes the place of its base's answers"
    else:
        return
    fix = "_answers_file: .copier-answers.NAME.yml, with the layer's name"
    yield Fault(**template.config.place("_answers_file"), message=message, fix=fix)


def overlap(template: Template) -> Iterator[Fault]:
    if not template.is_layer:
        return
    said = as_strings(template.config.ours.get("overlaps"))
    for written in sorted(template.outcome.files.keys() & template.base.files.keys()):
        if written != template.answers_file and not matches(written, said):
            origin = template.origin(written)
            message = f"{written} is the base template's, too: each update of one undoes the other's"
            fix = f"use another name, or say so: _scaffold: {{overlaps: [{written}]}}"
            yield Fault(file=origin.path if origin else template.config.file, message=message, fix=fix)


def matches_nothing(template: Template) -> Iterator[Fault]:
    may_be = [file.plain_target for file in template.files]
    for pattern in as_strings(template.config.ours.get("managed")):
        in_names = any(matches(file, [pattern]) for file in may_be)
        if not in_names and not any(matches(file, [pattern]) for file in template.outcome.files):
            message = f"the pattern {pattern!r} of managed files matches nothing that the template writes"
            yield Fault(**_managed(template, pattern), message=message, fix="correct it, or leave it out")


def users_files(template: Template) -> Iterator[Fault]:
    for pattern in as_strings(template.config.ours.get("managed")):
        theirs = next((file for file in _USERS if matches(file, [pattern])), None)
        if theirs or pattern.lower().startswith(("readme", "src/")):
            message = f"{pattern!r} covers files that every user edits, and scaffold check would call that drift"
            yield Fault(**_managed(template, pattern), message=message, fix="leave it out: other files are merged")


def _managed(template: Template, pattern: str) -> dict[str, Any]:
    position = list(template.config.ours.get("managed", [])).index(pattern)
    return template.config.place("_scaffold", "managed", str(position))


def misshapen(template: Template) -> Iterator[Fault]:
    config = template.config
    for key in config.data:
        near = get_close_matches(key, _SETTINGS, n=1, cutoff=0.8) if key.startswith("_") else []
        if near and key not in _SETTINGS:
            message = f"Copier has no setting {key}, and ignores it"
            yield Fault(**config.place(key), message=message, fix=f"write {near[0]}")
    told = config.data.get("_scaffold")
    if told is not None and not isinstance(told, dict):
        message = "_scaffold is not a mapping, and nothing in it counts"
        yield Fault(**config.place("_scaffold"), message=message, fix='_scaffold: {managed: [".github/**"]}')
    for key in _LISTS:
        value = config.ours.get(key)
        if value is not None and (not isinstance(value, list) or len(as_strings(value)) != len(value)):
            message = f"{key} is not a list of patterns, and what is none does not count"
            yield Fault(**config.place("_scaffold", key), message=message, fix=f'{key}: [".github/**"]')
