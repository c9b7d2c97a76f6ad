"""Short names for templates: whose they are, what they may stand for, and what hostile catalogs can't do."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scaffold import catalog
from scaffold.catalog import downloading, files, sources
from scaffold.errors import ScaffoldError, SourceError

URL = "https://git.example.com/platform/template"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's empty home folder, for code called in this process."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith(("GIT_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def own(home):
    """The user's own catalog, which is not there yet."""
    path = home / ".config" / "treadle-scaffold" / "catalog.yml"
    path.parent.mkdir(parents=True)
    return path


class TestANameOfTheUsers:
    def test_stands_for_its_url_and_version(self, home):
        catalog.add("acme", f"{URL}@v1.2.0")
        source = catalog.find("acme")
        assert (source.name, source.url, source.reference, source.commit) == ("acme", f"git+{URL}", "v1.2.0", None)
        assert catalog.find("acme@main").reference == "main"

    def test_may_be_pinned_to_one_commit_which_is_then_what_it_means(self, home):
        catalog.add("acme", URL, commit=COMMIT)
        assert catalog.find("acme").commit == COMMIT
        assert catalog.find("acme").reference == COMMIT
        assert catalog.find("acme@v2").commit == COMMIT, "another version must still be that commit"
        assert catalog.pin("git@git.example.com:platform/template.git") == COMMIT
        assert catalog.pin("https://git.example.com/platform/other") is None

    def test_goes_before_a_folder_of_that_name(self, home, make_template):
        template = make_template(folder="acme")
        catalog.add("acme", URL)
        assert catalog.find("acme").url == f"git+{URL}"
        assert catalog.find("./acme").url == str(template)

    def test_of_a_folder_works_from_everywhere(self, home, make_template, tmp_path, monkeypatch):
        template = make_template()
        catalog.add("mine", "./template@v1.0.0")
        monkeypatch.chdir(home)
        source = catalog.find("mine")
        assert (source.url, source.reference) == (str(template), "v1.0.0")

    def test_is_written_so_that_no_hash_becomes_a_number(self, home, own):
        catalog.add("acme", URL, commit="1" * 40)
        catalog.add("other", URL, commit="12e4" + "5" * 36)
        assert catalog.find("acme").commit == "1" * 40
        assert catalog.find("other").commit == "12e4" + "5" * 36

    @pytest.mark.parametrize(
        "name, fix",
        [
            ("base", "my-base"),
            ("Acme", "call it acme"),
            ("a b", "call it a-b"),
            ("-acme", "call it acme"),
            ("a/b", "call it a-b"),
            ("acme@v1", "call it acme-v1"),
            ("\x1b[31m", "call it 31m"),
            ("", "call it my-template"),
            ("a" * 41, "call it " + "a" * 40),
        ],
    )
    def test_that_could_be_taken_for_something_else_is_refused(self, home, own, name, fix):
        with pytest.raises(SourceError) as refused:
            catalog.add(name, URL)
        assert fix in refused.value.fix
        assert "\x1b" not in str(refused.value)
        assert not own.exists()

    @pytest.mark.parametrize(
        "address", ["acme", "base", "nowhere", "./nowhere", "ext::sh -c x", "-u", "", f"{URL}@--x"]
    )
    def test_for_what_is_no_address_is_refused(self, home, own, address):
        """Names don't stand for names, so none can stand for itself."""
        with pytest.raises(SourceError):
            catalog.add("acme", address)
        assert not own.exists()

    def test_that_is_taken_is_not_overwritten(self, home):
        catalog.add("acme", URL)
        catalog.add("acme", URL)
        with pytest.raises(SourceError, match="already") as refused:
            catalog.add("acme", f"{URL}2")
        assert refused.value.fix.startswith("scaffold template remove acme")
        assert catalog.find("acme").url == f"git+{URL}"

    def test_that_is_unknown_gets_the_nearest_one(self, home):
        catalog.add("acme", URL)
        with pytest.raises(SourceError) as refused:
            catalog.find("acne")
        assert refused.value.fix == "--template acme"

    def test_pinned_to_less_than_a_full_hash_is_refused(self, home):
        for commit in ("abc", "v1.0.0", COMMIT[:-1], COMMIT.upper()):
            with pytest.raises(SourceError, match="full hash"):
                catalog.add("acme", URL, commit=commit)

    def test_can_be_removed(self, home):
        catalog.add("acme", URL)
        assert catalog.remove("acme").address == URL
        with pytest.raises(SourceError, match="no template called"):
            catalog.find("acme")

    def test_that_is_not_there_cannot_be_removed(self, home):
        catalog.add("acme", URL)
        with pytest.raises(SourceError) as refused:
            catalog.remove("acne")
        assert refused.value.fix == "scaffold template remove acme"
        with pytest.raises(SourceError, match="built-in"):
            catalog.remove("base")


