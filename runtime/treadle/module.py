"""The model, its loss and its optimizer: what a user writes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from treadle.attachment import trainer_of
from treadle.checkpoint import Checkpoint, read
from treadle.errors import CheckpointError, ModuleError, warn
from treadle.hyperparameters import HasHyperParameters, arguments_for
from treadle.metrics import Logbook, ReduceFx

if TYPE_CHECKING:
    from typing_extensions import Self

    from treadle.loggers import Logger
    from treadle.trainer import Trainer


class Module(HasHyperParameters, nn.Module):
    """An ``nn.Module`` that says how to train itself. Works without a Trainer, as any other ``nn.Module``.

    Override ``training_step`` and ``configure_optimizers`` to train, ``validation_step`` and ``test_step`` to evaluate,
    and the hooks you need; a hook that is not overridden is never called.
    """

    # --- steps ---

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of one batch: a tensor of shape ``()``, a dict with it under ``"loss"``, or None to skip the batch.

        ``batch_idx`` may be left out of the signature, here and in the other steps.
        """
        raise _missing(self, "training_step", "return the loss of a batch, a tensor of shape ()")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Runs without gradients and in eval mode; log metrics here."""
        raise _missing(self, "validation_step", "log the metrics of a batch")

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """As ``validation_step``, on the test data."""
        raise _missing(self, "test_step", "log the metrics of a batch")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """What ``Trainer.predict`` returns for a batch: by default the module applied to it."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """An optimizer; a list of them; ``([optimizers], [schedulers])``; ``{"optimizer": ..., "lr_scheduler": ...}``,
        where the scheduler may be a dict of scheduler, interval (``epoch`` or ``step``), frequency, monitor and strict;
        or None to train without one."""
        raise _missing(self, "configure_optimizers", "return torch.optim.AdamW(self.parameters(), lr=1e-3)")

    # --- hooks, in the order of a run ---

    def prepare_data(self) -> None:
        """Download or write data, once per machine."""

    def setup(self, stage: str) -> None:
        """Before ``fit``, ``validate``, ``test`` or ``predict``, on every rank."""

    def teardown(self, stage: str) -> None: ...
    def on_fit_start(self) -> None: ...
    def on_fit_end(self) -> None: ...
    def on_train_start(self) -> None: ...
    def on_train_end(self) -> None: ...

    def on_train_epoch_start(self) -> None:
        """At the start of each epoch, and again when a run is resumed inside one."""

    def on_train_epoch_end(self) -> None: ...

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Return -1 to skip the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None: ...
    def on_before_backward(self, loss: Tensor) -> None: ...
    def on_after_backward(self) -> None: ...

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are whole here, and not clipped yet."""

    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_validation_epoch_start(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None: ...
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_test_start(self) -> None: ...
    def on_test_end(self) -> None: ...
    def on_test_epoch_start(self) -> None: ...
    def on_test_epoch_end(self) -> None: ...
    def on_test_batch_start(self, batch: Any, batch_idx: int) -> None: ...
    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_predict_start(self) -> None: ...
    def on_predict_end(self) -> None: ...
    def on_predict_epoch_start(self) -> None: ...
    def on_predict_epoch_end(self) -> None: ...
    def on_predict_batch_start(self, batch: Any, batch_idx: int) -> None: ...
    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the module needs besides its ``state_dict``: tensors and plain values, under names of its own."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...

    # --- data, for modules that bring their own ---

    def train_dataloader(self) -> Any:
        raise _missing(self, "train_dataloader", "return a DataLoader, or pass loaders or a DataModule to the Trainer")

    def val_dataloader(self) -> Any:
        raise _missing(self, "val_dataloader", "return a DataLoader, or pass loaders or a DataModule to the Trainer")

    def test_dataloader(self) -> Any:
        raise _missing(self, "test_dataloader", "return a DataLoader, or pass loaders or a DataModule to the Trainer")

    def predict_dataloader(self) -> Any:
        raise _missing(
            self, "predict_dataloader", "return a DataLoader, or pass loaders or a DataModule to the Trainer"
        )

    # --- what a step may use ---

    def log(
        self,
        name: str,
        value: Tensor | float,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: ReduceFx = "mean",
        sync_dist: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Log one number. Nothing is copied from the device before the next log point.

        Args:
            name: What the column is called. ``step`` is the row's place on the x axis, ``epoch`` its epoch.
            value: A float, or a tensor with one element, kept where it is.
            prog_bar: Show it in the progress bar.
            logger: Write it to the loggers.
            on_step: Write the value of the step at each log point. Default: in hooks of a training batch.
            on_epoch: Write the reduction over the epoch at its end. Default: everywhere else. With both, the columns
                are ``name_step`` and ``name_epoch``.
            reduce_fx: How values reduce to one over an epoch. Means are weighted by the size of each batch.
            sync_dist: Reduce the epoch's value over all ranks.
            batch_size: The size of this batch, where the loader can't tell it.

        Raises:
            ModuleError: Not a number, or called where nothing can be logged.
            ConfigError: Called again in the same hook with other settings.
        """
        book: Logbook | None = self.__dict__.get("_logbook")
        if book is None:
            return warn("log", f"self.log({name!r}) outside of a run is not written anywhere.")
        book.log(name, value, (prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist), batch_size)

    def log_dict(self, values: Mapping[str, Tensor | float], **settings: Any) -> None:
        """``self.log`` for each item of ``values``, with the same settings."""
        for name, value in values.items():
            self.log(name, value, **settings)

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this module.

        Raises:
            ModuleError: None does.
        """
        return trainer_of(self, use_in="steps and hooks")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the run behind."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_trainer", "_logbook")}

    @property
    def logger(self) -> Logger | None:
        """The first of the Trainer's loggers; None without any."""
        return self.trainer.logger

    def optimizers(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """The optimizer that ``configure_optimizers`` returned; a list of them if there is not exactly one."""
        found = self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def freeze(self) -> None:
        """No gradients for any parameter, and eval mode."""
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Gradients for every parameter, and train mode."""
        self.requires_grad_(True)
        self.train()

    @property
    def device(self) -> torch.device:
        """Where the first parameter (or buffer) lies; the CPU for a module with none."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The format of the first parameter; torch's default for a module with none."""
        tensor = next(self.parameters(), None)
        return torch.get_default_dtype() if tensor is None else tensor.dtype

    @property
    def current_epoch(self) -> int:
        return self.trainer.current_epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps taken so far in this run."""
        return self.trainer.global_step

    def print(self, *values: object) -> None:
        """Print once, on rank 0."""
        self.trainer.print(*values)

    @classmethod
    def load_from_checkpoint(
        cls,
        path: str | PathLike[str],
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **hyperparameters: Any,
    ) -> Self:
        """A module with the weights and hyperparameters of a checkpoint; nothing in the file is executed.

        Args:
            path: The file.
            map_location: Where its tensors go.
            strict: Every weight must be in the file and the other way round.
            hyperparameters: Override those of the file.

        Raises:
            CheckpointError: The file is missing, damaged, or lacks an argument that ``__init__`` needs.
        """
        checkpoint = read(Path(path), map_location=map_location)
        module = cls(**arguments_for(cls, checkpoint.get("hyper_parameters", {}), hyperparameters, path))
        module.on_load_checkpoint(dict(checkpoint))
        load_weights(module, checkpoint, strict=strict)
        return module


def load_weights(module: Module, checkpoint: Checkpoint, *, strict: bool = True) -> None:
    """Give ``module`` the weights of ``checkpoint``.

    Raises:
        CheckpointError: They are not those of such a module.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        saved = checkpoint["hyper_parameters"]
        differ = [name for name, value in saved.items() if name in module.hparams and module.hparams[name] != value]
        then, now = ({name: source[name] for name in differ} for source in (saved, module.hparams))
        raise CheckpointError(
            f"the checkpoint's weights don't fit {type(module).__name__}.",
            why=(
                f"it was saved with {_settings(then)}, and the module has {_settings(now)}."
                if differ
                else " ".join(str(error).split())
            ),
            fix=(
                f"use {_settings(then)}: the same configs, overlays and overrides as for the run that was saved."
                if differ
                else f"make the module as it was saved: {checkpoint['hparams_name']} with {_settings(saved) or 'its defaults'}."
            ),
        ) from None


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _missing(module: Module, method: str, fix: str) -> ModuleError:
    return ModuleError(
        f"{type(module).__name__} has no {method}.",
        why=f"this run calls {method}, and Module has no default for it.",
        fix=f"define {method}: {fix}.",
    )


def overrides(module: object, name: str) -> bool:
    """Whether ``module`` has a ``name`` of its own rather than the empty one of its base class."""
    found = getattr(module, name, None)
    return getattr(found, "__func__", found) is not getattr(Module, name, None)
