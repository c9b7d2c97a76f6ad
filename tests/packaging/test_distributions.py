"""What a user installs is what this repository holds: both distributions built, looked into, installed and used."""

import email.message
import email.parser
import os
import shutil
import subprocess
import sys
import sysconfig
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

    def test_shows_a_readme_and_the_pythons_it_runs_on(self, distribution: Distribution) -> None:
        """What the package's page tells someone who is about to install it."""
        metadata = distribution.metadata()
        assert metadata["Requires-Python"] == ">=3.10"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert metadata.get_payload()

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


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the two wheels, and a home folder in which nothing was ever configured."""

    folder: Path
    home: Path

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """What the program prints; it must succeed.

        No network: git and pip are pointed at a proxy that nobody runs, so that a call to either fails at once.
        """
        path = os.pathsep.join([str(programs(self.folder)), os.environ["PATH"]])
        nobody = "http://127.0.0.1:9"
        environment = {
            "PATH": path,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "http_proxy": nobody,
            "https_proxy": nobody,
            "ALL_PROXY": nobody,
            "GIT_AUTHOR_NAME": "A. Tester",
            "GIT_AUTHOR_EMAIL": "tester@localhost",
            "GIT_COMMITTER_NAME": "A. Tester",
            "GIT_COMMITTER_EMAIL": "tester@localhost",
        }
        result = subprocess.run(
            [shutil.which(program, path=path) or program, *arguments],
            cwd=cwd or self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


def programs(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin")


def install(wheels: list[Path], folder: Path) -> None:
    """The wheels go in by pip; what they depend on is read from the environment that runs the tests.

    The path file adds that environment's packages but, unlike its own start-up, none of the path files in it: its
    editable installs, and with them this checkout, stay out of reach.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(programs(folder) / "python")]
    subprocess.run([*pip, "install", "-qq", "--no-index", "--no-deps", *map(str, wheels)], check=True)
    (packages,) = folder.glob("**/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def environment(scaffold: Distribution, treadle: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("bare") / "environment"
    install([scaffold.wheel, treadle.wheel], folder)
    return Environment(folder, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def project(environment: Environment) -> Path:
    environment.run("scaffold", "new", "my-project", "--yes")
    return environment.home / "my-project"


class TestABareEnvironment:
    @pytest.mark.parametrize("package", ["scaffold", "treadle"])
    def test_imports_the_wheel_and_not_the_checkout(self, environment: Environment, package: str) -> None:
        """Otherwise nothing below would prove anything."""
        where = environment.run("python", "-c", f"import {package}; print({package}.__file__)")
        assert Path(where.strip()).is_relative_to(environment.folder)

    def test_tells_its_version(self, environment: Environment) -> None:
        """The command is there and is this release."""
        assert "0.1.0" in environment.run("scaffold", "--version")


class TestAProjectMadeThere:
    def test_is_whole_and_committed(self, environment: Environment, project: Path) -> None:
        """The templates came out of the wheel: no network, no checkout."""
        assert (project / "src" / "my_project" / "model.py").is_file()
        assert (project / ".copier-answers.yml").is_file()
        assert environment.run("git", "log", "--format=%an", cwd=project) == "A. Tester\n"
        assert environment.run("git", "status", "--porcelain", cwd=project) == ""

    def test_does_not_remember_where_it_was_made(self, project: Path) -> None:
        """A colleague's machine has neither this environment nor this checkout."""
        answers = (project / ".copier-answers.yml").read_text()
        assert str(ROOT) not in answers
        assert str(project.parent) not in answers

    def test_trains_with_the_runtime_of_the_wheel(
        self, environment: Environment, project: Path, tmp_path: Path
    ) -> None:
        """Two wheels make a whole: one makes the project, the other runs it and leaves a checkpoint."""
        few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.default_root_dir"]
        fit = ["-m", "my_project", "fit", "--config", "../configs/train.yaml", *few, str(tmp_path)]
        said = environment.run("python", *fit, cwd=project / "src")
        assert said.startswith("best val_accuracy = ")
        assert (tmp_path / "runs/version_0/checkpoints/last.ckpt").is_file()
