"""Signals that ask a run to end, sent to its whole process group as schedulers and terminals do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

READS = """
import os, sys
from torch.utils.data import DataLoader
from treadle.data.stream import training_stream
from treadle.signals import heard
from treadle.testing import NoisyPoints

if __name__ == "__main__":
    context, persistent, number = sys.argv[1], sys.argv[2] == "persistent", int(sys.argv[3])
    loader = DataLoader(
        NoisyPoints(40), 4, num_workers=2, multiprocessing_context=context, persistent_workers=persistent
    )
    stream = training_stream(loader, name="the train loader")
    with heard() as asked:
        for batch in stream:
            if stream.consumed == 1:
                os.killpg(0, number)
        print(asked.number, stream.consumed)
    stream.close()
"""

INTERRUPTED_TWICE = """
import os, signal
from treadle.signals import heard

with heard() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    print("heard", asked.number, flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        print("now", flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("as before", flush=True)
"""

IGNORES = """
import os, signal
from treadle.signals import heard

signal.signal(signal.SIGINT, signal.SIG_IGN)
with heard() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    print(asked.number)
"""

FINISHING = "treadle: finishing the step, then saving; Ctrl-C again ends now\n"


def run(tmp_path: Path, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a process group of its own, so that a signal to the group doesn't reach the tests."""
    script = tmp_path / "program.py"
    script.write_text(program)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


class TestLoaderWorkers:
    @pytest.mark.parametrize(
        "context, kind, number",
        [
            ("fork", "persistent", signal.SIGTERM),
            ("fork", "fresh", signal.SIGUSR1),
            ("fork", "fresh", signal.SIGINT),
            ("spawn", "persistent", signal.SIGUSR1),
            ("spawn", "fresh", signal.SIGTERM),
            ("spawn", "fresh", signal.SIGINT),
            ("forkserver", "persistent", signal.SIGINT),
            ("forkserver", "fresh", signal.SIGTERM),
            ("forkserver", "fresh", signal.SIGUSR1),
        ],
    )
    def test_go_on_reading_for_the_step_at_hand(
        self, tmp_path: Path, context: str, kind: str, number: signal.Signals
    ) -> None:
        """However they are started, and even while they are: the main process alone ends them."""
        done = run(tmp_path, READS, context, kind, str(int(number)))
        assert done.stdout.split() == [str(int(number)), "10"], done.stderr
        assert done.stderr == (FINISHING if number == signal.SIGINT else "")


class TestCtrlC:
    def test_once_finishes_the_step_and_twice_ends_now(self, tmp_path: Path) -> None:
        """It says so, once; afterwards Ctrl-C does what it did before."""
        done = run(tmp_path, INTERRUPTED_TWICE)
        assert done.stdout.splitlines() == ["heard 2", "now", "as before"]
        assert done.stderr == FINISHING

    def test_that_is_ignored_stays_so(self, tmp_path: Path) -> None:
        """A run under nohup, or in the background of a script."""
        done = run(tmp_path, IGNORES)
        assert done.stdout == "0\n"
        assert done.stderr == ""
