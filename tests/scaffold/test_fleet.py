"""`scaffold fleet`: many projects at once, of which none stops another, as a table, as JSON and as a page."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import pytest

HOSTILE = "<script>alert(1)<"


@pytest.fixture(scope="module")
def fleet(machine, tmp_path_factory):
    """A template of two releases, and projects in every state."""
    folder = tmp_path_factory.mktemp("fleet")
    template, work = folder / "template", folder / "work"
    template.mkdir()
    work.mkdir()
    (template / "copier.yml").write_text('name: world\n_scaffold: {managed: ["ci.yml"]}\n')
    (template / "{{ _copier_conf.answers_file }}.jinja").write_text("{{ _copier_answers | to_nice_yaml }}")
    (template / "hello.txt").write_text("hello\n")
    (template / "ci.yml").write_text("on: push\n")
    machine.git("init", "-q", cwd=template)
    release(machine, template, "v1.0.0")
    done = machine.scaffold("new", str(work / "behind"), f"--template={template}", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name in ("conflict", "drifted", "broken", "gone", HOSTILE):
        shutil.copytree(work / "behind", work / name)
    (template / "hello.txt").write_text("hello, new\n")
    release(machine, template, "v1.1.0")
    done = machine.scaffold("new", str(work / "current"), f"--template={template}", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    change(machine, work / "conflict", "hello.txt", "mine\n")
    change(machine, work / "drifted", "ci.yml", "mine\n")
    change(machine, work / "broken", ".copier-answers.yml", "{")
    text = (work / "gone/.copier-answers.yml").read_text()
    change(machine, work / "gone", ".copier-answers.yml", text.replace(str(template), "/nowhere/<b>at</b>/all"))
    (work / "no-project").mkdir()
    return work


def change(machine, project, name, text):
    (project / name).write_text(text)
    machine.git("commit", "-qam", "mine", cwd=project)


def release(machine, template, tag):
    machine.git("add", "-A", cwd=template)
    machine.git("commit", "-qm", tag, cwd=template)
    machine.git("tag", tag, cwd=template)


@pytest.fixture(scope="module")
def checked(fleet, machine, tmp_path_factory):
    """`fleet check` of them all: what it printed, its exit code, and its page."""
    page = tmp_path_factory.mktemp("page") / "fleet.html"
    done = machine.scaffold("fleet", "check", str(fleet), "--json", "--jobs=3", f"--html={page}", cwd=fleet)
    return done, page.read_text()


@pytest.fixture(scope="module")
def updated(fleet, checked, machine):
    """`fleet update` of them all, after they were checked."""
    return machine.scaffold("fleet", "update", str(fleet), "--json", "-j", "2", cwd=fleet)


def statuses(done):
    return {project["path"].rpartition("/")[2]: project["status"] for project in json.loads(done.stdout)["projects"]}


class TestCheck:
    def test_says_of_each_project_how_it_stands(self, checked):
        done, _ = checked
        assert statuses(done) == {
            "behind": "behind",
            "conflict": "behind",
            "drifted": "behind",
            "broken": "failed",
            "gone": "failed",
            "current": "current",
            HOSTILE: "behind",
        }

    def test_fails_where_one_could_not_be_looked_at(self, checked):
        done, _ = checked
        assert done.returncode == 1
        failed = [each for each in json.loads(done.stdout)["projects"] if each["status"] == "failed"]
        assert all(set(each["error"]) == {"what", "why", "fix"} for each in failed)

    def test_exits_with_2_where_the_worst_is_behind_and_0_where_none_is(self, fleet, machine):
        done = machine.scaffold(
            "fleet", "check", str(fleet / "behind"), str(fleet / "current"), "--no-drift", cwd=fleet
        )
        assert done.returncode in (0, 2)
        done = machine.scaffold("fleet", "check", str(fleet / "current"), cwd=fleet)
        assert done.returncode == 0, done.stdout
        assert "1 project: 1 current" in done.stdout

    def test_takes_at_least_one_at_a_time(self, fleet, machine):
        done = machine.scaffold("fleet", "check", str(fleet), "--jobs=0", cwd=fleet)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestThePage:
    def test_shows_a_strangers_names_as_text(self, checked):
        """Neither a folder's name nor an error's words are markup in it, and no script would run anyway."""
        _, page = checked
        tags = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attributes: tags.append(tag)
        parser.feed(page)
        assert "script" not in tags
        assert "&lt;script&gt;alert(1)&lt;" in page
        assert "&lt;b&gt;at&lt;/b&gt;" in page
        assert "default-src 'none'" in page

    def test_needs_nothing_from_elsewhere(self, checked):
        _, page = checked
        assert "http://" not in page
        assert "https://" not in page
        assert "<link" not in page

    def test_that_cannot_be_written_is_a_users_mistake(self, fleet, machine):
        done = machine.scaffold("fleet", "check", str(fleet / "current"), "--html=/proc/x/y.html", cwd=fleet)
        assert done.returncode == 1
        assert "Cannot write /proc/x/y.html" in done.stderr


class TestUpdate:
    def test_updates_what_can_be_and_says_what_waits(self, updated, fleet):
        found = statuses(updated)
        assert found["behind"] == found[HOSTILE] == "updated"
        assert found["conflict"] == "conflicts"
        assert found["broken"] == found["gone"] == "failed"
        assert found["current"] == "current"
        assert (fleet / "behind/hello.txt").read_text() == "hello, new\n"
        assert "<<<<<<<" in (fleet / "conflict/hello.txt").read_text()
        assert updated.returncode == 1

    def test_tells_what_has_drifted_beside_it(self, updated):
        projects = {each["path"].rpartition("/")[2]: each for each in json.loads(updated.stdout)["projects"]}
        assert projects["drifted"]["drifted"] == ["ci.yml"]
        assert projects["behind"]["drifted"] == []

    def test_commits_nothing(self, updated, fleet, machine):
        assert machine.git("log", "--format=%s", "-1", cwd=fleet / "behind").startswith("Start from template")

    def test_again_reports_the_conflict_that_still_waits(self, updated, fleet, machine):
        done = machine.scaffold("fleet", "update", str(fleet / "conflict"), str(fleet / "current"), cwd=fleet)
        assert done.returncode == 3, done.stdout
        assert "conflicts" in done.stdout
