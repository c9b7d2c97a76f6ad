"""Projects, machines and shells as they are found: update, check and layer work in them, and mind what they should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ANSWERS = ".copier-answers.yml"
ODD_NAMES = 'with spaces/it\'s "quoted"/größe 漢字/$HOME;`x`/-dash/%41{{ x }}/*?[a]'


@pytest.fixture(scope="module")
def prepared(machine, tmp_path_factory):
    """A template of two releases, a layer, and a project of the first, which its user works on."""
    folder = tmp_path_factory.mktemp("prepared")
    template, layer = folder / "template", folder / "layer"
    answers = "{{ _copier_answers | to_nice_yaml -}}\n# Template commit: {{ _copier_conf.vcs_ref_hash }}\n"
    files = {
        template / "copier.yml": "name: world\n_scaffold: {managed: [ci.yml]}\n",
        template / "{{ _copier_conf.answers_file }}.jinja": answers,
        template / "hello.txt.jinja": "Hello {{ name }}\n\nfirst\n",
        template / "docs/größe.md": "one\n",
        template / "ci.yml": "on: push\n",
        layer / "copier.yml": "_answers_file: .copier-answers.acme.yml\nteam: acme\n",
        layer / "{{ _copier_conf.answers_file }}.jinja": answers,
        layer / "acme.txt.jinja": "{{ team }}\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for repository in (template, layer):
        machine.git("init", "-q", cwd=repository)
        commit(machine, repository)
        machine.git("tag", "v1.0.0", cwd=repository)
    done = machine.scaffold("new", "p", f"--template={template}@v1.0.0", "--yes", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "p/mine.txt").write_text("mine\n")
    (folder / "p/hello.txt").write_text("Hello world\n\nfirst\n\nmine\n")
    commit(machine, folder / "p")
    (template / "hello.txt.jinja").write_text("Hello {{ name }}, dear\n\nfirst\n")
    (template / "new.txt").write_text("new\n")
    (template / "docs/größe.md").rename(template / "docs/maße.md")
    commit(machine, template)
    machine.git("tag", "v1.1.0", cwd=template)
    return folder


@pytest.fixture
def project(prepared, tmp_path):
    return shutil.copytree(prepared / "p", tmp_path / "p")


def commit(machine, folder):
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", "Mine", cwd=folder)


def assert_updated(machine, project, *, where=None, **environment):
    """`scaffold update` from ``where``, clean; what the template has changed is there, and what the user wrote."""
    done = machine.scaffold("update", cwd=where or project, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "hello.txt").read_text() == "Hello world, dear\n\nfirst\n\nmine\n"
    assert (project / "new.txt").read_text() == "new\n"
    assert (project / "docs/maße.md").read_text() == "one\n"
    assert not (project / "docs/größe.md").exists()
    assert (project / "mine.txt").read_text() == "mine\n"
    return done


class TestAPlace:
    def test_of_any_name_holds_a_project(self, machine, prepared, tmp_path):
        """In folders whose names git, a shell, Python or Jinja might take for something else."""
        project = shutil.copytree(prepared / "p", tmp_path / ODD_NAMES)
        assert_updated(machine, project)
        assert "v1.1.0" in (project / ANSWERS).read_text()
        assert machine.scaffold("check", "--drift", cwd=project).returncode == 0
        assert machine.scaffold("update", "--abort", cwd=project).returncode == 0
        assert machine.git("status", "--porcelain", cwd=project) == ""

    def test_with_a_line_break_in_its_name_is_refused_without_harm(self, machine, prepared, tmp_path):
        """git itself names such a folder in two lines."""
        project = shutil.copytree(prepared / "p", tmp_path / "a\nb")
        done = machine.scaffold("update", cwd=project)
        assert done.returncode == 1
        assert "fix:" in done.stderr
        assert "Traceback" not in done.stderr
        assert machine.git("status", "--porcelain", cwd=project) == ""

    def test_of_any_name_holds_a_template(self, machine, prepared, tmp_path):
        template = shutil.copytree(prepared / "template", tmp_path / "it's größe")
        done = machine.scaffold("new", "q", "--template", f"{template}@v1.0.0", "--yes", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert machine.scaffold("check", cwd=tmp_path / "q").returncode == 2
        assert machine.scaffold("update", cwd=tmp_path / "q").returncode == 0
        assert (tmp_path / "q/new.txt").exists()

    def test_below_a_project_means_it(self, machine, project):
        (project / "a/b").mkdir(parents=True)
        assert_updated(machine, project, where=project / "a/b")

    def test_in_a_larger_repository_is_all_that_changes(self, machine, project, tmp_path):
        shutil.rmtree(project / ".git")
        top = tmp_path / "mono repo"
        (top / "apps").mkdir(parents=True)
        project = project.rename(top / "apps/the project")
        (top / "new.txt").write_text("of the repository\n")
        machine.git("init", "-q", cwd=top)
        commit(machine, top)
        (top / "open.txt").write_text("open work elsewhere\n")
        machine.git("add", "open.txt", cwd=top)
        assert_updated(machine, project)
        changed = (
            machine.git("-c", "core.quotePath=false", "diff", "HEAD", "--name-only", "-z", cwd=top)
            .strip("\0")
            .split("\0")
        )
        assert all(name.startswith("apps/the project/") for name in changed if name != "open.txt"), changed
        assert "open.txt" in changed
        done = machine.scaffold("update", "--abort", cwd=project)
        assert done.returncode == 0, done.stderr
        assert machine.git("status", "--porcelain", cwd=top) == "A  open.txt"

    def test_that_is_one_of_several_work_trees(self, machine, project, tmp_path):
        machine.git("worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"), cwd=project)
        assert_updated(machine, tmp_path / "tree")
        assert machine.git("status", "--porcelain", cwd=project) == ""
        assert machine.scaffold("update", "--abort", cwd=tmp_path / "tree").returncode == 0
        assert machine.git("status", "--porcelain", cwd=tmp_path / "tree") == ""

    def test_that_was_cloned_with_its_last_commit_only(self, machine, project, tmp_path):
        machine.git("clone", "-q", "--depth=1", f"file://{project}", str(tmp_path / "shallow"), cwd=tmp_path)
        assert_updated(machine, tmp_path / "shallow")
        assert machine.git("rev-list", "--count", "HEAD", cwd=tmp_path / "shallow") == "1"

    def test_that_was_cloned_without_its_contents(self, machine, project, tmp_path):
        """A partial clone gets what it lacks from its origin."""
        machine.git("config", "uploadpack.allowFilter", "true", cwd=project)
        machine.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=project)
        machine.git("clone", "-q", "--filter=blob:none", f"file://{project}", str(tmp_path / "partial"), cwd=tmp_path)
        assert_updated(machine, tmp_path / "partial")

    def test_behind_a_link_is_the_place_it_leads_to(self, machine, project, tmp_path):
        (tmp_path / "link").symlink_to(project)
        assert_updated(machine, project, where=tmp_path / "link")

    def test_with_objects_of_another_hash(self, machine, project, tmp_path):
        """git init --object-format=sha256."""
        shutil.rmtree(project / ".git")
        machine.git("init", "-q", "--object-format=sha256", cwd=project)
        commit(machine, project)
        assert_updated(machine, project)


class TestLineEnds:
    @pytest.mark.parametrize("autocrlf", ["true", "input"])
    def test_as_git_was_told_to_change_them_are_no_change(self, machine, project, tmp_path, autocrlf):
        """On Windows a work tree has CR LF, and the repository has not."""
        clone = tmp_path / "clone"
        machine.git("clone", "-q", "-c", f"core.autocrlf={autocrlf}", str(project), str(clone), cwd=tmp_path)
        windows = autocrlf == "true"
        assert ((clone / "hello.txt").read_bytes() == b"Hello world\r\n\r\nfirst\r\n\r\nmine\r\n") == windows
        done = machine.scaffold("check", "--drift", "--json", cwd=clone)
        assert '"drifted": []' in done.stdout, done.stdout + done.stderr
        done = machine.scaffold("update", cwd=clone)
        assert done.returncode == 0, done.stdout + done.stderr
        end = b"\r\n" if windows else b"\n"
        assert (clone / "hello.txt").read_bytes() == end.join([b"Hello world, dear", b"", b"first", b"", b"mine", b""])
        assert (clone / "new.txt").read_bytes() == b"new" + end
        machine.git("add", "-A", cwd=clone)
        assert "\r" not in machine.git("show", ":hello.txt", cwd=clone)


HOSTILE = """
[user]
    name = Ada
    email = ada@example.com
