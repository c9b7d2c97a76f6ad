"""The model, its loss and its optimizer: what a user writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from treadle.attachment import trainer_of
from treadle.batches import move
from treadle.checkpoint import Checkpoint, here, read
from treadle.checkpoint.foreign import read_lightning, written_by_lightning
from treadle.checkpoint.remote import location
from treadle.errors import CheckpointError, ConfigError, ModuleError, warn
from treadle.hyperparameters import HasHyperParameters, arguments_for, read_hyperparameters
from treadle.metrics import Logbook, ReduceFx
from treadle.strategies.sharding import load_full_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer
    from typing_extensions import Self

    from treadle.callbacks import Callback
    from treadle.fabric import ClipAlgorithm, Fabric
    from treadle.loggers import Logger
    from treadle.trainer import Trainer


_OF_A_RUN = ("_trainer", "_logbook", "_toggled", "training_step", "log", "log_dict")
"""Attributes that a run leaves in an object; the last three when its step is compiled."""


class Module(HasHyperParameters, nn.Module):
    """An ``nn.Module`` that says how to train itself. Works without a Trainer, as any other ``nn.Module``.

    Override ``training_step`` and ``configure_optimizers`` to train, ``validation_step`` and ``test_step`` to evaluate,
    and the hooks you need; a hook that is not overridden is never called.
    """

    automatic_optimization: bool = True
    """False: ``training_step`` calls ``manual_backward`` and steps the optimizers itself."""
    strict_loading: bool = True
    """Every weight must be in a checkpoint and the other way round, where the Trainer loads one."""
    example_input_array: Any = None
    """An input of ``forward``, for summaries and exports: a tensor, a tuple of arguments, or a dict of them by name."""

    # --- steps: each takes batch, batch_idx and dataloader_idx, of which it may leave out the later ones and which it may
    # name as it likes ---

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch: a tensor of shape ``()``, a dict with it under ``"loss"``, or None to skip the batch.

        A dict may have a ``"weight"`` beside the loss, a number or a tensor of shape ``()``, not negative: how much the
        batch counts (tokens, for a mean over tokens). Gradients of an optimizer step are then the weighted mean over its
        batches and ranks, and means over the epoch of what this method logged without a ``batch_size`` are weighted by
        it, so that both are the same however the samples are split. A batch of weight 0 counts nothing; if its loss is
        not a number, give the 0 as a number, not as a tensor, which is not read. Either all batches have a weight or
        none has. In manual optimization anything may be returned, and a weight means nothing.
        """
        raise _missing(self, "training_step", "return the loss of a batch, a tensor of shape ()")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs without gradients and in eval mode; log metrics here. With several loaders it takes ``dataloader_idx``."""
        raise _missing(self, "validation_step", "log the metrics of a batch")

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """As ``validation_step``, on the test data."""
        raise _missing(self, "test_step", "log the metrics of a batch")

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """What ``Trainer.predict`` returns for a batch: by default the module applied to it."""
        return self(args[0])

    def configure_optimizers(self) -> Any:
        """An optimizer; a list of them; ``([optimizers], [schedulers])``; ``{"optimizer": ..., "lr_scheduler": ...}``,
        where the scheduler may be a dict of scheduler, interval (``epoch`` or ``step``), frequency, monitor, strict and
        name; a list of such dicts; or None to train without one. Several need manual optimization."""
        raise _missing(self, "configure_optimizers", "return torch.optim.AdamW(self.parameters(), lr=1e-3)")

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Callbacks that belong to the module. They take the place of the Trainer's of the same type."""
        return []

    def configure_model(self) -> None:
        """Make layers here rather than in ``__init__`` when they should be made where they will lie. Called after
        ``setup`` in each process, before weights are loaded; may be called again, so make only what is missing."""

    # --- how a training step becomes an optimizer step: override to change it ---

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of ``loss``, divided and scaled already; added to what the parameters have."""
        loss.backward(*args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One step. ``optimizer_closure`` computes the gradients (forward, backward, hooks, clipping) and returns the
        loss; it must be called, by ``optimizer.step`` or before it."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm | None = None,
    ) -> None:
        """Before each step, with the Trainer's settings; gradients are whole and unscaled."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """One step of a scheduler, with its metric if it follows one."""
        scheduler.step() if metric is None else scheduler.step(metric)

    # --- how a batch gets to the device ---

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch where the loader made it. Returns it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """``batch`` on ``device``; override for batches of a type of their own."""
        return move(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, as augmentation there does. Returns it."""
        return batch

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

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """``outputs``: what ``training_step`` returned, a loss alone as ``{"loss": loss}``, nothing as ``{}``."""

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None: ...
    def on_before_backward(self, loss: Tensor) -> None: ...
    def on_after_backward(self) -> None: ...

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are whole here, and not clipped yet."""

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation inside a fit, if no gradients wait for a step: frees their memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """The mode to validate in; the default is that of every submodule."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """The mode afterwards. Not overridden, each submodule gets back the one it had."""
        self.train()

    def on_test_model_eval(self) -> None:
        self.eval()

    def on_test_model_train(self) -> None:
        self.train()

    def on_predict_model_eval(self) -> None:
        self.eval()

    def on_predict_model_train(self) -> None:
        self.train()

    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_validation_interrupted(self) -> None:
        """A signal ends the run inside a validation; see ``Callback.on_validation_interrupted``."""

    def on_validation_epoch_start(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_test_start(self) -> None: ...
    def on_test_end(self) -> None: ...
    def on_test_epoch_start(self) -> None: ...
    def on_test_epoch_end(self) -> None: ...
    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_predict_start(self) -> None: ...
    def on_predict_end(self) -> None: ...
    def on_predict_epoch_start(self) -> None: ...
    def on_predict_epoch_end(self) -> None: ...
    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the module needs besides its ``state_dict``: tensors and plain values, under names of its own."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before the weights are loaded. What it changes in ``checkpoint`` is what is loaded: to rename old weights."""

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
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: ReduceFx = "mean",
        enable_graph: bool = False,
        sync_dist: bool | None = None,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: float | Tensor | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log one number. Nothing is copied from the device before the next log point.

        Args:
            name: What the column is called. ``step`` is the row's place on the x axis, ``epoch`` its epoch.
            value: A float, a tensor with one element, kept where it is, or a metric object (with ``update``, ``compute``
                and ``reset``), asked when its value is needed and reset when the epoch is over.
            prog_bar: Show it in the progress bar.
            logger: Write it to the loggers; None is True.
            on_step: Write the value of the step at each log point. Default: in hooks of a training batch.
            on_epoch: Write the reduction over the epoch at its end. Default: everywhere else. With both, the columns
                are ``name_step`` and ``name_epoch``.
            reduce_fx: How values reduce to one over an epoch. Means are weighted by the size of each batch.
            enable_graph: Not here: logged values carry no gradient.
            sync_dist: Reduce over all ranks. Default: the epoch's value, which costs one small message, and not the step's,
                which would cost one in each row; False: rank 0's own.
            sync_dist_group: Not here: it is all ranks.
            add_dataloader_idx: With several loaders, each has a metric of its own, ``name/dataloader_idx_N``. False: one
                over all of them.
            batch_size: The size of this batch, where the loader can't tell it.
            metric_attribute: Where the metric object lies is found without it.
            rank_zero_only: The value is known on rank 0 only.

        Raises:
            ModuleError: Not a number, or called where nothing can be logged.
            ConfigError: Called again in the same hook with other settings, or with one that is not here.
        """
        book: Logbook | None = self.__dict__.get("_logbook")
        if book is None:
            return warn("log", f"self.log({name!r}) outside of a run is not written anywhere.")
        if enable_graph or sync_dist_group is not None:
            raise _not_here(name, enable_graph)
        options = (prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, add_dataloader_idx, rank_zero_only)
        book.log(name, value, options, batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], **settings: Any) -> None:
        """``self.log`` for each item of ``dictionary``, with the same settings."""
        if not hasattr(dictionary, "items"):
            raise ModuleError(
                f"self.log_dict was given a {type(dictionary).__name__}.",
                why="it logs names with their values.",
                fix='self.log_dict({"loss": loss, "accuracy": accuracy})',
            )
        for name, value in dictionary.items():
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
        return {name: value for name, value in self.__dict__.items() if name not in _OF_A_RUN}

    @property
    def logger(self) -> Logger | None:
        """The first of the Trainer's loggers; None without any."""
        return self.trainer.logger if "_trainer" in self.__dict__ else None

    @property
    def loggers(self) -> list[Logger]:
        return self.trainer.loggers

    @property
    def fabric(self) -> Fabric:
        """The engine below the Trainer: device, ranks, collectives."""
        return self.trainer.fabric

    # --- manual optimization ---

    def optimizers(self, wrapped: bool = True) -> Any:
        """What ``configure_optimizers`` returned: one optimizer, or a list if there is not exactly one.

        Args:
            wrapped: As :class:`treadle.optim.TrainerOptimizer`, whose ``step`` counts, clips and accumulates; False for
                the bare ones, whose steps the Trainer knows nothing of.
        """
        found = self.trainer.wrapped_optimizers if wrapped else self.trainer.optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """The schedulers of ``configure_optimizers``: None, one, or a list of them."""
        found = [schedule.scheduler for schedule in self.trainer.lr_scheduler_configs]
        return (found[0] if len(found) == 1 else found) if found else None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """``loss.backward()`` with everything a backward of the Trainer has: hooks, precision, and division by the
        number of batches that are accumulated."""
        self.trainer.manual_optimization.backward(loss, *args, **kwargs)

    def clip_gradients(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm | None = None,
    ) -> None:
        """Bound the gradients of ``optimizer``'s parameters in place. Default: by the Trainer's settings, or not at all."""
        settings = self.trainer.stepping
        bound = settings.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        if not bound:
            return
        by_value = (gradient_clip_algorithm or settings.gradient_clip_algorithm) == "value"
        self.trainer.fabric.clip_gradients(
            [parameter for group in optimizer.param_groups for parameter in group["params"]],
            max_norm=None if by_value else bound,
            clip_val=bound if by_value else None,
            optimizer=getattr(optimizer, "optimizer", optimizer),
        )

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Until ``untoggle_optimizer``: only the parameters of ``optimizer`` require gradients, of all that any
        optimizer has."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        others = [p for o in self.trainer.optimizers for group in o.param_groups for p in group["params"]]
        toggled = [(parameter, parameter.requires_grad) for parameter in others if id(parameter) not in own]
        self.__dict__.setdefault("_toggled", []).append(toggled)
        for parameter, _ in toggled:
            parameter.requires_grad_(False)

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo the last ``toggle_optimizer``."""
        for parameter, required in self.__dict__.get("_toggled", [[]]).pop():
            parameter.requires_grad_(required)

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """``toggle_optimizer`` inside, ``untoggle_optimizer`` after, whatever happens."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # --- for one's own use ---

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """``data``, with each tensor in it from every rank, stacked in a new first dimension; as it is on one rank.

        Raises:
            ConfigError: ``group`` is given: it is all ranks here.
        """
        if group is not None:
            raise ConfigError(
                "all_gather(group=...).",
                why="it gathers from all ranks.",
                fix="leave group out, or use torch.distributed.",
            )
        return self.trainer.fabric.all_gather(data, sync_grads=sync_grads)

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
        """The Trainer's; 0 without one."""
        return self.trainer.current_epoch if "_trainer" in self.__dict__ else 0

    @property
    def global_step(self) -> int:
        """Training steps that updated weights so far in this run; 0 without a Trainer."""
        return self.trainer.global_step if "_trainer" in self.__dict__ else 0

    @property
    def global_rank(self) -> int:
        return self.trainer.global_rank

    @property
    def local_rank(self) -> int:
        return self.trainer.local_rank

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def print(self, *values: object, **settings: Any) -> None:
        """Print once, on rank 0, above the progress bar."""
        self.trainer.print(*values, **settings)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: str | torch.device = "cpu",
        hparams_file: str | PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool = True,
        **hyperparameters: Any,
    ) -> Self:
        """A module with the weights and hyperparameters of a checkpoint; nothing in the file is executed.

        Args:
            checkpoint_path: The file, or its URL in a store. One of PyTorch Lightning's too: what in it is more than tensors
                and plain values is left out, with a warning that names it.
            map_location: Where its tensors go.
            hparams_file: A JSON or YAML file of hyperparameters, in place of the checkpoint's.
            strict: Every weight must be in the file and the other way round. Default: the module's ``strict_loading``.
            weights_only: Always: what is more than tensors and plain values is not read.
            hyperparameters: Override those of the file.

        Raises:
            CheckpointError: The file is missing, damaged, or lacks an argument that ``__init__`` needs.
            ConfigError: ``weights_only=False``, or a URL that can't be one.
        """
        require_weights_only(weights_only)
        path = location(checkpoint_path)
        with here(path) as file:
            lightning = replace(read_lightning(file, map_location), path=path) if written_by_lightning(file) else None
            if lightning is None:
                checkpoint = read(file, map_location=map_location, known_as=path)
            else:
                checkpoint = lightning.weights()
                if omissions := lightning.omissions(hyperparameters):
                    warn("lightning", omissions)
        saved = checkpoint.get("hyper_parameters", {}) if hparams_file is None else read_hyperparameters(hparams_file)
        module = cls(**arguments_for(cls, saved, hyperparameters, checkpoint_path, checkpoint.get("hparams_argument")))
        module.configure_model()
        module.on_load_checkpoint(checkpoint)  # type: ignore[arg-type]  # what it changes there is what is loaded
        load_weights(module, checkpoint, strict=strict)
        return module


