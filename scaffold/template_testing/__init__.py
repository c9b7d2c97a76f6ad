"""Testing a template: combinations of answers in which every two values meet, each through all stages of a project's
life: rendered, parsed, formatted, type-checked, installed, trained two steps, updated from every release.

What a template renders is run, with its author's rights: nothing here is for a stranger's template.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaffold.errors import DestinationError, TemplateError, cannot_write, nearest
from scaffold.template_testing import draft as drafts
from scaffold.template_testing.caching import Cache
from scaffold.template_testing.cases import Case, combinations
from scaffold.template_testing.running import Runner
from scaffold.template_testing.stages import QUICK, STAGES, USUAL, Project, Result, failed, skipped
from scaffold.template_testing.tools import look

__all__ = ["QUICK", "STAGES", "USUAL", "Combination", "Options", "Report", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to test."""

    stages: tuple[str, ...] = USUAL
    """Rendering is always one of them."""
    only: Collection[int] = ()
    """Numbers of combinations; none means all."""
    jobs: int | None = None
    """Combinations at once; default: one for each CPU."""
    cache: bool = True
    strict: bool = False
    """A stage that this machine lacks something for has failed."""
    timeout: float = 600.0
    """Seconds for one stage of one combination."""
    keep: Path | None = None
    """A new folder to leave the projects in."""
    python: str = sys.executable
    """What the projects are checked, installed and trained with."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One combination and what came of it."""

    number: int
    answers: Mapping[str, Any]
    results: Mapping[str, Result]
    """Of each stage."""
    seconds: float

    @property
    def failed(self) -> tuple[str, ...]:
        """Its stages that failed."""
        return tuple(stage for stage, result in self.results.items() if result.status == "FAILED")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a test."""

    root: Path
    stages: tuple[str, ...]
    combinations: tuple[Combination, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def good(self) -> bool:
        return not any(one.failed for one in self.combinations)

    def count(self, status: str) -> int:
        """Stages with this status."""
        return sum(result.status == status for one in self.combinations for result in one.results.values())


def run(path: Path, options: Options, done: Callable[[Combination, int], None] = lambda _one, _all: None) -> Report:
    """Test the template at ``path`` as its files are now.

    Args:
        done: Told each combination when it is through, and how many there are.

    Raises:
        ScaffoldError: There is nothing to test, or not in this way.
    """
    begin = time.monotonic()
    stages = _stages(options.stages)
    with _folder(options.keep) as scratch, tempfile.TemporaryDirectory(prefix="scaffold-draft-") as own:
        draft = drafts.make(path, Path(own))
        there, notes = combinations(draft)
        tools = look(options.python)
        chosen = _chosen(there, options.only)
        runner = Runner(options.timeout)
        jobs = max(1, min(options.jobs or os.cpu_count() or 1, len(chosen)))
        # Results of a project that is kept are had anew: it is there to look at.
        cache = Cache(options.cache and options.keep is None)
        digits = len(str(len(there)))

        def one(case: Case) -> Combination:
            folder = scratch / f"{case.number:0{digits}}"
            threads = max(1, (os.cpu_count() or 1) // jobs)
            project = Project(case=case, draft=draft, tools=tools, runner=runner, folder=folder, threads=threads)
            return _through(project, stages, cache, options.strict)

        results = _all(one, chosen, jobs, runner, lambda combination: done(combination, len(chosen)))
    seconds = time.monotonic() - begin
    return Report(root=draft.root, stages=stages, combinations=results, notes=notes, seconds=seconds)


def _all(
    one: Callable[[Case], Combination],
    chosen: Sequence[Case],
    jobs: int,
    runner: Runner,
    done: Callable[[Combination], None],
) -> tuple[Combination, ...]:
    results = {}
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(one, case) for case in chosen]
        try:
            for future in as_completed(pending):
                combination = future.result()
                results[combination.number] = combination
                done(combination)
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(results[case.number] for case in chosen)


def _through(project: Project, stages: Sequence[str], cache: Cache, strict: bool) -> Combination:
    begin = time.monotonic()
    results: dict[str, Result] = {}
    for stage in stages:
        key = _key(stage, project)
        if cache.has(*key):
            results[stage] = Result(status="cached")
            continue
        result = _timed(stage, project)
        if result.status == "ok":
            cache.add(*key)
        if result.missing and strict:
            result = replace(result, status="FAILED")
        results[stage] = result
    if project.made and project.made.status == "FAILED":
        results["rendered"] = project.made
    return Combination(
        number=project.case.number, answers=project.case.answers, results=results, seconds=time.monotonic() - begin
    )


def _timed(stage: str, project: Project) -> Result:
    """What ``stage`` says, once the project is there."""
    begin = time.monotonic()
    if project.made is None:
        project.made = _caught("rendered", project)
    if stage == "rendered":
        result = project.made
    elif project.made.status == "FAILED":
        result = skipped("not rendered")
    elif stage == "installed" and project.installed:
        result = project.installed
    else:
        result = _caught(stage, project)
    if stage == "installed":
        project.installed = result
    return replace(result, seconds=time.monotonic() - begin)


def _caught(stage: str, project: Project) -> Result:
    try:
        return STAGES[stage](project)
    except (OSError, ValueError) as error:  # what it rendered cannot even be read
        return failed(f"{type(error).__name__}: {error}", str(error))


def _key(stage: str, project: Project) -> tuple[Any, ...]:
    """All that the result of ``stage`` depends on."""
    releases = project.draft.releases if stage == "updated" else {}
    return project.draft.tree, dict(project.case.answers), stage, project.tools.fingerprint(stage), dict(releases)


def _stages(wanted: Sequence[str]) -> tuple[str, ...]:
    for name in wanted:
        if name not in STAGES:
            guess = nearest(name, STAGES)
            raise TemplateError(
                f"There is no stage {name!r}.",
                why=f"they are: {', '.join(STAGES)}.",
                fix=f"--stages {guess or ','.join(QUICK)}",
            )
    return tuple(name for name in STAGES if name in ("rendered", *wanted))


def _chosen(there: Sequence[Case], only: Collection[int]) -> tuple[Case, ...]:
    for number in only:
        if not 1 <= number <= len(there):
            raise TemplateError(
                f"There is no combination {number}.",
                why=f"they are numbered from 1 to {len(there)}.",
                fix=f"--only {min(max(number, 1), len(there))}",
            )
    return tuple(case for case in there if not only or case.number in only)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="scaffold-test-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch).resolve()
        return
    keep = keep.expanduser().resolve()
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise DestinationError(
            f"{keep} is there already.",
            why="the projects would mix with what it holds, and scaffold never deletes.",
            fix=f"--keep {keep}-2",
        )
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(keep.parent, error) from None
    yield keep
