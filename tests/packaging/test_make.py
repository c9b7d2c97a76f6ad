"""`make demo` and `make test` on machines that lack something, or have it already: one line that says what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What of a clone `make` reads before it installs anything."""
    for name in ("Makefile", "pyproject.toml", "runtime/pyproject.toml", "requirements", ".ci"):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    return tmp_path / "clone"


def make(clone: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs make as from a terminal of its own, not as a part of the make that may be running these tests."""
    program = shutil.which("make")
    assert program, "these tests are started by make, and CI installs it"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VENV", "PYTHON"))
    }
    environment = {**kept, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        [program, *arguments], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(tmp_path: Path) -> Path:
    """A PATH with nothing in it but what every system has."""
    folder = tmp_path / "only"
    folder.mkdir()
    for name in ("sh", "cat", "rm", "echo"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


class TestAMachineThatLacksSomething:
    def test_is_told_to_install_git(self, clone: Path, only: Path) -> None:
        """Without git there is neither a project nor an update of one."""
        result = make(clone, "demo", path=str(only))
        assert result.returncode == 2
        assert "make: git was not found" in result.stderr
        assert not (clone / ".venv").exists()

    def test_is_told_which_pythons_will_do(self, clone: Path, only: Path) -> None:
        """No python3 on the PATH at all."""
        executable(only / "git", "exit 0")
        result = make(clone, "demo", path=str(only))
        assert result.returncode == 2
        assert "make: found no Python 3.10 to 3.13" in result.stderr

    @pytest.mark.parametrize("version", ["3.9", "3.14"])
    def test_is_told_when_the_python_it_names_is_another(self, clone: Path, tmp_path: Path, version: str) -> None:
        """Too old, or newer than what this release was tested with."""
        python = executable(tmp_path / "python", f"echo {version}")
        result = make(clone, "demo", f"PYTHON={python}")
        assert result.returncode == 2
        assert f"PYTHON={python} is Python {version}; this needs 3.10 to 3.13." in result.stderr

    def test_is_told_the_package_with_the_venv_module(self, clone: Path, tmp_path: Path) -> None:
        """Debian splits it off; Python's own message comes too late and is four lines long."""
        script = f'case "$*" in *ensurepip*) exit 1 ;; esac\nexec "{sys.executable}" "$@"'
        python = executable(tmp_path / "python", script)
        result = make(clone, "demo", f"PYTHON={python}")
        assert result.returncode == 2
        assert "apt install python3." in result.stderr
        assert not (clone / ".venv").exists()

    def test_is_told_when_its_environment_is_broken(self, clone: Path) -> None:
        """The Python it was made with is gone."""
        (clone / ".venv" / "bin").mkdir(parents=True)
        (clone / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
        result = make(clone, "test")
        assert result.returncode == 2
        assert "make distclean" in result.stderr


class TestAnEnvironmentThatIsThere:
    @pytest.fixture
    def installed(self, clone: Path) -> Path:
        """As the installation leaves it: two stamps, newer than what they were made from."""
        (clone / ".venv").mkdir()
        (clone / ".venv" / ".ready").write_text(f"{clone}\n")
        (clone / ".venv" / ".ready-for-tests").touch()
        return clone

    def test_is_not_installed_again(self, installed: Path) -> None:
        """The second run starts at once."""
        result = make(installed, "--dry-run", "demo", "test")
        assert result.returncode == 0, result.stderr
        assert "pip install" not in result.stdout
        assert "-m pytest" in result.stdout

    def test_is_installed_again_when_the_requirements_changed(self, installed: Path) -> None:
        """A pull that brings a new dependency needs no second command."""
        later = (installed / ".venv" / ".ready").stat().st_mtime + 10
        os.utime(installed / "runtime" / "pyproject.toml", (later, later))
        assert make(installed, "--dry-run", "demo").stdout.count("pip install") == 1

    def test_is_installed_again_when_the_checkout_moved(self, installed: Path) -> None:
        """Its editable installs still point to the old folder."""
        moved = installed.rename(installed.with_name("moved"))
        assert make(moved, "--dry-run", "demo").stdout.count("pip install") == 1
