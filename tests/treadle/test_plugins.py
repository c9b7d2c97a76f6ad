"""What an installed package adds to every run: a real package, installed by pip, used by real processes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from treadle.errors import ConfigError
from treadle.plugins import Entry, described, enabled, installed, named

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""

ACME = """
[project.entry-points."treadle.callbacks"]
time-limit = "acme_policy.policies:TimeLimit"
full-precision = "acme_policy:precision_rules"

[project.entry-points."treadle.loggers"]
required-logger = "acme_policy.policies:Registry"

[project.entry-points."treadle.strategies"]
acme-ring = "acme_policy:Ring"

[project.entry-points."treadle.precision"]
acme-fp6 = "acme_policy.missing:FP6"
"""

ACME_SOURCE = """
import os

if os.environ.get("ACME") == "broken":
    raise RuntimeError("no licence server")


def precision_rules():
    match os.environ.get("ACME"):
        case "returns nothing":
            return None
        case "returns text":
            return ["no training on Sundays"]
        case "raises":
            return {}["budget"]
        case "refuses":
            from treadle.errors import ConfigError

            raise ConfigError("no budget left.", why="it is the 31st.", fix="wait a day.")
    from acme_policy.policies import Allowed

    return [Allowed()]


class Ring: ...
"""

ACME_POLICIES = """
import os

from treadle.callbacks import Callback
from treadle.errors import ConfigError
from treadle.testing import MemoryLogger


