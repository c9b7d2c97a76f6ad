"""A report as a table for people, as a document for machines, and as JUnit's XML for CI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scaffold.console import quoted
from scaffold.errors import DestinationError
from scaffold.template_testing import Combination, Report

_SHOWN = 30
"""Lines of a failure's output."""

_ANSWERS = 60
"""Columns for a combination's answers."""


def table(report: Report) -> Iterator[str]:
    """One row per combination, one column per stage; below it the failures and what was skipped."""
    rows = [["#", "answers", *report.stages, "time"]]
    varying = _varying(report)
    for one in report.combinations:
        cells = [_cell(one, stage) for stage in report.stages]
        shown = {name: value for name, value in one.answers.items() if name in varying}
        rows.append([str(one.number), _answers(shown), *cells, f"{one.seconds:.1f} s"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from _skipped(report)
    yield from (f"note: {note}" for note in report.notes)
    for one in report.combinations:
        for stage in one.failed:
            yield ""
            yield from _failure(report, one, stage)
    yield ""
    yield summary(report)


def summary(report: Report) -> str:
    """The last line."""
    counts = ", ".join(f"{report.count(status)} {status}" for status in ("ok", "cached", "FAILED", "skipped"))
    failed = sum(bool(one.failed) for one in report.combinations)
    many = f"{len(report.combinations)} combination{'s' * (len(report.combinations) != 1)}"
    return f"{many}, {failed} with a failure; stages: {counts}; {report.seconds:.1f} s"


def line(one: Combination, of: int) -> str:
    """While it goes on: one combination is through."""
    what = f"FAILED: {', '.join(one.failed)}" if one.failed else "ok"
    return f"combination {one.number} ({of} in all): {what}, {one.seconds:.1f} s"


def document(report: Report) -> dict[str, Any]:
    """For machines."""
    return {
        "template": str(report.root),
        "ok": report.good,
        "stages": list(report.stages),
        "combinations": [
            {
                "number": one.number,
                "answers": _plain(one.answers),
                "seconds": round(one.seconds, 3),
                "stages": {
                    stage: {
                        "status": result.status,
                        "why": result.why,
                        "command": result.command,
                        "output": result.output,
                        "seconds": round(result.seconds, 3),
                    }
                    for stage, result in one.results.items()
                },
            }
            for one in report.combinations
        ],
        "counts": {status: report.count(status) for status in ("ok", "cached", "FAILED", "skipped")},
        "notes": list(report.notes),
        "seconds": round(report.seconds, 3),
    }


def junit(report: Report, file: Path) -> None:
    """Write ``file``: a suite for each combination, a case for each stage."""
    suites = ElementTree.Element("testsuites", name="scaffold template test", time=f"{report.seconds:.3f}")
    for one in report.combinations:
        statuses = [result.status for result in one.results.values()]
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=f"{one.number} {_xml(_answers(one.answers))}",
            tests=str(len(statuses)),
            failures=str(statuses.count("FAILED")),
            skipped=str(statuses.count("skipped")),
            time=f"{one.seconds:.3f}",
        )
        for stage, result in one.results.items():
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"combination {one.number}", name=stage, time=f"{result.seconds:.3f}"
            )
            if result.status == "FAILED":
                fault = ElementTree.SubElement(case, "failure", message=_xml(result.why))
                fault.text = _xml(result.output)
            elif result.status == "skipped":
                ElementTree.SubElement(case, "skipped", message=_xml(result.why))
    ElementTree.indent(suites)
    try:
        ElementTree.ElementTree(suites).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise DestinationError(
            f"Cannot write {file}: {error.strerror}.",
            why="the report for CI goes there.",
            fix="--format junit FILE, in a folder that is there and that you may write in",
        ) from None


def _cell(one: Combination, stage: str) -> str:
    result = one.results[stage]
    return "-" if one.results["rendered"].status == "FAILED" and result.status == "skipped" else result.status


def _skipped(report: Report) -> Iterator[str]:
    """Each reason once, with the combinations it holds for."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for one in report.combinations:
        for stage, result in one.results.items():
            if _cell(one, stage) == "skipped" or (result.status == "ok" and result.why):
                reasons.setdefault((stage, result.why), []).append(one.number)
    for (stage, why), numbers in reasons.items():
        where = "all" if len(numbers) == len(report.combinations) else ", ".join(map(str, numbers))
        yield f"{stage}, skipped: {why} ({where})"


def _failure(report: Report, one: Combination, stage: str) -> Iterator[str]:
    result = one.results[stage]
    yield f"--- {one.number} {stage} FAILED: {result.why}"
    yield f"    answers: {_answers(one.answers, 2000, 90)}"
    if result.command:
        yield f"    ran:     {result.command}"
    again = ("scaffold", "template", "test", str(report.root), "--only", str(one.number), "--stages", stage)
    yield f"    again:   {quoted(*again, '--keep', 'kept')}"
    lines = result.output.rstrip().splitlines()
    if len(lines) > _SHOWN:
        yield f"    ... {len(lines) - _SHOWN} lines before these"
    yield from (f"    | {text}" for text in lines[-_SHOWN:])


def _answers(answers: Mapping[str, Any], most: int = _ANSWERS, each: int = 18) -> str:
    """As one would say them, long ones cut."""
    text = " ".join(f"{name}={_short(value, each)}" for name, value in answers.items())
    return (text if len(text) <= most else text[: most - 2] + "..") or "(all defaults)"


def _short(value: Any, most: int) -> str:
    text = value if isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) else repr(value)
    return text if len(text) <= most else text[: most - 2] + ".."


def _varying(report: Report) -> set[str]:
    """Questions with more than one answer in the report; the others would fill the table with the same."""
    given: dict[str, list[Any]] = {}
    for one in report.combinations:
        for name, value in one.answers.items():
            given.setdefault(name, []).append(value)
    many = len(report.combinations)
    return {name for name, values in given.items() if many == 1 or len(values) < many or values.count(values[0]) < many}


def _plain(value: Any) -> Any:
    """What JSON can hold: YAML has dates."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _xml(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
