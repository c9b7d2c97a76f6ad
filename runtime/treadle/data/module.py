"""The data of a project: where it comes from, how it is split and loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.attachment import trainer_of
from treadle.errors import ModuleError
from treadle.hyperparameters import HasHyperParameters

if TYPE_CHECKING:
    from treadle.trainer import Trainer


class DataModule(HasHyperParameters):
    """Override ``setup`` and the loaders you need."""

    def prepare_data(self) -> None:
        """Download or write data, once per machine. Keep no state here: other processes don't see it."""

    def setup(self, stage: str) -> None:
        """Read and split the data, on every rank. ``stage`` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, stage: str) -> None: ...

    def train_dataloader(self) -> Any:
        raise self._missing("train_dataloader")

    def val_dataloader(self) -> Any:
        raise self._missing("val_dataloader")

    def test_dataloader(self) -> Any:
        raise self._missing("test_dataloader")

    def predict_dataloader(self) -> Any:
        raise self._missing("predict_dataloader")

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold of the data besides the loader's position: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs it.

        Raises:
            ModuleError: None does.
        """
        return trainer_of(self, use_in="setup and in the loaders")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the run behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_trainer"}

    def _missing(self, loader: str) -> ModuleError:
        return ModuleError(
            f"{type(self).__name__} has no {loader}.",
            why=f"this run calls {loader}, and DataModule has no default for it.",
            fix=f"define {loader}: return a DataLoader.",
        )
