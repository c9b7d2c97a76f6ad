"""What `scaffold new` cannot do, it says in one message, with exit code 1 and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest


class TestThePath:
    def test_with_files_in_it_is_refused_and_they_are_named(self, machine, tmp_path):
        """scaffold never writes among somebody's files, and never deletes them."""
        for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt"):
            (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "p" / name).touch()
        done = machine.scaffold("new", "p", "--yes", cwd=tmp_path)
        assert_refused(done, "a.txt, b.txt, c.txt and 2 more")
        assert len(list((tmp_path / "p").iterdir())) == 5

    def test_that_is_a_clone_with_a_readme_is_refused_with_what_makes_room(self, machine, make_template, tmp_path):
        """As a forge makes it. The commands work as they are shown, and git keeps the file."""
        make_template()
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "README.md").write_text("mine")
        machine.git("init", "-q", cwd=tmp_path / "p")
        machine.git("add", "-A", cwd=tmp_path / "p")
        machine.git("commit", "-qm", "Initial", cwd=tmp_path / "p")
        arguments = ("new", "p", "--template=./template", "--yes")
        done = machine.scaffold(*arguments, cwd=tmp_path)
        assert_refused(done, "p is a git repository that is not empty: it holds README.md")
        assert (tmp_path / "p" / "README.md").read_text() == "mine"
        shown = done.stderr.split("fix: ")[1].split(", then")[0]
        subprocess.run(["sh", "-c", shown], check=True, cwd=tmp_path, env=machine.environment, capture_output=True)
        done = machine.scaffold(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert machine.git("show", "HEAD~2:README.md", cwd=tmp_path / "p") == "mine"

    def test_that_is_a_file_is_refused(self, machine, tmp_path):
        (tmp_path / "p").write_text("mine")
        done = machine.scaffold("new", "p", "--yes", cwd=tmp_path)
        assert_refused(done, "p is a file")
        assert (tmp_path / "p").read_text() == "mine"

    def test_below_a_file_is_refused(self, machine, tmp_path):
        (tmp_path / "p").write_text("mine")
        done = machine.scaffold("new", "p/q", "--yes", cwd=tmp_path)
        assert_refused(done, "is a file")
        assert (tmp_path / "p").read_text() == "mine"

    def test_with_a_name_no_file_system_holds_is_refused(self, machine, tmp_path):
        done = machine.scaffold("new", "p" * 300, "--yes", cwd=tmp_path)
        assert_refused(done, "File name too long")
        assert list(tmp_path.iterdir()) == []

    def test_from_a_folder_that_is_gone_is_refused(self, machine, tmp_path):
        gone, command = tmp_path / "gone", tmp_path / "command.py"
        gone.mkdir()
        command.write_text("from scaffold.cli import run\nrun()\n")  # as pip writes it
        done = subprocess.run(
            ["sh", "-c", f'rmdir "{gone}" && exec "{sys.executable}" "{command}" new p --yes'],
            cwd=gone,
            env=machine.environment,
            capture_output=True,
            text=True,
        )
        assert_refused(done, "does not exist any more")


class TestTheDisk:
    def test_that_is_read_only_is_refused(self, machine, make_template, tmp_path):
        template = make_template()
        with read_only(tmp_path / "disk") as disk:
            done = machine.scaffold("new", str(disk / "p"), f"--template={template}", "--yes", cwd=tmp_path)
            assert_refused(done, f"Cannot write in {disk}: ")
            assert list(disk.iterdir()) == []

    def test_of_the_home_folder_that_cannot_be_written_is_named(self, machine, tmp_path):
        done = machine.scaffold("new", "p", "--yes", cwd=tmp_path, HOME="/proc/nobody")
        assert_refused(done, "Cannot write /proc/nobody/.local/share/treadle-scaffold/templates.bundle")
        assert list(tmp_path.iterdir()) == []

    def test_that_is_full_keeps_nothing_of_the_project(self, machine, make_template, tmp_path):
        template = make_template({"large.txt": "x" * 400_000})
        with small_disk(tmp_path / "disk", "size=256k") as disk:
            done = machine.scaffold("new", str(disk / "p"), f"--template={template}", "--yes", cwd=tmp_path)
            assert_refused(done, "is full")
            assert list(disk.iterdir()) == []

    def test_that_fills_up_at_the_first_commit_keeps_nothing_either(self, machine, make_template, tmp_path):
        """The files fit, git's copy of them does not."""
        noise = "".join(os.urandom(60).hex() + "\n" for _ in range(2_000))
        template = make_template({"large.txt": noise})
        with small_disk(tmp_path / "disk", "size=420k") as disk:
            done = machine.scaffold("new", str(disk / "p"), f"--template={template}", "--yes", cwd=tmp_path)
            assert_refused(done, "disk is full")
            assert list(disk.iterdir()) == []


class TestGit:
    def test_missing_from_the_path_is_said_before_anything_else(self, machine, tmp_path):
        empty = tmp_path / "bin"
        empty.mkdir()
        done = machine.scaffold("new", "p", "--yes", cwd=tmp_path, PATH=str(empty))
        assert_refused(done, "git was not found on the PATH")
        assert not (tmp_path / "p").exists()

    def test_without_a_name_is_refused_with_the_commands_that_set_one(self, machine, make_template, tmp_path):
        template = make_template()
        done = machine.scaffold(
            "new", "p", f"--template={template}", "--yes", cwd=tmp_path, GIT_CONFIG_GLOBAL=os.devnull
        )
        assert_refused(done, 'git config --global user.name "Your Name"')
        assert "--no-git" in done.stderr
        assert [entry.name for entry in tmp_path.iterdir()] == ["template"]

    def test_without_a_name_does_not_matter_without_git(self, machine, make_template, tmp_path):
        template = make_template()
        arguments = ("new", "p", f"--template={template}", "--yes", "--no-git")
        done = machine.scaffold(*arguments, cwd=tmp_path, GIT_CONFIG_GLOBAL=os.devnull)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "p" / "hello.txt").exists()

    def test_that_signs_or_runs_hooks_is_not_asked_to(self, machine, make_template, tmp_path):
        """A pass phrase nobody types, or a hook of the machine's, must not stop the first commit."""
        hooks = tmp_path / "hooks"
        hooks.mkdir()
        (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n")
        (hooks / "pre-commit").chmod(0o755)
        config = tmp_path / "gitconfig"
        config.write_text(
            "[user]\n\tname = A\n\temail = a@b.c\n[commit]\n\tgpgsign = true\n[gpg]\n\tprogram = /bin/false\n"
            f"[core]\n\thooksPath = {hooks}\n"
        )
        done = machine.scaffold(
            "new", "p", f"--template={make_template()}", "--yes", cwd=tmp_path, GIT_CONFIG_GLOBAL=str(config)
        )
        assert done.returncode == 0, done.stderr
        assert machine.git("rev-list", "--count", "HEAD", cwd=tmp_path / "p") == "1"


class TestTheTemplate:
    @pytest.mark.parametrize(
        "template, expected",
        [
            ("bass", "--template base"),
            ("./nowhere", "There is no template at ./nowhere"),
            ("-uecho", "taken for an option"),
            ("--upload-pack=touch pwned", "taken for an option"),
            ("ext::sh -c touch% pwned", "not supported"),
            ("http://example.com/x.git", "not supported"),
            ("base@v9.9.9", "--template base@v0.1.0"),
            ("https://me:secret@example.com/x.git", "holds a user name or password"),
            ("https://token@example.com/x.git", "holds a user name or password"),
            ("https://example.com/x.git@--upload-pack=x", "cannot be a version"),
            ("ssh://-oProxyCommand=touch/x.git", "malformed"),
        ],
    )
    def test_that_is_no_good_address_is_refused(self, machine, tmp_path, template, expected):
        done = machine.scaffold("new", "p", f"--template={template}", "--yes", cwd=tmp_path)
        assert_refused(done, expected)
        assert "secret" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "template",
        ["https://example.invalid/x/y", "gh:nobody/nothing", "git@example.invalid:x/y", "git+ssh://x.invalid/y"],
    )
    def test_that_cannot_be_reached_is_refused(self, machine, tmp_path, template):
        """No such host, no network, no rights: git's own words and a command to look further, and no prompt."""
        arguments = ("new", "p", f"--template={template}", "--yes")
        done = machine.scaffold(*arguments, cwd=tmp_path, GIT_SSH_COMMAND="false", https_proxy="http://127.0.0.1:9")
        assert_refused(done, "git could not get the template")
        assert "git ls-remote" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_in_a_folder_without_git_is_refused(self, machine, tmp_path):
        """Without a commit to remember, a project could never be updated."""
        (tmp_path / "template").mkdir()
        done = machine.scaffold("new", "p", "--template=./template", "--yes", cwd=tmp_path)
        assert_refused(done, "not the root of a git repository")

    def test_without_the_wanted_version_is_refused(self, machine, make_template, tmp_path):
        done = machine.scaffold("new", "p", f"--template={make_template()}@v9", "--yes", cwd=tmp_path)
        assert_refused(done, "has no version v9")

    def test_that_is_not_valid_is_refused(self, machine, make_template, tmp_path):
        """The mistake of a template's author is not shown as a crash of ours."""
        done = machine.scaffold("new", "p", f"--template={make_template({'a.jinja': '{{ x'})}", "--yes", cwd=tmp_path)
        assert_refused(done, "cannot be rendered")
        assert [entry.name for entry in tmp_path.iterdir()] == ["template"]

    def test_at_a_wanted_version_is_taken_at_it(self, machine, make_template, tmp_path):
        template = make_template()
        (template / "later.txt").touch()
        machine.git("add", "-A", cwd=template)
        machine.git("commit", "-qm", "later", cwd=template)
        machine.git("tag", "v2.0.0", cwd=template)
        done = machine.scaffold("new", "p", "--template=template@v1.0.0", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "p" / "later.txt").exists()
        assert f"_src_path: {template}" in (tmp_path / "p" / ".copier-answers.yml").read_text()


@contextmanager
def small_disk(folder, options):
    """A disk of its own size, for the time of a block; needs root and the right to mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount, for a disk of its own")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder):
    """An empty folder nobody may write in: by its mode, or for root, whom no mode stops, by its mount."""
    if os.geteuid() != 0:
        folder.mkdir(mode=0o555)
        yield folder
        return
    with small_disk(folder, "size=1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


def assert_refused(done, expected):
    assert done.returncode == 1, done.stdout + done.stderr
    assert expected in done.stderr
    assert "why:" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
