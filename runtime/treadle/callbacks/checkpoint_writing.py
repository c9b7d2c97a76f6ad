"""What the ModelCheckpoints of a Trainer have decided at a savepoint, carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.checkpoint import link
from treadle.errors import CheckpointError

if TYPE_CHECKING:
    from treadle.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What one of them has decided."""

    kept: Path | None
    """The file in which this state is kept; None if it isn't."""
    last: Path | None
    """The file that always has the newest state; None if there is none."""
    displaced: Sequence[Path]
    """Files that make room for the one that is kept."""
    weights_only: bool
    verbose: bool
    take_back: Callable[[], None]
    """Called if the file in which the state was to be kept could not be written."""


def carry_out(trainer: Trainer, savings: Sequence[Saving]) -> None:
    """
    ::

        for each: write the file that is kept
        for each: write the newest state
        for each: remove the files that make room

    The same state is written once; other files of it are links.

    Raises:
        CheckpointError: A file can't be written.
    """
    written: dict[bool, Path] = {}
    """A file with this state, by whether it has the weights only."""
    done: list[Path] = []

    def write(path: Path, saving: Saving) -> None:
        if saving.weights_only not in written:
            trainer.save_checkpoint(path, weights_only=saving.weights_only)
            written[saving.weights_only] = path
        elif path not in done and trainer.is_global_zero:
            link(written[saving.weights_only], path)
        done.append(path)
        if saving.verbose:
            trainer.print(f"ModelCheckpoint: epoch {trainer.last_epoch}, step {trainer.global_step}: saved {path}.")

    try:
        for saving in savings:
            if saving.kept is not None:
                write(saving.kept, saving)
        for saving in savings:
            if saving.last is not None:
                write(saving.last, saving)
    except BaseException:
        for saving in savings:
            if saving.kept not in (None, *done):
                saving.take_back()
        raise
    if trainer.is_global_zero:
        for path in (path for saving in savings for path in saving.displaced):
            if path != trainer.ckpt_path:  # which the user named to start from
                path.unlink(missing_ok=True)


def require_one_rank(trainer: Trainer) -> None:
    """
    Raises:
        CheckpointError: After an exception on one of several ranks, the others can't be asked for their state.
    """
    if trainer.world_size > 1:
        raise CheckpointError(
            f"an exception ended a run on {trainer.world_size} ranks.",
            why="a checkpoint needs the state of all of them, and this one can't know what the others do.",
            fix="resume from last.ckpt.",
        )
