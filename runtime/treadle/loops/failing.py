"""What a fit that failed leaves behind for whoever finds it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from treadle.callbacks.model_checkpoint import ModelCheckpoint
from treadle.checkpoint.lineage import Lineage
from treadle.checkpoint.remote import is_remote
from treadle.progress import Progress

REPORT = "failure.txt"
"""Its name in the run's folder."""


def report(
    error: BaseException, progress: Progress, savers: Sequence[ModelCheckpoint], log_dir: Path | None, lineage: Lineage
) -> None:
    """Say where the fit failed and how it goes on; with the traceback and the versions, the same lies in the run's folder.
    On rank 0. Raises nothing: it would hide ``error``."""
    where = f"epoch {progress.epoch}, batch {progress.batch} (step {progress.global_step})"
    lines = [f"treadle: the fit failed in {where} with {type(error).__name__}.", *ways_on(savers)]
    if log_dir is not None:
        path = log_dir / REPORT
        versions = ", ".join(f"{name} {version}" for name, version in lineage.get("versions", {}).items())
        code = f"code: {lineage.get('git_commit', 'not in git')}{', with changes' if 'uncommitted' in lineage else ''}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        with suppress(OSError):
            text = "\n".join([*lines, versions, code, f"command: {' '.join(lineage.get('command', []))}", "", trace])
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            lines.append(f"  report: {_short(path)}")
    print("\n".join(lines), file=sys.stderr, flush=True)


def ways_on(savers: Sequence[ModelCheckpoint]) -> list[str]:
    """From which states the run can go on, a line for each."""
    lines = []
    last = None
    with suppress(OSError):  # a store that can't be reached
        last = next((saver for saver in savers if saver.last_model_path and not saver.save_weights_only), None)
    if last is not None:
        at = f", the state after {last.saved_at[1]} batches in all" if last.saved_at is not None else ""
        lines.append(f'  to go on bit for bit: ckpt_path="auto" (last.ckpt{at})')
    failed = next((saver for saver in savers if saver.exception_path), None)
    if failed is not None:
        path = failed.exception_path
        shown = path if is_remote(path) else _short(path)
        lines.append(f'  to go on from here, not bit for bit: ckpt_path="{shown}"')
    return lines


def _short(path: str | Path) -> str:
    with suppress(OSError, ValueError):  # the working directory is gone, or on another drive
        return os.path.relpath(path)
    return str(path)
