"""A skip is listed by name, and where everything is installed it must be an expected one (tests/conftest.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite under this repository's rule, with one test that passes and one that cannot run here."""
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_mount.py").write_text(
        "import pytest\n"
        "def test_addition(): assert 1 + 1 == 2\n"
        "def test_read_only_mount(): pytest.skip('needs root')\n"
    )
    return tmp_path


def run(suite: Path, *arguments: str, ci: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=suite, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False)


class TestASkippedTest:
    def test_is_listed_by_name_with_its_reason(self, suite: Path) -> None:
        """On a developer's machine the run passes and says what was left out."""
        result = run(suite, ci="")
        assert result.returncode == 0, result.stdout
        assert "not run here: test_mount.py::test_read_only_mount: needs root\n" in result.stdout

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_fails_the_run_where_everything_is_installed(self, suite: Path, workers: str) -> None:
        """In CI nothing is lost without a word, with and without worker processes."""
        result = run(suite, "-n", workers, ci="true")
        assert result.returncode == 1, result.stdout
        assert "test_mount.py::test_read_only_mount: needs root (not in EXPECTED_SKIPS" in result.stdout

    def test_passes_there_when_it_is_on_the_list(self, suite: Path) -> None:
        """An exception is made in one place, with its reason."""
        conftest = suite / "conftest.py"
        text = conftest.read_text()
        listed = text.replace(
            "EXPECTED_SKIPS: dict[str, str] = {",
            "EXPECTED_SKIPS: dict[str, str] = {'test_mount.py::*': 'no mounts in CI',",
        )
        assert listed != text
        conftest.write_text(listed)
        result = run(suite, ci="true")
        assert result.returncode == 0, result.stdout
        assert "not run here: test_mount.py::test_read_only_mount: needs root\n" in result.stdout
