"""Jinja as Copier would read it, parsed and never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from scaffold.linting.config import Config, Keys

# What Copier defines besides the answers, and what its tasks and migrations get.
COPIER_NAMES = frozenset(
    [
        "_copier_answers",
        "_copier_conf",
        "_copier_operation",
        "_copier_phase",
        "_copier_python",
        "_external_data",
        "_folder_name",
        "_src_path",
        "_commit",
        "now",
        "make_secret",
        "pathjoin",
    ]
)
_TASK_NAMES = frozenset(
    [
        "_stage",
        "_version_from",
        "_version_to",
        "_version_current",
        "_version_pep440_from",
        "_version_pep440_to",
        "_version_pep440_current",
    ]
)
_SETTINGS = ("_subdirectory", "_exclude", "_skip_if_exists", "_external_data", "_tasks", "_migrations")
_MESSAGES = ("_message_before_copy", "_message_after_copy", "_message_before_update", "_message_after_update")
_ENVOPS = frozenset(
    [
        "block_start_string",
        "block_end_string",
        "variable_start_string",
        "variable_end_string",
        "comment_start_string",
        "comment_end_string",
        "line_statement_prefix",
        "line_comment_prefix",
        "trim_blocks",
        "lstrip_blocks",
        "newline_sequence",
        "keep_trailing_newline",
        "autoescape",
        "undefined",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why Jinja would refuse a piece."""

    kind: Literal["syntax", "unknown filter"]
    message: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One text with Jinja in it, or that may have."""

    kind: Literal["setting", "name", "content"]
    text: str
    file: str
    line: int
    """Of its first line in ``file``."""
    problem: Problem | None
    variables: Mapping[str, int]
    """Names that are read and set nowhere in it, with the line in ``file`` of the first use."""
    known: frozenset[str]
    """Names that have a value there."""


class YieldTag(Extension):
    """Copier's ``{% yield NAME from LIST %}`` in file names, which makes one file for each item: a loop, to a reader."""

    tags = {"yield"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        target = parser.parse_assign_target(name_only=True)
        parser.stream.expect("name:from")
        items = parser.parse_expression()
        body = parser.parse_statements(("name:endyield",), drop_needle=True)
        return nodes.For(target, items, body, [], None, False, lineno=line)


class _Names(meta.TrackingCodeGenerator):
    """Finds names as Jinja's own meta.find_undeclared_variables does, but computes no constant: 9 ** (9 ** 9) takes years."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.optimizer = None


@dataclass(frozen=True, kw_only=True)
class Jinja:
    """A template's own Jinja settings."""

    environment: jinja2.Environment
    refused: str | None
    """Why its _envops are no settings of Jinja; they count as not given then."""
    foreign: bool
    """It has extensions, whose tags and filters aren't known: only their code could tell, and none is run."""
    questions: tuple[str, ...]

    @staticmethod
    def of(config: Config) -> Jinja:
        given = config.data.get("_envops")
        options = {k: v for k, v in given.items() if k in _ENVOPS - {"undefined"}} if isinstance(given, dict) else {}
        refused = None
        try:
            environment = _environment(options)
        except (AssertionError, AttributeError, TypeError, ValueError) as error:  # no check of its own: whatever breaks
            environment, refused = _environment({}), str(error) or type(error).__name__
        return Jinja(
            environment=environment,
            refused=refused,
            foreign=bool(config.data.get("_jinja_extensions")),
            questions=tuple(config.questions),
        )

    @property
    def marks(self) -> tuple[str, str, str]:
        """What starts a value, a statement and a comment."""
        env = self.environment
        return env.variable_start_string, env.block_start_string, env.comment_start_string

    def of_config(self, config: Config) -> Iterator[Piece]:
        """Pieces of the questions, then of the settings."""
        before: set[str] = set()
        for name, question in config.questions.items():
            for keys, text in _strings(question.details, (name,)):
                own = {name} if keys[1:2] == ("validator",) else set()
                yield self.piece("setting", text, **config.place(*keys), known=COPIER_NAMES | before | own)
            before.add(name)
        everything = COPIER_NAMES | before
        for setting in (*_SETTINGS, *_MESSAGES):
            extra = _TASK_NAMES if setting in ("_tasks", "_migrations") else frozenset[str]()
            for keys, text in _strings(config.data.get(setting), (setting,)):
                yield self.piece("setting", text, **config.place(*keys), known=everything | extra)

    def of_file(self, file: str, target: str, text: str | None) -> Iterator[Piece]:
        """Pieces of a file's name, and of what is in it if that is rendered."""
        known = COPIER_NAMES | set(self.questions)
        for name in target.split("/"):
            yield self.piece("name", name, file=file, line=1, known=known)
            known |= self._yielded(name)
        if text is not None:
            yield self.piece("content", text, file=file, line=1, known=known)

    def piece(
        self, kind: Literal["setting", "name", "content"], text: str, *, file: str, line: int, known: Any
    ) -> Piece:
        problem, variables = self._read(text)
        at = (lambda inner: line + inner - 1) if kind == "content" else (lambda _inner: line)
        return Piece(
            kind=kind,
            text=text,
            file=file,
            line=line,
            problem=problem and Problem(kind=problem.kind, message=problem.message, line=at(problem.line)),
            variables={name: at(inner) for name, inner in variables.items()},
            known=frozenset(known),
        )

    def collisions(self, text: str) -> Iterator[int]:
        """Lines where a dollar stands before a value's mark, outside of ``raw``: GitHub's expressions look like that."""
        try:
            tokens = list(self.environment.lex(text))
        except jinja2.TemplateSyntaxError:
            return
        for (_, kind, value), (line, following, mark) in pairwise(tokens):
            if kind == "data" and value.endswith("$") and following == "variable_begin" and mark.startswith("{{"):
                yield line

    def _read(self, text: str) -> tuple[Problem | None, Mapping[str, int]]:
        if not any(mark in text for mark in self.marks):
            return None, {}
        try:
            tree = self.environment.parse(text)
            names = _Names(self.environment)
            names.visit(tree)
        except jinja2.TemplateAssertionError as error:
            unknown = "named" in str(error.message)
            kind: Literal["syntax", "unknown filter"] = "unknown filter" if unknown else "syntax"
            foreign = self.foreign and unknown
            return None if foreign else Problem(kind=kind, message=str(error.message), line=error.lineno), {}
        except jinja2.TemplateSyntaxError as error:
            foreign = self.foreign and "unknown tag" in str(error.message)
            return None if foreign else Problem(kind="syntax", message=str(error.message), line=error.lineno), {}
        except RecursionError:
            return Problem(kind="syntax", message="it is nested too deeply", line=1), {}
        lines = {node.name: node.lineno for node in reversed(list(tree.find_all(nodes.Name))) if node.ctx == "load"}
        wanted = names.undeclared_identifiers - _guarded(tree) - self.environment.globals.keys()
        return None, {name: lines.get(name, 1) for name in sorted(wanted)}

    def _yielded(self, name: str) -> set[str]:
        if "yield" not in name:
            return set()
        try:
            loops = self.environment.parse(name).find_all(nodes.For)
        except jinja2.TemplateSyntaxError:
            return set()
        return {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}


def _environment(options: Mapping[str, Any]) -> jinja2.Environment:
    extensions: list[str | type[Extension]] = [
        "jinja2_ansible_filters.AnsibleCoreFiltersExtension",
        YieldTag,
    ]  # those of Copier
    defaults = {"keep_trailing_newline": True, "finalize": _as_it_is}
    environment = jinja2.Environment(extensions=extensions, **{**defaults, **options})
    environment.parse("")  # a wrong option is noticed only then
    return environment


@jinja2.pass_context
def _as_it_is(_context: object, value: object) -> object:
    """Takes the context, so that Jinja cannot call it, nor compute what it is given, before something is rendered."""
    return value


def _guarded(tree: nodes.Template) -> set[str]:
    """Names that are asked for with care: ``x is defined``, ``x | default(...)``."""
    tests = (test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    filters = (call.node for call in tree.find_all(nodes.Filter) if call.name in ("default", "d"))
    return {node.name for node in (*tests, *filters) if isinstance(node, nodes.Name)}


def _strings(value: Any, keys: Keys, seen: set[int] | None = None) -> Iterator[tuple[Keys, str]]:
    """All texts in a value. YAML's aliases can make it hold itself, or one list a billion times: each is read once."""
    seen = set() if seen is None else seen
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, (Mapping, list)) and id(value) not in seen:
        seen.add(id(value))
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _strings(item, (*keys, str(name)), seen)
