"""Running the rules: which of them, on what, and which findings are muted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaffold.errors import TemplateError, nearest
from scaffold.linting import template as templates
from scaffold.linting.config import as_strings
from scaffold.linting.findings import Finding, Rule
from scaffold.linting.table import RULES
from scaffold.linting.template import Template

_PAGES = Path(__file__).with_name("pages")
_MUTE = re.compile(r"scaffold:\s*ignore\s+(T\d+(?:[\s,]+T\d+)*)")


@dataclass(frozen=True, kw_only=True)
class Linted:
    """What was found in a template."""

    root: Path
    files: int
    """How many files of the template become part of a project."""
    findings: tuple[Finding, ...]
    """By file and line."""
    muted: int
    """How many more there are, which the author muted."""
    notes: tuple[str, ...]
    """What could not be looked at, and why."""

    @property
    def errors(self) -> int:
        return sum(finding.rule.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def failed(self, *, strict: bool) -> bool:
        """Is it not fit to be released?

        Args:
            strict: Warnings count, too.
        """
        return bool(self.findings if strict else self.errors)

    def summary(self) -> str:
        """One line."""
        muted = f" ({self.muted} muted)" if self.muted else ""
        if not self.findings:
            return f"Nothing found in {_count(self.files, 'file')}{muted}."
        counts = f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')} in {_count(self.files, 'file')}"
        return f"{counts}{muted}. What a rule means: scaffold template lint --explain {self.findings[0].rule.id}"


def lint(path: Path, *, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Linted:
    """Look at the template whose root is ``path``, as it lies there.

    Args:
        select: Only rules whose ids start with one of these; none means all.
        ignore: Without those whose ids start with one of these.

    Raises:
        TemplateError: It is no template, or there is no such rule.
    """
    rules = chosen(select, ignore)
    template = templates.read(path)
    told = template.config.ours.get("lint")
    silent = as_strings(told.get("ignore")) if isinstance(told, dict) else ()
    heard, muted = [], 0
    for finding in _findings(template, rules):
        if finding.rule.id.startswith(silent) or finding.rule.id in _muted_in_line(template, finding):
            muted += 1
        else:
            heard.append(finding)
    return Linted(
        root=template.root,
        files=len(template.files),
        findings=tuple(sorted(heard, key=lambda found: (found.fault.file, found.fault.line, found.rule.id))),
        muted=muted,
        notes=tuple(_notes(template, rules, silent)),
    )


def chosen(select: Iterable[str], ignore: Iterable[str]) -> tuple[Rule, ...]:
    """The rules to run.

    Raises:
        TemplateError: No rule's id starts like that.
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    for start in (*wanted, *unwanted):
        if not start or not any(rule.id.startswith(start) for rule in RULES):
            raise _no_rule(start)
    return tuple(
        rule
        for rule in RULES
        if (not wanted or rule.id.startswith(wanted)) and not (unwanted and rule.id.startswith(unwanted))
    )


def explain(rule: str) -> str:
    """The page of a rule.

    Raises:
        TemplateError: There is no such rule.
    """
    if not any(known.id == rule for known in RULES):
        raise _no_rule(rule)
    return (_PAGES / f"{rule}.md").read_text(encoding="utf-8")


def _findings(template: Template, rules: Iterable[Rule]) -> Iterator[Finding]:
    for rule in rules:
        faults = dict.fromkeys(rule.check(template))  # an anchor in YAML would be judged at each of its uses
        yield from (Finding(rule=rule, fault=fault) for fault in faults)


def _muted_in_line(template: Template, finding: Finding) -> list[str]:
    lines = template.lines(finding.fault.file)
    line = lines[finding.fault.line - 1] if finding.fault.line <= len(lines) else ""
    return [rule for match in _MUTE.finditer(line) for rule in re.findall(r"T\d+", match[1])]


def _notes(template: Template, rules: Iterable[Rule], silent: Iterable[str]) -> Iterator[str]:
    for start in silent:
        if not any(rule.id.startswith(start) for rule in RULES):
            yield f"{template.config.file} mutes {start}, and there is no such rule{_guess(start, '; it may mean {}')}."
    if any(rule.id.startswith("T6") for rule in rules):
        outcome = template.outcome
        if outcome.skipped:
            yield f"what it renders was not looked at (T6): {outcome.skipped}."
        elif outcome.failure:
            yield "what it renders was not looked at (T602 to T605): it does not render."
    if template.is_layer and template.base.failure:
        yield f"what the base template writes is not known: {template.base.failure.what}"


def _no_rule(typed: str) -> TemplateError:
    return TemplateError(
        f"There is no rule {typed!r}.",
        why=f"rules are called {RULES[0].id} to {RULES[-1].id}; T1 stands for all that start like that.",
        fix=_guess(typed, "use {}") or f"use one of {', '.join(sorted({rule.id[:2] for rule in RULES}))}",
    )


def _guess(typed: str, text: str) -> str:
    near = nearest(typed.upper(), [rule.id for rule in RULES])
    return text.format(near) if near else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
