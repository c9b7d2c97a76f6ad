"""What became of many projects, as one HTML page that needs nothing else: to be mailed, or kept by CI."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from scaffold import __version__, fleet
from scaffold.errors import DestinationError
from scaffold.fleet import MEANING, Outcome

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
p.when { margin: 0 0 1.2rem; opacity: .7; }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1.4rem; padding: 0; list-style: none; }
.counts li { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
.counts b { font-size: 1.4rem; display: block; line-height: 1.2; }
.bar { display: flex; height: .6rem; border-radius: .3rem; overflow: hidden; margin: 0 0 1.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; }
td.path { overflow-wrap: anywhere; }
tr:hover { background: var(--soft); }
.status { border-radius: .4rem; color: #fff; padding: .05rem .5rem; white-space: nowrap; }
.current, .updated { background: #1f7a3d; } .behind { background: #8a6100; } .drifted { background: #9a4b00; }
.conflicts { background: #b3261e; } .failed { background: #5b1a16; }
code { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
ul.files { margin: 0; padding-left: 1.1rem; }
"""


def page(outcomes: Sequence[Outcome], *, command: str, when: datetime | None = None) -> str:
    """The page. Every name in it is escaped: it may come from a stranger's template.

    Args:
        command: ``check`` or ``update``.
    """
    counted = fleet.counts(outcomes)
    total = len(outcomes) or 1
    when = when or datetime.now(timezone.utc)
    cards = "".join(
        f'<li title="{escape(MEANING[status])}"><b>{count}</b>{status}</li>' for status, count in counted.items()
    )
    bar = "".join(
        f'<span class="{status}" style="width:{100 * count / total:.2f}%" title="{count} {status}"></span>'
        for status, count in counted.items()
    )
    order = list(MEANING)
    rows = "".join(
        _row(each) for each in sorted(outcomes, key=lambda each: (-order.index(each.status), str(each.path)))
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>scaffold fleet {escape(command)}: {len(outcomes)} projects</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{len(outcomes)} projects</h1>
<p class="when">scaffold fleet {escape(command)}, {when:%Y-%m-%d %H:%M} UTC, scaffold {escape(__version__)}</p>
<ul class="counts">{cards}</ul>
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
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        try:
            fresh.write_text(page(outcomes, command=command), encoding="utf-8")
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise DestinationError(
            f"Cannot write {file}: {error.strerror}.",
            why="the page was asked for by --html.",
            fix="name a file in a folder that is there and that you may write in.",
        ) from None


def _row(outcome: Outcome) -> str:
    versions = "<br>".join(
        f"{escape(name)} <code>{escape(version)}</code>" + (f" → <code>{escape(new)}</code>" if new != version else "")
        for name, version in outcome.versions.items()
        for new in [outcome.newest.get(name, version)]
    )
    return (
        f'<tr><td class="path"><b>{escape(outcome.path.name)}</b><br><code>{escape(str(outcome.path.parent))}</code></td>'
        f'<td><span class="status {outcome.status}">{outcome.status}</span></td>'
        f"<td>{versions}</td><td>{_details(outcome)}</td></tr>\n"
    )


def _details(outcome: Outcome) -> str:
    parts = []
    match outcome.status:
        case "failed":
            error = outcome.error
            told = f"{error.get('what', '')} {error.get('why', '')}"
            parts.append(f"{escape(told)}<br><code>{escape(error.get('fix', ''))}</code>")
        case "conflicts":
            parts.append(f"resolve, then <code>git add -A &amp;&amp; git commit</code>{_files(outcome.conflicts)}")
        case "updated":
            parts.append(f"look at it, then commit{_files(outcome.changed)}")
        case "behind":
            parts.append(f"<code>scaffold update {escape(str(outcome.path))}</code>{_files(outcome.changed)}")
        case _:
            pass
    if outcome.drifted:
        parts.append(f"changed, though the template manages them{_files(outcome.drifted)}")
    return "<br>".join(parts)


def _files(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = "".join(f"<li><code>{escape(name)}</code></li>" for name in names[:12])
    more = f"<li>and {len(names) - 12} more</li>" if len(names) > 12 else ""
    return f'<ul class="files">{shown}{more}</ul>'
