"""The stages that a combination goes through, each a function from the project to what came of it."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from scaffold import patterns, settings
from scaffold.console import quoted
from scaffold.template_testing.cases import PROJECT, Case
from scaffold.template_testing.draft import VERSION, Draft
from scaffold.template_testing.running import Ran, Runner
from scaffold.template_testing.tools import Tools


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one stage of one combination."""

    status: str
    """ok, FAILED, skipped, or cached: it was ok before, and nothing it depends on has changed."""
    why: str = ""
    """In a few words, for one that was skipped or failed."""
    missing: bool = False
    """It was skipped because this machine lacks something."""
    output: str = ""
    command: str = ""
    """What ran, in the project's folder."""
    seconds: float = 0.0


def ok(why: str = "") -> Result:
    return Result(status="ok", why=why)


def skipped(why: str, *, missing: bool = False) -> Result:
    return Result(status="skipped", why=why, missing=missing)


def failed(why: str, output: str = "", command: str = "") -> Result:
    return Result(status="FAILED", why=why, output=output, command=command)


@dataclass(kw_only=True)
class Project:
    """One combination's project, made when a stage first needs it."""

    case: Case
    draft: Draft
    tools: Tools
    runner: Runner
    folder: Path
    """For the project and what goes with it."""
    threads: int
    """A process may use."""
    answers: Mapping[str, Any] = field(default_factory=dict)
    """All of them, defaults included; known when it is rendered."""
    tree: Mapping[str, str] = field(default_factory=dict)
    """Its files as they were rendered: path to a hash of mode and content."""
    made: Result | None = None
    installed: Result | None = None

    @property
    def root(self) -> Path:
        return self.folder / PROJECT

    @property
    def packages(self) -> Path:
        """Where it is installed."""
        return self.folder / "installed"

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def call(self, *command: str, environment: Mapping[str, str] | None = None) -> Result:
        """Run a command of the tools in the project."""
        given = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BLACK_CACHE_DIR": str(self.folder / "black"),
        }
        ran = self.runner.run(command, cwd=self.root, environment={**given, **(environment or {})})
        return _judged(ran, quoted("python", *command[1:]) if command[0] == self.tools.python else quoted(*command))

    def child(
        self, version: str, project: Path, *, answers: Mapping[str, Any], **more: Any
    ) -> tuple[Result, dict[str, Any]]:
        """Render, or make and update, in a process of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = self.folder / "told.json"
        job = {
            "name": self.draft.root.name, "repository": str(self.draft.template.mirror), "version": version,
            "project": str(project), "answers": dict(answers), "trust": self.draft.trust, "update": None,
            "told": str(told), **more,
        }  # fmt: skip
        environment = {**os.environ, **_before_others(Path(__file__).resolve().parents[2])}
        command = (sys.executable, "-m", "scaffold.template_testing.child")
        ran = self.runner.run(command, cwd=self.folder, environment=environment, stdin=json.dumps(job))
        said = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
        told.unlink(missing_ok=True)
        if "error" in said:
            first, *_ = str(said["said"]).splitlines()
            return failed(first, str(said["said"])), said
        return _judged(ran, ""), said


def rendered(project: Project) -> Result:
    result, said = project.child(VERSION, project.root, answers=project.case.answers)
    if result.status == "ok":
        project.answers, project.tree = said["answers"], _tree(project.root)
    return result


def parsed(project: Project) -> Result:
    """YAML, TOML and Python, read by their own parsers. A warning of Python's is a fault as well."""
    faults = []
    toml = _toml()
    for name in project.tree:
        path = project.root / name
        try:
            match path.suffix:
                case ".yml" | ".yaml":
                    list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_AnyTag))
                case ".toml" if toml:
                    toml(path.read_text(encoding="utf-8"))
                case ".py":
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        ast.parse(path.read_text(encoding="utf-8"), filename=name)
        except (ValueError, SyntaxError, yaml.YAMLError) as error:  # TOML's errors are ValueErrors
            faults.append(f"{name}: {error}")
    if faults:
        return failed(faults[0].splitlines()[0], "\n".join(faults))
    if toml is None and any(name.endswith(".toml") for name in project.tree):
        return skipped("reading TOML needs Python 3.11, or tomli", missing=True)
    return ok()


