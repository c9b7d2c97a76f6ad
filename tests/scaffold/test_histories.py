"""``scaffold update`` on random histories, beside plain ``copier update``: real templates, projects and repositories.

Few histories here; many, and others at each call: ``SCAFFOLD_HISTORIES=1000 pytest tests/scaffold/test_histories.py``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from histories import (
    PLAIN,
    History,
    Tree,
    commit_all,
    files,
    history,
    lost,
    make_project,
    make_template,
    old_rendering,
    staged,
    state,
    status,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scaffold import updating
from scaffold.errors import UpdateError

MANY = int(os.environ.get("SCAFFOLD_HISTORIES", "0"))
pytestmark = pytest.mark.usefixtures("in_process")


def few(examples: int):
    return settings(
        max_examples=MANY or examples,
        derandomize=not MANY,
        phases=tuple(Phase) if MANY else (Phase.generate,),  # shrinking takes minutes
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A project with a history, and what it was made of."""

    history: History
    template: Path
    project: Path
    committed: Tree
    rendered: Tree

    def lost(self, project: Path) -> bool:
        """Whether a line that the user wrote is missing in ``project``."""
        return bool(lost(self.rendered, self.committed, files(project), staged(project)))


@contextmanager
def scene(random, *, told: History | None = None) -> Iterator[Scene]:
    told = told or history(random)
    answer = random.choice(("default name1", "edited by hand"))
    with tempfile.TemporaryDirectory(prefix="scaffold-history-") as folder:
        template, project = Path(folder) / "template", Path(folder) / "my net"
        make_template(template, told)
        committed = make_project(project, told, template, answer)
        rendered = old_rendering(told, template, answer)
        yield Scene(history=told, template=template, project=project, committed=committed, rendered=rendered)


def copier_update(project: Path) -> bool:
    """Plain Copier's own update; whether it went well and left no conflict.

    It fails on names that git quotes, such as those with umlauts, where the user added or renamed such a file.
    """
    import copier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copier.run_update(project, defaults=True, overwrite=True, quiet=True)
        except FileNotFoundError:
            return False
    found = files(project)
    marked = any(b"<<<<<<< " in content for _, content in found.values())
    return not marked and not staged(project) and not any(path.endswith(".rej") for path in found)


class TestAnUpdate:
    @few(5)
    @given(random=st.randoms(use_true_random=False))
    def test_loses_nothing_and_is_copiers_where_copier_loses_nothing(self, random):
        """Byte for byte the same files, when both are clean, Copier lost no line of the user, and nobody renamed a file.

        After a rename Copier's clean result may be another one, with nothing lost: to it a file that the user renamed was
        deleted, so the template's later changes to it are dropped, and one that the template renamed is a new file beside
        a deleted one. Ours takes the changes along to where the file is now.
        """
        with scene(random) as made:
            other = made.project.with_name("copier's")
            shutil.copytree(made.project, other, symlinks=True)
            updated = updating.update(made.project)
            assert not made.lost(made.project), made.history.told
            assert bool(updated.conflicts) == bool(staged(made.project)) == ("U" in _letters(made.project))
            copiers_is_clean = copier_update(other)
            renamed = any("renames" in step or "moves" in step for step in made.history.told)
            if copiers_is_clean and not updated.conflicts and not made.lost(other) and not renamed:
                assert files(made.project) == files(other), made.history.told
            # Afterwards either tool finds nothing to do.
            finished = [made.project, other] if copiers_is_clean and not updated.conflicts else []
            for project in finished:
                commit_all(project)
                assert not updating.update(project).changes
                copier_update(project)
                assert status(project) == ""

    @few(3)
    @given(random=st.randoms(use_true_random=False))
    def test_can_be_looked_at_and_undone(self, random):
        """``--diff`` and ``--stat`` change nothing, ``--abort`` gives back what was there."""
        with scene(random) as made:
            before = state(made.project)
            for show in ("diff", "stat"):
                shown = updating.update(made.project, dry_run=True, show=show)
                assert state(made.project) == before
            updated = updating.update(made.project)
            assert updated.changes == shown.changes
            undone = updating.abort(made.project)
            assert undone.kept is None
            assert state(made.project) == before, made.history.told
            assert not (made.project / ".git/scaffold").exists()


TEXT = b"".join(b"line %d\n" % number for number in range(10))
TOLD = History(
    versions=(
        {"a.txt": (PLAIN, TEXT), "b.txt": (PLAIN, TEXT[::-1]), "kept.txt": (PLAIN, b"kept\n")},
        {"a.txt": (PLAIN, b"theirs\n" + TEXT), "b.txt": (PLAIN, TEXT[::-1]), "kept.txt": (PLAIN, b"kept\n"), "n/e w": (PLAIN, b"")},
    ),
    project={"a.txt": (PLAIN, TEXT + b"mine\n"), "b.txt": (PLAIN, b"mine\n" + TEXT[::-1]), "kept.txt": (PLAIN, b"kept\n")},
    told=(),
)  # fmt: skip


@pytest.fixture
def made(machine):
    """A history of little."""
    from random import Random

    with scene(Random(1), told=TOLD) as found:
        yield found


