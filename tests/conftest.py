"""What holds for every test of this repository: a skip is never silent, and never a surprise; a signal is heard.

A test that cannot run somewhere says so with `pytest.skip`; the summary lists it by name. Where everything is installed
(CI=true), only the skips in `EXPECTED_SKIPS` are accepted, and any other fails the run.
"""

import os
import signal
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

# A pattern for the test's id -> why it may be skipped even in CI.
EXPECTED_SKIPS: dict[str, str] = {}
# These mount a disk of their own, or build a cluster: root can, a hosted runner's user cannot. As root a skip of them is a surprise.
NEED_ROOT = (
    "tests/scaffold/test_*.py::TestTheDisk::*",
    "tests/treadle/*::TestAFullDisk::*",
    *(f"tests/cluster/test_{name}.py*" for name in ("slurm", "hosts", "ray")),  # daemons, network namespaces
)
# Python 3.11 runs everything; the command line's other Pythons are where pyenv keeps them, on a machine that has it.
if not Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser().is_dir():
    EXPECTED_SKIPS["tests/scaffold/test_pythons.py::*"] = "that Python is not installed"
if os.geteuid() != 0:
    EXPECTED_SKIPS.update(dict.fromkeys(NEED_ROOT, "needs root"))


# Under nohup, or in the background of a script, they are ignored: by every program that is started here as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def skipped(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str]]:
    """The id and the reason of each test, or whole file, that was skipped; expected failures are not."""
    for report in reporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        yield report.nodeid, reason.removeprefix("Skipped: ")


def is_expected(nodeid: str) -> bool:
    return any(fnmatch(nodeid, pattern) for pattern in EXPECTED_SKIPS)


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Turns a passing run into a failing one; outermost, so that the summary already shows the new status."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if is_ci() and reporter and not all(is_expected(nodeid) for nodeid, _ in skipped(reporter)):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid, reason in sorted(set(skipped(terminalreporter))):
        unexpected = is_ci() and not is_expected(nodeid)
        verdict = " (not in EXPECTED_SKIPS of tests/conftest.py: this fails the run)" if unexpected else ""
        terminalreporter.write_line(f"not run here: {nodeid}: {reason}{verdict}")
