"""What a profiler does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from treadle.errors import ModuleError

BATCH_ACTIONS = {
    "fit": "run_training_batch",
    "validate": "run_validation_batch",
    "test": "run_test_batch",
    "predict": "run_predict_batch",
}
"""For each stage the action that is one batch of it, from its hooks at the start to those at the end."""


@runtime_checkable
class Profiler(Protocol):
    """Takes note of actions: hooks (``[Callback]Timer.on_train_batch_end``, ``[Module]Net.training_step``), parts of the
    loops (``run_training_batch``) and spans of the user's own. Actions contain others, and happen again and again; one
    that is started again inside itself goes on until the outer one stops."""

    def setup(self, stage: str, rank: int, folder: Callable[[], Path]) -> None:
        """A stage (``fit``, ``validate``, ``test``, ``predict``) begins, with nothing noted yet.

        Args:
            stage: Its name.
            rank: Of this process; each has a profiler of its own.
            folder: Where files go that no ``dirpath`` was given for. Asked when a file is written: a run's folder is
                known once its loggers have started.
        """
        ...

    def teardown(self, stage: str) -> None:
        """The stage is over, or failed: write what was found."""
        ...

    def start(self, name: str) -> None: ...

    def stop(self, name: str) -> None:
        """End the action of that name.

        Raises:
            ModuleError: It was not started.
        """
        ...

    def profile(self, name: str) -> AbstractContextManager[None]:
        """A span: ``with self.trainer.profiler.profile("augment"): ...``, ended by an exception, too."""
        ...

    def summary(self) -> str:
        """What was found so far, for people."""
        ...


@contextmanager
def span(profiler: Profiler, name: str) -> Iterator[None]:
    """What ``profile`` of every profiler is."""
    profiler.start(name)
    try:
        yield
    finally:
        profiler.stop(name)


def not_started(name: str) -> ModuleError:
    return ModuleError(
        f"profiler.stop({name!r}) without a start.",
        why="an action is stopped as often as it is started, in the stage in which it was started.",
        fix=f"with trainer.profiler.profile({name!r}): ...",
    )
