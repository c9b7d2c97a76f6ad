"""What can be imported, and what importing costs."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import treadle
import treadle.callbacks
import treadle.loggers


@pytest.mark.parametrize("module", [treadle, treadle.callbacks, treadle.loggers])
class TestEveryPublicName:
    def test_is_there(self, module: object) -> None:
        for name in module.__all__:  # type: ignore[attr-defined]
            assert getattr(module, name) is not None

    def test_is_listed_in_order(self, module: object) -> None:
        names = module.__all__  # type: ignore[attr-defined]
        assert list(names) == sorted(names)


class TestANameThatIsNotThere:
    @pytest.mark.parametrize("module", [treadle, treadle.callbacks])
    def test_is_an_attribute_error(self, module: object) -> None:
        with pytest.raises(AttributeError, match="LightningModule"):
            _ = module.LightningModule  # type: ignore[attr-defined]


class TestEveryModule:
    def test_is_imported_without_a_warning(self) -> None:
        """Warnings are errors in these tests; each module is typed and says what it is."""
        for module in pkgutil.walk_packages(treadle.__path__, "treadle."):
            assert importlib.import_module(module.name).__doc__, module.name


def loaded_after(statement: str) -> set[str]:
    """The modules in a new process after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class TestImportingTreadle:
    def test_loads_nothing_heavy(self) -> None:
        """Not even torch: asking for the version is quick."""
        loaded = loaded_after("import treadle; treadle.__version__; dir(treadle)")
        assert not loaded & {"torch", "numpy", "rich", "jsonargparse"}

    def test_to_train_loads_no_extra(self) -> None:
        """The progress bar's and the command line's libraries wait until they are needed."""
        loaded = loaded_after("from treadle import *; import treadle.callbacks, treadle.loggers, treadle.testing")
        assert "torch" in loaded
        assert not {name for name in loaded if name.split(".")[0] in ("rich", "jsonargparse", "yaml")}
