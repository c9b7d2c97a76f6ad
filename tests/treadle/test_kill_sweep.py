"""A run that is killed, at any moment and at any step of writing a file, ends as if nobody had touched it.

The short version of ``benchmarks/kill_sweep.py``, which does the killing and the comparing.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/kill_sweep.py"
AT_RANDOM = ["in one process", "2 loader workers", "2 persistent workers", "saved asynchronously"]
OF_A_SAVE = {"openat", "write", "fsync", "rename", "link", "unlink"}
AIMED = {
    "a save of a new best": OF_A_SAVE,
    "an asynchronous save": {
        "openat",
        "write",
        "fsync",
    },  # two threads: which call is the n-th differs, and one is missed
    "the start of a resumed run": {"openat", "write", "fsync", "rename"},
}
KILLS = 4
Reports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What the program found. It forks each run from itself: one import of torch for all of them."""
    file = tmp_path_factory.mktemp("sweep") / "report.json"
    names = [word for name in (*AT_RANDOM, *AIMED) for word in ("--only", name)]
    command = [sys.executable, "-W", "error", str(PROGRAM), "--kills", str(KILLS), "--report", str(file), *names]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert file.exists(), ended.stdout + ended.stderr
    found: Reports = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("name", AT_RANDOM)
class TestARunKilledAtRandomMoments:
    def test_ends_with_the_same_weights_rows_state_and_files(self, reports: Reports, name: str) -> None:
        """Killed, started again by the same call, killed again, until it is done."""
        assert reports[name]["kills"] == KILLS
        assert reports[name]["differences"] == []

    def test_trains_again_on_no_more_than_what_came_after_its_newest_checkpoint(
        self, reports: Reports, name: str
    ) -> None:
        """It saves after each step, which takes two batches. Asynchronously, the newest may be on its way to the disk."""
        assert len(reports[name]["batches_lost"]) > 0
        assert set(reports[name]["batches_lost"]) <= set(range(5 if name == "saved asynchronously" else 3))


@pytest.mark.parametrize("name", AIMED)
class TestARunKilledAtEachSystemCallOnAFile:
    @pytest.fixture
    def report(self, reports: Reports, name: str) -> dict[str, Any]:
        if name not in reports:
            pytest.skip("no process can be traced here")
        return reports[name]

    def test_is_killed_at_every_kind_of_them(self, report: dict[str, Any], name: str) -> None:
        """Without this, the other tests would prove little."""
        assert AIMED[name] <= report["where"].keys()
        assert report["kills"] > 30

    def test_ends_as_if_nothing_had_happened(self, report: dict[str, Any]) -> None:
        assert report["runs"] == report["kills"] + 1
        assert report["differences"] == []

    def test_loses_the_batches_since_the_save_before_at_most(self, report: dict[str, Any], name: str) -> None:
        """And asynchronously those that were trained on meanwhile."""
        assert set(report["batches_lost"]) <= set(range(5 if name == "an asynchronous save" else 3))
        assert report["restarts"] == 0