def require_weights_only(weights_only: bool | None) -> None:
    """
    Raises:
        ConfigError: Reading objects from a file was asked for.
    """
    if weights_only is False:
        raise ConfigError(
            "weights_only=False.",
            why="objects in a file can execute code when they are read; checkpoints hold tensors and plain values only.",
            fix="leave weights_only out.",
        )


def class_name(module: nn.Module) -> str:
    """Of the user's class: a strategy that shards derives one from it."""
    return next(kind.__name__ for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed."))


def load_weights(module: Module, checkpoint: Checkpoint, *, strict: bool | None = None) -> None:
    """Give ``module`` the weights of ``checkpoint``.

    Args:
        strict: Default: ``module.strict_loading``.

    Raises:
        CheckpointError: They are not those of such a module.
    """
    try:
        load_full_state(module, checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict)
    except RuntimeError as error:
        saved = checkpoint["hyper_parameters"]
        differ = [name for name, value in saved.items() if name in module.hparams and module.hparams[name] != value]
        then, now = ({name: source[name] for name in differ} for source in (saved, module.hparams))
        raise CheckpointError(
            f"the checkpoint's weights don't fit {class_name(module)}.",
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


def overrides(owner: object, name: str, base: type = Module) -> bool:
    """Whether ``owner`` has a ``name`` of its own rather than the one of its base class."""
    found = getattr(owner, name, None)
    return getattr(found, "__func__", found) is not getattr(base, name, None)


def _not_here(name: str, enable_graph: bool) -> ConfigError:
    if enable_graph:
        return ConfigError(
            f"self.log({name!r}, enable_graph=True).",
            why="logged values are numbers for people; they carry no gradient.",
            fix="keep the tensor yourself, for example self.last_loss = loss.",
        )
    return ConfigError(
        f"self.log({name!r}, sync_dist_group=...).",
        why="a value is reduced over all ranks.",
        fix="reduce it over the group with torch.distributed, then log it.",
    )
