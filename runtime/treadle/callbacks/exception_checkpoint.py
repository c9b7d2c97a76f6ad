"""Save what there is when training fails."""

from __future__ import annotations

import sys
from os import PathLike
from typing import TYPE_CHECKING, final

from treadle.callbacks.base import Callback
from treadle.callbacks.checkpoint_writing import require_one_rank
from treadle.checkpoint.remote import location
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer


@final
class OnExceptionCheckpoint(Callback):
    """Saves the run when anything is raised while it trains, an interrupt from the keyboard too; the exception goes on.

    It came in the middle of a batch: resumed from here, the run continues behind that batch, not bit for bit. For that,
    resume from a ``ModelCheckpoint``'s ``last.ckpt``.

    Args:
        dirpath: The folder.
        filename: The file's name, without ``.ckpt``. It is overwritten.

    Raises:
        ConfigError: No name for a file.
    """

    def __init__(self, dirpath: str | PathLike[str], filename: str = "on_exception") -> None:
        if not filename:
            raise ConfigError(
                f"OnExceptionCheckpoint(filename={filename!r}).",
                why="a file has a name.",
                fix='filename="on_exception"',
            )
        self.dirpath, self.filename = location(dirpath), filename
        self._training = False

    @property
    def ckpt_path(self) -> str:
        """The file."""
        return str(self.dirpath / f"{self.filename}.ckpt")

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._training = True

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._training = False

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        if not self._training:  # before its first batch, a run has nothing that is worth the name of an earlier one
            return
        self._training = False
        try:
            require_one_rank(trainer)
            trainer.save_checkpoint(self.ckpt_path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user is to see what came first
            said = f"OnExceptionCheckpoint: {self.ckpt_path} was not saved. {type(error).__name__}: {error}"
        else:
            said = f"OnExceptionCheckpoint: saved {self.ckpt_path}."
        if trainer.is_global_zero:
            print(said, file=sys.stderr, flush=True)
