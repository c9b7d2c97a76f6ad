"""Templates, answers, addresses and servers of somebody who means harm: refused in one message, or harmless.

Every test looks at all that lies around the project, and for what is left of temporary files.
"""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaffold import catalog, console, fetching, layers, rendering, updating
from scaffold.errors import ScaffoldError, UnsafeTemplate
from scaffold.settings import Limits

QUICK = Limits(seconds=2.5)
ANSWERS = "{{ _copier_conf.answers_file }}.jinja"
FILES = {"copier.yml": "name: world\n", ANSWERS: "{{ _copier_answers | to_nice_yaml }}", "a.txt": "a\n"}
LINK = "120000"


@pytest.fixture
def place(in_process, tmp_path, monkeypatch):
    """A folder whose surroundings are looked at: nothing in them may change, and no temporary file may stay."""
    for folder in ("around/inner", "tmp", "cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "around/secret.yml").write_text("password: hunter2\n")
    (tmp_path / "around/inner/neighbour.txt").write_text("mine\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "around/inner")
    yield tmp_path / "around/inner"
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert surroundings(tmp_path / "around") == {"secret.yml": b"password: hunter2\n", "inner/neighbour.txt": b"mine\n"}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not [path for path in tmp_path.rglob("pwned*") if "target" not in path.parts]


def surroundings(folder):
    """Everything but the project, which is called target."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "target" not in path.relative_to(folder).parts and not path.is_dir()
    }


@pytest.fixture
def template(machine, tmp_path):
    """A repository with any names and links in it, also those that git itself would not add."""

    def make(files=(), *, links=(), config=None, tag="v1.0.0", folder="template"):
        everything = {**FILES, **dict(files), **({"copier.yml": config} if config is not None else {})}
        return imported(machine, tmp_path / folder, everything, dict(links), tag)

    return make


def imported(machine, folder, files, links, tag="v1.0.0"):
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    if new:
        machine.git("init", "-q", cwd=folder)
    stream = b"commit refs/heads/main\nmark :1\ncommitter A <a@b> 0 +0000\ndata 1\nx\n" + (
        b"" if new else b"from refs/heads/main^0\ndeleteall\n"
    )
    entries = [(name, "100644", text) for name, text in files.items()] + [(n, LINK, to) for n, to in links.items()]
    for name, mode, text in entries:
        data = text.encode() if isinstance(text, str) else text
        quoted = "".join(
            f"\\{byte:03o}" if byte < 32 or byte in b'"\\' or byte > 126 else chr(byte) for byte in name.encode()
        )
        stream += f'M {mode} inline "{quoted}"\ndata {len(data)}\n'.encode() + data + b"\n"
    if tag:
        stream += f"reset refs/tags/{tag}\nfrom :1\n".encode()
    done = subprocess.run(
        ["git", "-c", "core.protectNTFS=false", "fast-import", "--quiet", "--force"],
        cwd=folder, env=machine.environment, input=stream, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def render(template, place, *, limits=QUICK, **answers):
    return rendering.render(catalog.find(f"{template}"), place / "target", answers=answers, defaults={}, limits=limits)


class TestGitsFolder:
    """A configuration or a hook in it would run as a command."""

    @pytest.mark.parametrize(
        "name",
        [
            "{{ '.git' }}/config",
            "{{ '.GIT' }}/config",
            "{{ '.git' }}/hooks/pre-commit",
            "{{ 'git~1' }}/config",
            "{{ '.git ' }}/config",
            "{{ '.git.' }}/config",
            "{{ '.g\u200cit' }}/config",
            "{{ '.git::$INDEX_ALLOCATION' }}/config",
            "sub/{{ '.git' }}",
            "{% set g = 'git' %}.{{ g }}/config",
            ".{{ name }}/config",
            "GIT~1/config",
            ".git/config",
            "sub/.git/hooks/pre-commit",
        ],
        ids=ascii,
    )
    def test_is_written_by_no_template(self, template, place, name):
        with pytest.raises(ScaffoldError):
            render(
                template({name: "[core]\n\tfsmonitor = touch pwned\n"}),
                place,
                **({"name": "git"} if "{{ name" in name else {}),
            )

    @pytest.mark.parametrize("target", [".git", ".git/hooks", "a/../.git/config", ".GIT/config", "git~1"])
    def test_is_linked_to_by_no_template(self, template, place, target):
        config = FILES["copier.yml"] + "_preserve_symlinks: true\n"
        with pytest.raises(UnsafeTemplate):
            render(template(links={"link": target}, config=config), place)


class TestLinks:
    @pytest.mark.parametrize(
        "links",
        [
            {"out": "/etc/passwd"},
            {"out": "../secret.yml"},
            {"out": ".."},
            {"deep/out": "../../secret.yml"},
            {"a1": "a2", "a2": "a3", "a3": "../secret.yml"},
            {"a1": "a2", "a2": "a1"},
            {"me": "me"},
            {"d": "..", "e": "d/secret.yml"},
            {"out": "C:\\Windows"},
            {"out": "..\\..\\x"},
            {"{{ '..' }}": "x"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("preserved", [True, False])
    def test_lead_nowhere_out_of_the_project(self, template, place, links, preserved):
        """Kept as links or read through by Copier."""
        config = FILES["copier.yml"] + f"_preserve_symlinks: {str(preserved).lower()}\n"
        try:
            made = render(template(links=links, config=config), place)
        except ScaffoldError:
            return
        texts = [path.read_text() for path in made.folder.rglob("*") if path.is_file()]
        assert not any("hunter2" in text or "root:" in text for text in texts)
        assert not preserved

    def test_are_not_written_through(self, template, place):
        """First a link to a folder outside, then a file in that folder."""
        config = FILES["copier.yml"] + "_preserve_symlinks: true\n"
        files = {"{{ 'd' }}/pwned.txt": "x"}
        with pytest.raises(ScaffoldError):
            render(template(files, links={"d": str(place.parent)}, config=config), place)


PATHS = [
    "../../x",
    "/tmp/pwned",
    "..",
    ".",
    "a/../../b",
    "x\x00y",
    "x" * 300,
    "~",
    "$HOME",
    "-rf",
    "a\nb",
    "\x1b[2J",
    "con",
    "..\\x",
]


class TestAnswers:
    @pytest.mark.parametrize("answer", PATHS, ids=ascii)
    def test_in_a_path_stay_in_the_project(self, template, place, answer):
        try:
            made = render(template({"{{ name }}/pwned.txt": "x", "{{ name }}.txt": "x"}), place, name=answer)
        except ScaffoldError:
            return
        assert all(path.resolve().is_relative_to(place / "target") for path in made.folder.rglob("*"))

    @pytest.mark.parametrize(
        "answer", ["{{ 7*7 }}", "{% raw %}", "`touch pwned`", "$(touch pwned)", "!!python/name:os.system"]
    )
    def test_are_data_and_never_evaluated(self, template, place, answer):
        made = render(template({"said.txt.jinja": "{{ name }}"}), place, name=answer)
        assert (made.folder / "said.txt").read_text() == answer


class TestHugeOutput:
    @pytest.mark.parametrize(
        "files",
        [
            {"big.txt.jinja": "{% for i in range(9999) %}{{ 'x' * 2000 }}{% endfor %}"},
            {"big.txt": "x" * 11_000_000},
            {"{% yield i from range(9000) %}{{ i }}{% endyield %}.txt": ""},
            {"/".join(["d"] * 120) + f"/{number}/x": "" for number in range(60)},
            {"/".join(["d" * 200] * 30) + "/x": ""},
        ],
        ids=["one file by a loop", "one file", "many by a loop", "deep folders", "long paths"],
    )
    def test_is_refused(self, template, place, files):
        with pytest.raises(ScaffoldError):
            render(template(files), place, limits=Limits(seconds=3))


class TestSlowRendering:
    """Ended, with whatever it has started, after the time that a template gets."""

    @pytest.mark.parametrize(
        "text",
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{{ 10**(10**9) }}",
            "{{ ('a' * 40 ~ '!') | regex_search('(a+)+$') }}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        ],
    )
    def test_is_ended(self, template, place, text):
        started = time.monotonic()
        with pytest.raises(ScaffoldError):
            render(template({"slow.txt.jinja": text}), place, limits=Limits(seconds=1.5, memory=300_000_000))
        assert time.monotonic() - started < 30

    def test_of_a_name_or_a_default_is_ended_as_well(self, template, place):
        with pytest.raises(ScaffoldError):
            render(
                template(config='name: {type: str, default: "{{ 10**(10**9) }}"}\n'), place, limits=Limits(seconds=1.5)
            )


class TestMemory:
    @pytest.mark.parametrize(
        "text",
        ["{{ 'x' * 10**10 }}", "{% set x = [0] * 10**9 %}{{ x }}", "{{ ' ' | center(10**10) }}",
         "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"],
    )  # fmt: skip
    def test_beyond_what_a_template_needs_is_refused(self, template, place, text):
        with pytest.raises(ScaffoldError):
            render(template({"big.txt.jinja": text}), place, limits=Limits(seconds=10, memory=200_000_000))

    @pytest.mark.parametrize("key", ["_answers_file", "_scaffold", "name", "_subdirectory"])
    def test_that_yaml_aliases_stand_for_is_refused(self, template, place, key):
        bomb = "x0: &x0 [a, a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))
        found = fetching.fetch(catalog.find(str(template(config=f"{bomb}{key}: *x39\n"))))
        with pytest.raises(ScaffoldError, match="stands for more than"):
            print(found.config)

    @pytest.mark.parametrize("config", ["a: " + "[" * 50_000, "a: [" + "x, " * 200_000 + "]"], ids=["deep", "long"])
    def test_of_yaml_that_takes_long_to_read_is_refused_at_once(self, template, place, config):
        found = fetching.fetch(catalog.find(str(template(config=config))))
        started = time.monotonic()
        with pytest.raises(ScaffoldError, match="cannot be read"):
            print(found.config)
        assert time.monotonic() - started < 10

    def test_of_yaml_that_holds_itself_is_refused(self, template, place):
        found = fetching.fetch(catalog.find(str(template(config="a: &a [*a]\n"))))
        with pytest.raises(ScaffoldError, match="holds itself"):
            print(found.config)


class TestSettingsOfATemplate:
    """Everything that copier.yml can say."""

    @pytest.mark.parametrize(
        "config",
        [
            "_external_data: {x: ../secret.yml}",
            "_external_data: {x: ../../secret.yml}",
            "_external_data: {x: ../../../secret.yml}",
            "_external_data: {x: '{{ name }}'}",
        ],
    )
    def test_read_nothing_from_outside(self, template, place, config):
        """A rendered file that quotes them would carry the user's secrets to wherever the project is pushed."""
        made_from = template({"said.txt.jinja": "{{ _external_data.x }}"}, config=f"name: world\n{config}\n")
        try:
            made = render(made_from, place, name=str(place.parent / "secret.yml"))
        except ScaffoldError:
            return
        assert "hunter2" not in (made.folder / "said.txt").read_text()

    @pytest.mark.parametrize(
        "config",
        [
            "_answers_file: ../pwned.yml",
            "_answers_file: /tmp/pwned.yml",
            "_answers_file: .git/config",
            "_answers_file: [a]",
            "_subdirectory: ../..",
            "_subdirectory: /",
            "_subdirectory: '{{ name }}/../..'",
            "_subdirectory: .git",
            "_skip_if_exists: ['**', '../**']",
            "_exclude: ['!.git', '!**']",
            "_envops: {extensions: [os.system]}",
            "_envops: {loader: x}",
            "_envops: {block_start_string: ''}",
            "_envops: {undefined: os.system}",
            "_jinja_extensions: [os.system]",
            "_templates_suffix: ''",
            "_templates_suffix: 3",
            "_tasks: ['touch pwned']",
            "_tasks: [['touch', 'pwned']]",
            "_migrations: [{version: v0, command: touch pwned}]",
            "_secret_questions: [name]",
            "_secret_questions: 7",
            "_min_copier_version: '\x85'",
            '_message_before_copy: "\\e]0;pwned\\a"',
            "_scaffold: {managed: 7, generated: {a: b}, requires: [x], overlaps: 3}",
            "_scaffold: [a]",
            "!include /etc/passwd",
            "_x: !include ../../secret.yml",
            "--- !!python/object/apply:os.system [touch pwned]",
            "name: {type: yaml, default: '!!python/object/apply:os.system [touch pwned]'}",
            "name: {type: str, validator: '{{ cycler.__init__.__globals__.os.system(1) }}'}",
            "name: {type: str, default: '{{ self.__init__.__globals__ }}'}",
            "name: {type: path, default: /etc/passwd}",
            "'../x': 3",
            "__class__: 3",
        ],
    )
    def test_do_no_harm(self, template, place, config):
        """Refused in one message, or without effect out of the project."""
        text = config if config.startswith(("name", "!", "---")) else f"name: world\n{config}\n"
        try:
            made = render(template({"x.txt.jinja": "{{ name }}"}, config=text), place)
        except ScaffoldError:
            return
        assert not [path for path in made.folder.rglob("*") if path.is_file() and "root:x" in path.read_text()]
        assert all(path.resolve().is_relative_to(place / "target") for path in made.folder.rglob("*"))


class TestARepository:
    """What git would run or fetch."""

    @pytest.mark.parametrize(
        "url", ["ext::sh -c 'touch pwned'", "file://{secret}", "{secret}", "--upload-pack=touch pwned", "../secret"]
    )
    def test_with_submodules_brings_nothing_from_elsewhere(self, machine, template, place, tmp_path, url):
        """A submodule could be any repository on this machine, or be fetched with the user's keys."""
        secret = imported(machine, tmp_path / "secret", {"hunter2.txt": "hunter2"}, {})
        commit = machine.git("rev-parse", "main", cwd=secret)
        modules = f'[submodule "sub"]\n\tpath = sub\n\turl = "{url.format(secret=secret)}"\n'
        folder = template({".gitmodules": modules})
        machine.git("read-tree", "main", cwd=folder)
        machine.git("update-index", "--add", "--cacheinfo", f"160000,{commit},sub", cwd=folder)
        machine.git("commit", "-qm", "sub", cwd=folder)
        machine.git("tag", "-f", "v1.0.0", cwd=folder)
        try:
            made = render(folder, place)
        except ScaffoldError:
            return
        assert not list(made.folder.rglob("hunter2*"))

    def test_of_this_machine_runs_nothing_that_its_own_settings_say(self, machine, template, place, tmp_path):
        """A folder that somebody packed with its .git: its hooks, its file system monitor, its filters."""
        folder = template({".gitattributes": "* filter=evil diff=evil merge=evil\n"})
        script = tmp_path / "script"
        script.write_text(f"#!/bin/sh\ntouch '{tmp_path}/pwned'\ncat\n")
        script.chmod(0o755)
        hooks = folder / ".git/hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("post-checkout", "pre-commit", "post-commit", "reference-transaction", "post-index-change"):
            (hooks / name).symlink_to(script)
        with (folder / ".git/config").open("a") as config:
            config.write(
                f"[core]\n\tfsmonitor = {script}\n\thooksPath = {hooks}\n\tsshCommand = {script}\n\tpager = {script}\n"
            )
            config.write(f'[filter "evil"]\n\tclean = {script}\n\tsmudge = {script}\n\trequired = true\n')
            config.write(f'[diff "evil"]\n\ttextconv = {script}\n\tcommand = {script}\n[diff]\n\texternal = {script}\n')
            config.write(
                f'[uploadpack]\n\tpackObjectsHook = {script}\n[gpg]\n\tprogram = {script}\n[tar "tar"]\n\tcommand = {script}\n'
            )
        made = render(folder, place)
        assert (made.folder / "a.txt").read_text() == "a\n"
        found = fetching.fetch(catalog.find(f"{folder}@v1.0.0"))
        found.unpack(place / "target/unpacked")
        assert list(fetching.newest(catalog.find(str(folder)))) == ["v1.0.0"]

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x00" * 100, b"# v2 git bundle\n", b"# v2 git bundle\n" + b"0" * 40 + b" refs/heads/main\n\nPACK"],
    )
    def test_that_is_a_broken_bundle_is_refused(self, place, tmp_path, content):
        (tmp_path / "x.bundle").write_bytes(content)
        with pytest.raises(ScaffoldError):
            render(tmp_path / "x.bundle", place)

    @pytest.mark.parametrize("hidden", ["..", ".", ".git", "a/.git", "..\\x"])
    def test_with_names_that_git_would_never_add_is_refused(self, machine, place, tmp_path, hidden):
        """A server can send any tree."""
        folder = imported(machine, tmp_path / "template", dict(FILES), {})
        blob = machine.git("rev-parse", "main:a.txt", cwd=folder)
        inner = tree(machine, folder, [("100644", "config", blob)])
        name = hidden.rpartition("/")[2]
        top = tree(machine, folder, [("40000", name, inner), ("100644", "a.txt", blob)])
        if "/" in hidden:
            top = tree(machine, folder, [("40000", "a", top)])
        commit = machine.git("commit-tree", top, "-m", "x", cwd=folder)
        machine.git("tag", "-f", "v1.0.0", commit, cwd=folder)
        try:
            made = render(folder, place)
        except ScaffoldError:
            return
        assert not (made.folder / ".git").exists()
        assert not (place / "config").exists()
        assert not list(made.folder.rglob(".git"))

    @pytest.mark.parametrize(
        "answer",
        [b"rubbish", b"HTTP/1.1 200 OK\r\n\r\nrubbish", b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\n\r\n",
         b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x.git\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: file:///etc\r\n\r\n",
         b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n001e# service=git-upload-pack\n0000ffff",
         b""],
    )  # fmt: skip
    def test_whose_server_sends_rubbish_is_refused(self, place, answer):
        with (
            Rubbish(answer) as port,
            pytest.raises(ScaffoldError, match=r"git could not get the template|has no version"),
        ):
            render(f"http://127.0.0.1:{port}/x.git", place)

    def test_of_which_git_tells_in_colours_is_not_shown_in_them(self, place):
        with Rubbish(b"HTTP/1.1 404 \x1b[31mNot\r\n\r\n") as port, pytest.raises(ScaffoldError) as refused:
            render(f"http://127.0.0.1:{port}/x.git", place)
        assert "\x1b" not in console.plain(refused.value)


def tree(machine, folder, entries):
    raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(blob) for mode, name, blob in entries)
    done = subprocess.run(
        ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        cwd=folder, env=machine.environment, input=raw, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.decode().strip()


class Rubbish:
    """A server on this machine that says the same to everybody, and hangs up."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()
        return self.socket.getsockname()[1]

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                connection.recv(65_536)
                connection.sendall(self.answer)

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


ATTACKS = {
    "git's folder": ({"{{ '.git' }}/config": "x"}, {}, ""),
    "an NTFS name of it": ({"{{ 'git~1' }}/config": "x"}, {}, ""),
    "a link out": ({}, {"out": "../../../../etc/passwd"}, "_preserve_symlinks: true\n"),
    "a device": ({"{{ 'nul' }}.txt": "x"}, {}, ""),
    "a path out": ({"{{ '../pwned' }}.txt": "x"}, {}, ""),
    "a huge file": ({"big.txt": "x" * 11_000_000}, {}, ""),
    "a task": ({}, {}, "_tasks: ['touch pwned']\n"),
    "memory": ({"big.txt.jinja": "{{ 'x' * 10**11 }}"}, {}, ""),
}


class TestEachCommand:
    """The same holds for what comes later into a project."""

    @pytest.fixture
    def project(self, machine, template, place):
        made = render(template(), place)
        machine.git("init", "-q", cwd=made.folder)
        machine.git("add", "-A", cwd=made.folder)
        machine.git("commit", "-qm", "mine", cwd=made.folder)
        return made.folder

    @pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
    def test_update_and_layer_add(self, machine, template, project, attack):
        files, links, config = attack
        template(files, links=links, config="name: world\n" + config, tag="v1.1.0")
        with pytest.raises(ScaffoldError):
            updating.update(project)
        names = ("{{ _copier_conf.answers_file }}.jinja",)
        layer = {name: text for name, text in {**FILES, **files}.items() if name in (*names, *files)}
        folder = template(
            layer, links=links, config="_answers_file: .copier-answers.acme.yml\n" + config, folder="layer"
        )
        with pytest.raises(ScaffoldError):
            layers.add(project, str(folder), answers={}, allow_overlap=True)
        assert machine.git("status", "--porcelain", "--ignored", cwd=project) == ""
        assert not (project / ".git/scaffold").exists()

    def test_layer_add_takes_no_name_that_is_a_path(self, template, project, machine):
        folder = template(config="_answers_file: .copier-answers.acme.yml\n", folder="layer")
        for name in ("-x", "--name=x", "../../x", "acme/../..", "a\x00b", "base", "x" * 300, "\x1b[2J"):
            with pytest.raises(ScaffoldError):
                layers.add(project, str(folder), name=name, answers={}, allow_overlap=True)
        assert machine.git("status", "--porcelain", cwd=project) == ""

    def test_layer_add_takes_no_address_that_runs(self, project):
        for address in (
            "ext::sh -c touch% pwned",
            "--upload-pack=touch pwned",
            "-x",
            "file:///etc",
            "fd::3",
            "",
            "\x00",
        ):
            with pytest.raises(ScaffoldError):
                layers.add(project, address, answers={})


_TOKENS = st.sampled_from(
    ["..", ".", "\\", "~", ".git", "git~1", "{{ name }}", "{{ _copier_conf.sep }}", "{{ '..' ~ _copier_conf.sep }}", "{{ '..' }}",
     "\u200c", "\u202e", "nul", "con", " ", "a", "b", "A", ":", "é", "e\u0301", "{% if true %}x{% endif %}", "{{ '' }}", "%2e", "\n",
     ".jinja", "-rf", "$", "*", "HEAD", "objects", "refs", "{{ _copier_conf.dst_path }}", "{{ '.' ~ 'git' }}", "x" * 200]
)  # fmt: skip
_COMPONENT = (
    st.lists(_TOKENS, min_size=1, max_size=3)
    .map("".join)
    .filter(lambda name: name not in ("", ".", "..") and len(name) < 250)
)
_PATH = st.lists(_COMPONENT, min_size=1, max_size=4).map("/".join)
_TEXT = st.sampled_from(
    [
        "",
        "x",
        "{{ name }}",
        "{{ _copier_conf }}",
        "{% raw %}",
        "{{ name",
        "{% include 'a.txt' %}",
        "\x00\xff",
        "{{ name * 1000 }}",
    ]
)
_TARGET = st.sampled_from(
    ["a.txt", "..", "/", "../secret.yml", ".git", "{{ name }}", "./.", "a.txt/..", "/proc/self/fd/1", "\\\\x"]
)
_ANSWER = st.one_of(st.sampled_from([*PATHS, ".git", "git~1", "{{ name }}"]), st.text(max_size=8))


class TestAnyTemplate:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        files=st.dictionaries(_PATH, _TEXT, max_size=4),
        links=st.dictionaries(_PATH, _TARGET, max_size=2),
        answer=_ANSWER,
        keep=st.booleans(),
    )
    def test_is_rendered_or_refused_and_touches_nothing_else(
        self, machine, place, tmp_path_factory, files, links, answer, keep
    ):
        """Nothing outside of the folder changes, and no other error comes than one that is meant for the user."""
        where = tmp_path_factory.mktemp("fuzz")
        target = place / f"target/{where.name}"
        target.mkdir(parents=True)
        config = f"name: world\n_preserve_symlinks: {str(keep).lower()}\n"
        try:
            repository = imported(machine, where / "t", {**FILES, **files, "copier.yml": config}, links)
        except AssertionError:  # a path that is a file and a folder
            return
        before = surroundings(where)
        try:
            made = rendering.render(
                catalog.find(str(repository)), target, answers={"name": answer}, defaults={}, limits=QUICK
            )
        except ScaffoldError:
            pass
        else:
            for path in made.folder.rglob("*"):
                assert path.resolve().is_relative_to(target)
                assert path.name.lower() != ".git"
                assert not path.is_file() or "hunter2" not in path.read_text(errors="replace")
        assert surroundings(where) == before


class TestTheDifference:
    def test_is_shown_without_what_a_terminal_would_obey(self, machine, template, place, tmp_path):
        """But to a program it is a patch, byte for byte."""
        made = render(template(), place)
        machine.git("init", "-q", cwd=made.folder)
        machine.git("add", "-A", cwd=made.folder)
        machine.git("commit", "-qm", "mine", cwd=made.folder)
        template({"a.txt": "\x1b]0;pwned\x07\x1b[2J\n"}, tag="v1.1.0")
        piped = machine.scaffold("update", "--diff", cwd=made.folder)
        assert "\x1b]0;pwned\x07" in piped.stdout
        mine, theirs = pty.openpty()
        environment = {**machine.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        process = subprocess.Popen(
            [sys.executable, "-m", "scaffold", "update", "--diff"],
            cwd=made.folder,
            env=environment,
            stdout=theirs,
            stdin=theirs,
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(mine, 65_536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait() == 0
        os.close(mine)
        assert b"pwned" in shown
        assert b"\x1b" not in shown
        assert b"\x07" not in shown
