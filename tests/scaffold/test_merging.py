"""The merge of three trees, below the command line: the template before, the project, the template now.

The random histories are few here; ``SCAFFOLD_HISTORIES=5000 pytest tests/scaffold/test_merging.py`` takes many, and others
at each call.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from histories import EXECUTABLE, LINK, PLAIN, Tree, export_blobs, export_tree, history, import_trees, lost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaffold import applying, merging
from scaffold.merging import Labels, Merged, Repository

MANY = int(os.environ.get("SCAFFOLD_HISTORIES", "0"))
LABELS = Labels(before="template v1.0.0", after="template v2.0.0")
RANDOMS = st.randoms(use_true_random=False)


def histories(few: int):
    """``few`` of them here, all that were asked for in the long run."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def repository(machine, tmp_path_factory) -> Repository:
    return make_repository(machine, tmp_path_factory.mktemp("merging"))


def make_repository(machine, folder: Path, *options: str) -> Repository:
    machine.git("init", "-q", *options, cwd=folder)
    machine.git("commit", "-q", "--allow-empty", "-m", "first", cwd=folder)
    return merging.repository(folder)


def merge(repository: Repository, before: Tree, project: Tree, after: Tree) -> tuple[Merged, Tree, Tree]:
    """What came of it, its files and the sides of its conflicts."""
    trees = import_trees(repository.top, {"before": before, "project": project, "after": after})
    merged = merging.merge(repository, **trees, labels=LABELS)
    stages = {f"{path}:{number}": side for path, sides in merged.conflicts.items() for number, side in sides.items()}
    return merged, export_tree(repository.top, merged.tree), export_blobs(repository.top, stages)


