"""Write predictions as they are made."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from treadle.batches import apply
from treadle.callbacks.base import Callback
from treadle.checkpoint import make_folder, write_plain
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

WriteInterval = Literal["batch", "epoch", "batch_and_epoch"]


class BasePredictionWriter(Callback):
    """Hands over what ``Trainer.predict`` makes, to be written: derive from it and override ``write_on_batch_end``,
    ``write_on_epoch_end`` or both, as ``write_interval`` says.

    With ``batch`` nothing piles up in memory: by default, the Trainer then returns no predictions either.

    Args:
        write_interval: After each batch, after all of them, or both.

    Raises:
        ConfigError: Another interval, or one whose method is not overridden.
    """

    def __init__(self, write_interval: WriteInterval = "batch") -> None:
        if write_interval not in ("batch", "epoch", "batch_and_epoch"):
            raise ConfigError(
                f"write_interval={write_interval!r}.",
                why='predictions are written after each "batch", after the "epoch", or "batch_and_epoch".',
                fix='write_interval="batch"',
            )
        self.write_interval = write_interval
        self.writes_batches, self.writes_epochs = write_interval != "epoch", write_interval != "batch"
        for called, name in ((self.writes_batches, "write_on_batch_end"), (self.writes_epochs, "write_on_epoch_end")):
            if called and getattr(type(self), name) is getattr(BasePredictionWriter, name):
                raise ConfigError(
                    f"{type(self).__name__}(write_interval={write_interval!r}) has no {name}.",
                    why=f"this interval calls {name}, and nothing would be written.",
                    fix=f"define {name}, or choose another write_interval.",
                )
        self._predictions: dict[int, list[Any]] = {}
        self._indices: dict[int, list[list[int] | None]] = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        module: Module,
        prediction: Any,
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch's.

        Args:
            prediction: What ``predict_step`` returned, where it lies.
            batch_indices: Of the samples in the data set; None where the loader can't tell them.
        """

    def write_on_epoch_end(
        self, trainer: Trainer, module: Module, predictions: list[Any], batch_indices: list[Any]
    ) -> None:
        """Write all of them.

        Args:
            predictions: One for each batch, on the CPU; with several loaders, a list of these for each.
            batch_indices: For each loader, also where there is one, a list with the indices of each batch's samples.
        """

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self._forget()

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        indices = trainer.predict_batch_indices
        if self.writes_batches:
            self.write_on_batch_end(trainer, module, outputs, indices, batch, batch_idx, dataloader_idx)
        if self.writes_epochs:
            self._predictions.setdefault(dataloader_idx, []).append(_on_cpu(outputs))
            self._indices.setdefault(dataloader_idx, []).append(indices)

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if not self.writes_epochs:
            return
        predictions, indices = list(self._predictions.values()), list(self._indices.values())
        if _loaders(trainer) == 1:
            predictions = predictions[0]
        self.write_on_epoch_end(trainer, module, predictions, indices)
        self._forget()

    def _forget(self) -> None:
        self._predictions, self._indices = {}, {}


@final
class PredictionWriter(BasePredictionWriter):
    """Writes each batch to a file of its own: ``batch-000012.pt``, with several loaders ``loader-1-batch-000012.pt``, on
    several ranks ``rank-3-batch-000012.pt``.

    A file holds ``{"prediction": ..., "batch_indices": ...}``, what ``predict_step`` returned and which samples of the
    data set that was, or None. ``torch.load`` reads it; nothing but tensors and plain values is in it.

    Args:
        folder: Is made if it is not there.

    Raises:
        ConfigError: While predicting: ``folder`` holds predictions already, or can't be written.
        CheckpointError: A prediction with something else in it.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        super().__init__("batch")
        self.folder = Path(folder)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        make_folder(self.folder)
        # Those of an earlier run that made more of them would be taken for this one's.
        if found := sorted(path.name for path in self.folder.glob(f"{_rank(trainer)}*batch-*.pt")):
            raise ConfigError(
                f"{self.folder} holds predictions already: {found[0]}{' and others' if len(found) > 1 else ''}.",
                why="those of two runs would lie side by side.",
                fix="write to another folder, or delete them.",
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        module: Module,
        prediction: Any,
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        loader = f"loader-{dataloader_idx}-" if _loaders(trainer) > 1 else ""
        path = self.folder / f"{_rank(trainer)}{loader}batch-{batch_idx:06d}.pt"
        write_plain(path, {"prediction": _on_cpu(prediction), "batch_indices": batch_indices})


def _rank(trainer: Trainer) -> str:
    return f"rank-{trainer.global_rank}-" if trainer.world_size > 1 else ""


def _loaders(trainer: Trainer) -> int:
    return len(trainer.num_predict_batches)


def _on_cpu(prediction: Any) -> Any:
    """A copy: of a tensor that is part of a larger one, the rest is neither kept nor written."""
    return apply(prediction, lambda tensor: tensor.detach().to("cpu", copy=True))