def black(project: Project) -> Result:
    if not any(name.endswith(".py") for name in project.tree):
        return skipped("no Python files")
    if project.tools.missing(["black"]):
        return skipped("black is not installed", missing=True)
    return project.call(project.tools.python, "-m", "black", "--check", "--diff", ".")


def typed(project: Project) -> Result:
    settings_files = {"pyproject.toml": "tool.mypy", "setup.cfg": "mypy", "mypy.ini": "mypy", ".mypy.ini": "mypy"}
    sections = [
        match[1]
        for file, name in settings_files.items()
        if (
            match := re.search(rf"^\[{re.escape(name)}\]$(.*?)(?=^\[|\Z)", project.text(file), re.MULTILINE | re.DOTALL)
        )
    ]
    if not sections:
        return skipped("no [tool.mypy] in its settings")
    if project.tools.missing(["mypy"]):
        return skipped("mypy is not installed", missing=True)
    # One cache for all, or each would read the types of torch anew. In files, which many may write at once.
    cache = settings.cache_folder() / "mypy"
    what = [] if any(re.search(r"^(files|packages|modules)\s*=", one, re.MULTILINE) for one in sections) else ["."]
    return project.call(
        project.tools.python, "-m", "mypy", "--no-sqlite-cache", f"--cache-dir={cache}", "--no-error-summary", *what
    )


def installed(project: Project) -> Result:
    """A wheel of it, in a folder of its own: what is missing in the package shows. Nothing is fetched."""
    if not (project.root / "pyproject.toml").is_file() and not (project.root / "setup.py").is_file():
        return skipped("no pyproject.toml")
    toml = _toml()
    system = toml(project.text("pyproject.toml")).get("build-system", {}) if toml else {}
    needed = [_distribution(one) for one in system.get("requires", ["setuptools"])]
    if missing := project.tools.missing(["pip", *needed]):
        return skipped(f"{', '.join(missing)} is not installed", missing=True)
    return project.call(
        project.tools.python, "-m", "pip", "--isolated", "install", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--no-warn-script-location", "--quiet", "--target", str(project.packages), ".",
    )  # fmt: skip


def trained(project: Project) -> Result:
    """Two steps: what the template says tries its projects, or the command that its debug configuration is for."""
    command = project.draft.template.settings.get("try")
    if command is None:
        modules = sorted(project.root.glob("src/*/__main__.py")) + sorted(project.root.glob("*/__main__.py"))
        configs = ["configs/train.yaml", "configs/debug.yaml"]
        if not modules or not all((project.root / config).is_file() for config in configs):
            return skipped("no package with a __main__, configs/train.yaml and configs/debug.yaml")
        command = ["python", "-m", modules[0].parent.name, "fit", *(f"--config={config}" for config in configs)]
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        return failed("_scaffold: try is not a list of words", f"in copier.yml: {command!r}")
    if lacking := _lacking(project):
        return lacking
    words = [re.sub(r"\{(\w+)\}", lambda found: str(project.answers.get(found[1], found[0])), word) for word in command]
    if words[0] in ("python", "python3"):
        words[0] = project.tools.python
    return project.call(*words, environment=_before_others(project.packages))


