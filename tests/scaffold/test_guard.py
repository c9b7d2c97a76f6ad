"""Templates come from strangers. Each of these tries something, is refused, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from scaffold import catalog, creating, guard
from scaffold.errors import ScaffoldError, UnsafeTemplate
from scaffold.settings import Limits

SPELLINGS_OF_GIT = {
    "as it is": ".git",
    "in capitals": ".GIT",
    "mixed": ".gIt",
    "NTFS short name": "git~1",
    "NTFS short name in capitals": "GIT~1",
    "a later NTFS short name": "git~2",
    "trailing dot": ".git.",
    "trailing space": ".git ",
    "trailing dots and spaces": ".git . .",
    "NTFS stream": ".git::$INDEX_ALLOCATION",
    "NTFS stream with a name": ".git:x",
    "zero width non-joiner (HFS+)": ".g\u200cit",
    "zero width joiner (HFS+)": ".gi\u200dt",
    "left-to-right mark": "\u200e.git",
    "right-to-left override": ".git\u202e",
    "byte order mark": "\ufeff.git",
    "nominal digit shapes": ".\u206fgit",
    "soft hyphen": ".g\u00adit",
    "variation selector": ".gi\ufe0ft",
    "combining grapheme joiner": ".g\u034fit",
    "full width": ".\uff47it",
    "full width dot": "\uff0egit",
    "backslash": "a\\.git",
}


class TestTheNameGit:
    @pytest.mark.parametrize("name", SPELLINGS_OF_GIT.values(), ids=SPELLINGS_OF_GIT.keys())
    def test_is_refused_in_every_spelling_a_file_system_folds(self, name):
        """Whatever some file system takes for .git is refused on all of them, at any depth."""
        for path in (name, f"{name}/config", f"src/{name}/hooks/pre-commit"):
            with pytest.raises(UnsafeTemplate, match="only git may write"):
                guard.check_path(PurePosixPath(path))

    @pytest.mark.parametrize(
        "name", [".gitignore", ".gitattributes", ".github", ".gitlab-ci.yml", "git", "legit", "git.py", ".gitkeep"]
    )
    def test_in_a_longer_name_is_allowed(self, name):
        guard.check_path(PurePosixPath(name))
        guard.check_path(PurePosixPath("a") / name)
        assert not guard._is_git(name)

    @pytest.mark.parametrize(
        "name", [".git", ".GIT", "git~1", ".git ", ".git::$INDEX_ALLOCATION", ".g\u200cit"], ids=ascii
    )
    def test_written_by_a_template_stops_it(self, attack, name):
        """The real thing: rendered by Copier from a repository whose file names are Jinja."""
        assert_refused(attack({"ok.txt": "", f"{{{{ {name!r} }}}}/hooks/pre-commit": "#!/bin/sh\ntouch pwned\n"}))

    def test_as_a_file_stops_it(self, attack):
        """A .git file points git at another repository, with its own commands to run."""
        assert_refused(
            attack({"{{ '.git' }}": "gitdir: ./evil\n", "evil/config": "[core]\n\tfsmonitor = touch pwned\n"})
        )

    def test_built_from_an_answer_stops_it(self, attack):
        assert_refused(attack({"{{ name }}/config": "x"}, config="name:\n  type: str\n  default: .git\n"))


class TestPathsOutOfTheProject:
    @pytest.mark.parametrize(
        "name",
        [
            "{{ '..' }}",
            "{{ pathjoin('..', '..') }}",
            "{{ pathjoin(_copier_conf.sep, 'tmp', 'scaffold-attack') }}",
            "{{ pathjoin('a', '..', '..') }}",
        ],
    )
    def test_stop_it(self, attack, name, tmp_path):
        assert_refused(attack({"ok.txt": "", f"{name}/pwned.txt": "x"}))
        assert not (tmp_path / "pwned.txt").exists()
        assert not Path("/tmp/scaffold-attack").exists()

    @pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
    def test_are_refused_by_name(self, path):
        with pytest.raises(UnsafeTemplate, match="out of the project"):
            guard.check_path(PurePosixPath(path))


class TestLinks:
    @pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "..", "sub/../../x"])
    def test_that_leave_the_project_stop_it(self, attack, target):
        """A link out of the project lets a later write, or a later read, follow it."""
        assert_refused(attack(links={"link": target}, config="_preserve_symlinks: true\n"))

    def test_that_leave_it_by_way_of_an_answer_stop_it(self, attack):
        assert_refused(attack(links={"link.jinja": "{{ '..' }}/x"}, config="_preserve_symlinks: true\n"))

    def test_that_leave_it_by_way_of_another_link_stop_it(self, attack):
        """Each link looks harmless; through both one is outside."""
        links = {"a/b/up": "../..", "down": "a/b/up/.."}
        assert_refused(attack(links=links, config="_preserve_symlinks: true\n"))

    def test_into_git_stop_it(self, attack):
        assert_refused(attack(links={"link": ".git/hooks"}, config="_preserve_symlinks: true\n"))

    def test_in_a_circle_stop_it(self, attack):
        assert_refused(attack(links={"a": "b", "b": "a"}, config="_preserve_symlinks: true\n"))

    def test_read_through_from_the_template_stop_it(self, attack):
        """Without _preserve_symlinks Copier would copy what the link names: the user's own files."""
        assert_refused(attack(links={"secret": "/etc/passwd"}))

    def test_inside_the_project_are_allowed(self, attack, tmp_path):
        assert attack({"docs/a.md": "x"}, links={"b.md": "docs/a.md"}, config="_preserve_symlinks: true\n") is None
        assert (tmp_path / "work/p/b.md").read_text() == "x"


