"""Projects rendered from this repository's templates, for tests that use them as their owners would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import copier
import pytest

REPOSITORY = Path(__file__).parents[2]

Render = Callable[..., Path]
"""Render the base template with these answers; the folder it made."""

Environment = Callable[[Path], "dict[str, str]"]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template source outside git, so that what is rendered is what stands on disk, committed or not."""
    source = tmp_path_factory.mktemp("template")
    shutil.copy(REPOSITORY / "copier.yml", source)
    shutil.copytree(REPOSITORY / "templates", source / "templates")
    return source


@pytest.fixture(scope="session")
def render(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    def rendered(**answers: str) -> Path:
        folder = tmp_path_factory.mktemp("rendered") / "my-project"
        copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
        return folder

    return rendered


@pytest.fixture(scope="session")
def project(render: Render) -> Path:
    """The default project. Tests run it, and add nothing to it but files of their own."""
    return render()


@pytest.fixture(scope="session")
def environment() -> Environment:
    """A user's environment: nothing of the test run that started us, and the project's package importable."""

    def of(project: Path) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GIT_"))}
        ours = {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        # Threads that wait for each other spin: next to other work, two are ten times slower than one here.
        return inherited | ours | {"OMP_NUM_THREADS": "1"}

    return of


@pytest.fixture(scope="session")
def in_project(environment: Environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python module in a rendered project, as if the project were installed."""

    def run(project: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=project,
            env=environment(project),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
