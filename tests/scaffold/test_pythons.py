"""The command line on every Python that it says it runs on: installed by pip, without torch, and each command used once.

Python 3.11 runs all the other tests. The others are looked for on the PATH and where pyenv keeps them, and work at the same
time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.12", "3.13")


def interpreter(version):
    """The path of a Python, if there is one."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    candidates = [
        *([sys.executable] if version == here else []),
        *sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))),
        shutil.which(f"python{version}") or "",
    ]
    for candidate in filter(None, candidates):
        asked = [candidate, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:  # a shim of pyenv may lead nowhere
            return candidate
    return None


class Installed:
    """This repository in a virtual environment of one Python."""

    def __init__(self, version, folder, machine, wheel):
        self.python, self.folder = folder / "venv/bin/python", folder
        folder.mkdir()
        self.environment = {name: value for name, value in machine.environment.items() if name != "PYTHONPATH"}
        # Ours are errors; what other packages are warned of is theirs.
        self.environment |= {"PYTHONWARNINGS": "error:::scaffold", "HOME": str(folder)}
        # Of the surroundings: where pip gets packages from, and keeps them.
        pip = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([interpreter(version), "-m", "venv", folder / "venv"], check=True)
        install = [
            self.python,
            "-m",
            "pip",
            "install",
            "-qq",
            "--no-compile",
            "-c",
            ROOT / "requirements/ci.txt",
            wheel,
        ]
        done = subprocess.run(install, env=pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def scaffold(self, *arguments, cwd, expected=0):
        command = [self.python, "-W", "error::DeprecationWarning:scaffold", "-m", "scaffold", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == expected, f"{arguments}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built once, for all of them."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sources(machine, tmp_path_factory):
    """A template of two releases, and a layer."""
    folder = tmp_path_factory.mktemp("sources")
    answers = "{{ _copier_conf.answers_file }}.jinja"
    files = {
        "template": {
            "copier.yml": "name: {type: str, default: world, help: Who is it}\n",
            answers: "{{ _copier_answers | to_nice_yaml }}",
            "hello.txt.jinja": "Hello {{ name }}\n",
        },
        "layer": {
            "copier.yml": "_answers_file: .copier-answers.acme.yml\nteam: {type: str, default: acme, help: Whose is it}\n",
            answers: "{{ _copier_answers | to_nice_yaml }}",
            "acme.txt.jinja": "{{ team }}\n",
        },
    }
    for name, contents in files.items():
        (folder / name).mkdir()
        machine.git("init", "-q", cwd=folder / name)
        for file, text in contents.items():
            (folder / name / file).write_text(text)
        release(machine, folder / name, "v1.0.0")
    (folder / "template/hello.txt.jinja").write_text("Good morning {{ name }}\n")
    (folder / "template/new.txt").write_text("new\n")
    release(machine, folder / "template", "v1.1.0")
    return folder


def release(machine, folder, tag):
    machine.git("add", "-A", cwd=folder)
    machine.git("commit", "-qm", tag, cwd=folder)
    machine.git("tag", tag, cwd=folder)


@pytest.fixture(scope="module")
def outcomes(machine, sources, wheel, tmp_path_factory):
    """What came of each Python that is here: None, or what went wrong."""
    folder = tmp_path_factory.mktemp("pythons")

    def use(version):
        try:
            everything(Installed(version, folder / version, machine, wheel), machine, sources)
        except AssertionError as error:
            return str(error)
        return None

    there = [version for version in PYTHONS if interpreter(version)]
    with ThreadPoolExecutor(len(there) or 1) as pool:
        return dict(zip(there, pool.map(use, there), strict=True))


def everything(installed, machine, sources):
    """A project's life in one go."""
    project = installed.folder / "p"
    assert "0." in installed.scaffold("--version", cwd=installed.folder)
    installed.scaffold("new", "full", "--yes", cwd=installed.folder)
    installed.scaffold("new", "p", f"--template={sources / 'template'}@v1.0.0", "--yes", cwd=installed.folder)
    assert "1 release behind" in installed.scaffold("check", "--drift", cwd=project, expected=2)
    (project / "hello.txt").write_text("Hello everybody\n")
    machine.git("commit", "-qam", "mine", cwd=project)
    assert "conflict  hello.txt" in installed.scaffold("update", cwd=project, expected=3)
    assert "<<<<<<< project" in (project / "hello.txt").read_text()
    (project / "hello.txt").write_text("Good morning everybody\n")
    machine.git("add", "-A", cwd=project)
    machine.git("commit", "-qm", "updated", cwd=project)
    installed.scaffold("layer", "add", sources / "layer", "--yes", cwd=project)
    assert (project / "acme.txt").read_text() == "acme\n"
    machine.git("add", "-A", cwd=project)
    machine.git("commit", "-qm", "layer", cwd=project)
    told = subprocess.run(
        [installed.python, "-m", "scaffold", "doctor", "--json"],
        cwd=installed.folder / "full", env=installed.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode in (0, 1), told.stderr  # there is no torch
    assert json.loads(told.stdout)
    linted = subprocess.run(
        [installed.python, "-m", "scaffold", "template", "lint", sources / "template", "--json"],
        cwd=installed.folder, env=installed.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert linted.returncode in (0, 1), linted.stderr
    assert json.loads(linted.stdout)


@pytest.mark.parametrize("version", PYTHONS)
def test_the_command_line_works(version, outcomes):
    """new, check, update with a conflict, layer add, doctor, template lint."""
    if version not in outcomes:
        pytest.skip(f"there is no Python {version} on this machine")
    assert outcomes[version] is None, outcomes[version]
