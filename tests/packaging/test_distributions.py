"""What a user installs is what this repository holds: both distributions, built and looked into."""

import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One built distribution beside the package it was built from."""

    package: Path
    wheel: Path
    sdist: Path

    def wheel_files(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def sdist_files(self) -> set[str]:
        """Without the leading folder, which is name and version."""
        with tarfile.open(self.sdist) as archive:
            return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}

    def read(self, ending: str) -> str:
        """The one file of the wheel whose name ends so."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(ending))
            return archive.read(name).decode()

    def metadata(self) -> email.message.Message:
        return email.parser.Parser().parsestr(self.read(".dist-info/METADATA"))


def built(project: Path, package: str, out: Path) -> Distribution:
    """The sdist, and the wheel built from it: what is missing in the first is missing in the second."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return Distribution(package=project / package, wheel=wheel, sdist=sdist)


@pytest.fixture(scope="module")
def scaffold(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return built(ROOT, "scaffold", tmp_path_factory.mktemp("scaffold"))


@pytest.fixture(scope="module")
def treadle(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return built(ROOT / "runtime", "treadle", tmp_path_factory.mktemp("treadle"))


@pytest.fixture(params=["scaffold", "treadle"])
def distribution(request: pytest.FixtureRequest) -> Distribution:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Distribution)
    return found


class TestAWheel:
    def test_holds_every_file_of_its_package_and_nothing_else(self, distribution: Distribution) -> None:
        """A module, a data file or `py.typed` left out would only be missed by users."""
        package = distribution.package
        source = {
            path.relative_to(package.parent).as_posix()
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert f"{package.name}/py.typed" in source
        assert {name for name in distribution.wheel_files() if ".dist-info/" not in name} == source

    def test_carries_the_license(self, distribution: Distribution) -> None:
        """Both distributions are Apache-2.0, with the text inside."""
        assert distribution.read(".dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_text()
        assert distribution.metadata()["License-Expression"] == "Apache-2.0"


class TestASourceDistribution:
    def test_carries_the_license(self, distribution: Distribution) -> None:
        """The text is in both archives."""
        assert "LICENSE" in distribution.sdist_files()

    def test_of_the_command_line_holds_the_templates(self, scaffold: Distribution) -> None:
        """Whoever packages it further can read and rebuild what the wheel's bundle was made from."""
        templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "templates").rglob("*") if path.is_file()}
        assert templates | {"copier.yml"} <= scaffold.sdist_files()


class TestTheDependencies:
    def test_of_the_command_line_leave_torch_out(self, scaffold: Distribution) -> None:
        """Starting a project takes seconds to install."""
        requires = scaffold.metadata().get_all("Requires-Dist", [])
        assert any(line.startswith("copier") for line in requires)
        assert not any(line.startswith(("torch", "treadle")) for line in requires)

    def test_of_the_runtime_are_torch_and_rich(self, treadle: Distribution) -> None:
        """Everything else is an extra."""
        requires = treadle.metadata().get_all("Requires-Dist", [])
        assert sorted(line for line in requires if "extra ==" not in line) == ["rich>=13.7", "torch>=2.6"]


def test_the_two_licenses_are_one() -> None:
    """A distribution can only carry a file from its own folder, so the text stands twice."""
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "runtime" / "LICENSE").read_bytes()
