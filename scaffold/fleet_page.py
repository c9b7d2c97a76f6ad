"""What became of many projects, as one HTML page that needs nothing else: to be mailed, or kept by CI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from scaffold import __version__, fleet, placing
from scaffold.console import quoted
from scaffold.errors import DestinationError
from scaffold.fleet import MEANING, Outcome, Status

_FEW = 12
"""Files that are named where each matters."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #666; }
@media (prefers-color-scheme: dark) { :root { --faint: #aaa; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
p.when { margin: 0 0 1.2rem; }
p.when, .place, .counts span { color: var(--faint); }
.counts { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem; margin: 0 0 1.2rem;
  padding: 0; list-style: none; }
.counts li { border: 1px solid var(--line); border-left: .4rem solid var(--status); border-radius: .5rem; padding: .5rem .9rem; }
.counts b { font-size: 1.25rem; display: block; line-height: 1.3; }
.counts span { display: block; font-size: .85rem; line-height: 1.35; }
.bar { display: flex; gap: 2px; height: .7rem; border-radius: .35rem; overflow: hidden; margin: 0 0 1.4rem; }
.bar span, .status { background: var(--status); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; }
td { overflow-wrap: anywhere; min-width: 8rem; }
td.status-of, td.versions, td.versions code { white-space: nowrap; overflow-wrap: normal; }
tbody tr:hover { background: var(--soft); }
.status { border-radius: .4rem; color: #fff; padding: .05rem .5rem; }
.current { --status: #3b6ea5; } .updated { --status: #1f7a3d; } .behind { --status: #8a6100; }
.drifted { --status: #a8480c; } .conflicts { --status: #b3261e; } .failed { --status: #7d3c98; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
ul { margin: 0; padding-left: 1.1rem; }
summary { cursor: pointer; }
@media (max-width: 45rem) {
  thead { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { display: block; border: 0; padding: .1rem 0; }
}
"""


def page(outcomes: Sequence[Outcome], *, command: str, when: datetime | None = None) -> str:
    """The page. Every name in it is escaped: it may come from a stranger's template.

    Args:
        command: ``check`` or ``update``.
    """
    counted = fleet.counts(outcomes)
    total = len(outcomes) or 1
    when = when or datetime.now(timezone.utc)
    bar = "".join(
        f'<span class="{status}" style="width:{100 * count / total:.2f}%" title="{count} {status}"></span>'
        for status, count in counted.items()
    )
    order = list(MEANING)
    folder = _common(outcomes)
    rows = "".join(
        _row(each, folder) for each in sorted(outcomes, key=lambda each: (-order.index(each.status), str(each.path)))
    )
    title = f"{len(outcomes)} project{'s' * (len(outcomes) != 1)}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>scaffold fleet {escape(command)}: {title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="when">scaffold fleet {escape(command)}, {when:%Y-%m-%d %H:%M} UTC, scaffold {escape(__version__)}, in
<code>{escape(str(folder))}</code></p>
<ul class="counts">{_cards(outcomes, counted)}</ul>
<div class="bar">{bar}</div>
<table>
<thead><tr><th>project</th><th>status</th><th>versions</th><th>what is to be done</th></tr></thead>
<tbody>{rows}</tbody>
</table>
</body>
</html>
"""


def write(file: Path, outcomes: Sequence[Outcome], *, command: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        DestinationError: It cannot be written there.
    """
    try:
        placing.write(file, page(outcomes, command=command).encode())
    except OSError as error:
        raise _cannot_write(file, error.strerror or str(error)) from None


def require_place(file: Path) -> None:
    """Raises DestinationError where no file could be written, before an hour's work is done for it."""
    if file.is_dir():
        raise _cannot_write(file, "it is a folder")
    if not file.absolute().parent.is_dir():
        raise _cannot_write(file, "there is no such folder")


def _cannot_write(file: Path, reason: str) -> DestinationError:
    return DestinationError(
        f"Cannot write {file}: {reason}.",
        why="the page was asked for by --html.",
        fix="name a file in a folder that is there and that you may write in.",
    )


def _cards(outcomes: Sequence[Outcome], counted: Mapping[Status, int]) -> str:
    """How many of each status, and what it means. The drifted among them are counted once more, since they are looked for."""
    cards = [
        f'<li class="{status}"><b>{count} {status}</b><span>{escape(MEANING[status])}</span></li>'
        for status, count in counted.items()
    ]
    if also := fleet.also_drifted(outcomes):
        cards.append(f'<li class="drifted"><b>{also} also drifted</b><span>{escape(MEANING["drifted"])}</span></li>')
    return "".join(cards)


def _common(outcomes: Sequence[Outcome]) -> Path:
    """The folder that all of them lie in."""
    return Path(os.path.commonpath([each.path.parent for each in outcomes])) if outcomes else Path.cwd()


def _row(outcome: Outcome, folder: Path) -> str:
    versions = "<br>".join(
        f"{escape(name)} <code>{escape(one)}</code>" + (f" → <code>{escape(other)}</code>" if other != one else "")
        for name, (one, other) in fleet.steps(outcome).items()
    )
    place = outcome.path.parent.relative_to(folder).as_posix()
    above = f'<br><code class="place">{escape(place)}</code>' if place != "." else ""
    shown = dict.fromkeys([outcome.status, *(["drifted"] if outcome.drifted else [])])
    badges = " ".join(f'<span class="status {status}">{status}</span>' for status in shown)
    return (
        f'<tr title="{escape(str(outcome.path))}"><td><b>{escape(outcome.path.name)}</b>{above}</td>'
        f'<td class="status-of">{badges}</td>'
        f'<td class="versions">{versions}</td><td>{_details(outcome)}</td></tr>\n'
    )


def _details(outcome: Outcome) -> str:
    parts = []
    match outcome.status:
        case "failed":
            error = outcome.error
            parts += [escape(error.get("what", "")), f"why: {escape(error.get('why', ''))}"]
            parts.append(f"fix: {escape(error.get('fix', ''))}")
        case "conflicts":
            parts.append(f"resolve {_files(outcome.conflicts)}, then <code>git add -A &amp;&amp; git commit</code>")
        case "updated":
            parts.append(_folded("look at it with <code>git diff HEAD</code>, then commit", outcome.changed))
        case "behind":
            parts.append(
                _folded(f"<code>{escape(quoted('scaffold', 'update', str(outcome.path)))}</code>", outcome.changed)
            )
        case _:
            pass
    if outcome.drifted:
        back = escape(quoted("scaffold", "check", "--restore", str(outcome.path)))
        parts.append(
            f"changed, though the template manages it: {_files(outcome.drifted)}; <code>{back}</code> puts it back"
        )
    return "".join(f"<div>{part}</div>" for part in parts)


def _folded(text: str, names: Sequence[str]) -> str:
    """``text``, which opens to a list of files."""
    if not names:
        return text
    count = f"{len(names)} file{'s' * (len(names) != 1)}"
    items = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
    return f"<details><summary>{text} ({count})</summary><ul>{items}</ul></details>"


def _files(names: Sequence[str]) -> str:
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in names[:_FEW])
    return shown + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
