"""From ``ckpt_path`` to a file: "last", "best", "auto" or a path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from treadle.checkpoint import read
from treadle.errors import CheckpointError

LAST = "last.ckpt"
FOLDER = "checkpoints"


def find(
    ckpt_path: str | os.PathLike[str] | None, *, runs: Path, own_folders: list[Path], may_start: bool
) -> Path | None:
    """The file that ``ckpt_path`` means; None for none, and for ``"auto"`` where there is nothing to resume.

    Args:
        may_start: The message for a missing checkpoint may say how to start without one.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if ckpt_path not in ("last", "best", "auto"):
        return None if ckpt_path is None else Path(ckpt_path)
    try:
        last = newest_state(runs, own_folders)
    except CheckpointError:
        if ckpt_path == "auto":
            return None
        raise
    if last is None and ckpt_path != "auto":
        start = 'leave ckpt_path out to start; ckpt_path="auto" resumes only if there is something.'
        raise CheckpointError(
            f"there is no {ckpt_path!r} checkpoint.",
            why=f"no run below {runs} has trained yet.",
            fix=start if may_start else "train first, or give the path of a .ckpt file.",
        )
    return best_state(last) if last is not None and ckpt_path == "best" else last


def newest_state(runs: Path, own_folders: list[Path]) -> Path | None:
    """``last.ckpt`` of the newest run that trained; None where no run did.

    Args:
        runs: The folder with ``version_N`` for each run.
        own_folders: Folders that checkpoints are written to by the user's wish; they come first.

    Raises:
        CheckpointError: The newest run was ended before its first checkpoint.
    """
    for folder in own_folders:
        if (folder / LAST).is_file():
            return folder / LAST
    trained = [path for path in _by_version(runs) if (path / FOLDER).is_dir()]
    if not trained:
        return None
    newest, *older = [path / FOLDER / LAST for path in reversed(trained)]
    if newest.is_file():
        return newest
    with_state = next((path for path in older if path.is_file()), None)
    raise CheckpointError(
        f"{newest.parent.parent} was ended before its first checkpoint.",
        why=f'"last" is the newest state of the newest run, and {newest} was not written yet.',
        fix="start anew, without ckpt_path"
        + (f", or resume an older run: ckpt_path={with_state}" if with_state else "."),
    )


JOB = "job"
"""A file beside the checkpoints of a run: the scheduler's job that runs it, where there is one."""


def state_of_job(runs: Path, own_folders: list[Path], job: str) -> Path | None:
    """``last.ckpt`` of the newest run that ``job`` has begun; None before its first checkpoint."""
    folders = [*(path / FOLDER for path in _by_version(runs)), *own_folders]
    mine = [folder / LAST for folder in folders if _job_of(folder) == job and (folder / LAST).is_file()]
    return mine[-1] if mine else None


def _job_of(folder: Path) -> str | None:
    path = folder / JOB
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def best_state(last: Path) -> Path:
    """The best checkpoint that the run of ``last`` keeps.

    Raises:
        CheckpointError: It keeps none.
    """
    callbacks = read(last).get("callbacks", {})
    for key, state in callbacks.items():
        if key.startswith("ModelCheckpoint") and (name := str(state.get("best") or "")) and Path(name).name == name:
            return last.parent / name
    raise CheckpointError(
        f"the run of {last} keeps no best checkpoint.",
        why="its ModelCheckpoint has save_top_k=0, or nothing was monitored yet.",
        fix='ckpt_path="last"',
    )


def is_newest_state(path: Path) -> bool:
    """Whether ``path`` is where its run stands: resuming it continues that run, resuming another one branches off."""
    last = path.parent / LAST
    if last.is_file():
        return path.samefile(last)
    others = [other for other in path.parent.glob("*.ckpt") if other != path]
    return all(path.stat().st_mtime_ns >= other.stat().st_mtime_ns for other in others)


def _by_version(runs: Path) -> list[Path]:
    found = [
        (int(match[1]), path) for path in runs.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]