class TestRandomHistories:
    @histories(50)
    @given(random=RANDOMS)
    def test_lose_no_line_of_the_user(self, repository, random):
        """Each line that the user wrote is in the files afterwards, or in a side of a conflict that git knows of."""
        told = history(random)
        before, after = told.versions[0], told.versions[-1]
        merged, files, sides = merge(repository, before, told.project, after)
        assert not lost(before, told.project, files, sides), told.told
        # What the template left alone is the user's, byte for byte.
        for path, file in before.items():
            if after.get(path) == file and path in told.project:
                assert files.get(path) == told.project[path], (path, told.told)
        # Markers are in files that are in conflict, and nowhere else.
        marked = {path for path, (_, content) in files.items() if b"<<<<<<< project" in content}
        assert marked <= set(merged.conflicts), told.told
        for path in marked:
            content = files[path][1]
            assert b"||||||| template v1.0.0" in content or "1" not in merged.conflicts[path]
            assert b">>>>>>> template v2.0.0" in content

    @histories(8)
    @given(random=RANDOMS)
    def test_give_the_new_rendering_where_the_user_did_nothing(self, repository, random):
        told = history(random)
        merged, files, _ = merge(repository, told.versions[0], told.versions[0], told.versions[-1])
        assert (files, merged.conflicts, merged.kept_deleted) == (told.versions[-1], {}, ())

    @histories(8)
    @given(random=RANDOMS)
    def test_leave_the_project_where_the_template_did_nothing(self, repository, random):
        told = history(random)
        merged, files, _ = merge(repository, told.versions[0], told.project, told.versions[0])
        assert (files, merged.conflicts, merged.kept_deleted) == (told.project, {}, ())

    @histories(12)
    @given(random=RANDOMS)
    def test_merge_with_an_old_git_to_the_same_files(self, repository, old_git, random):
        """Before 2.38 git had to merge in a work tree. What is in conflict there is so here."""
        told = history(random)
        sides = (told.versions[0], told.project, told.versions[-1])
        new, files, _ = merge(repository, *sides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", old_git, prepend=os.pathsep)
            old, same, _ = merge(repository, *sides)
        assert named_alike(same) == named_alike(files), told.told
        assert named_alike(old.conflicts) == named_alike(new.conflicts)
        assert old.kept_deleted == new.kept_deleted


def named_alike(files):
    """A file that gave way to a folder is ``name~HEAD`` there."""
    return {path.replace("~HEAD", "~project"): file for path, file in files.items()}


TEXT = b"".join(b"line %d\n" % number for number in range(10))
MINE, THEIRS = TEXT + b"mine\n", b"theirs\n" + TEXT
OTHER: Tree = {"other": (PLAIN, b"other\n")}


def plain(**files: bytes) -> Tree:
    return {**OTHER, **{path.replace("__", "/"): (PLAIN, content) for path, content in files.items()}}


class TestOneFile:
    """Both sides meet at one file. Each case: before, project, after; what the files are then; what is in conflict."""

    @pytest.mark.parametrize(
        "before, project, after, files, conflicts",
        [
            pytest.param(
                plain(a=TEXT), plain(b=MINE), plain(c=THEIRS), {"b", "c"}, {"a", "b", "c"}, id="renamed-to-two-names"
            ),
            pytest.param(plain(a=TEXT), plain(b=MINE), plain(b=THEIRS), {"b"}, set(), id="renamed-to-one-name"),
            pytest.param(plain(Readme=TEXT), plain(Readme=MINE), plain(README=THEIRS), {"README"}, set(), id="case"),
            pytest.param(
                plain(a=TEXT), plain(a__x=b"mine\n"), plain(a=THEIRS), {"a/x"}, set(), id="the-user-made-it-a-folder"
            ),
            pytest.param(
                plain(a=TEXT), plain(a=MINE), plain(a__x=b"theirs\n"), {"a/x", "a~project"}, {"a~project"},
                id="the-template-made-it-a-folder",
            ),
            pytest.param(
                plain(), plain(a__x=b"mine\n"), plain(a=b"theirs\n"), {"a/x", "a~template-v2.0.0"}, {"a~template-v2.0.0"},
                id="a-new-file-where-the-user-has-a-folder",
            ),
            pytest.param(plain(), plain(a=b"mine\n"), plain(a=b"theirs\n"), {"a"}, {"a"}, id="both-added-it"),
            pytest.param(plain(a=TEXT), plain(), plain(a=THEIRS), set(), set(), id="the-user-deleted-it"),
            pytest.param(plain(a=TEXT), plain(), plain(b=THEIRS), set(), set(), id="deleted-and-renamed"),
            pytest.param(plain(a=TEXT), plain(a=MINE), plain(), {"a"}, {"a"}, id="the-template-deleted-it"),
            pytest.param(plain(a=TEXT), plain(b=MINE), plain(), {"b"}, {"b"}, id="renamed-and-deleted"),
            pytest.param(plain(a=b"\0"), plain(a=b"\0mine"), plain(a=b"\0theirs"), {"a"}, {"a"}, id="binary"),
            pytest.param(
                plain(a=TEXT), {**OTHER, "a": (LINK, b"other")}, plain(a=THEIRS), {"a", "a~template-v2.0.0"},
                {"a", "a~template-v2.0.0"}, id="the-user-made-it-a-link",
            ),
            pytest.param(
                {**OTHER, "a": (LINK, b"x")}, {**OTHER, "a": (LINK, b"y")}, {**OTHER, "a": (LINK, b"z")}, {"a"}, {"a"},
                id="links",
            ),
            pytest.param(
                plain(a=b"x" * 1_000_000), plain(a=b"x" * 1_000_000 + b"y"), plain(a=b"z" + b"x" * 1_000_000), {"a"}, {"a"},
                id="a-very-long-line",
            ),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("form", ["sha1", "sha256"])
    def test_is_merged_applied_and_taken_back(
        self, machine, in_process, tmp_path, form, before, project, after, files, conflicts
    ):
        repository = make_repository(machine, tmp_path, f"--object-format={form}")
        merged, found, sides = merge(repository, before, project, after)
        assert set(found) - {"other"} == files
        assert set(merged.conflicts) == conflicts
        assert not lost(before, project, found, sides)
        machine.git("checkout", "-q", "project", cwd=tmp_path)
        applying.apply(repository, merged, applying.changes(repository, merged))
        assert export_folder(tmp_path) == found
        assert set(machine.git("diff", "--name-only", "--diff-filter=U", cwd=tmp_path).splitlines()) == conflicts
        applying.abort(repository)
        assert export_folder(tmp_path) == project
        assert machine.git("status", "--porcelain", cwd=tmp_path) == ""

    def test_keeps_lines_of_the_user_that_look_like_markers(self, repository):
        odd = b"||||||| abcdef1\n<<<<<<< project\n||||||| mine\n>>>>>>> other\n"
        _, files, _ = merge(repository, plain(a=TEXT), plain(a=odd + MINE), plain(a=TEXT + b"theirs\n"))
        assert files["a"][1].startswith(odd)

    def test_becomes_executable_and_keeps_the_edit(self, repository):
        after = {**OTHER, "a": (EXECUTABLE, THEIRS)}
        merged, files, _ = merge(repository, plain(a=TEXT), plain(a=MINE), after)
        assert files["a"] == (EXECUTABLE, b"theirs\n" + MINE)
        assert not merged.conflicts

    def test_stays_deleted_under_its_own_name(self, repository):
        """git calls the template's file a~template-v2.0.0 where the user has a folder; the note does not."""
        merged, _, _ = merge(repository, plain(a=TEXT), plain(a__x=b"mine\n"), plain(a=THEIRS))
        assert merged.kept_deleted == ("a",)


def export_folder(folder: Path) -> Tree:
    from histories import files

    return files(folder)


class TestTheUsersOwnSettings:
    @pytest.mark.parametrize("old", [False, True], ids=["newest", "2.30"])
    def test_do_not_change_a_merge(self, machine, in_process, old_git, repository, tmp_path, monkeypatch, old):
        """Neither those of git nor attributes, the project's or the user's own: contents are merged as they are stored."""
        sides = (
            {**plain(a=TEXT, b=TEXT), ".gitattributes": (PLAIN, b"* merge=union eol=crlf\n")},
            {**plain(a=MINE, c=TEXT + b"mine, too\n"), ".gitattributes": (PLAIN, b"* merge=union eol=crlf\n")},
            {**plain(a=TEXT + b"theirs\n", b=THEIRS), ".gitattributes": (PLAIN, b"* merge=union eol=crlf\n")},
        )
        if old:
            monkeypatch.setenv("PATH", old_git, prepend=os.pathsep)
        _, expected, stages = merge(repository, *sides)
        assert b"<<<<<<< project" in expected["a"][1]
        (tmp_path / "attributes").write_text("* merge=union text eol=crlf\n")
        (tmp_path / "config").write_text(
            "[user]\nname = A\nemail = a@example.com\n"
            "[merge]\nconflictStyle = zdiff3\nrenames = false\ndefault = union\nverifySignatures = true\nff = only\n"
            "[diff]\nnoprefix = true\nrenames = false\nexternal = false\nmnemonicPrefix = true\n"
            f"[core]\nquotePath = true\nignoreCase = true\nsplitIndex = true\nattributesFile = {tmp_path}/attributes\n"
            "[commit]\ngpgSign = true\n[status]\nshowUntrackedFiles = no\nbranch = true\n[color]\nui = always\n"
            "[submodule]\nrecurse = true\n[i18n]\ncommitEncoding = ISO-8859-1\n[rerere]\nenabled = true\n"
        )
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
        monkeypatch.setenv("LANG", "de_DE.UTF-8")
        merged, files, same = merge(repository, *sides)
        assert (files, same) == (expected, stages)
        patch = applying.difference(repository, merged, stat=False)
        assert "diff --git a/" in patch
        assert "\x1b" not in patch


@pytest.fixture(scope="session")
def old_git(tmp_path_factory) -> str:
    """A folder with a git that says it is 2.30, and merges only as that one can."""
    folder = tmp_path_factory.mktemp("old git")
    script = folder / "git"
    script.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case "$word" in\n'
        '--version) echo "git version 2.30.2"; exit 0;;\n'
        '--write-tree) echo "usage: git merge-tree" >&2; exit 129;;\n'
        f'esac; done\nexec "{shutil.which("git")}" "$@"\n'
    )
    script.chmod(0o755)
    return str(folder)
