"""Releasing a template of one's own, as its author does: in a real repository, with what can go wrong in one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
import yaml

from scaffold.authoring import changelog, releasing, suggesting
from scaffold.errors import GitError, ScaffoldError, SourceError, TemplateError


@pytest.fixture(scope="module")
def small(machine, tmp_path_factory):
    """A template that is quickly copied and looked at, with one commit and something to release."""
    template = tmp_path_factory.mktemp("small") / "small"
    files = {
        "copier.yml": "_subdirectory: template\n_exclude: [.git]\nname:\n  type: str\n  default: x\n"
        "ci:\n  type: str\n  default: github\n  choices: [github, gitlab]\n",
        "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
        "template/hello.txt.jinja": "Hello {{ name }}\n",
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n- It greets.\n",
    }
    for name, text in files.items():
        (template / name).parent.mkdir(parents=True, exist_ok=True)
        (template / name).write_text(text)
    machine.git("init", "-q", cwd=template)
    commit(machine, template)
    return template


@pytest.fixture
def template(small, in_process, tmp_path):
    """A copy of it, to do anything with."""
    return Path(shutil.copytree(small, tmp_path / "template"))


@pytest.fixture
def released(template, machine):
    """The same, with a release, and something new to say."""
    release(template, "1.0.0")
    log = template / "CHANGELOG.md"
    log.write_text(log.read_text().replace("## Unreleased\n", "## Unreleased\n\n- It says more.\n"))
    commit(machine, template)
    return template


class TestARelease:
    def test_dates_the_changelog_commits_it_and_makes_an_annotated_tag(self, template, machine):
        """One commit more, whose only change is the changelog; nothing is left to commit, nothing is pushed."""
        before = head(machine, template)
        done = machine.scaffold("template", "release", "v1.0.0", "--json", cwd=template / "template")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (
            document["commit"] == head(machine, template) == machine.git("rev-parse", "v1.0.0^{commit}", cwd=template)
        )
        assert document["push"] == ["git remote add origin URL", "git push -u --atomic origin main v1.0.0"]
        assert any("has no upstream" in note for note in document["notes"])
        assert machine.git("rev-parse", "HEAD^", cwd=template) == before
        assert machine.git("diff", "--name-only", "HEAD^", "HEAD", cwd=template) == "CHANGELOG.md"
        assert machine.git("status", "--porcelain", cwd=template) == ""
        assert machine.git("tag", "-l", "--format=%(objecttype) %(contents)", cwd=template).startswith(
            "tag Release 1.0.0"
        )
        assert (
            f"## Unreleased\n\n## 1.0.0 - {date.today()}\n\n- It greets.\n" in (template / "CHANGELOG.md").read_text()
        )

    def test_is_one_that_copier_and_scaffold_take(self, released, machine, tmp_path):
        done = machine.scaffold("new", "p", f"--template={released}", "--yes", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["template"]["version"] == "v1.0.0"

    def test_only_tried_changes_nothing(self, template, machine):
        before = machine.git("for-each-ref", cwd=template)
        done = machine.scaffold("template", "release", "1.0.0", "--dry-run", cwd=template)
        assert done.returncode == 0, done.stderr
        assert "v1.0.0 can be released" in done.stdout
        assert machine.git("for-each-ref", cwd=template) == before
        assert machine.git("status", "--porcelain", cwd=template) == ""

    def test_with_an_entry_written_by_hand_needs_no_commit(self, template, machine):
        """The author dated it already: the tag stands on their own commit."""
        (template / "CHANGELOG.md").write_text("# Changelog\n\n## [1.0.0] - 2026-01-01\n\n- It greets.\n")
        commit(machine, template)
        before = head(machine, template)
        assert release(template, "1.0.0").commit == before == head(machine, template)

    def test_takes_a_line_for_the_changelog(self, template):
        """--notes adds it to what stands there."""
        made = release(template, "1.0.0", more="And it waves.")
        assert made.message == "Release 1.0.0\n\n- It greets.\n- And it waves."
        assert (template / "CHANGELOG.md").read_text().endswith("- It greets.\n- And it waves.\n")

    def test_says_so_when_the_step_is_too_small(self, released, machine):
        edit_config(machine, released, lambda config: config.pop("ci"))
        [_, note] = release(released, "1.0.1").notes
        assert note.startswith("2.0.0 or newer would tell more: the question ci is gone")

    def test_that_git_cannot_make_leaves_all_as_it_was(self, template, machine):
        """A locked tag: the changelog is put back, the branch has not moved."""
        before = (head(machine, template), (template / "CHANGELOG.md").read_text())
        (template / ".git/refs/tags/v1.0.0.lock").touch()
        with pytest.raises(GitError, match="could not be made"):
            release(template, "1.0.0")
        assert (head(machine, template), (template / "CHANGELOG.md").read_text()) == before
        assert machine.git("status", "--porcelain", cwd=template) == ""

    @pytest.mark.parametrize("moment", ["mktag", "update-ref"])
    def test_interrupted_before_branch_and_tag_moved_is_as_before(self, template, machine, wrapped_git, moment):
        """Ctrl-C, which reaches git as well: exit code 130, and the changelog is what it was."""
        before = (machine.git("for-each-ref", cwd=template), (template / "CHANGELOG.md").read_text())
        folder, reached = wrapped_git(moment)
        process = stopped_at(machine, ["template", "release", "1.0.0"], template, folder, reached)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert "nothing was left behind" in said
        assert (machine.git("for-each-ref", cwd=template), (template / "CHANGELOG.md").read_text()) == before
        assert machine.git("status", "--porcelain", cwd=template) == ""

    def test_stopped_while_branch_and_tag_move_is_done(self, template, machine, tmp_path):
        """SIGTERM to the command, in the middle: it takes effect once the release is whole."""
        folder, reached = slow_git("update-ref", tmp_path)
        process = stopped_at(machine, ["template", "release", "1.0.0"], template, folder, reached)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
        assert machine.git("rev-parse", "v1.0.0^{commit}", cwd=template) == head(machine, template)
        assert machine.git("status", "--porcelain", cwd=template) == ""


class TestAReleaseIsRefused:
    @pytest.mark.parametrize(
        "version", ["1.0", "1.0.0rc1", "01.0.0", "one", "1.0.0\n", "", "--", "V1.0.0", "vv1.0.0", "-1.0.0"]
    )
    def test_for_what_is_no_version(self, template, version):
        refused(template, version, "is not a version")

    @pytest.mark.parametrize("version, said", [("1.0.0", "exists already"), ("0.9.0", "not newer than v1.0.0")])
    def test_unless_newer_than_every_tag(self, released, version, said):
        refused(released, version, said)

    def test_when_a_tag_without_v_is_newer(self, released, machine):
        """Copier takes any tag that looks like a version."""
        machine.git("tag", "3.1", cwd=released)
        refused(released, "2.0.0", "not newer than 3.1")

    @pytest.mark.parametrize(
        "log, said",
        [
            (None, "There is no CHANGELOG.md"),
            ("# Changelog\n", "no entry for 1.1.0"),
            ("# Changelog\n\n## Unreleased\n\n### Added\n\n<!-- nothing\nyet -->\n\n## 1.0.0\n\n- x\n", "is empty"),
            ("# Changelog\n\n## 1.1.0\n\n## 1.0.0\n\n- x\n", "is empty"),
        ],
    )
    def test_without_a_word_about_it_in_the_changelog(self, template, machine, log, said):
        if log is None:
            (template / "CHANGELOG.md").unlink()
        else:
            (template / "CHANGELOG.md").write_text(log)
        commit(machine, template)
        refused(template, "1.1.0", said)

    def test_for_a_tree_with_something_uncommitted(self, template):
        """Files git does not know count too: they are what one forgets."""
        (template / "template/forgotten file.txt").touch()
        refused(template, "1.0.0", "Not committed: template/forgotten file.txt")

    def test_on_another_branch(self, template, machine):
        machine.git("switch", "-q", "-c", "idea", cwd=template)
        refused(template, "1.0.0", "git switch main")

    def test_with_a_detached_head(self, template, machine):
        machine.git("switch", "-q", "--detach", cwd=template)
        refused(template, "1.0.0", "HEAD is detached")

    def test_in_the_middle_of_a_merge(self, template, machine):
        machine.git("switch", "-q", "-c", "idea", cwd=template)
        machine.git("commit", "-q", "--allow-empty", "-m", "idea", cwd=template)
        machine.git("switch", "-q", "main", cwd=template)
        machine.git("merge", "-q", "--no-ff", "--no-commit", "idea", cwd=template)
        refused(template, "1.0.0", "A merge is in progress")

    def test_before_the_first_commit(self, template, machine):
        shutil.rmtree(template / ".git")
        machine.git("init", "-q", cwd=template)
        refused(template, "1.0.0", "has no commit yet")

    def test_behind_its_upstream_and_for_a_tag_that_is_only_there(self, template, machine, tmp_path):
        """The remote is asked, so that what nobody fetched yet counts."""
        there, other = tmp_path / "there.git", tmp_path / "other"
        machine.git("clone", "-q", "--bare", str(template), str(there), cwd=tmp_path)
        machine.git("remote", "add", "origin", str(there), cwd=template)
        machine.git("push", "-q", "-u", "origin", "main", cwd=template)
        machine.git("clone", "-q", str(there), str(other), cwd=tmp_path)
        machine.git("tag", "v1.0.0", cwd=other)
        machine.git("push", "-q", "origin", "v1.0.0", cwd=other)
        refused(template, "1.0.0", "The tag v1.0.0 exists already on origin")
        made = release(template, "1.0.1", dry=True)
        assert made.push == ("git push --atomic origin main v1.0.1",)
        assert made.notes == ()
        machine.git("commit", "-q", "--allow-empty", "-m", "more", cwd=other)
        machine.git("push", "-q", "origin", "main", cwd=other)
        refused(template, "1.0.1", "main is behind origin")
        shutil.rmtree(there)
        [note] = release(template, "1.0.1", dry=True).notes
        assert "origin could not be asked" in note

    def test_without_a_git_identity(self, template, machine):
        done = machine.scaffold("template", "release", "1.0.0", cwd=template, GIT_CONFIG_GLOBAL=os.devnull)
        assert_refused(done, "git does not know your name")

    def test_for_a_template_with_errors(self, template, machine):
        """What `scaffold template lint` calls an error would reach every project."""
        edit_config(machine, template, lambda config: config.update(_tasks=["rm -rf /"]))
        done = machine.scaffold("template", "release", "1.0.0", cwd=template)
        assert_refused(done, "The template has mistakes")
        assert "T103" in done.stderr

    @pytest.mark.parametrize("more", ["", "  ", "bell \x07"])
    def test_for_notes_that_are_no_text(self, template, more):
        with pytest.raises(TemplateError, match="is not a text"):
            release(template, "1.0.0", more=more)

    def test_outside_of_a_template(self, machine, tmp_path):
        """Not a repository; a project; a repository with nothing of ours."""
        done = machine.scaffold("template", "release", "1.0.0", cwd=tmp_path)
        assert_refused(done, "is not in a git work tree")
        machine.git("init", "-q", cwd=tmp_path)
        assert_refused(machine.scaffold("template", "release", cwd=tmp_path), "is no template")
        (tmp_path / ".copier-answers.yml").touch()
        assert_refused(machine.scaffold("template", "release", cwd=tmp_path), "is a project made from a template")


class TestTheSuggestedVersion:
    def test_is_shown_with_its_reasons_when_none_is_named(self, released, machine):
        """Nothing is released, whatever else was typed."""
        (released / "template/new.txt").touch()
        commit(machine, released)
        for arguments in ([], ["9.9.9", "--suggest"]):
            done = machine.scaffold("template", "release", *arguments, cwd=released)
            assert done.returncode == 0, done.stderr
            assert "1.1.0 would fit, a minor step from v1.0.0:\n  - the file new.txt is new\n" in done.stdout
        assert machine.git("tag", cwd=released) == "v1.0.0"

    @pytest.mark.parametrize(
        "change, version, reason",
        [
            (lambda config: config.pop("ci"), "2.0.0", "the question ci is gone"),
            (lambda config: config.update(service=config.pop("ci")), "2.0.0", "the question ci was renamed to service"),
            (lambda config: config["ci"].update(choices=["github"]), "2.0.0", "ci has no choice gitlab any more"),
            (lambda config: config.update(who={"type": "str"}), "2.0.0", "who is new and has no default"),
            (lambda config: config["name"].pop("default"), "2.0.0", "name has no default any more"),
            (lambda config: config["name"].update(type="int", default=1), "2.0.0", "name takes a int instead of a str"),
            (lambda config: config["name"].update(choices=["x", "y"]), "2.0.0", "name takes only x, y now"),
            (lambda config: config.update(_answers_file=".copier-answers.x.yml"), "2.0.0", "answers are kept in"),
            (lambda config: config.update(who="me"), "1.1.0", "the question who is new"),
            (lambda config: config["ci"]["choices"].append("none"), "1.1.0", "ci has the new choice none"),
            (lambda config: config.update(told={"when": False}), "1.0.1", "only contents of files changed"),
            (lambda config: config["name"].update(help="Who?"), "1.0.1", "only contents of files changed"),
        ],
    )
    def test_follows_from_what_changes_for_projects(self, released, machine, change, version, reason):
        edit_config(machine, released, change)
        suggestion = suggesting.suggest(released)
        assert suggestion.version == version
        assert reason in "; ".join(suggestion.reasons)

    def test_is_a_patch_when_a_file_is_gone_or_nothing_changed(self, released, machine):
        assert suggesting.suggest(released).reasons == ("nothing changed of what projects get",)
        (released / "template/hello.txt.jinja").unlink()
        commit(machine, released)
        assert suggesting.suggest(released).version == "1.0.1"
        assert suggesting.suggest(released).reasons == ("the file hello.txt.jinja is gone",)

    def test_does_not_fail_on_a_release_that_nobody_can_read(self, released, machine):
        """Only what is released now has to be right."""
        good = (released / "copier.yml").read_text()
        (released / "copier.yml").write_text("{")
        commit(machine, released)
        with pytest.raises(SourceError, match="cannot be read"):
            suggesting.suggest(released)
        machine.git("tag", "v1.0.5", cwd=released)
        (released / "copier.yml").write_text(good)
        commit(machine, released)
        assert suggesting.suggest(released).version == "1.0.6"

    def test_is_minor_for_a_large_step_before_1_0(self, template, machine):
        """Below 1.0.0 nothing is promised yet."""
        assert suggesting.suggest(template).version == "0.1.0"
        release(template, "0.3.1")
        edit_config(machine, template, lambda config: config.pop("ci"))
        suggestion = suggesting.suggest(template)
        assert (suggestion.size, suggestion.version) == ("major", "0.4.0")


class TestTheChangelog:
    def test_keeps_what_it_does_not_concern(self):
        """Older entries and link targets stay where they are."""
        text = "# Log\n\n## [Unreleased]\n\n- New.\n\n## [0.1.0]\n\n- Old.\n\n[0.1.0]: https://example.org\n"
        entry = changelog.entry(text, "0.2.0", date(2026, 1, 2), more="More.")
        assert entry.notes == "- New.\n- More."
        assert entry.text == text.replace("- New.\n", "- New.\n- More.\n").replace(
            "## [Unreleased]\n", "## Unreleased\n\n## 0.2.0 - 2026-01-02\n"
        )

    def test_of_one_section_with_links_after_it_is_still_empty(self):
        text = "# Log\n\n## Unreleased\n\n[Unreleased]: https://example.org\n"
        with pytest.raises(TemplateError, match="is empty"):
            changelog.entry(text, "0.1.0", date(2026, 1, 2))
        assert changelog.entry(text, "0.1.0", date(2026, 1, 2), more="First.").text.endswith(
            "- First.\n\n[Unreleased]: https://example.org\n"
        )

    def test_does_not_take_one_version_for_another(self):
        """1.2.0 is not 1.2.0-rc, 11.2.0 or 1x2x0."""
        text = "## 11.2.0\n\n- a\n\n## 1x2x0\n\n- b\n\n## Unreleased\n\n- c\n"
        assert changelog.entry(text, "1.2.0", date(2026, 1, 2)).notes == "- c"


def release(template, version, **options):
    """Release by the library, on a machine where lint finds nothing."""
    return releasing.release(template, version, lint=lambda root: [], **options)


def refused(template, version, said):
    """The library refuses with ``said`` in its words, and no tag is made."""
    before = (template / ".git/HEAD").read_text(), sorted((template / ".git/refs").rglob("*"))
    with pytest.raises(ScaffoldError) as caught:
        release(template, version)
    assert said in str(caught.value)
    assert ((template / ".git/HEAD").read_text(), sorted((template / ".git/refs").rglob("*"))) == before


def assert_refused(done, expected):
    """Exit code 1, one short message with what, why and fix."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert expected in done.stderr
    assert "why:" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def commit(machine, repository):
    machine.git("add", "-A", cwd=repository)
    machine.git("commit", "-q", "-m", "change", cwd=repository)


def edit_config(machine, template, change):
    path = template / "copier.yml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    commit(machine, template)


def head(machine, repository):
    return machine.git("rev-parse", "HEAD", cwd=repository)


def slow_git(command, folder):
    """A git that takes a second for one of its commands, and tells when it begins."""
    (folder / "bin").mkdir()
    reached = folder / "reached"
    script = folder / "bin/git"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = {command} ]; then touch "{reached}"; sleep 1; fi\nexec "{shutil.which("git")}" "$@"\n'
    )
    script.chmod(0o755)
    return folder / "bin", reached


def stopped_at(machine, arguments, cwd, folder, reached):
    """The command in a process group of its own, once its git has got to where it waits."""
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
    return process
