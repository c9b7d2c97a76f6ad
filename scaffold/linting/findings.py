"""What a rule is, what it yields, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scaffold.linting.template import Template

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong, as a rule sees it."""

    file: str
    """Relative to the template's root, with slashes."""
    message: str
    fix: str
    line: int = 1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that can be wrong."""

    id: str
    """T and three digits, the first of which is the family's. Never given to another rule."""
    title: str
    severity: Severity
    check: Callable[[Template], Iterator[Fault]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault, and the rule that found it."""

    rule: Rule
    fault: Fault

    def text(self) -> str:
        """One line for people; editors and terminals make a link of its beginning."""
        fault = self.fault
        text = f"{fault.file}:{fault.line}  {self.rule.id} {self.rule.severity}  {fault.message}  ({fault.fix})"
        return _shown(text).replace("\n", "\\n")

    def annotation(self, folder: str = "") -> str:
        """One line that GitHub Actions shows beside the file.

        Args:
            folder: Where the template lies in its repository, with a slash at the end.
        """
        where = f"file={_property(folder + self.fault.file)},line={self.fault.line}"
        title = _property(f"{self.rule.id} {self.rule.title}")
        return f"::{self.rule.severity} {where},title={title}::{_data(f'{self.fault.message} ({self.fault.fix})')}"

    def entry(self) -> dict[str, object]:
        """For JSON."""
        return {
            "rule": self.rule.id,
            "severity": self.rule.severity,
            "title": self.rule.title,
            "file": _shown(self.fault.file),
            "line": self.fault.line,
            "message": _shown(self.fault.message),
            "fix": self.fault.fix,
        }


def _shown(text: str) -> str:
    """A file's name may be no UTF-8, and no terminal would take it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _data(text: str) -> str:
    return _shown(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
