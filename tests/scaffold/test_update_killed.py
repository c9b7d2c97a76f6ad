"""SIGKILL at any git call, right before it and right after it, and right before any step on files of our own.

A git that counts its calls is first on the PATH, and kills the whole process group of the command at the wanted one; our own
steps are seen by an audit hook. Here each call that writes into the project's repository is tried of a conflicting update,
and some of the rest. All of them: ``SCAFFOLD_KILLS=all pytest tests/scaffold/test_update_killed.py``.

What a killed command leaves in the system's temporary folder is removed by the system, as that of any killed program;
in the project and its repository it leaves nothing, once the next ``scaffold update`` or ``--abort`` has run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from histories import PLAIN, History, Tree, files, make_project, make_template, state, status

ALL = os.environ.get("SCAFFOLD_KILLS") == "all"
TEXT = b"".join(b"line %d\n" % number for number in range(10))
FIRST: Tree = dict.fromkeys(("clean.txt", "both.txt", "old name.txt", "gone.txt"), (PLAIN, TEXT))
SECOND: Tree = {
    "clean.txt": (PLAIN, b"theirs\n" + TEXT),
    "both.txt": (PLAIN, TEXT + b"theirs\n"),
    "docs/new näme.txt": (PLAIN, TEXT),
    "new/file.txt": (PLAIN, b"new\n"),
}
CLEAN: Tree = {**FIRST, "clean.txt": (PLAIN, TEXT + b"mine\n"), "own.txt": (PLAIN, b"mine\n")}
CONFLICT: Tree = {**CLEAN, "both.txt": (PLAIN, TEXT + b"mine\n")}

_GIT = """#!/bin/sh
here() {{ case "$PWD/ $GIT_DIR/" in "$KILL_PROJECT"/*|*" $KILL_PROJECT"/*) return 0;; esac; return 1; }}
writes() {{ case " $* " in *" add "*|*" write-tree "*|*" read-tree "*|*" update-index "*|*" reset "*|*" checkout "*) return 0;; esac; return 1; }}
if here && {{ [ "$KILL_ALL" = 1 ] || writes "$@"; }}; then
  echo "$*" >> "$KILL_CALLS"
  number=$(wc -l < "$KILL_CALLS")
  if [ "$number" -eq "$KILL_AT" ]; then
    [ "$KILL_WHEN" = after ] && "{git}" "$@"
    kill -9 "-$KILL_GROUP"
    exit 1
  fi
fi
exec "{git}" "$@"
"""


_OWN_STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "open"}


@dataclass(frozen=True)
class Killer:
    """Runs the command line in a fork of this process, which has imported everything already."""

    folder: Path

    def run(self, *arguments: str, project: Path, at: int = 0, when: str = "before") -> tuple[int, int]:
        """Its exit code, negative where it was killed, and how many git calls there were, or steps of our own."""
        calls = self.folder / "calls"
        calls.write_text("")
        child = os.fork()
        if child == 0:
            self._work([*arguments], project, calls, at, when)
        _, ended = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(ended), len(calls.read_text().splitlines())

    def _work(self, arguments: list[str], project: Path, calls: Path, at: int, when: str) -> None:
        code = 70
        try:
            os.setsid()
            os.environ["KILL_GROUP"] = str(os.getpid())
            os.environ["KILL_PROJECT"] = str(project)
            os.environ["KILL_WHEN"] = when
            os.environ["KILL_ALL"] = str(int(ALL))
            os.environ["KILL_AT"] = str(-1 if when == "step" else at or -1)
            os.environ["KILL_CALLS"] = os.devnull if when == "step" else str(calls)
            os.environ["PATH"] = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
            silent = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(silent, number)
            os.chdir(project)
            sys.argv = ["scaffold", *arguments]
            if when == "step":
                _count_steps(project, os.open(calls, os.O_WRONLY | os.O_APPEND), at)
            from scaffold.cli import run

            run()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            os._exit(code)


def _count_steps(project: Path, calls: int, at: int) -> None:
    process, steps = os.getpid(), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event not in _OWN_STEPS or os.getpid() != process or not str(arguments[0]).startswith(str(project)):
            return
        if event == "open" and not set(str(arguments[1])) & set("wax+"):
            return
        steps += 1
        os.write(calls, f"{event} {arguments}\n".encode())
        if steps == at:
            os.killpg(process, signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def killer(tmp_path_factory) -> Killer:
    import copier  # noqa: F401 - once for all forks

    import scaffold.cli
    import scaffold.layers  # noqa: F401

    folder = tmp_path_factory.mktemp("killer")
    script = folder / "git"
    script.write_text(_GIT.format(git=shutil.which("git")))
    script.chmod(0o755)
    return Killer(folder)


@dataclass(frozen=True)
class Scene:
    """A repository before a command, and what the command makes of it when nobody kills it."""

    original: Path
    """The repository."""
    project: str
    """The project's folder in it."""
    command: tuple[str, ...]
    before: Any
    after: Any
    code: int
    numbers: dict[str, int]
    """How many there are of each kind of moment."""

    def moments(self) -> Iterator[tuple[str, int]]:
        for when in ("before", "after", "step"):
            yield from ((when, number) for number in range(1, self.numbers["step" if when == "step" else "before"] + 1))


def make_scene(killer: Killer, original: Path, *command: str, project: str = "") -> Scene:
    numbers = {}
    for when in ("before", "step"):
        copy = copied(original, original.with_name("whole"))
        code, numbers[when] = killer.run(*command, project=copy / project, when=when)
    return Scene(original, project, command, state(original), state(copy), code, numbers)


def copied(original: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return shutil.copytree(original, place, symlinks=True)


def left_over(repository: Path) -> list[str]:
    """Lock files, and files of ours beside the journal."""
    git = repository / ".git"
    ours = [path.name for path in (git / "scaffold").glob("*") if path.name != "update.json"]
    return ours + [path.name for path in git.rglob("*.lock")]


def assert_survives(killer: Killer, scene: Scene, place: Path, when: str, number: int) -> None:
    copy = copied(scene.original, place)
    project = copy / scene.project
    told = f"killed {when} {number}"
    code, _ = killer.run(*scene.command, project=project, at=number, when=when)
    assert code == -signal.SIGKILL, told
    found = files(copy)
    assert found in (scene.before[0], scene.after[0]), told
    again, _ = killer.run(*scene.command, project=project)
    if again == 0 and scene.code == 3:
        again = 3 if state(copy) == scene.after else again  # it had only to be finished: nothing to do
    if again == 1:  # conflicts are left already, or it says that it was killed
        assert killer.run("update", "--abort", project=project)[0] == 0, told
        assert state(copy)[:2] == scene.before[:2], told
        again, _ = killer.run(*scene.command, project=project)
    assert again == scene.code, told
    assert state(copy)[:2] == scene.after[:2], told
    assert left_over(copy) == [], told


def some(moments: list[tuple[str, int]], every: int) -> list[tuple[str, int]]:
    return moments if ALL else moments[-1::-every]


@pytest.fixture(scope="module")
def stage(machine, killer, tmp_path_factory):
    """Makes a template and a project of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(machine.environment):
            patch.delenv(name)
        for name, value in machine.environment.items():
            patch.setenv(name, value)

        def make(tree: Tree) -> Path:
            folder = tmp_path_factory.mktemp("scene")
            history = History(versions=(FIRST, SECOND), project=tree, told=())
            make_template(folder / "template", history)
            make_project(folder / "project", history, folder / "template")
            return folder / "project"

        yield make


class TestAKilledUpdate:
    """Its files are the old ones or the new ones; the same command again, or --abort and the command, ends it."""

    def test_with_conflicts(self, killer, stage, tmp_path):
        scene = make_scene(killer, stage(CONFLICT), "update")
        assert scene.code == 3
        moments = list(scene.moments())
        steps = some([moment for moment in moments if moment[0] == "step"], 4)
        for when, number in [*(moment for moment in moments if moment[0] != "step"), *steps]:
            assert_survives(killer, scene, tmp_path / "copy", when, number)

    def test_without_conflicts(self, killer, stage, tmp_path):
        scene = make_scene(killer, stage(CLEAN), "update")
        assert scene.code == 0
        for when, number in some(list(scene.moments()), 8):
            assert_survives(killer, scene, tmp_path / "copy", when, number)

    def test_in_a_folder_of_a_larger_repository(self, machine, killer, stage, tmp_path):
        project = stage(CONFLICT)
        shutil.rmtree(project / ".git")
        top = project.parent / "top"
        (top / "parts").mkdir(parents=True)
        project.rename(top / "parts" / "my net")
        (top / "other.txt").write_text("other\n")
        machine.git("init", "-q", cwd=top)
        machine.git("add", "-A", cwd=top)
        machine.git("commit", "-qm", "All", cwd=top)
        (top / "other.txt").write_text("not committed\n")
        machine.git("add", "-A", cwd=top)
        scene = make_scene(killer, top, "update", project="parts/my net")
        assert scene.code == 3
        for when, number in some(list(scene.moments()), 8):
            assert_survives(killer, scene, tmp_path / "copy", when, number)


class TestAKilledAbort:
    def test_is_ended_by_the_next(self, killer, stage, tmp_path):
        """Whatever of it was done. What was written since the update is kept, too."""
        project = stage(CONFLICT)
        before = state(project)
        assert killer.run("update", project=project)[0] == 3
        (project / "both.txt").write_bytes(b"resolved\n")
        scene = make_scene(killer, project, "update", "--abort")
        assert scene.code == 0
        assert scene.after[:2] == before[:2]
        for when, number in some(list(scene.moments()), 3):
            copy = copied(project, tmp_path / "copy")
            killer.run("update", "--abort", project=copy, at=number, when=when)
            code, _ = killer.run("update", "--abort", project=copy)
            told = f"killed {when} {number}"
            assert code == 0 or (code == 1 and not (copy / ".git/scaffold/update.json").exists()), told
            assert state(copy)[:2] == before[:2], told
            assert left_over(copy) == [], told
            assert b"refs/scaffold/aborted" in state(copy)[2], told


class TestAKilledLayerAdd:
    def test_is_ended_by_the_next(self, killer, stage, tmp_path):
        project = stage(CLEAN)
        folder = tmp_path / "layer"
        make_template(folder, History(versions=({"layer.txt": (PLAIN, b"layer\n")},), project={}, told=()))
        (folder / "copier.yml").write_text(
            "_answers_file: .copier-answers.acme.yml\n_exclude: [config.ini*, copier.yml]\n"
        )
        for command in (("add", "-A"), ("commit", "-qm", "layer"), ("tag", "-f", "v1.0.0")):
            git(*command, cwd=folder)
        scene = make_scene(killer, project, "layer", "add", str(folder), "--yes", "--allow-overlap")
        assert scene.code == 0
        assert "layer.txt" in scene.after[0]
        for when, number in some(list(scene.moments()), 16):
            assert_survives(killer, scene, tmp_path / "copy", when, number)


class TestAnUpdateKilledWhileGitWritesFiles:
    def test_leaves_no_lock_and_is_taken_back(self, machine, killer, stage, tmp_path):
        """A filter of the user's own kills everything in the middle of the writing: some files are new, some are old."""
        project = stage({**CONFLICT, ".gitattributes": (PLAIN, b"file.txt filter=deadly\n")})
        before = state(project)
        machine.git("config", "filter.deadly.smudge", "kill -9 -$KILL_GROUP", cwd=project)
        assert killer.run("update", project=project)[0] == -signal.SIGKILL
        assert status(project)
        code, _ = killer.run("update", project=project)
        assert code == 1
        assert killer.run("update", "--abort", project=project)[0] == 0
        assert state(project)[:2] == before[:2]
        machine.git("config", "--unset", "filter.deadly.smudge", cwd=project)
        assert killer.run("update", project=project)[0] == 3
        assert left_over(project) == []


def git(*arguments: str, cwd: Path) -> None:
    author = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *author, *arguments], cwd=cwd, check=True, capture_output=True)
