"""From ``ckpt_path`` to a file: "last", "best", "auto" or a path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from treadle.checkpoint import Checkpoint, exists, read
from treadle.checkpoint.remote import is_remote, location
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
        return None if ckpt_path is None else location(ckpt_path)
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
    own = [state for folder in own_folders if (state := state_in(folder)) is not None]
    if own:
        return own[0] if len(own) == 1 else max(own, key=lambda path: _position(read(path)))
    trained = [path for path in _by_version(runs) if (path / FOLDER).is_dir()]
    if not trained:
        return None
    newest, *older = [path / FOLDER for path in reversed(trained)]
    if (state := state_in(newest)) is not None:
        return state
    with_state = next((state for folder in older if (state := state_in(folder)) is not None), None)
    failed = newest / EXCEPTION
    others = [f"resume an older run: ckpt_path={with_state}"] if with_state else []
    others += [f"go on from where it failed: ckpt_path={failed}"] if failed.exists() else []
    raise CheckpointError(
        f"{newest.parent} was ended before its first checkpoint.",
        why=f'"last" is the newest state of the newest run, and {newest / LAST} was not written yet.',
        fix=", or ".join(["start anew, without ckpt_path", *others]) + ("" if others else "."),
    )


def state_in(folder: Path) -> Path | None:
    """The newest state of the run that writes to ``folder``; None before its first."""
    if exists(folder / LAST):
        return folder / LAST
    other = state_beside(folder / LAST)
    return other[0] if other is not None else None


def state_beside(damaged: Path) -> tuple[Path, Checkpoint] | None:
    """The newest state beside ``damaged``, which may be gone, that can be read and resumed: by its counters, since the clock that dates files
    may have been set back."""
    newest: tuple[Path, Checkpoint] | None = None
    for path in damaged.parent.glob("*.ckpt"):
        if path.name in (damaged.name, EXCEPTION) or _is_same(path, damaged):
            continue
        try:
            state = read(path)
        except CheckpointError:
            continue
        if "stream" in state and (newest is None or _position(state) > _position(newest[1])):
            newest = path, state
    return newest


def _position(state: Checkpoint) -> tuple[int, int]:
    return state["progress"]["batches"], state["progress"]["epoch"]


EXCEPTION = "exception.ckpt"
"""Saved in the middle of a batch: not a state to go on from bit for bit."""
JOB = "job"
"""A file beside the checkpoints of a run: the scheduler's job that runs it, where there is one."""


def state_of_job(runs: Path, own_folders: list[Path], job: str) -> Path | None:
    """The newest state of the newest run that ``job`` has begun; None before its first checkpoint."""
    folders = [*(path / FOLDER for path in _by_version(runs)), *own_folders]
    mine = [state for folder in folders if _job_of(folder) == job and (state := state_in(folder)) is not None]
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
    newest = state_in(path.parent)
    return newest is None or _is_same(path, newest)


def _is_same(path: Path, other: Path) -> bool:
    return path == other or (path.exists() and other.exists() and not is_remote(path) and path.samefile(other))


def _by_version(runs: Path) -> list[Path]:
    found = [
        (int(match[1]), path) for path in runs.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]