DAMAGED = {
    "a conflict": "<<<<<<< HEAD\ntemplates: {}\n=======\n",
    "a list": "- acme\n",
    "a text": "acme",
    "binary": "\x00\x01\x02",
    "an alias bomb": "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\ntemplates: {acme: *c}\n",
    "a merge bomb": "a: &a {k: v}\nb: &b {<<: [*a, *a, *a]}\ntemplates: {<<: [*b, *b]}\n",
    "deep nesting": "templates: " + "[" * 100_000,
    "deep nesting that ends": "templates: " + "[" * 20_000 + "]" * 20_000,
    "too large": "# " + "x" * files.LARGEST + "\ntemplates: {}\n",
    "too many entries": "templates:\n" + "".join(f"  n{number}: x/\n" for number in range(60_000)),
    "names that are no mapping of catalogs": "catalogs: {a: b}\n",
}


class TestTheUsersFile:
    @pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
    def test_that_is_damaged_is_named_with_the_way_out_and_takes_nothing_else_away(self, home, own, text):
        own.write_text(text)
        started = time.monotonic()
        with pytest.raises(SourceError) as refused:
            catalog.find("acme")
        assert str(own) in refused.value.what
        assert f"mv {own} {own}.old" in refused.value.fix
        assert catalog.find("base").trusted
        assert catalog.find(URL).url == f"git+{URL}"
        listing = catalog.listing()
        assert [entry.name for entry in listing.entries] == ["base"]
        assert str(own) in listing.problems[0]
        with pytest.raises(SourceError, match="cannot be read"):
            catalog.add("acme", URL)
        assert own.read_text() == text
        assert time.monotonic() - started < 10

    def test_with_one_bad_entry_keeps_the_others(self, home, own):
        bad = {
            "bad-url": {"source": "https://me:secret@example.com/x"},
            "bad-scheme": {"source": "ext::sh -c id"},
            "bad-reference": {"source": f"{URL}@--upload-pack=x"},
            "bad-pin": {"source": URL, "commit": "abc"},
            "bad-key": {"source": URL, "comit": COMMIT},
            "bad-shape": ["x"],
            "bad-nesting": {"source": {"x": "y"}},
            "no-source": {"description": "x"},
            "base": {"source": URL},
            "self": {"source": "self"},
            "Evil\x1b[2J": {"source": URL},
        }
        own.write_text(yaml.safe_dump({"templates": {**bad, "good": {"source": URL}}}))
        assert catalog.find("good").url == f"git+{URL}"
        listing = catalog.listing()
        assert [entry.name for entry in listing.entries] == ["base", "good"]
        assert len(listing.problems) == len(bad)
        assert not re.search(r"secret|\x1b", " ".join(listing.problems))
        assert catalog.find("base").trusted

    def test_edited_by_hand_into_a_bad_place_fetches_nothing_from_it(self, home, own):
        places = ["http://example.com/c.yml", "--upload-pack=x", "ext::sh -c x", "~nobody-here/c", "a/" * 5_000, "\0"]
        own.write_text(yaml.safe_dump({"catalogs": places, "templates": {"acme": URL}}))
        assert len(catalog.listing(refresh=True).problems) >= len(places)
        assert catalog.find("acme").url == f"git+{URL}"

    def test_may_be_a_link_into_a_folder_of_settings(self, home, own, tmp_path):
        kept = tmp_path / "dotfiles.yml"
        kept.write_text("templates: {}\n")
        own.symlink_to(kept)
        catalog.add("acme", URL)
        assert own.is_symlink()
        assert "acme" in kept.read_text()

    def test_changed_by_many_at_once_loses_nothing(self, fresh_machine, tmp_path):
        def start(number):
            command = [sys.executable, "-m", "scaffold", "template", "add", f"name-{number}", f"{URL}-{number}"]
            return subprocess.Popen(command, env=fresh_machine.environment, cwd=tmp_path, stdout=subprocess.DEVNULL)

        assert [process.wait() for process in [start(number) for number in range(4)]] == [0] * 4
        done = fresh_machine.scaffold("template", "list", "--json", cwd=tmp_path)
        names = {entry["name"] for entry in json.loads(done.stdout)["templates"]}
        assert names == {"base", *(f"name-{number}" for number in range(4))}
        folder = fresh_machine.home / ".config" / "treadle-scaffold"
        assert sorted(path.name for path in folder.iterdir()) == [".catalog.yml.lock", "catalog.yml"]

    def test_changed_by_threads_at_once_loses_nothing(self, home):
        """They meet far more often than processes, which take a moment to start."""
        threads = [threading.Thread(target=catalog.add, args=(f"n{number}", URL)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(catalog.listing().entries) == 21

    def test_that_cannot_be_written_is_said_in_one_line(self, machine, tmp_path):
        done = machine.scaffold("template", "add", "acme", URL, cwd=tmp_path, XDG_CONFIG_HOME="/proc/nobody")
        assert done.returncode == 1
        assert "Cannot write /proc/nobody" in done.stderr
        assert "XDG_CONFIG_HOME" in done.stderr


class TestASharedCatalog:
    def test_of_this_machine_is_read_where_it_lies(self, home, make_template, tmp_path):
        template = make_template()
        place = tmp_path / "team.yml"
        place.write_text(f"templates:\n  acme: {URL}\n  near: {{source: ./template, description: Near}}\n")
        catalog.subscribe("team.yml")
        assert catalog.find("near").url == str(template)
        place.write_text(f"templates:\n  acme: {URL}2\n")
        assert catalog.find("acme").url == f"git+{URL}2"
        assert [entry.origin for entry in catalog.listing().entries] == ["built in", str(place)]

    def test_is_beaten_by_a_name_of_the_users_and_that_is_shown(self, home, tmp_path):
        (tmp_path / "team.yml").write_text(f"templates: {{acme: {URL}}}\n")
        catalog.subscribe("team.yml")
        catalog.add("acme", f"{URL}-mine")
        assert catalog.find("acme").url == f"git+{URL}-mine"
        shown = [(entry.origin, entry.hidden) for entry in catalog.listing().entries if entry.name == "acme"]
        assert shown == [("yours", False), (str(tmp_path / "team.yml"), True)]

    def test_is_left_by_its_place_not_by_one_of_its_names(self, home, tmp_path):
        (tmp_path / "team.yml").write_text(f"templates: {{acme: {URL}}}\n")
        place, entries, problems = catalog.subscribe("./team.yml")
        assert (len(entries), problems) == (1, [])
        with pytest.raises(SourceError) as refused:
            catalog.remove("acme")
        assert refused.value.fix.startswith(f"scaffold template remove {place}")
        assert catalog.remove("./team.yml").catalog == place
        assert len(catalog.listing().entries) == 1

    def test_over_http_is_fetched_once_and_known_without_a_network_then(self, home, server):
        server.files["/team.yml"] = f"templates: {{acme: {{source: {URL}, description: Ours}}}}\n".encode()
        place, _, _ = catalog.subscribe(f"{server.url}/team.yml")
        asked = len(server.asked)
        server.files.clear()
        assert catalog.find("acme").url == f"git+{URL}"
        assert len(server.asked) == asked
        listing = catalog.listing(refresh=True)
        assert "404" in listing.problems[0]
        assert [entry.name for entry in listing.entries] == ["base", "acme"]
        server.files["/team.yml"] = f"templates: {{other: {URL}}}\n".encode()
        assert [entry.name for entry in catalog.listing().entries] == ["base", "acme"]
        assert [entry.name for entry in catalog.listing(refresh=True).entries] == ["base", "other"]
        catalog.remove(place)
        assert not any((home / ".cache" / "treadle-scaffold" / "catalogs").iterdir())

    def test_whose_copy_is_lost_says_how_to_get_it_back(self, home, server):
        server.files["/team.yml"] = f"templates: {{acme: {URL}}}\n".encode()
        catalog.subscribe(f"{server.url}/team.yml")
        for kept in (home / ".cache" / "treadle-scaffold" / "catalogs").iterdir():
            kept.unlink()
        with pytest.raises(SourceError) as refused:
            catalog.find("acme")
        assert refused.value.fix.startswith("scaffold template list --refresh")

    def test_in_a_git_repository_is_its_catalog_yml(self, home, server, machine, tmp_path):
        made = tmp_path / "platform"
        made.mkdir()
        (made / "catalog.yml").write_text(f"templates: {{acme: {URL}}}\n")
        machine.git("init", "-q", cwd=made)
        machine.git("add", "-A", cwd=made)
        machine.git("commit", "-qm", "names", cwd=made)
        bare = server.folder / "platform.git"
        machine.git("clone", "-q", "--bare", str(made), str(bare), cwd=tmp_path)
        machine.git("update-server-info", cwd=bare)
        catalog.subscribe(f"{server.url}/platform.git")
        assert catalog.find("acme").url == f"git+{URL}"
        with pytest.raises(SourceError, match="cannot be fetched"):
            catalog.subscribe(f"{server.url}/platform.git@nowhere")

    def test_of_another_machine_names_no_path_of_this_one(self, home, server):
        server.files["/team.yml"] = f"templates: {{acme: {URL}, near: /etc, home: ~/x}}\n".encode()
        _, entries, problems = catalog.subscribe(f"{server.url}/team.yml")
        assert [entry.name for entry in entries] == ["acme"]
        assert len(problems) == 2

    def test_that_names_itself_or_other_catalogs_leads_nowhere(self, home, server):
        here = f"{server.url}/team.yml"
        server.files["/team.yml"] = f"templates: {{acme: {URL}}}\ncatalogs: [{here}, {server.url}/2.yml]\n".encode()
        _, _, problems = catalog.subscribe(here)
        assert "not followed" in problems[0]
        catalog.listing(refresh=True)
        assert set(server.asked) == {"/team.yml"}

    def test_cannot_be_the_users_own(self, home, own):
        catalog.add("acme", URL)
        with pytest.raises(SourceError, match="your own"):
            catalog.subscribe(str(own))

    def test_that_is_damaged_takes_nothing_from_the_others(self, home, tmp_path):
        for name in ("one", "two"):
            (tmp_path / f"{name}.yml").write_text(f"templates: {{{name}: {URL}}}\n")
            catalog.subscribe(f"{name}.yml")
        (tmp_path / "one.yml").write_text("templates: [")
        assert catalog.find("two").url == f"git+{URL}"
        with pytest.raises(SourceError, match=r"one\.yml is not a catalog"):
            catalog.find("one")
        (tmp_path / "one.yml").unlink()
        assert catalog.find("two").url == f"git+{URL}"
        assert "one.yml cannot be read" in catalog.listing().problems[0]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"<!DOCTYPE html><html></html>",
            b"templates: []",
            b"a: &a [x]\ntemplates: {b: *a}",
            b"templates: " + b"{a: " * 50_000,
            b"\xff\xfe\x00",
            b"templates: !!python/object/apply:os.system [id]",
            b"#" * (files.LARGEST + 1),
        ],
    )
    def test_that_is_no_catalog_is_refused_and_not_remembered(self, home, own, server, content):
        server.files["/team.yml"] = content
        with pytest.raises(SourceError):
            catalog.subscribe(f"{server.url}/team.yml")
        assert not own.exists()

    def test_that_sends_on_to_another_server_is_refused(self, home, server):
        server.redirects["/away.yml"] = f"http://localhost:{server.port}/team.yml"
        server.redirects["/file.yml"] = "file:///etc/passwd"
        server.redirects["/round.yml"] = f"{server.url}/round.yml"
        server.redirects["/moved.yml"] = "/team.yml"
        server.files["/team.yml"] = f"templates: {{acme: {URL}}}\n".encode()
        for name, reason in {"away": "another one", "file": "not allowed", "round": "infinite loop"}.items():
            with pytest.raises(SourceError, match=reason):
                catalog.subscribe(f"{server.url}/{name}.yml")
        catalog.subscribe(f"{server.url}/moved.yml")

    def test_that_never_ends_is_given_up(self, home, server, monkeypatch):
        monkeypatch.setattr(downloading, "_TIME_LIMIT", 0.5)
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"within|timed out"):
            catalog.subscribe(f"{server.url}/slow.yml")
        assert time.monotonic() - started < 3

    @pytest.mark.parametrize(
        "place",
        [
            "http://example.com/c.yml",
            "https://me:secret@example.com/c.yml",
            "ftp://example.com/c.yml",
            "file:///etc/passwd",
            "--upload-pack=x",
            "nowhere.yml",
            "~nobody-here/c.yml",
            "a/" * 5_000,
            "/dev/zero",
            "https://example.com/\x1b[31m.yml",
        ],
    )
    def test_at_no_good_place_is_refused(self, home, own, place):
        with pytest.raises(SourceError) as refused:
            catalog.subscribe(place)
        assert not re.search(r"secret|\x1b", str(refused.value))
        assert not own.exists()