class TimeLimit(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = True  # time is short at Acme


class Allowed(Callback):
    def setup(self, trainer, module, stage):
        name = trainer.fabric.precision.name
        if name == os.environ.get("ACME_FORBIDDEN"):
            raise ConfigError(f"Acme does not train in {name}.", why="it is policy.", fix="ask Wile E. Coyote.")


class Registry(MemoryLogger): ...
"""

RIVAL = """
[project.entry-points."treadle.strategies"]
acme-ring = "rival_policy:Ring"
"""


@dataclass(frozen=True)
class Environment:
    """Folders of installed packages. ``runs`` runs code in a new process that sees them."""

    folders: tuple[Path, ...]

    def runs(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name != "TREADLE_PLUGINS"}
        path = os.pathsep.join(map(str, self.folders))
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def prints(self, code: str, **variables: str) -> str:
        done = self.runs(code, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fails(self, code: str, **variables: str) -> str:
        """The error of a process that ends with a ConfigError."""
        done = self.runs(code, **variables)
        assert done.returncode == 1
        assert "treadle.errors.ConfigError: " in done.stderr, done.stderr
        return done.stderr.rpartition("treadle.errors.ConfigError: ")[2]


def install(folder: Path, name: str, version: str, entry_points: str, **sources: str) -> Path:
    """Write a package of ``sources`` below ``folder`` and let pip install it. Returns where."""
    module = name.replace("-", "_")
    project, target = folder / "project", folder / "site-packages"
    (project / module).mkdir(parents=True)
    for stem, source in sources.items():
        (project / module / f"{stem}.py").write_text(source)
    text = PYPROJECT.format(name=name, version=version, module=module) + entry_points
    (project / "pyproject.toml").write_text(text)
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="session")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment in which acme-policy 1.2 is installed."""
    folder = tmp_path_factory.mktemp("acme")
    return Environment((install(folder, "acme-policy", "1.2", ACME, __init__=ACME_SOURCE, policies=ACME_POLICIES),))


@pytest.fixture(scope="session")
def contested(acme: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The same, and a second package that provides one of its names."""
    rival = install(tmp_path_factory.mktemp("rival"), "rival-policy", "0.3", RIVAL, __init__="class Ring: ...\n")
    return Environment((*acme.folders, rival))


class TestAnInstalledPackage:
    def test_is_found_by_its_entry_points(self, acme: Environment) -> None:
        """Each says who brings it; they come in the order of their names."""
        code = """
from treadle.plugins import installed
for entry in installed("treadle.callbacks"):
    print(entry.name, entry.value, entry.distribution, entry.version)
"""
        assert acme.prints(code).splitlines() == [
            "full-precision acme_policy:precision_rules acme-policy 1.2",
            "time-limit acme_policy.policies:TimeLimit acme-policy 1.2",
        ]

    def test_is_not_imported_by_being_found(self, acme: Environment) -> None:
        """Looking costs no import of the package, nor of torch."""
        code = """
import sys
from treadle.plugins import GROUPS, installed, names
found = [installed(group) for group in GROUPS], names("treadle.strategies")
print(found[1], "acme_policy" in sys.modules, "torch" in sys.modules)
"""
        assert acme.prints(code) == "['acme-ring'] False False"

    def test_is_looked_up_once_in_a_process(self, acme: Environment) -> None:
        code = """
import importlib.metadata
from treadle.plugins import installed
before = installed("treadle.loggers")
importlib.metadata.entry_points = None
print(installed("treadle.loggers") == before, len(before), installed("treadle.environments"))
"""
        assert acme.prints(code) == "True 1 []"

    def test_makes_its_callbacks_and_loggers(self, acme: Environment) -> None:
        """From a class or a function, one or a list."""
        code = """
from treadle.callbacks import Callback
from treadle.loggers import Logger
from treadle.plugins import made
pairs = [*made("treadle.callbacks", Callback), *made("treadle.loggers", Logger)]
print(*(f"{entry.name}={type(item).__name__}" for entry, item in pairs))
"""
        assert acme.prints(code) == "full-precision=Allowed time-limit=TimeLimit required-logger=Registry"

    def test_gives_what_is_asked_for_by_name(self, acme: Environment) -> None:
        code = """
from treadle.plugins import named
print(named("treadle.strategies", "acme-ring").__name__, named("treadle.strategies", "acme"))
"""
        assert acme.prints(code) == "Ring None"


class TestABrokenPackage:
    def test_is_named_with_what_went_wrong_and_how_to_go_on(self, acme: Environment) -> None:
        """Somebody who did not write the policy knows whom to ask, and can train meanwhile."""
        code = 'from treadle.plugins import made; made("treadle.callbacks")'
        error = acme.fails(code, ACME="broken")
        assert "'full-precision' of acme-policy 1.2" in error
        assert "RuntimeError: no licence server" in error
        assert "TREADLE_PLUGINS=none" in error

    def test_that_names_a_module_it_has_not(self, acme: Environment) -> None:
        """A name nobody asks for breaks nothing; asked for, the error says what is missing."""
        code = 'from treadle.plugins import names, named; print(names("treadle.precision"))'
        assert acme.prints(code) == "['acme-fp6']"
        error = acme.fails(f'{code}; named("treadle.precision", "acme-fp6")')
        assert "'acme-fp6' of acme-policy 1.2" in error
        assert "No module named 'acme_policy.missing'" in error

    def test_whose_function_fails(self, acme: Environment) -> None:
        code = 'from treadle.plugins import made; made("treadle.callbacks")'
        assert "calling acme_policy:precision_rules failed: KeyError: 'budget'" in acme.fails(code, ACME="raises")

    def test_that_returns_nothing(self, acme: Environment) -> None:
        """A policy that was written without its return must not look like one that allows everything."""
        code = 'from treadle.plugins import made; made("treadle.callbacks")'
        error = acme.fails(code, ACME="returns nothing")
        assert "acme_policy:precision_rules() returned a NoneType" in error

    def test_that_returns_another_kind_of_object(self, acme: Environment) -> None:
        code = 'from treadle.plugins import GROUPS, made; made("treadle.callbacks", type(GROUPS))'
        assert "acme_policy:precision_rules() returned a str, not a tuple" in acme.fails(code, ACME="returns text")

    def test_may_refuse_in_its_own_words(self, acme: Environment) -> None:
        """An error that is meant for the user reaches the user as it is."""
        code = 'from treadle.plugins import made; made("treadle.callbacks")'
        assert acme.fails(code, ACME="refuses").startswith("no budget left.")

    def test_that_provides_a_name_of_another(self, contested: Environment) -> None:
        code = 'from treadle.plugins import named; named("treadle.strategies", "acme-ring")'
        error = contested.fails(code)
        assert "acme-policy 1.2 and rival-policy 0.3 both provide 'acme-ring' in treadle.strategies" in error

    def test_breaks_only_its_own_group(self, contested: Environment) -> None:
        code = 'from treadle.plugins import installed; print(len(installed("treadle.callbacks")))'
        assert contested.prints(code) == "2"


class TestSwitchedOff:
    def test_by_the_environment_nothing_is_imported(self, acme: Environment) -> None:
        """However broken a package is, there is a way to run without it."""
        code = """
from treadle.plugins import enabled, made, named, names
print(enabled(None), made("treadle.callbacks"), names("treadle.strategies"), named("treadle.strategies", "acme-ring"))
"""
        assert acme.prints(code, ACME="broken", TREADLE_PLUGINS="none") == "False [] [] None"

    def test_by_the_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TREADLE_PLUGINS", raising=False)
        assert enabled(None)
        assert not enabled("none")

    def test_not_by_an_empty_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``TREADLE_PLUGINS= python -m my_project`` is how a shell unsets it for one command."""
        monkeypatch.setenv("TREADLE_PLUGINS", "")
        assert enabled(None)

    @pytest.mark.parametrize("value", ["off", "None", "acme-policy", "0"])
    def test_by_an_unknown_word_is_an_error(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        """A policy that is on by mistake, or off, is worse than a run that does not start."""
        with pytest.raises(ConfigError, match="plugins="):
            enabled(value)
        monkeypatch.setenv("TREADLE_PLUGINS", value)
        with pytest.raises(ConfigError, match="TREADLE_PLUGINS is"):
            enabled(None)
        with pytest.raises(ConfigError, match="TREADLE_PLUGINS is"):
            named("treadle.strategies", "acme-ring")

    def test_not_by_objects(self) -> None:
        """PyTorch Lightning's plugins= takes objects; here they have arguments of their own."""
        with pytest.raises(ConfigError, match="strategy=, precision="):
            enabled([object()])  # type: ignore[arg-type]


class TestAnUnknownGroup:
    def test_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean 'treadle\.callbacks'"):
            installed("treadle.callback")  # type: ignore[arg-type]


class TestTheLineAtTheStart:
    def test_lists_policies_by_distribution(self) -> None:
        entries = [
            Entry("treadle.callbacks", "time-limit", "a:b", "acme-policy", "1.2"),
            Entry("treadle.callbacks", "time-limit", "a:b", "acme-policy", "1.2"),
            Entry("treadle.callbacks", "quota", "c:d", "cluster", "3"),
            Entry("treadle.loggers", "required-logger", "a:c", "acme-policy", "1.2"),
        ]
        assert described(entries) == "policies: acme-policy 1.2 (time-limit, required-logger), cluster 3 (quota)"

    def test_says_nothing_without_policies(self) -> None:
        assert described([]) == ""


TRAIN = """
import sys
import treadle
from treadle.testing import Classifier, Points

def trained(**settings):
    trainer = treadle.Trainer(
        default_root_dir={folder!r}, enable_progress_bar=False, enable_checkpointing=False, max_epochs=1, **settings
    )
    trainer.fit(Classifier(), Points())
    return trainer

def kinds(trainer):
    return sorted(type(item).__name__ for item in [*trainer.callbacks, *trainer.loggers])
"""


class TestATrainerWherePoliciesAreInstalled:
    def test_has_them_and_says_so(self, acme: Environment, tmp_path: Path) -> None:
        """The training code names none of it. Switched off, the same process trains without."""
        code = TRAIN.format(folder=str(tmp_path)) + """
trainer = trained(logger=False)
print(trainer.global_step, [name for name in kinds(trainer) if name in ("Allowed", "Registry", "TimeLimit")])
print("--", file=sys.stderr)
trainer = trained(logger=False, plugins="none")
print(trainer.global_step, [name for name in kinds(trainer) if name in ("Allowed", "Registry", "TimeLimit")])
"""
        done = acme.runs(code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["1 ['Allowed', 'Registry', 'TimeLimit']", "5 []"]
        with_policies, without = done.stderr.split("--")
        assert "policies: acme-policy 1.2 (full-precision, time-limit, required-logger)" in with_policies
        assert "policies" not in without

    def test_cannot_train_in_a_forbidden_precision(self, acme: Environment, tmp_path: Path) -> None:
        error = acme.fails(TRAIN.format(folder=str(tmp_path)) + "trained()", ACME_FORBIDDEN="32-true")
        assert error.startswith("Acme does not train in 32-true.")
