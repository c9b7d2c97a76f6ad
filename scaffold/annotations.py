"""What a check found, as the annotations that GitHub and GitLab show beside a change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from scaffold.checking import Checked


class _Finding(NamedTuple):
    rule: str
    level: str
    file: str
    message: str


def github(checked: Checked) -> str:
    """Workflow commands, one a line, and a last line for whoever reads the log."""
    lines = [
        f"::{each.level} file={_escaped(each.file, ',:')},title={_escaped(each.rule, ',:')}::{_escaped(each.message)}"
        for each in _findings(checked)
    ]
    return "\n".join([*lines, f"{len(lines)} finding{'s' * (len(lines) != 1)}"])


def gitlab(checked: Checked) -> str:
    """A report of code quality: a JSON list."""
    return json.dumps(
        [
            {
                "description": each.message,
                "check_name": each.rule,
                "fingerprint": sha256("\0".join([each.rule, each.file, each.message]).encode()).hexdigest(),
                "severity": "major" if each.level == "error" else "minor",
                "location": {"path": each.file, "lines": {"begin": 1}},
            }
            for each in _findings(checked)
        ],
        indent=2,
    )


def _findings(checked: Checked) -> Iterator[_Finding]:
    for layer in checked.layers:
        if layer.behind:
            yield _Finding(
                "template-behind",
                "warning",
                layer.answers_file,
                f"{layer.template} {layer.version} is {layer.behind} release{'s' * (layer.behind > 1)} behind "
                f"{layer.newest}. Run: scaffold update",
            )
    for file in checked.unresolved:
        yield _Finding("template-conflict", "error", file, "A conflict waits to be resolved here.")
    for each in checked.drifted:
        yield _Finding(
            "template-drift", "error", each.path, f"The template manages {each.path}, and it was {each.kind} here."
        )


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
