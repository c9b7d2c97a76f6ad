"""What there is to work with: the Python that stages run, what is installed there, and the versions results depend on."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from scaffold import __version__
from scaffold.errors import TemplateError

# One process, without importing any of the packages: their names, versions, and what of the runtime's files changes
# without a new version while it is worked on.
_ASK = """
import importlib.metadata, importlib.util, json, pathlib, sys
found = {}
for one in importlib.metadata.distributions():
    found.setdefault((one.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-"), one.version)
spec = importlib.util.find_spec("treadle")
folders = [pathlib.Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
files = sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for p in folders for f in p.rglob("*.py"))
print(json.dumps({"python": sys.version, "packages": found, "runtime": files}))
"""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """One Python and what it can import."""

    python: str
    packages: Mapping[str, str]
    """Normalized name to version."""
    environment: str
    """A fingerprint of all of it, the runtime's files included."""
    scaffold: str
    """A fingerprint of what renders and updates."""

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these distributions that are not installed."""
        return tuple(dict.fromkeys(name for name in names if normalized(name) not in self.packages))

    def fingerprint(self, stage: str) -> str:
        """What else than the template and the answers the result of ``stage`` depends on."""
        match stage:
            case "rendered" | "parsed" | "updated":
                return self.scaffold
            case "black":
                return f"{self.scaffold} black {self.packages.get('black')}"
            case _:
                return f"{self.scaffold} {self.environment}"


def look(python: str) -> Tools:
    """Ask ``python`` what it has.

    Raises:
        TemplateError: It is no Python.
    """
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True, timeout=60)
        told = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise TemplateError(
            f"{python} is not a Python that runs.",
            why="what the template renders is checked, installed and trained by it.",
            fix="--python PATH, for example that of the virtual environment you train in",
        ) from None
    return Tools(
        python=python,
        packages=told["packages"],
        environment=sha256(done.stdout.encode()).hexdigest(),
        scaffold=_own(),
    )


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _own() -> str:
    package = Path(__file__).resolve().parents[1]
    files = sorted((str(f.relative_to(package)), f.stat().st_size, f.stat().st_mtime_ns) for f in package.rglob("*.py"))
    changing = sha256(repr(files).encode()).hexdigest()
    copier, jinja = metadata.version("copier"), metadata.version("jinja2")
    return f"scaffold {__version__} {changing} copier {copier} jinja2 {jinja} python {platform.python_version()}"