class TestAnAddress:
    @pytest.mark.parametrize(
        "text, url, reference",
        [
            ("https://h.example/x/y", "git+https://h.example/x/y", None),
            ("https://h.example/x/y.git@v1", "https://h.example/x/y.git", "v1"),
            ("git+ssh://git@h.example:2222/x@main", "git+ssh://git@h.example:2222/x", "main"),
            ("git@h.example:x/y@v1", "git@h.example:x/y", "v1"),
            ("gh:o/r@v1", "https://github.com/o/r", "v1"),
            ("gl:o/r", "https://gitlab.com/o/r", None),
        ],
    )
    def test_of_another_machine_is_taken_over_https_or_ssh(self, home, text, url, reference):
        source = catalog.find(text)
        assert (source.url, source.reference, source.protocols) == (url, reference, "https:ssh")

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "[::1]:80"])
    def test_of_a_server_on_this_machine_may_use_what_needs_no_secrecy(self, home, host):
        web, daemon = catalog.find(f"http://{host}/x.git@v1"), catalog.find(f"git://{host}/x")
        assert (web.url, web.reference, web.protocols) == (f"http://{host}/x.git", "v1", "http")
        assert (daemon.url, daemon.protocols) == (f"git://{host}/x", "git")
        assert ("http.followRedirects", "false") in web.git_config

    @pytest.mark.parametrize(
        "text",
        [
            "http://example.com/x.git",
            "git://example.com/x",
            "http://127.0.0.1.example.com/x",
            "http://127.0.0.1@example.com/x",
            "http://127.0.0.1:80@example.com/x",
            "http://localhost\\@example.com/x",
            "http://example.com#@127.0.0.1/x",
            "http://127.0.0.1?@example.com/x",
            "http://0.0.0.0/x",
            "git+http://example.com/x",
            "git+git://127.0.0.1/x",
            "ext::sh -c touch% x",
            "file:///etc",
            "git+file:///etc",
            "https://me:secret@example.com/x",
            "https://me:secret@example.com",
            "https://token@example.com/x",
            "ssh://me:secret@example.com/x",
            "ssh://-oProxyCommand=x/y",
            "ssh://-oProxyCommand=x@example.com/y",
            "-oProxyCommand=x",
            "--upload-pack=x",
            "git@example.com:",
            "git@example.com:--upload-pack=x",
            "https://example.com/",
            "https:///x",
            "https://example.com/x@-v1",
            "https://example.com/x@a..b",
            "https://example.com/x@a@{1}",
            "https://example.com/x@v1^{/x}",
            "https://example.com/x@v1\x1b[31m",
            "https://example.com/x\u202egnp",
            "https://example.com/x\ny",
            "~nobody-here/x",
            "a/" * 5_000,
            "\0/x",
            "/dev/null",
            "\udc80/x",
        ],
    )
    def test_that_is_dangerous_or_nonsense_is_refused(self, home, text):
        with pytest.raises(SourceError) as refused:
            catalog.find(text)
        assert not re.search("secret|\x1b|\u202e", str(refused.value))
        with pytest.raises(SourceError):
            catalog.recorded(text)


