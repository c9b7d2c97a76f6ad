"""T6: what the template gives for its default answers."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Callable, Iterator

import yaml

from scaffold.errors import UnsafeTemplate
from scaffold.linting.findings import Fault
from scaffold.linting.template import Template

_TEST = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_test)\.py$")


def fails(template: Template) -> Iterator[Fault]:
    failure = template.outcome.failure
    if failure and not isinstance(failure, UnsafeTemplate):
        said = failure.what.splitlines()[0].rstrip(".")
        said = re.sub(r"^The template .*? cannot be rendered: ", "", said)
        message = f"it cannot be rendered with its default answers: {said}"
        yield Fault(
            file=template.config.file, message=message, fix="try it: scaffold new /tmp/try --template . --preview"
        )


def bad_yaml(template: Template) -> Iterator[Fault]:
    return _unreadable(template, (".yml", ".yaml"), "YAML", _yaml)


def bad_toml(template: Template) -> Iterator[Fault]:
    return _unreadable(template, (".toml",), "TOML", _toml)


def bad_python(template: Template) -> Iterator[Fault]:
    return _unreadable(template, (".py",), "Python", _python)


def no_tests(template: Template) -> Iterator[Fault]:
    files = template.outcome.files
    code = [name for name in files if name.endswith(".py") and not _TEST.search(name)]
    if code and not template.is_layer and not any(_TEST.search(name) for name in files):
        message = f"it writes code, {code[0]} for one, and no tests: users learn from the first update that breaks it"
        yield Fault(file=template.config.file, message=message, fix="add tests/test_*.py to what it renders")


_Reader = Callable[[bytes], tuple[int, str] | None]
"""Line and reason why a content can't be read; None if it can."""


def _unreadable(template: Template, endings: tuple[str, ...], language: str, read: _Reader) -> Iterator[Fault]:
    for name, content in template.outcome.files.items():
        problem = read(content) if name.endswith(endings) else None
        if problem:
            line, reason = problem
            origin = template.origin(name)
            where = (origin.path, 1 if origin.rendered else line) if origin else (template.config.file, 1)
            message = f"line {line} of {name}, as rendered with the default answers, is no {language}: {reason}"
            fix = "correct it; answers inside quotes are written as {{ answer | to_json }}, which brings its own quotes"
            yield Fault(file=where[0], line=where[1], message=message, fix=fix)


def _yaml(content: bytes) -> tuple[int, str] | None:
    try:
        for _ in yaml.compose_all(content, Loader=yaml.SafeLoader):
            pass
    except yaml.MarkedYAMLError as error:
        return (error.problem_mark.line + 1 if error.problem_mark else 1), str(error.problem)
    except (yaml.YAMLError, RecursionError) as error:
        return 1, str(error).splitlines()[0]
    return None


def _toml(content: bytes) -> tuple[int, str] | None:
    if sys.version_info >= (3, 11):  # no Python before has a reader
        import tomllib

        try:
            tomllib.loads(content.decode("utf-8"))
        except ValueError as error:
            match = re.search(r"\(at line (\d+), column \d+\)", str(error))
            return (int(match[1]) if match else 1), re.sub(r" \(at .*\)$", "", str(error))
    return None


def _python(content: bytes) -> tuple[int, str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape is no reason not to run
            ast.parse(content)
    except SyntaxError as error:
        return error.lineno or 1, error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        return 1, str(error) or "it is nested too deeply"
    return None
