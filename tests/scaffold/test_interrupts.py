"""Stopped at any moment, `scaffold new` leaves nothing or a whole project behind, and says which."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from scaffold import interrupts, updating


def stopped_at(machine, wrapped_git, git_command, template, cwd, number):
    """`scaffold new p`, stopped where git gets to ``git_command``."""
    arguments = ["new", "p", f"--template={template}", "--yes"]
    return run_until(machine, wrapped_git, git_command, arguments, cwd, number)


def run_until(machine, wrapped_git, git_command, arguments, cwd, number):
    """Start the command, wait until git stops at ``git_command``, send the signal as a terminal does."""
    folder, reached = wrapped_git(git_command)
    process = subprocess.Popen(
        [sys.executable, "-m", "scaffold", *arguments],
        cwd=cwd,
        env={**machine.environment, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not reached.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


class TestCtrlC:
    @pytest.mark.parametrize("moment", ["init", "checkout", "add", "commit", "rev-parse"])
    def test_leaves_nothing_behind(self, machine, make_template, wrapped_git, tmp_path, moment):
        """Before, while and after rendering: exit code 130, no traceback, no file."""
        work = tmp_path / "work"
        work.mkdir()
        code, stderr = stopped_at(machine, wrapped_git, moment, make_template(), work, signal.SIGINT)
        assert code == 130, stderr
        assert "nothing was left behind" in stderr
        assert "Traceback" not in stderr
        assert list(work.iterdir()) == []

    def test_leaves_an_empty_folder_empty(self, machine, make_template, wrapped_git, tmp_path):
        work = tmp_path / "work"
        (work / "p").mkdir(parents=True)
        code, stderr = stopped_at(machine, wrapped_git, "commit", make_template(), work, signal.SIGINT)
        assert code == 130, stderr
        assert [entry.name for entry in work.iterdir()] == ["p"]
        assert list((work / "p").iterdir()) == []


class TestCtrlCThatComesTooLate:
    def test_is_told_that_the_project_is_there(self, machine, make_template, tmp_path):
        """Put in place before the stop, it stays. The command waits to print into a pipe that is full."""
        work = tmp_path / "work"
        work.mkdir()
        read, write = full_pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "scaffold", "new", "p", f"--template={make_template()}", "--yes"],
            cwd=work,
            env=machine.environment,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write)
        while not (work / "p").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = ""
        while "Interrupted" not in said:  # whatever else is said before it
            if select.select([process.stderr], [], [], 10.0)[0]:
                more = os.read(process.stderr.fileno(), 65536).decode()
                assert more, said
                said += more
            else:
                process.send_signal(signal.SIGINT)  # as a person would who sees nothing happen
        while os.read(read, 65536):  # it may end now
            pass
        os.close(read)
        assert process.communicate(timeout=30) == (None, "")
        # A second signal, where one was needed, may come when Python is as good as over: a shell calls both 130.
        assert process.returncode in (130, -signal.SIGINT)
        assert said.endswith("Interrupted: p was made, and is whole.\n")
        assert [entry.name for entry in work.iterdir()] == ["p"]
        assert machine.git("status", "--porcelain", cwd=work / "p") == ""

    def test_leaves_an_update_as_it_is(self, in_process, machine, make_template, tmp_path):
        """Told that the project is updated, a caller can rely on it."""
        template, project = make_template(), tmp_path / "p"
        assert machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=tmp_path).returncode == 0
        (template / "hello.txt.jinja").write_text("Good morning {{ name }}\n")
        machine.git("commit", "-qam", "v2", cwd=template)
        machine.git("tag", "v2.0.0", cwd=template)
        told = []

        def stop(path):
            os.kill(os.getpid(), signal.SIGINT)
            told.append(path)

        with pytest.raises(KeyboardInterrupt):
            updating.update(project, to=None, answers={}, in_place=stop)
        assert told == [project]
        assert (project / "hello.txt").read_text() == "Good morning world\n"


def full_pipe():
    """Both ends of a pipe that takes no more."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (65536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"." * size)
    os.set_blocking(write, True)
    return read, write


class TestASignalThatPythonDrops:
    """What a handler raises while an object is being finalized goes no further: it is only written down."""

    @pytest.mark.parametrize("number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
    def test_is_sent_again(self, number, raised):
        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), number)
                time.sleep(0.1)

        def work():
            Finalized()
            time.sleep(30)

        with pytest.raises(raised), interrupts.unwinding():
            work()

    def test_leaves_other_errors_to_whoever_looked_at_them_before(self, monkeypatch):
        class Finalized:
            def __del__(self):
                raise ValueError("in a finalizer")

        seen = []
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
        with interrupts.unwinding():
            Finalized()
        assert seen == [ValueError]


class TestTermination:
    @pytest.mark.parametrize("number, expected", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_leaves_nothing_behind(self, machine, make_template, wrapped_git, tmp_path, number, expected):
        """A closed terminal or a job that ran out of time is no reason to leave half a project."""
        work = tmp_path / "work"
        work.mkdir()
        code, stderr = stopped_at(machine, wrapped_git, "commit", make_template(), work, number)
        assert code == expected, stderr
        assert "Traceback" not in stderr
        assert list(work.iterdir()) == []


class TestAnUpdate:
    @pytest.mark.parametrize("moment", ["checkout", "write-tree", "read-tree"])
    def test_stopped_at_any_moment_leaves_the_project_as_it_was(
        self, machine, make_template, wrapped_git, tmp_path, moment
    ):
        """Also when Copier has written half of the new files already."""
        template, project = make_template(), tmp_path / "p"
        assert machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=tmp_path).returncode == 0
        (template / "new.txt").write_text("new\n")
        (template / "hello.txt.jinja").write_text("Good morning {{ name }}\n")
        machine.git("add", "-A", cwd=template)
        machine.git("commit", "-qm", "v2", cwd=template)
        machine.git("tag", "v2.0.0", cwd=template)
        code, stderr = run_until(machine, wrapped_git, moment, ["update"], project, signal.SIGINT)
        assert code == 130, stderr
        assert machine.git("status", "--porcelain", cwd=project) == ""
        assert (project / "hello.txt").read_text() == "Hello world\n"
        assert not (project / "new.txt").exists()
        assert machine.scaffold("update", cwd=project).returncode == 0
        assert (project / "hello.txt").read_text() == "Good morning world\n"
