"""Whether the project's Python fits the project: its version, its packages, torch and what that computes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.specifiers import SpecifierSet

from scaffold.doctor import python
from scaffold.doctor.findings import Finding, guarded, note, ok, problem
from scaffold.doctor.python import Python, fits, unmet

_INSTALL = 'python -m pip install -e ".[dev]"'


def examine(root: Path, variables: Mapping[str, str], patience: float) -> tuple[Python | None, tuple[Finding, ...]]:
    """The interpreter, if it answers, and what was found."""
    answered: list[Python] = []
    findings = guarded("the project's Python", _examine, root, variables, patience, answered)
    return (answered[0] if answered else None), findings


def _examine(root: Path, variables: Mapping[str, str], patience: float, answered: list[Python]) -> Iterator[Finding]:
    executable, odd = python.choose(root, variables)
    yield from odd
    if executable is None:
        return
    it = python.ask(executable, variables, patience)
    answered.append(it)
    declared: Mapping[str, Any] = {}
    if (root / "pyproject.toml").is_file():
        try:
            declared = _declared(root)
        except (OSError, ValueError, RecursionError) as error:
            yield problem(
                f"pyproject.toml cannot be read: {error}", "git diff HEAD -- pyproject.toml shows what changed."
            )
    yield from guarded("its version", _version, it, declared)
    if declared:
        yield from guarded("its packages", _packages, it, declared, root)
    yield from guarded("treadle", _treadle, it)
    yield from guarded("torch", _torch, it, variables, patience)


def _declared(root: Path) -> Mapping[str, Any]:
    """The table ``project`` of pyproject.toml; empty when it has none.

    Raises:
        ValueError: It is no valid TOML, or the table no table.
    """
    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise ValueError("Python 3.10 needs the package tomli to read it") from None
    table = toml.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    if not isinstance(table, dict):
        raise ValueError("[project] is no table")
    return table


def _version(it: Python, declared: Mapping[str, Any]) -> Iterator[Finding]:
    wanted = declared.get("requires-python")
    said = f"Python {it.version} at {it.executable}"
    if wanted and not fits(it.version, SpecifierSet(str(wanted))):
        yield problem(
            f"{said}, but the project needs {wanted}",
            "make its environment anew with such a Python: pythonX.Y -m venv --clear .venv",
        )
    else:
        yield ok(f"{said}{f', as the project needs ({wanted})' if wanted else ''}")


def _packages(it: Python, declared: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    name = str(declared.get("name", ""))
    there = it.find(name) if name else None
    if there is None:
        yield problem(f"{name or 'the project'} itself is not installed there", _INSTALL)
    elif (elsewhere := _elsewhere(there.origin, root)) is not None:
        yield problem(f"what is installed there as {name} is {elsewhere}, not this folder", _INSTALL)
    required = [str(text) for text in declared.get("dependencies", ())]
    missing = list(map(str, unmet(required, it)))
    if missing:
        yield problem(f"{len(missing)} of its packages {_are(missing)}: {'; '.join(missing)}", _INSTALL)
    else:
        yield ok(f"its packages are there ({len(required)} and what they need)")
    for_development = [str(text) for text in declared.get("optional-dependencies", {}).get("dev", ())]
    if lacking := list(map(str, unmet(for_development, it))):
        yield note(f"tools of the extra dev {_are(lacking)}: {'; '.join(lacking)}", _INSTALL)


def _are(missing: list[str]) -> str:
    return "is missing or of another version" if len(missing) == 1 else "are missing or of other versions"


def _elsewhere(origin: str | None, root: Path) -> str | None:
    """The folder that an installed project came from, if it is another one than ``root``."""
    try:
        parts = urlsplit(json.loads(origin or "{}").get("url", ""))
    except (ValueError, AttributeError):
        return None
    if parts.scheme != "file":
        return None
    folder = Path(unquote(parts.path))
    return None if folder.resolve() == root.resolve() else str(folder)


def _treadle(it: Python) -> Iterator[Finding]:
    if there := it.find("treadle"):
        plugins = sorted(f"{one.name} {one.version}" for one in it.distributions.values() if one.entry_points)
        yield ok(f"treadle {there.version}" + (f", with plugins of {', '.join(plugins)}" if plugins else ""))
    else:
        yield note("treadle is not installed there", "see step Install in ONBOARDING.md or README.md.")


def _torch(it: Python, variables: Mapping[str, str], patience: float) -> Iterator[Finding]:
    there = it.find("torch")
    if there is None:
        yield note("torch is not installed there", "it comes with treadle.")
        return
    said = python.run(it.executable, "devices.py", variables, patience)
    devices = ", ".join(map(str, said["devices"]))
    if devices:
        yield ok(f"torch {there.version} computes on {devices}, and the CPU")
    elif said["built_for"]:
        yield note(
            f"torch {there.version} is built for {said['built_for']}, but sees no GPU: it computes on the CPU",
            "is there one, and a driver? nvidia-smi tells. CUDA_VISIBLE_DEVICES may hide it.",
        )
    elif Path("/proc/driver/nvidia").exists():
        yield note(
            f"this machine has an NVIDIA GPU, but torch {there.version} is built for the CPU alone",
            "install the build for CUDA: https://pytorch.org/get-started/locally",
        )
    else:
        yield ok(f"torch {there.version} computes on the CPU (threads: {said['threads']})")