[commit]
    gpgSign = true
    template = /nowhere
    verbose = true
[tag]
    gpgSign = true
[gpg]
    program = /bin/false
[init]
    templateDir = {folder}/git-template
    defaultBranch = trunk
[core]
    hooksPath = {folder}/hooks
    fsmonitor = {folder}/hooks/fail
    pager = {folder}/hooks/fail
    editor = {folder}/hooks/fail
    quotePath = true
    safecrlf = true
    ignoreCase = true
    attributesFile = {folder}/attributes
    excludesFile = {folder}/excludes
    preloadIndex = true
    untrackedCache = true
    splitIndex = true
[index]
    version = 4
    sparse = true
[push]
    default = nothing
    recurseSubmodules = check
[pull]
    rebase = true
    ff = only
[merge]
    conflictStyle = zdiff3
    ff = only
    renames = false
    tool = nothing
    default = binary
    directoryRenames = true
    renormalize = true
[diff]
    external = {folder}/hooks/fail
    renames = copies
    noPrefix = true
    mnemonicPrefix = true
    ignoreSubmodules = all
    orderFile = /nowhere
    algorithm = histogram
[color]
    ui = always
[status]
    showUntrackedFiles = no
    relativePaths = false
    short = true
    branch = true
[log]
    showSignature = true
