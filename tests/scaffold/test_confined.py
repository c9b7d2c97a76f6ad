"""A call in a process of its own: what it returns and raises comes back, and what it takes is limited."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaffold import confined
from scaffold.errors import AnswerError, UnsafeTemplate
from scaffold.settings import Limits

SMALL = Limits(seconds=5, memory=100_000_000, total_bytes=1_000_000)


class TestACall:
    def test_returns_what_json_can_hold(self):
        assert confined.run(lambda a, b: {"sum": a + b, "pair": (a, b)}, 1, 2) == {"sum": 3, "pair": [1, 2]}

    def test_returns_more_than_a_pipe_holds(self):
        assert confined.run(lambda: "x" * 1_000_000) == "x" * 1_000_000

    def test_is_in_another_process(self):
        assert confined.run(os.getpid) != os.getpid()

    def test_prints_nowhere(self, capfd):
        confined.run(lambda: os.write(1, b"out") + os.write(2, b"err") + len(os.read(0, 10)))
        assert capfd.readouterr() == ("", "")

    def test_of_several_runs_at_the_same_time(self):
        started = time.monotonic()
        with confined.Call(time.sleep, 0.5) as one, confined.Call(time.sleep, 0.5) as two:
            assert (one.result(), two.result()) == (None, None)
        assert time.monotonic() - started < 0.95


def fail(error):
    raise error


class TestAnError:
    def test_of_ours_is_raised_here_as_it_was(self):
        with pytest.raises(AnswerError) as raised:
            confined.run(fail, AnswerError("w", why="y", fix="f"))
        assert (raised.value.what, raised.value.why, raised.value.fix) == ("w", "y", "f")

    def test_of_the_system_is_raised_here_too(self):
        with pytest.raises(FileNotFoundError) as raised:
            confined.run(os.stat, "/nowhere")
        assert raised.value.filename == "/nowhere"

    def test_of_any_other_kind_names_it(self):
        with pytest.raises(RuntimeError, match="ZeroDivisionError: x"):
            confined.run(fail, ZeroDivisionError("x"))

    def test_that_is_an_exit_is_no_exit_of_ours(self):
        with pytest.raises(RuntimeError, match="SystemExit"):
            confined.run(sys.exit, 3)


class TestItsLimits:
    def test_on_time_end_it_and_what_it_started(self, tmp_path):
        def work():
            subprocess.run(["sh", "-c", f"echo $$ > '{tmp_path}/pid'; exec sleep 60"], check=False)

        started = time.monotonic()
        with pytest.raises(UnsafeTemplate, match=r"took longer than 0\.7 s"):
            confined.run(work, seconds=0.7)
        assert time.monotonic() - started < 5
        pid = int((tmp_path / "pid").read_text())
        until = time.monotonic() + 5
        while is_alive(pid):
            assert time.monotonic() < until, "the process that it started goes on"
            time.sleep(0.02)

    def test_on_memory_end_it(self):
        with pytest.raises(UnsafeTemplate, match="too much memory"):
            confined.run(lambda: bytearray(500_000_000)[0], limits=SMALL)

    def test_on_the_size_of_a_file_end_it(self, tmp_path):
        with pytest.raises((UnsafeTemplate, OSError)):
            confined.run(lambda: (tmp_path / "x").write_bytes(b"x" * 5_000_000) and None, limits=SMALL)
        assert (tmp_path / "x").stat().st_size <= 1_000_000

    def test_hold_for_it_alone(self):
        with pytest.raises(UnsafeTemplate):
            confined.run(lambda: bytearray(500_000_000)[0], limits=SMALL)
        assert len(bytearray(200_000_000)) == 200_000_000

    def test_end_it_when_its_block_is_left(self):
        with confined.Call(time.sleep, 60) as call:
            child = call._child
        assert not is_alive(child)

    def test_that_crashes_is_told(self):
        with pytest.raises(UnsafeTemplate, match="signal"):
            confined.run(lambda: os.kill(os.getpid(), 9))


def is_alive(pid):
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return told.rpartition(")")[2].split()[0] != "Z"  # a zombie's parent may be slow