class TestNamesOfOtherSystems:
    @pytest.mark.parametrize("name", ["con", "AUX.txt", "nul.tar.gz", "COM1", "lpt9.py", "com¹", "CONIN$", "prn .md"])
    def test_for_devices_are_refused(self, name):
        with pytest.raises(UnsafeTemplate, match="device on Windows"):
            guard.check_path(PurePosixPath("src") / name)

    @pytest.mark.parametrize("name", ["a:b", "a?", "a*", "a|b", 'a"b', "a<b", "a\\b", "a\nb", "a\x1b[2J", "a.", "a "])
    def test_that_windows_cannot_hold_are_refused(self, name):
        with pytest.raises(UnsafeTemplate, match="Windows"):
            guard.check_path(PurePosixPath(name))

    @pytest.mark.parametrize("name", ["console.py", "com.py", "com10", "nullable", "auxiliary.md", "a.b.c", "naïve"])
    def test_that_only_look_like_it_are_allowed(self, name):
        assert guard.check_path(PurePosixPath(name)) is None

    def test_that_differ_in_capitals_only_stop_it(self, attack):
        """On macOS and Windows the second would replace the first."""
        assert_refused(attack({"README.md": "a", "readme.md": "b"}))


class TestRepositoriesInDisguise:
    def test_stop_it(self, attack):
        """git takes a folder with these three for a bare repository, and runs what its config says."""
        files = {"sub/HEAD": "ref: refs/heads/main", "sub/objects/x": "", "sub/refs/x": "", "sub/config": "[core]"}
        assert_refused(attack(files))


class TestSize:
    @pytest.mark.parametrize(
        "limits, expected",
        [
            (Limits(files=5), "more than 5 files"),
            (Limits(file_bytes=50), "more than 50"),
            (Limits(total_bytes=500), "more than 500 bytes"),
        ],
    )
    def test_beyond_a_limit_is_refused(self, tmp_path, limits, expected):
        for number in range(10):
            (tmp_path / f"{number}.txt").write_text("x" * 100)
        with pytest.raises(UnsafeTemplate, match=expected):
            guard.check_tree(tmp_path, limits)

    def test_of_a_template_stops_it(self, attack):
        """One large file is enough."""
        assert_refused(attack({"large.bin": "x" * (Limits().file_bytes + 1)}))


class TestCommands:
    @pytest.mark.parametrize(
        "config",
        [
            "_tasks: ['touch pwned']\n",
            "_jinja_extensions: ['jinja2.ext.do']\n",
        ],
    )
    def test_of_a_template_are_not_run(self, attack, config):
        error = attack({"ok.txt": ""}, config=config)
        assert_refused(error)
        assert "takes your word" in error.why

    def test_are_not_run_even_where_the_users_copier_trusts_the_template(self, attack, machine, tmp_path, monkeypatch):
        """Trust given to `copier` on this machine is not given to scaffold."""
        trust = tmp_path / "settings.yml"
        trust.write_text(f"trust:\n  - {tmp_path}/\n")
        monkeypatch.setenv("COPIER_SETTINGS_PATH", str(trust))
        assert_refused(attack({"ok.txt": ""}, config="_tasks: ['touch pwned']\n"))

    def test_in_jinja_stay_in_its_sandbox(self, attack):
        error = attack({"a.txt.jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}"})
        assert error is not None


@pytest.fixture
def attack(in_process, make_template, tmp_path):
    """Make a project from such a template; returns the error, after a look that nothing was left behind."""

    def run(files=None, **template):
        source = make_template(files or {"ok.txt": ""}, **template)
        work = tmp_path / "work"
        work.mkdir()
        plan = creating.Plan(
            path=work / "p", source=catalog.find(str(source)), answers={}, ask=False, accept_defaults=True
        )
        try:
            creating.create(plan)
        except ScaffoldError as error:
            assert list(work.iterdir()) == []
            return error
        return None

    return run


def assert_refused(error):
    assert isinstance(error, UnsafeTemplate)
    assert error.what
    assert error.fix
