"""Which sources need no confirmation, and when a project's source moved to another machine."""

from __future__ import annotations

import os
import resource
from dataclasses import replace

import pytest

from scaffold import catalog, settings, trust
from scaffold.errors import SourceError

URL = "https://git.example.com/platform/template"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user's empty home folder."""
    for name in list(os.environ):
        if name.startswith(("GIT_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestASource:
    def test_that_came_with_scaffold_is_known(self):
        assert trust.known(catalog.find("base"))

    def test_on_this_machine_is_known(self, make_template):
        """The user typed or made the path; who can change what is there can do worse."""
        make_template()
        assert trust.known(catalog.find("./template"))

    @pytest.mark.parametrize("url", [URL, "git@git.example.com:x/y", "http://127.0.0.1:8000/x.git"])
    def test_of_elsewhere_is_not(self, url):
        assert not trust.known(catalog.find(url))

    def test_with_a_name_of_the_users_is_known_by_its_url_too(self):
        catalog.add("acme", f"{URL}@v1")
        assert trust.known(catalog.find("acme"))
        assert trust.known(catalog.find(f"{URL}@v2"))
        assert not trust.known(catalog.find(f"{URL}2"))
        trust.remove("acme")
        assert not trust.known(catalog.find(URL))

    def test_named_by_a_catalog_that_the_user_took_on_is_known_until_they_leave_it(self, tmp_path):
        (tmp_path / "team.yml").write_text(f"templates: {{acme: {URL}}}\n")
        place, _, _ = catalog.subscribe("team.yml")
        assert trust.known(catalog.find("acme"))
        assert trust.remove(place) == f"The names of {place} are gone."
        assert not trust.known(catalog.find(URL))

    def test_is_confirmed_once_for_all_its_versions_and_spellings(self):
        trust.remember(catalog.find(f"{URL}@v1"), COMMIT)
        for same in (f"{URL}@v2", f"{URL}.git", f"git+{URL}", "git@git.example.com:platform/template.git"):
            assert trust.known(catalog.find(same)), same
        for other in (f"{URL}2", "https://git.example.com/platform", "https://evil.example/platform/template"):
            assert not trust.known(catalog.find(other)), other

    def test_of_another_port_of_this_machine_is_another_one(self):
        trust.remember(catalog.find("http://127.0.0.1:8000/x.git"), COMMIT)
        assert trust.known(catalog.find("http://127.0.0.1:8000/x.git@v1"))
        assert not trust.known(catalog.find("http://127.0.0.1:8001/x.git"))

    def test_that_was_confirmed_can_be_forgotten(self):
        trust.remember(catalog.find(URL), COMMIT)
        assert "asked about" in trust.remove(f"{URL}.git@v3")
        assert not trust.known(catalog.find(URL))
        with pytest.raises(SourceError, match="Your catalog has no"):
            trust.remove(URL)

    def test_with_a_name_is_forgotten_with_it(self):
        trust.remember(catalog.find(URL), COMMIT)
        catalog.add("acme", URL)
        trust.remove("acme")
        assert not trust.known(catalog.find(URL))

    def test_cannot_claim_to_be_known(self):
        """Its name is for people to read, and decides nothing."""
        trust.remember(catalog.find(URL), COMMIT)
        assert not trust.known(replace(catalog.find("https://evil.example/x"), name="base"))


class TestTheList:
    def test_holds_the_commit_that_was_seen(self):
        trust.remember(catalog.find(f"{URL}@v1"), COMMIT)
        assert f"git.example.com/platform/template: {COMMIT}" in path().read_text()

    def test_that_is_damaged_stops_only_what_could_be_in_it(self, make_template):
        make_template()
        catalog.add("acme", URL)
        path().write_text("<<<<<<<\n")
        for fine in ("base", "./template", "acme"):
            assert trust.known(catalog.find(fine))
        with pytest.raises(SourceError) as refused:
            trust.known(catalog.find("https://git.example.com/other"))
        assert str(path()) in refused.value.what
        assert refused.value.fix.endswith(f"mv {path()} {path()}.old")
        with pytest.raises(SourceError):
            trust.remember(catalog.find("https://git.example.com/other"), COMMIT)
        assert path().read_text() == "<<<<<<<\n"

    def test_is_never_seen_half_written(self):
        """When the disk is full in the middle, the list stays what it was, and nothing lies about."""
        trust.remember(catalog.find(URL), COMMIT)
        before, limits = path().read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            with pytest.raises(SourceError, match="Cannot write"):
                trust.remember(catalog.find(f"{URL}2"), COMMIT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path().read_bytes() == before
        assert sorted(file.name for file in path().parent.iterdir()) == [".known-sources.yml.lock", path().name]


class TestARecordedSource:
    @pytest.mark.parametrize(
        "before, now",
        [
            (URL, f"{URL}.git"),
            (f"git+{URL}", "git@git.example.com:platform/template.git"),
            (f"git+{URL}", "https://me:secret@GIT.example.com/platform/renamed"),
            ("ssh://git@git.example.com:2222/x", "https://git.example.com/x"),
            ("gh:o/r", "git@github.com:o/r.git"),
            ("gl:o/r", "https://gitlab.com/o/r"),
            ("/home/me/template", "/home/me/moved"),
            ("~/template", "/srv/template"),
            ("http://127.0.0.1:8000/x.git", "http://127.0.0.1:8001/x.git"),
        ],
    )
    def test_stays_on_its_machine_however_it_is_written(self, before, now):
        assert not trust.changed_host(before, now)
        assert not trust.changed_host(now, before)

    @pytest.mark.parametrize(
        "before, now",
        [
            (f"git+{URL}", "https://git.example.com.evil.example/platform/template"),
            (f"git+{URL}", "https://git.example.com@evil.example/platform/template"),
            (f"git+{URL}", "https://git.example.com:pw@evil.example/platform/template"),
            (f"git+{URL}", "https://evil.example#git.example.com/platform/template"),
            (f"git+{URL}", "https://evil.example\\@git.example.com/x"),
            (f"git+{URL}", "git@evil.example:git.example.com/platform/template"),
            (f"git+{URL}", "/tmp/evil"),
            (f"git+{URL}", "ext::sh -c id"),
            (f"git+{URL}", "file:///tmp/evil"),
            ("gh:o/r", "gl:o/r"),
            ("/home/me/template", "https://evil.example/x"),
            (settings.BUNDLE_FOR_PROJECTS, "https://evil.example/x"),
            ("http://127.0.0.1/x", "https://evil.example/x"),
        ],
    )
    def test_that_moved_to_another_machine_is_noticed(self, before, now):
        assert trust.changed_host(before, now)
        assert trust.changed_host(now, before)

    def test_that_moves_from_the_bundle_to_the_published_repository_did_not(self, monkeypatch):
        monkeypatch.setattr(settings, "repository_url", lambda: "https://code.example.com/treadle/treadle")
        published = catalog.built_in("base").url
        assert published == "git+https://code.example.com/treadle/treadle"
        assert not trust.changed_host(settings.BUNDLE_FOR_PROJECTS, published)
        assert not trust.changed_host(published, settings.BUNDLE_FOR_PROJECTS)
        assert trust.changed_host(settings.BUNDLE_FOR_PROJECTS, "https://evil.example/treadle/treadle")


def path():
    return settings.config_folder() / "known-sources.yml"
