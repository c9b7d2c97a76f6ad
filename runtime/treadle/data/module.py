"""The data of a project: where it comes from, how it is split and loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from treadle.attachment import trainer_of
from treadle.checkpoint import read
from treadle.checkpoint.remote import location
from treadle.data.combined import CombinedLoader, is_several
from treadle.data.single import length_of
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.hyperparameters import HasHyperParameters, arguments_for, read_hyperparameters
from treadle.seeding import isolated_rng

if TYPE_CHECKING:
    from typing_extensions import Self

    from treadle.trainer import Trainer

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


class DataModule(HasHyperParameters):
    """Override ``setup`` and the loaders you need. A loader is a ``DataLoader``, any iterable of batches, or a list or
    dict of them: see :func:`treadle.data.training_stream` and :func:`treadle.data.evaluation_streams`."""

    prepare_data_per_node: bool = True
    """Call ``prepare_data`` once on each machine; False: once in the whole run, for a file system that all share."""

    def prepare_data(self) -> None:
        """Download or write data, once per machine. Keep no state here: other processes don't see it."""

    def setup(self, stage: str) -> None:
        """Read and split the data, on every rank. ``stage`` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, stage: str) -> None: ...

    def on_exception(self, exception: BaseException) -> None:
        """The run failed, or was interrupted. ``teardown`` follows."""

    def train_dataloader(self) -> Any:
        raise self._missing("train_dataloader")

    def val_dataloader(self) -> Any:
        raise self._missing("val_dataloader")

    def test_dataloader(self) -> Any:
        raise self._missing("test_dataloader")

    def predict_dataloader(self) -> Any:
        raise self._missing("predict_dataloader")

    # --- how a batch gets to the device: overridden here, the module's own are not called ---

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch where the loader made it. Returns it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """``batch`` on ``device``; override for batches of a type of their own."""
        from treadle.batches import move

        return move(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, as augmentation there does. Returns it."""
        return batch

    # --- its state ---

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

    # --- other ways to make one ---

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """One that loads the given data sets; those for training are shuffled, if they are not iterable ones.

        Args:
            train_dataset: A data set, a list or tuple of data sets, or a mapping of them. None: there is no such loader.
            val_dataset: As ``train_dataset``.
            test_dataset: As ``train_dataset``.
            predict_dataset: As ``train_dataset``.
            batch_size: Samples in a batch of each loader.
            num_workers: Processes that each loader reads with; 0 reads in this one.
            datamodule_kwargs: For ``__init__``, which gets the two above too where it takes them.

        Raises:
            ConfigError: What is given is not a data set.
        """
        loading = {"batch_size": batch_size, "num_workers": num_workers}
        parameters = inspect.signature(cls).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        taken = {name: value for name, value in loading.items() if takes_any or name in parameters}
        made = cls(**{**taken, **datamodule_kwargs})
        for loader, data in zip(LOADERS, (train_dataset, val_dataset, test_dataset, predict_dataset), strict=True):
            if data is not None:
                _require_data_sets(data, f"{cls.__name__}.from_datasets({loader.replace('dataloader', 'dataset')}=...)")
                setattr(made, loader, partial(_loaders, data, shuffle=loader == "train_dataloader", **loading))
        return made

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: str | torch.device = "cpu",
        hparams_file: str | PathLike[str] | None = None,
        weights_only: bool = True,
        **hyperparameters: Any,
    ) -> Self:
        """One with the hyperparameters and the state of the one in a checkpoint; nothing in the file is executed.

        Args:
            checkpoint_path: The file.
            map_location: Where its tensors go.
            hparams_file: A JSON or YAML file of hyperparameters, in place of the checkpoint's.
            weights_only: Always: what is more than tensors and plain values is not read.
            hyperparameters: Override those of the file.

        Raises:
            CheckpointError: The file is missing, damaged, was saved without a DataModule, or lacks an argument that
                ``__init__`` needs.
            ConfigError: ``weights_only=False``.
        """
        from treadle.module import require_weights_only

        require_weights_only(weights_only)
        checkpoint = read(location(checkpoint_path), map_location=map_location)
        if "datamodule" not in checkpoint:
            raise CheckpointError(
                f"{checkpoint_path} holds no DataModule.",
                why="the run that saved it was given loaders, or its module's own.",
                fix=f"{cls.__name__}(...)",
            )
        saved = checkpoint.get("datamodule_hyper_parameters", {})
        if hparams_file is not None:
            saved = read_hyperparameters(hparams_file)
        datamodule = cls(**arguments_for(cls, saved, hyperparameters, checkpoint_path))
        datamodule.load_state_dict(checkpoint["datamodule"])
        return datamodule

    def __str__(self) -> str:
        """Its loaders, with the sizes of their data sets. Asks them, and leaves no trace in the global generators."""
        return "\n  ".join([type(self).__name__, *(line for loader in LOADERS for line in self._described(loader))])

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the run behind."""
        return {name: value for name, value in self.__dict__.items() if name != "_trainer"}

    def _described(self, loader: str) -> Iterator[str]:
        method = getattr(self, loader)
        if getattr(method, "__func__", method) is getattr(DataModule, loader):
            yield f"{loader}: none"
            return
        parts: list[tuple[str, Any]] = []
        with isolated_rng(), suppress(Exception):  # before setup, users' code fails in its own ways
            parts = [(f"{loader}{key}", _size(part)) for key, part in _parts(method())]
        yield from (f"{name}: {size}" for name, size in parts or [(loader, "not known before setup")])

    def _missing(self, loader: str) -> ModuleError:
        return ModuleError(
            f"{type(self).__name__} has no {loader}.",
            why=f"this run calls {loader}, and DataModule has no default for it.",
            fix=f"define {loader}: return a DataLoader.",
        )


def _require_data_sets(data: Any, what: str, *, inside: bool = False) -> None:
    if not inside and isinstance(data, (list, tuple, Mapping)):
        for item in data.values() if isinstance(data, Mapping) else data:
            _require_data_sets(item, what, inside=True)
    elif isinstance(data, (list, tuple, Mapping, Tensor, str, type)) or not (
        hasattr(data, "__getitem__") or hasattr(data, "__iter__")
    ):
        raise ConfigError(
            f"{what} was given a {type(data).__name__} for a data set.",
            why="it takes a data set, a list or tuple of data sets, or a mapping of them; a list is not one data set.",
            fix="wrap the samples in a torch.utils.data.Dataset; TensorDataset does it for tensors.",
        )


def _loaders(data: Any, *, shuffle: bool, batch_size: int, num_workers: int) -> Any:
    """A loader for each data set, in the same kind of collection."""
    if isinstance(data, Mapping):
        return {
            name: _loaders(item, shuffle=shuffle, batch_size=batch_size, num_workers=num_workers)
            for name, item in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [_loaders(item, shuffle=shuffle, batch_size=batch_size, num_workers=num_workers) for item in data]
    return DataLoader(
        data,
        batch_size,
        shuffle=shuffle and not isinstance(data, IterableDataset),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def _parts(loader: Any) -> list[tuple[str, Any]]:
    if is_several(loader):
        loader = CombinedLoader(loader)
    return [part[:2] for part in loader.parts()] if isinstance(loader, CombinedLoader) else [("", loader)]


def _size(loader: Any) -> str:
    samples, batches = length_of(getattr(loader, "dataset", None)), length_of(loader)
    counted = "an unknown number of batches" if batches is None else f"{batches} batch{'es' * (batches != 1)}"
    return counted if samples is None else f"{samples} sample{'s' * (samples != 1)} in {counted}"