class TestADirtyTree:
    def test_is_left_as_it_is_where_the_update_does_not_touch_it(self, machine, made):
        """Changed, deleted, staged and unknown files."""
        (made.project / "b.txt").write_text("not committed\n")
        (made.project / "kept.txt").unlink()
        (made.project / "staged ä.txt").write_text("staged\n")
        machine.git("add", "staged ä.txt", cwd=made.project)
        (made.project / "unknown.txt").write_text("unknown\n")
        before = state(made.project)
        updated = updating.update(made.project)
        assert {"a.txt", "n/e w"} < {change.path for change in updated.changes}
        assert (made.project / "b.txt").read_text() == "not committed\n"
        assert not (made.project / "kept.txt").exists()
        assert "A  " in status(made.project)
        updating.abort(made.project)
        assert state(made.project) == before

    @pytest.mark.parametrize(
        "path, kind",
        [
            ("a.txt", "changed"),
            ("a.txt", "staged"),
            ("a.txt", "deleted"),
            ("n/e w", "unknown"),
            ("n", "unknown"),
            ("a.txt", "unseen"),
        ],
    )
    def test_is_refused_by_name_where_it_does(self, machine, made, path, kind):
        """And nothing is changed. What git was told not to look at is the user's as well."""
        place = made.project / path
        place.parent.mkdir(exist_ok=True, parents=True)
        if kind == "unseen":
            machine.git("update-index", "--assume-unchanged", path, cwd=made.project)
        place.unlink(missing_ok=True)
        if kind != "deleted":
            place.write_text("of the user\n")
        if kind == "staged":
            machine.git("add", path, cwd=made.project)
        before = state(made.project)
        with pytest.raises(UpdateError) as refused:
            updating.update(made.project)
        assert path in refused.value.what
        assert state(made.project) == before
        assert not (made.project / ".git/scaffold").exists()

    @pytest.mark.parametrize("path", ["n/e w", "n", "n/e w/inner"])
    def test_is_left_alone_where_git_ignores_it(self, made, path):
        """And so is the place where the template wants a file that git ignores here: nobody would see what became of it."""
        place = made.project / path
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_text("of the user\n")
        (made.project / ".git/info/exclude").write_text("n*\n")
        updated = updating.update(made.project)
        assert place.read_text() == "of the user\n"
        assert "a.txt" in {change.path for change in updated.changes}
        assert any("n/e w is left alone" in note for note in updated.notes)


class TestAnAbort:
    def test_keeps_what_was_written_since(self, machine, made):
        updating.update(made.project)
        (made.project / "a.txt").write_text("written since\n")
        (made.project / "n" / "own.txt").write_text("mine\n")
        undone = updating.abort(made.project)
        assert files(made.project) == {**made.committed, "n/own.txt": (PLAIN, b"mine\n")}
        assert undone.kept
        assert machine.git("show", f"{undone.kept}:a.txt", cwd=made.project) == "written since"

    def test_does_not_overwrite_what_is_new_since(self, machine, made):
        """A folder where a file is to come back is emptied by nobody but the user."""
        updating.update(made.project)
        (made.project / "a.txt").unlink()
        (made.project / "a.txt").mkdir()
        (made.project / "a.txt" / "own.txt").write_text("mine\n")
        before = state(made.project)
        with pytest.raises(UpdateError, match=r"a\.txt/own\.txt"):
            updating.abort(made.project)
        assert state(made.project) == before


class TestARepository:
    def test_may_be_locked_by_another_git(self, made):
        """Which is named, with what to do."""
        lock = made.project / ".git/index.lock"
        lock.touch()
        with pytest.raises(UpdateError, match="Another git command is at work") as refused:
            updating.update(made.project)
        assert str(lock) in refused.value.fix
        lock.unlink()
        assert updating.update(made.project).changes

    @pytest.mark.parametrize("kind", ["worktree", "split index", "sparse", "autocrlf", "submodule"])
    def test_may_be_an_unusual_one(self, machine, made, tmp_path, kind):
        """A second work tree, a split index, a sparse checkout, another system's line ends, a submodule."""
        project = made.project
        match kind:
            case "worktree":
                machine.git("worktree", "add", "-q", str(tmp_path / "second"), "-b", "second", cwd=project)
                project = tmp_path / "second"
            case "split index":
                machine.git("config", "core.splitIndex", "true", cwd=project)
                machine.git("update-index", "--split-index", cwd=project)
            case "sparse":
                (project / "far").mkdir()
                (project / "far/away.txt").write_text("away\n")
                commit_all(project)
                machine.git("sparse-checkout", "init", "--cone", cwd=project)
                assert not (project / "far").exists()
            case "autocrlf":
                machine.git("config", "core.autocrlf", "true", cwd=project)
                for path in ("a.txt", "b.txt"):
                    (project / path).unlink()
                machine.git("checkout", "a.txt", "b.txt", cwd=project)
                assert b"\r\n" in (project / "a.txt").read_bytes()
            case "submodule":
                machine.git(
                    "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(made.template), "sub", cwd=project
                )
                commit_all(project)
        updated = updating.update(project)
        assert not updated.conflicts
        text = (project / "a.txt").read_bytes().replace(b"\r\n", b"\n")
        assert text == b"theirs\n" + TEXT + b"mine\n"
        assert (project / "n" / "e w").exists() or kind == "sparse"
        updating.abort(project)
        assert status(project) == ""
        assert updating.update(project).changes == updated.changes
        commit_all(project)
        assert status(project) == ""
        assert not updating.update(project).changes


def _letters(project: Path) -> str:
    return "".join(line[:2] for line in status(project).splitlines())