# fmt: off
PIECES = [
    "https://", "ssh://", "http://", "git://", "git+", "file://", "ext::", "gh:", "gl:", "git@", "@", "@{",
    "..", "-", "--", "--upload-pack=", "-oProxyCommand=", ":", "/", "//", "~", ".", "127.0.0.1", "localhost",
    "[::1]", "example.com", "me:secret@", "base", "acme", "v1", "HEAD", "^{}", "\\", "#", "?", "%", "é", " ",
    "\n", "\0", "\x1b[31m", "\u202e", "\udc80",
]
# fmt: on


class TestAnyText:
    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=9).map("".join)))
    @example("https://example.com/x@")
    @example("@")
    @example("~")
    @example(".")
    def test_is_a_safe_source_or_a_users_mistake(self, home, text):
        """Nothing git could take for an option, no transport that was not agreed to, and no other kind of error."""
        for find in (catalog.find, catalog.recorded):
            source = found_or_refused(find, text)
            if source is None:
                continue
            url = source.url.removeprefix("git+")
            assert not url.startswith("-")
            assert not sources.hides_something(source.url)
            assert source.reference is None or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*", source.reference)
            assert ".." not in (source.reference or "")
            if "://" in url:
                scheme, _, rest = url.partition("://")
                host = re.fullmatch(
                    r"([A-Za-z0-9_.][A-Za-z0-9_.-]*@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:\d+)?/.*", rest
                )
                assert host, url
                assert scheme in ("https", "ssh") or (scheme == source.protocols and host[2] in LOOPBACK)
            else:
                assert re.match(r"[A-Za-z0-9_.-]+@[A-Za-z0-9]|/|~", url), url