[fetch]
    prune = true
    fsckObjects = true
[transfer]
    fsckObjects = true
[rerere]
    enabled = true
[submodule]
    recurse = true
[advice]
    detachedHead = true
[alias]
    status = !false
    diff = !false
[column]
    ui = always
[versionsort]
    suffix = -x
[tag]
    sort = -creatordate
[feature]
    manyFiles = true
[grep]
    patternType = perl
[help]
    autoCorrect = immediate
[protocol]
    allow = never
"""


class TestAUsersGit:
    @pytest.fixture
    def hostile(self, tmp_path):
        """A configuration in which next to nothing is as usual."""
        for folder in ("hooks", "git-template/hooks"):
            (tmp_path / folder).mkdir(parents=True)
            for name in (
                "fail",
                "pre-commit",
                "post-checkout",
                "post-index-change",
                "reference-transaction",
                "pre-merge-commit",
            ):
                hook = tmp_path / folder / name
                hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/pwned'\nexit 1\n")
                hook.chmod(0o755)
        (tmp_path / "attributes").write_text("* merge=union -text diff=nothing\n")
        (tmp_path / "excludes").write_text("*.bak\n")
        config = tmp_path / "config"
        config.write_text(HOSTILE.format(folder=tmp_path))
        return str(config)

    def test_configured_against_the_grain_makes_no_difference(self, machine, project, prepared, hostile, tmp_path):
        assert_updated(machine, project, GIT_CONFIG_GLOBAL=hostile)
        commit(machine, project)
        for arguments in (
            ["layer", "add", str(prepared / "layer"), "--yes"],
            ["check", "--drift"],
            ["update", "--abort"],
        ):
            done = machine.scaffold(*arguments, cwd=project, GIT_CONFIG_GLOBAL=hostile)
            assert done.returncode == 0, done.stdout + done.stderr
        assert not (project / "acme.txt").exists()
        done = machine.scaffold(
            "new", "q", f"--template={prepared / 'template'}", "--yes", cwd=tmp_path, GIT_CONFIG_GLOBAL=hostile
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (tmp_path / "pwned").exists()

    def test_configured_against_the_grain_leaves_the_same_conflict(self, machine, project, hostile):
        (project / "hello.txt").write_text("Hello all\n\nfirst\n")
        commit(machine, project)
        done = machine.scaffold("update", cwd=project, GIT_CONFIG_GLOBAL=hostile)
        assert done.returncode == 3, done.stdout + done.stderr
        text = (project / "hello.txt").read_text()
        assert text.startswith(
            "<<<<<<< project\nHello all\n||||||| template v1.0.0\nHello world\n=======\nHello world, dear\n>>>>>>> template v1.1.0\n"
        ), text

    def test_that_knows_no_name_updates_all_the_same(self, machine, project):
        assert_updated(machine, project, GIT_CONFIG_GLOBAL=os.devnull, EMAIL="")

    def test_that_does_not_trust_a_strangers_folder_says_so(self, machine, project):
        if os.geteuid() != 0:
            pytest.skip("needs root, to give a folder to somebody else")
        for path in [project, *project.rglob("*")]:
            os.lchown(path, 65_534, 65_534)
        done = machine.scaffold("update", cwd=project)
        assert done.returncode == 1
        assert "git config --global --add safe.directory" in done.stderr
        trusting = project.parent / "trusting"
        trusting.write_text(f"[safe]\n\tdirectory = {project}\n[user]\n\tname = A\n\temail = a@b.c\n")
        assert_updated(machine, project, GIT_CONFIG_GLOBAL=str(trusting))

    def test_of_years_ago_does_all_but_what_it_cannot(self, machine, project, prepared, tmp_path):
        """2.30, of Debian 11: merges with files, in a temporary folder."""
        path = f"{old_git(tmp_path)}:{os.environ['PATH']}"
        assert_updated(machine, project, PATH=path)
        commit(machine, project)
        for arguments, code in (
            (["check", "--drift"], 0),
            (["layer", "add", str(prepared / "layer"), "--yes"], 0),
            (["update", "--abort"], 0),
            (["new", "../q", f"--template={prepared / 'template'}", "--yes"], 0),
            (["doctor"], None),
        ):
            done = machine.scaffold(*arguments, cwd=project, PATH=path)
            assert done.returncode == code or code is None, done.stdout + done.stderr
        assert "2.38" in done.stdout, done.stdout

    def test_of_years_ago_leaves_the_same_conflict(self, machine, prepared, project, tmp_path):
        (project / "hello.txt").write_text("Hello all\n\nfirst\n")
        (project / "docs/größe.md").write_text("mine\n")
        commit(machine, project)
        other = shutil.copytree(project, tmp_path / "other/p")
        done = machine.scaffold("update", cwd=project, PATH=f"{old_git(tmp_path)}:{os.environ['PATH']}")
        assert done.returncode == 3, done.stdout + done.stderr
        assert machine.scaffold("update", cwd=other).returncode == 3
        assert (project / "hello.txt").read_text() == (other / "hello.txt").read_text()
        assert machine.git("ls-files", "-s", cwd=project) == machine.git("ls-files", "-s", cwd=other)


def old_git(folder):
    """A git that says it is 2.30.2, and does not know what came after it."""
    (folder / "bin").mkdir()
    script = folder / "bin/git"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '--version) echo "git version 2.30.2"; exit ;;\n'
        "*--write-tree*|*merge-tree*|*--trailer*|*--remerge-diff*|*--show-ref-format*|*--path-format*|*zdiff3*|*--no-lazy*)\n"
        '    echo "unknown option: $*" >&2; exit 129 ;;\n'
        "esac\n"
        "unset GIT_CONFIG_COUNT GIT_CONFIG_SYSTEM\n"  # 2.31, 2.32
        f'exec "{shutil.which("git")}" "$@"\n'
    )
    script.chmod(0o755)
    return folder / "bin"


class TestAShell:
    @pytest.mark.parametrize(
        "environment",
        [
            {"LANG": "de_DE.UTF-8", "LANGUAGE": "de", "TZ": "Pacific/Kiritimati", "TERM": "dumb", "COLUMNS": "20"},
            {
                "LC_ALL": "C",
                "GIT_TRACE": "1",
                "GIT_PAGER": "false",
                "GIT_EDITOR": "false",
                "GIT_EXTERNAL_DIFF": "false",
            },
            {
                "LC_ALL": "POSIX",
                "PYTHONCOERCECLOCALE": "0",
                "GIT_DEFAULT_HASH": "sha256",
            },
            {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "user.name",
                "GIT_CONFIG_VALUE_0": "E",
                "GIT_LITERAL_PATHSPECS": "1",
            },
            {"GIT_ICASE_PATHSPECS": "1", "GIT_CEILING_DIRECTORIES": "/", "PYTHONSAFEPATH": "1"},
        ],
        ids=lambda environment: " ".join(environment),
    )
    def test_with_odd_settings_makes_no_difference(self, machine, project, environment):
        assert_updated(machine, project, **environment)

    def test_inside_a_git_hook_works_on_the_project_and_not_on_the_hooks_repository(self, machine, project, tmp_path):
        """git tells a hook's processes where its repository and index are."""
        (tmp_path / "hooked").mkdir()
        machine.git("init", "-q", cwd=tmp_path / "hooked")
        (tmp_path / "hooked/a.txt").write_text("a\n")
        commit(machine, tmp_path / "hooked")
        before = machine.git("ls-files", "-s", cwd=tmp_path / "hooked")
        git = tmp_path / "hooked/.git"
        names = {
            "GIT_DIR": git,
            "GIT_INDEX_FILE": git / "index",
            "GIT_WORK_TREE": git.parent,
            "GIT_PREFIX": "",
            "GIT_OBJECT_DIRECTORY": git / "objects",
        }
        assert_updated(machine, project, **{name: str(value) for name, value in names.items()})
        assert machine.git("ls-files", "-s", cwd=tmp_path / "hooked") == before

    def test_where_temporary_files_go_elsewhere(self, machine, project, tmp_path):
        elsewhere = tmp_path / "tmp with spaces"
        elsewhere.mkdir()
        assert_updated(machine, project, TMPDIR=str(elsewhere))
        assert machine.scaffold("check", "--drift", cwd=project, TMPDIR=str(elsewhere)).returncode == 0
        assert list(elsewhere.iterdir()) == []

    def test_where_only_the_user_may_read_what_is_made(self, machine, project):
        """umask 077: git decides on modes, and knows but one bit of them."""
        command = f'umask 077; exec "{sys.executable}" -m scaffold update'
        done = subprocess.run(
            ["sh", "-c", command], cwd=project, env=machine.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (project / "new.txt").stat().st_mode & 0o777 == 0o600
        assert machine.git("diff", "--summary", "HEAD", "--", "hello.txt", cwd=project) == ""

    def test_whose_home_cannot_be_written_updates_from_a_folder_and_says_what_else_it_needs(
        self, machine, project, tmp_path
    ):
        """A template on this machine needs no cache."""
        nowhere = {
            "HOME": "/proc/nobody",
            "XDG_CACHE_HOME": "/proc/nobody/cache",
            "XDG_CONFIG_HOME": "/proc/nobody/config",
        }
        assert_updated(machine, project, **nowhere)
        done = machine.scaffold("template", "show", "http://127.0.0.1:9/x.git", cwd=tmp_path, **nowhere)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr

    def test_whose_home_is_unset_works_as_well(self, machine, project):
        environment = {name: value for name, value in machine.environment.items() if name != "HOME"}
        environment["XDG_CACHE_HOME"] = str(project.parent / "cache")
        done = subprocess.run(
            [sys.executable, "-m", "scaffold", "update"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_whose_output_goes_nowhere_does_not_crash(self, machine, project):
        """`scaffold check | head -0`, or a closed standard output."""
        command = f'"{sys.executable}" -m scaffold check >&-'
        done = subprocess.run(
            ["sh", "-c", command], cwd=project, env=machine.environment, stderr=subprocess.PIPE, text=True
        )
        assert "Traceback" not in done.stderr


class TestWithoutAName:
    def test_new_says_how_to_give_one(self, machine, prepared, tmp_path):
        done = machine.scaffold(
            "new", "q", f"--template={prepared / 'template'}", "--yes", cwd=tmp_path, GIT_CONFIG_GLOBAL=os.devnull
        )
        assert done.returncode == 1
        assert 'git config --global user.name "Your Name"' in done.stderr
        assert not Path(tmp_path / "q").exists()
