"""What an update loses: random histories, brought to the newest template by plain ``copier update`` and by ``scaffold update``.

Each history is a template of two to six versions and a project that its user has worked on since the first; both sides edit,
rename, move, delete and add files (see ``tests/scaffold/histories.py``). A line is lost when the user wrote and committed it
and it is afterwards neither in any file, markers and .rej files included, nor in a side of a conflict that git's index holds.

    python benchmarks/update_losses.py --histories 200
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "scaffold")]

import copier  # noqa: E402
import histories  # noqa: E402

from scaffold import updating  # noqa: E402


@dataclass
class Tally:
    """Of one of the two."""

    lines: int = 0
    histories: int = 0
    conflicts: int = 0
    silent: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    arguments = parser.parse_args()
    tallies = {"copier update": Tally(), "scaffold update": Tally()}
    with tempfile.TemporaryDirectory(prefix="scaffold-losses-") as folder:
        _be_nobody(Path(folder))
        for seed in range(arguments.seed, arguments.seed + arguments.histories):
            place = Path(folder) / str(seed)
            place.mkdir()
            _measure(seed, place, tallies)
            shutil.rmtree(place)
    print(f"{arguments.histories} histories, seeds from {arguments.seed}\n")
    print(f"{'':<40}{''.join(f'{name:>18}' for name in tallies)}")
    rows = {
        "lines of the user lost": "lines",
        "histories with a lost line": "histories",
        "histories with conflicts left": "conflicts",
        "of these, reported as a success": "silent",
        "updates that failed": "failed",
    }
    for title, name in rows.items():
        print(f"{title:<40}{''.join(f'{getattr(tally, name):>18}' for tally in tallies.values())}")
    medians = [statistics.median(tally.seconds) if tally.seconds else float("nan") for tally in tallies.values()]
    print(f"{'seconds for one update, median':<40}{''.join(f'{median:>18.2f}' for median in medians)}")


def _be_nobody(folder: Path) -> None:
    """Settings of whoever runs this have no say."""
    config = folder / "config"
    config.write_text("[user]\n\tname = A\n\temail = a@example.com\n")
    os.environ |= {
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def _measure(seed: int, place: Path, tallies: dict[str, Tally]) -> None:
    told = histories.history(Random(seed))
    template = place / "template"
    histories.make_template(template, told)
    rendered = histories.old_rendering(told, template)
    for name, tally in tallies.items():
        project = place / name
        committed = histories.make_project(project, told, template)
        start = time.perf_counter()
        try:
            reported = _update(name, project)
        except Exception as error:  # noqa: BLE001 - what a peer raises is what is counted
            print(f"seed {seed}: {name} failed: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            tally.failed += 1
            continue
        tally.seconds.append(time.perf_counter() - start)
        found, sides = histories.files(project), histories.staged(project)
        lost = histories.lost(rendered, committed, found, sides)
        tally.lines += sum(lost.values())
        tally.histories += bool(lost)
        left = bool(sides) or any(path.endswith(".rej") or b"<<<<<<< " in text for path, (_, text) in found.items())
        tally.conflicts += left
        tally.silent += left and not reported


def _update(name: str, project: Path) -> bool:
    """Whether the exit code of the command would tell of conflicts: Copier's is 0 with and without."""
    if name == "scaffold update":
        return bool(updating.update(project).conflicts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    return False


if __name__ == "__main__":
    main()