def found_or_refused(find, text):
    try:
        return find(text)
    except ScaffoldError as error:
        shown = str(error)
    assert "\x1b" not in shown
    return None


NAMES = st.sampled_from(["acme", "base", "a b", "\x1b[31m", "", "-x", "1", "source"])
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([URL, "acme", "/etc", f"{URL}@--x", COMMIT, "~x/y"]))
THINGS = st.recursive(
    st.one_of(TEXTS, st.none(), st.integers(), st.booleans(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES | TEXTS, inner, max_size=3)),
    max_leaves=12,
)
ENTRIES = st.dictionaries(NAMES, st.fixed_dictionaries({"source": TEXTS}, optional={"commit": TEXTS}) | THINGS)
PARTS = st.fixed_dictionaries({}, optional={"templates": ENTRIES | THINGS, "catalogs": THINGS, "x": THINGS})


class TestAnyCatalog:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.one_of(PARTS.map(lambda parts: yaml.safe_dump(parts).encode()), THINGS.map(repr).map(str.encode)))
    def test_gives_names_or_problems_and_nothing_else(self, own, content):
        own.write_bytes(content)
        listing = catalog.listing()
        assert listing.entries[0].name == "base"
        assert not re.search("\x1b", repr(listing.problems) + "".join(entry.name for entry in listing.entries))
        for entry in listing.entries:
            found_or_refused(catalog.find, entry.name)
            assert entry.commit is None or re.fullmatch("[0-9a-f]{40,64}", entry.commit)


LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}


class TestTheCommands:
    def test_show_what_a_template_asks_and_brings(self, fresh_machine, make_template, tmp_path):
        config = (
            "_scaffold:\n  managed: ['.github/**']\n_tasks: [echo hi]\n"
            "size: {type: str, help: 'How large?', default: small, choices: [small, large]}\n"
            "key: {type: str, secret: true, default: hidden-value}\n"
            "computed: {default: x, when: false}\nname: world\n"
        )
        make_template({"presets/tiny.yml": "size: small\n", "presets/deep/no.yml": "", "a.txt": ""}, config=config)
        fresh_machine.scaffold("template", "add", "acme", "./template", cwd=tmp_path)
        done = fresh_machine.scaffold("template", "show", "acme", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert (shown["name"], shown["version"], shown["releases"]) == ("acme", "v1.0.0", ["v1.0.0"])
        assert shown["commit"] == fresh_machine.git("rev-parse", "HEAD", cwd=tmp_path / "template")
        assert [question["name"] for question in shown["questions"]] == ["size", "key", "name"]
        assert shown["questions"][0]["choices"] == ["small", "large"]
        assert (shown["presets"], shown["managed"], shown["needs_trust"]) == (["tiny"], [".github/**"], ["tasks"])
        done = fresh_machine.scaffold("template", "show", "acme", cwd=tmp_path)
        for text in ("v1.0.0", "How large?", "tiny", ".github/**", "--trust", "scaffold new PATH --template acme"):
            assert text in done.stdout
        assert "hidden-value" not in done.stdout

    def test_show_prints_nothing_that_a_terminal_obeys(self, machine, make_template, tmp_path):
        config = 'name: {type: str, help: "a\\e[2Jb\\x9bc\\u202ed", default: "\\e]0;x\\a"}\n'
        make_template(config=config)
        done = machine.scaffold("template", "show", "./template", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stdout)

    def test_show_refuses_a_pinned_template_that_is_at_another_commit(self, fresh_machine, make_template, tmp_path):
        template = make_template()
        commit = fresh_machine.git("rev-parse", "HEAD", cwd=template)
        fresh_machine.scaffold("template", "add", "right", "./template@v1.0.0", "--commit", commit, cwd=tmp_path)
        fresh_machine.scaffold("template", "add", "wrong", "./template@v1.0.0", "--commit", COMMIT, cwd=tmp_path)
        assert fresh_machine.scaffold("template", "show", "right", cwd=tmp_path).returncode == 0
        done = fresh_machine.scaffold("template", "show", "wrong", cwd=tmp_path)
        assert done.returncode == 1
        assert "the catalog pins" in done.stderr

    def test_list_says_where_each_name_comes_from(self, fresh_machine, tmp_path):
        (tmp_path / "team.yml").write_text(
            f'templates: {{ours: {{source: {URL}, description: "x\\e[31my"}}, base: {URL}}}\n'
        )
        done = fresh_machine.scaffold("template", "add", "--catalog", "team.yml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "base is left out" in done.stderr
        fresh_machine.scaffold("template", "add", "acme", URL, "--commit", COMMIT, cwd=tmp_path)
        done = fresh_machine.scaffold("template", "list", cwd=tmp_path)
        assert done.returncode == 0
        for text in ("built in", f"{URL}, pinned to {COMMIT[:12]} (yours)", f"(from {tmp_path / 'team.yml'})"):
            assert text in done.stdout
        assert "\x1b" not in done.stdout + done.stderr

    def test_work_with_servers_of_this_machine(self, fresh_machine, make_template, server, tmp_path):
        """As in the walk-through for teams: plain http, or git's own daemon."""
        make_template()
        bare = server.folder / "acme.git"
        fresh_machine.git("clone", "-q", "--bare", str(tmp_path / "template"), str(bare), cwd=tmp_path)
        fresh_machine.git("update-server-info", cwd=bare)
        with git_daemon(server.folder) as port:
            for url in (f"{server.url}/acme.git", f"git://127.0.0.1:{port}/acme.git"):
                done = fresh_machine.scaffold("template", "show", url, "--json", cwd=tmp_path)
                assert done.returncode == 0, done.stderr
                assert json.loads(done.stdout)["version"] == "v1.0.0"

    @pytest.mark.parametrize(
        "arguments",
        [("acme",), (), ("acme", URL, "--catalog", "x.yml"), ("--catalog", "x.yml", "--commit", COMMIT)],
    )
    def test_add_wants_a_name_and_a_source_or_a_catalog(self, machine, tmp_path, arguments):
        done = machine.scaffold("template", "add", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert "--catalog FILE|URL" in done.stderr


class Server:
    """A web server on this machine, with files in memory, files in a folder, redirects, and an answer without end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments, **named):
                super().__init__(*arguments, directory=str(folder), **named)

            def do_GET(self):
                outer.asked.append(self.path)
                if self.path in outer.redirects:
                    self.send_response(302)
                    self.send_header("Location", outer.redirects[self.path])
                    self.end_headers()
                elif self.path == "/slow.yml":
                    self.drip()
                elif self.path in outer.files:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(outer.files[self.path])
                else:
                    super().do_GET()

            def drip(self):
                self.send_response(200)
                self.end_headers()
                for _ in range(60):
                    self.wfile.write(b"#")
                    self.wfile.flush()
                    time.sleep(0.05)

            def log_message(self, *arguments):
                pass

            def handle(self):
                with suppress(ConnectionError):
                    super().handle()

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.httpd.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()
    thread.join()


@contextmanager
def git_daemon(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={folder}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()