def tests(project: Project) -> Result:
    if not any(re.search(r"(^|/)(test_[^/]*|[^/]*_test)\.py$", name) for name in project.tree):
        return skipped("no tests")
    if project.tools.missing(["pytest"]):
        return skipped("pytest is not installed", missing=True)
    if lacking := _lacking(project):
        return lacking
    command = (project.tools.python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return project.call(*command, environment=_before_others(project.packages))


def updated(project: Project) -> Result:
    """From each release: a project made there, brought to the draft, is byte for byte what the draft renders."""
    if not project.draft.releases:
        return skipped("no released tag")
    results = {tag: _updated_from(tag, project) for tag in project.draft.releases}
    faults = {tag: result for tag, result in results.items() if result.status == "FAILED"}
    if faults:
        why = "; ".join(f"from {tag}: {result.why}" for tag, result in faults.items())
        return failed(why, "\n\n".join(f"from {tag}: {result.output or result.why}" for tag, result in faults.items()))
    left_out = "; ".join(f"{tag}: {result.why}" for tag, result in results.items() if result.status == "skipped")
    return ok(left_out) if any(result.status == "ok" for result in results.values()) else skipped(left_out)


def _updated_from(tag: str, project: Project) -> Result:
    known = project.draft.questions_of(tag)
    target = project.folder / f"from-{tag}" / PROJECT
    target.parent.mkdir(parents=True, exist_ok=True)
    result, said = project.child(
        tag,
        target,
        answers={name: value for name, value in project.answers.items() if name in known},
        update=VERSION,
        new_answers={name: value for name, value in project.answers.items() if name not in known},
    )
    if said.get("error") == "AnswerError":
        return skipped(result.why)  # that version has not got this answer yet
    if result.status != "ok":
        return result
    if said.get("layer"):
        return skipped("a layer, which is updated with its base")
    if said["conflicts"]:
        return failed(f"conflicts in {', '.join(said['conflicts'])}")
    here = _tree(target)
    generated = project.draft.template.settings.get("generated") or []  # lock files, say, which no update touches
    names = sorted(
        name
        for name in {*here, *project.tree}
        if here.get(name) != project.tree.get(name) and not patterns.matches(name, generated)
    )
    if names:
        output = "\n".join(_difference(name, target, project) for name in names)
        return failed(f"differs from a new project in {', '.join(names)}", output)
    return ok()


STAGES: Mapping[str, Callable[[Project], Result]] = {
    "rendered": rendered,
    "parsed": parsed,
    "black": black,
    "typed": typed,
    "installed": installed,
    "trained": trained,
    "tests": tests,
    "updated": updated,
}
"""In the order they run in."""

QUICK = ("rendered", "parsed", "black")
USUAL = tuple(name for name in STAGES if name != "tests")


def _before_others(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


def _judged(ran: Ran, command: str) -> Result:
    if ran.timed_out:
        return failed("took longer than --timeout allows", ran.output, command)
    if ran.code:
        lines = [line for line in ran.output.splitlines() if line.strip()]
        return failed(lines[-1].strip() if lines else f"exit code {ran.code}", ran.output, command)
    return Result(status="ok", command=command)


def _lacking(project: Project) -> Result | None:
    """Why the project cannot run, if it cannot: it is installed for this, where there is something to install."""
    if project.installed is None:
        project.installed = installed(project)
    if project.installed.status == "FAILED":
        return skipped("it could not be installed")
    if project.installed.missing:
        return project.installed
    needed = [
        _distribution(line.partition(":")[2])
        for file in project.packages.glob("*.dist-info/METADATA")
        for line in file.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        if line.startswith("Requires-Dist:") and ";" not in line
    ]
    missing = project.tools.missing(needed)
    return skipped(f"{', '.join(missing)} is not installed", missing=True) if missing else None


def _distribution(requirement: str) -> str:
    """``torch>=2`` is of the distribution torch."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return found[1] if found else requirement


def _tree(root: Path) -> dict[str, str]:
    return dict(sorted(_files(root)))


def _files(root: Path) -> Iterator[tuple[str, str]]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name != ".git"]
        for name in names + [one for one in subfolders if (Path(folder) / one).is_symlink()]:
            path = Path(folder) / name
            if path.is_symlink():
                mode, content = "link", os.fsencode(path.readlink())
            else:
                mode, content = ("run" if os.access(path, os.X_OK) else "file"), path.read_bytes()
            yield path.relative_to(root).as_posix(), f"{mode} {sha256(content).hexdigest()}"


def _difference(name: str, updated_project: Path, project: Project) -> str:
    import difflib

    def lines(path: Path) -> Sequence[str]:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []

    shown = difflib.unified_diff(
        lines(project.root / name), lines(updated_project / name), f"new/{name}", f"updated/{name}", lineterm="", n=1
    )
    return "\n".join(shown) or f"{name}: only its mode, or only there"


def _toml() -> Callable[[str], dict[str, Any]] | None:
    """Python's own parser; on 3.10 the package it came from, where that is installed."""
    for name in ("tomllib", "tomli"):
        try:
            loads: Callable[[str], dict[str, Any]] = importlib.import_module(name).loads
        except ModuleNotFoundError:
            continue
        return loads
    return None


class _AnyTag(yaml.SafeLoader):
    """Reads every tag as plain data: GitLab's ``!reference`` is good YAML."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node)
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else node.value


_AnyTag.add_multi_constructor("!", _plain)
_AnyTag.add_multi_constructor("tag:", _plain)
