"""The Trainer: wires what the loops need, and holds no algorithm."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.arguments import callbacks_for, described, folder_for, listed, loggers_for, require_unique_keys
from treadle.callbacks import Callback, EarlyStopping, ModelCheckpoint
from treadle.callbacks.hooks import Hooks
from treadle.checkpoint import Checkpoint, make_folder, read, write
from treadle.console import announce, announce_checkpoint, table
from treadle.data import DataModule, Stream
from treadle.errors import CheckpointError, ModuleError
from treadle.fabric import Fabric
from treadle.loggers import CSVLogger, Logger
from treadle.loops.evaluate import TEST, VALIDATE, Stage, evaluate, predict
from treadle.loops.finding import FOLDER, find, is_newest_state
from treadle.loops.fit import FitLoop
from treadle.loops.optimization import AutomaticOptimization
from treadle.loops.run import Results, Run
from treadle.loops.settings import Duration, Limits, Rhythm, Stepping, check_count, check_flag
from treadle.loops.state import (
    Parts,
    checkpoint_of,
    last_epoch,
    logger_keys,
    restore_callbacks,
    restore_model,
    restore_training,
    warn_of_changes,
)
from treadle.metrics import Logbook, as_floats
from treadle.module import Module, overrides
from treadle.optim import Optimizers, read_optimizers
from treadle.precision import Precision
from treadle.progress import Progress
from treadle.strategies import Strategy

StageName = Literal["fit", "validate", "test", "predict"]
LOADERS = {
    "train": "train_dataloader",
    "val": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}


class Trainer:
    """Trains and evaluates a ``Module``.

    Args:
        accelerator: ``auto`` (an accelerator if the machine has one), ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        devices: How many; this version uses one.
        strategy: ``auto`` or ``single``, or your own ``Strategy``.
        precision: ``32-true``, or your own ``Precision``.
        logger: True for CSV files in ``default_root_dir/runs``; False for none; one ``Logger`` or several.
        callbacks: One or several. Without a ``ModelCheckpoint`` among them, a default one is added.
        fast_dev_run: Run so many batches (True: 1) of each loader, once, and write nothing.
        max_epochs: Default: 1000, or no bound with ``max_steps``; -1 is no bound.
        min_epochs: Nothing stops the run before, but ``max_steps``.
        max_steps: Optimizer steps; -1 is no bound.
        min_steps: Nothing stops the run before, but ``max_steps``.
        limit_train_batches: Batches an epoch: a count (int) or a fraction of the loader (float).
        limit_val_batches: The same for validation; 0 turns it off.
        limit_test_batches: The same for tests.
        limit_predict_batches: The same for predictions.
        val_check_interval: Validate every so many batches (int), or at every such fraction of an epoch (float).
        check_val_every_n_epoch: Validate in every so many epochs.
        num_sanity_val_steps: Batches to validate before training starts; -1 all, 0 none.
        log_every_n_steps: Write what was logged on steps once in so many.
        enable_checkpointing: Save. Off, no ``ModelCheckpoint`` may be given.
        enable_progress_bar: Show one, if standard error is a terminal.
        accumulate_grad_batches: Batches for one optimizer step; gradients are the mean over them, in an epoch's shorter
            last window too.
        gradient_clip_val: Bound for the gradients; None for no clipping.
        gradient_clip_algorithm: Whether it bounds their joint L2 norm (``norm``) or each element (``value``).
        detect_anomaly: Stop at the first loss or gradient that is not a number. Slow: syncs each step.
        default_root_dir: Where ``runs`` lies; default: the working directory.

    Raises:
        ConfigError: A value out of its range, or two that contradict each other.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int | str = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
        logger: bool | Logger | Sequence[Logger] = True,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: bool | int = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        val_check_interval: int | float = 1.0,
        check_val_every_n_epoch: int = 1,
        num_sanity_val_steps: int = 2,
        log_every_n_steps: int = 50,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        detect_anomaly: bool = False,
        default_root_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        check_count("fast_dev_run", fast_dev_run)
        check_flag("enable_checkpointing", enable_checkpointing)
        check_flag("enable_progress_bar", enable_progress_bar)
        self.fast_dev_run = int(fast_dev_run)
        if self.fast_dev_run:
            max_epochs, max_steps, num_sanity_val_steps, logger, val_check_interval = (
                1,
                self.fast_dev_run,
                0,
                False,
                1.0,
            )
            check_val_every_n_epoch, enable_checkpointing = 1, False
            callbacks = [c for c in listed(callbacks) if not isinstance(c, ModelCheckpoint)]
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = self.fast_dev_run
        self.fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
        self.duration = Duration(
            max_epochs=max_epochs,
            min_epochs=0 if min_epochs is None else min_epochs,
            max_steps=max_steps,
            min_steps=0 if min_steps is None else min_steps,
        )
        self.limits = Limits(
            train=limit_train_batches, val=limit_val_batches, test=limit_test_batches, predict=limit_predict_batches
        )
        self.rhythm = Rhythm(
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
        )
        self.stepping = Stepping(
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            detect_anomaly=detect_anomaly,
        )
        self.default_root_dir = folder_for(default_root_dir)
        self.loggers: list[Logger] = loggers_for(logger, self.default_root_dir)
        self.callbacks = callbacks_for(callbacks, enable_checkpointing, enable_progress_bar)
        self.progress = Progress()
        self.datamodule: DataModule | None = None
        self._results = Results()
        self._run: Run | None = None
        self._parts: Parts | None = None
        self._streams: dict[str, Stream] = {}
        self._continued: Path | None = None

    # --- the four things it does ---

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train ``model``.

        Args:
            model: What to train.
            train_dataloaders: A ``DataLoader`` or any iterable of batches, or a ``DataModule``. Default: the model's own.
            val_dataloaders: The same for validation; none is fine.
            datamodule: Brings its loaders, in place of the two.
            ckpt_path: Continue from a checkpoint: a path, ``"last"`` (the newest state of the newest run), ``"best"``, or
                ``"auto"`` (``"last"`` if there is one, else a new run). The newest state of a run continues that run, in
                its folder and bit for bit; an older one branches off into a new folder.

        Raises:
            TreadleError: See ``treadle.errors``.
        """
        if isinstance(train_dataloaders, DataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        self.progress, self._results = Progress(), Results()
        with self._stage("fit", model, datamodule) as parts:
            _require(model, "training_step")
            _require(model, "configure_optimizers")
            train = self._stream("train", train_dataloaders)
            val = self._val_stream(val_dataloaders)
            checkpoint = self._load(parts, ckpt_path, resume=True)
            model_on_device = self.fabric.setup(model)
            assert model_on_device is not None
            parts.optimizers = read_optimizers(model.configure_optimizers())
            run = parts.run
            book = Logbook(train.batch_size, self.fabric.all_reduce)
            parts.loop = FitLoop(
                run,
                book,
                train,
                val,
                AutomaticOptimization(run, book, parts.optimizers, self.stepping),
                self.duration,
                self.rhythm,
                self.stepping.accumulate_grad_batches,
            )
            if self._continued is None:
                for logger in self.loggers:
                    logger.start_run()
            if self.is_global_zero:
                if self.loggers:
                    make_folder(self.run_folder)
                announce(model, self.fabric, self.run_folder if self.loggers else None, self._position(checkpoint))
            run.hooks.call(None, "on_fit_start")
            self._log_hyperparameters(parts)
            if checkpoint is not None:
                restore_training(parts, checkpoint)
            with torch.autograd.set_detect_anomaly(True) if self.stepping.detect_anomaly else nullcontext():
                parts.loop()
            run.hooks.call(None, "on_fit_end")

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        datamodule: DataModule | None = None,
        verbose: bool = True,
    ) -> list[dict[str, float]]:
        """Evaluate on the validation data.

        Args:
            model: Default: the one that was fitted, with its weights as they are.
            dataloaders: A ``DataLoader``, any iterable of batches, or a ``DataModule``. Default: the model's own.
            ckpt_path: Load weights and counters first: a path, ``"last"`` or ``"best"``.
            datamodule: Brings its loader.
            verbose: Print a table.

        Returns:
            One dict of metrics, by the names they were logged under.
        """
        return self._evaluate(VALIDATE, "val", model, dataloaders, ckpt_path, datamodule, verbose)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        datamodule: DataModule | None = None,
        verbose: bool = True,
    ) -> list[dict[str, float]]:
        """As :meth:`validate`, on the test data."""
        return self._evaluate(TEST, "test", model, dataloaders, ckpt_path, datamodule, verbose)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> list[Any] | None:
        """Apply ``predict_step`` to each batch.

        Returns:
            Its results in order, on the CPU; None if not asked for, and then memory stays flat.
        """
        with self._stage("predict", self._model(model), _datamodule(dataloaders, datamodule)) as parts:
            stream = self._stream("predict", None if isinstance(dataloaders, DataModule) else dataloaders)
            self._load(parts, ckpt_path, resume=False, verb="predict")
            self.fabric.setup(parts.run.module)
            return predict(parts.run, stream, return_predictions=return_predictions)

    def _evaluate(
        self,
        stage: Stage,
        loader: str,
        model: Module | None,
        dataloaders: Any,
        ckpt_path: str | os.PathLike[str] | None,
        datamodule: DataModule | None,
        verbose: bool,
    ) -> list[dict[str, float]]:
        with self._stage(stage.name, self._model(model), _datamodule(dataloaders, datamodule)) as parts:
            _require(parts.run.module, stage.step)
            stream = self._stream(loader, None if isinstance(dataloaders, DataModule) else dataloaders)
            self._load(parts, ckpt_path, resume=False, verb=stage.name if verbose else None)
            self.fabric.setup(parts.run.module)
            metrics = evaluate(parts.run, stage, stream)
            if verbose and self.is_global_zero:
                print(table(stage.name, metrics))
            return [metrics]

    # --- saving ---

    def save_checkpoint(self, path: str | os.PathLike[str], weights_only: bool = False) -> None:
        """Save the run as it stands. Rows logged so far are on disk before the checkpoint is.

        Inside a fit, a hook other than ``on_savepoint`` is in the middle of a batch's work: see there.

        Raises:
            ModuleError: Nothing has run yet.
            CheckpointError: The disk is full or can't be written, or a hook added something that a file can't hold.
        """
        if self._parts is None:
            raise ModuleError(
                "there is nothing to save.",
                why="no model was given to this trainer yet.",
                fix="trainer.fit(model) first.",
            )
        checkpoint = checkpoint_of(self._parts, weights_only=weights_only)
        if not self.is_global_zero:
            return
        for logger in self.loggers:
            logger.save()
        try:
            write(Path(path), checkpoint)
        except OSError as error:
            raise CheckpointError(
                f"{path} could not be written: {error.strerror or error}.",
                why="checkpoints are written whole or not at all; the one before is intact.",
                fix="make room or choose another dirpath, then resume from last.ckpt.",
            ) from error

    # --- what users read ---

    @property
    def module(self) -> Module | None:
        """The module of the last call."""
        return self._parts.run.module if self._parts else None

    @property
    def current_epoch(self) -> int:
        """The running epoch, from 0; after a fit, how many there were."""
        return self.progress.epoch

    @property
    def last_epoch(self) -> int:
        """The epoch of the batch trained on last."""
        return last_epoch(self._run) if self._run else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.global_step

    @property
    def max_epochs(self) -> int | None:
        return self.duration.max_epochs

    @property
    def max_steps(self) -> int:
        return self.duration.max_steps

    @property
    def accumulate_grad_batches(self) -> int:
        return self.stepping.accumulate_grad_batches

    @property
    def log_every_n_steps(self) -> int:
        return self.rhythm.log_every_n_steps

    @property
    def should_stop(self) -> bool:
        """Set it to end the fit after the batch at hand."""
        return self._run is not None and self._run.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if self._run is not None:
            self._run.should_stop = value

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The newest value of everything logged."""
        metrics = self._results.tensors()
        if self._run is not None and self._run.book is not None:
            metrics.update({name: torch.as_tensor(value) for name, value in self._run.book.step_values().items()})
        return metrics

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The newest value of everything written to loggers."""
        return dict(self._run.logged) if self._run else {}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with ``prog_bar=True``: its newest value. Syncs."""
        values = dict(self._results.shown)
        if self._run is not None and (book := self._run.book) is not None:
            values.update({**book.epoch_values(of="prog_bar"), **book.step_values(of="prog_bar")})
        return as_floats(values)

    def is_fresh(self, metric: str) -> bool:
        """Whether ``metric`` was found after the batch trained on last."""
        book = self._run.book if self._run is not None else None
        logged_on_steps = book is not None and metric in book.step_values()
        return logged_on_steps or self._results.is_fresh(metric, self.progress.batches)

    @property
    def logger(self) -> Logger | None:
        return self.loggers[0] if self.loggers else None

    @property
    def log_dir(self) -> Path | None:
        """The folder of the first logger that has one."""
        return next((logger.log_dir for logger in self.loggers if logger.log_dir is not None), None)

    @property
    def run_folder(self) -> Path:
        """Where the run's files lie: the loggers' folder, or ``default_root_dir`` without one."""
        return self.log_dir or self.default_root_dir

    @property
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        return [callback for callback in self.callbacks if isinstance(callback, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def optimizers(self) -> list[Optimizer]:
        return list(self._parts.optimizers.optimizers) if self._parts else []

    @property
    def train_dataloader(self) -> Any:
        return self._loader("train")

    @property
    def val_dataloaders(self) -> Any:
        return self._loader("val")

    @property
    def num_training_batches(self) -> int | float:
        """Batches an epoch; infinity if the loader can't tell, 0 without one."""
        return self._length("train")

    @property
    def num_val_batches(self) -> int | float:
        return self._length("val")

    @property
    def num_test_batches(self) -> int | float:
        return self._length("test")

    @property
    def num_predict_batches(self) -> int | float:
        return self._length("predict")

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit, for schedules that need to know; infinity if nothing bounds it."""
        batches = self.num_training_batches
        windows = batches if batches == float("inf") else -(-batches // self.stepping.accumulate_grad_batches)
        steps = min(windows * self.duration.epochs if windows else 0, self.duration.steps)
        return steps if steps == float("inf") else int(steps)

    @property
    def sanity_checking(self) -> bool:
        return self._run is not None and self._run.stage == "sanity_check"

    @property
    def training(self) -> bool:
        return self._run is not None and self._run.stage == "train"

    @property
    def validating(self) -> bool:
        return self._run is not None and self._run.stage == "validate"

    @property
    def testing(self) -> bool:
        return self._run is not None and self._run.stage == "test"

    @property
    def predicting(self) -> bool:
        return self._run is not None and self._run.stage == "predict"

    @property
    def is_global_zero(self) -> bool:
        return self.fabric.is_global_zero

    @property
    def global_rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        return self.fabric.world_size

    def print(self, *values: object) -> None:
        """Print once, on rank 0."""
        self.fabric.print(*values)

    # --- wiring ---

    @contextmanager
    def _stage(self, name: StageName, module: Module, datamodule: DataModule | None) -> Iterator[Parts]:
        """Everything around a loop: attach, prepare, set up; afterwards, or after an error, tear down."""
        if not isinstance(module, Module):
            raise ModuleError(
                f"{name} was given {described(module)}.",
                why="it runs an object of treadle.Module, which says what a step is.",
                fix=(
                    f"{module.__name__}(...)"
                    if isinstance(module, type)
                    else "derive your model from treadle.Module, or wrap it in one."
                ),
            )
        if isinstance(datamodule, type):
            raise ModuleError(
                f"datamodule is {described(datamodule)}.",
                why="the run reads from an object.",
                fix=f"datamodule={getattr(datamodule, '__name__', 'MyData')}(...)",
            )
        require_unique_keys(self.callbacks)
        self.datamodule, self._streams, self._continued = datamodule, {}, None
        module.__dict__["_trainer"] = self
        if datamodule is not None:
            datamodule.__dict__["_trainer"] = self
        hooks = Hooks.of(self, self.callbacks, module)
        run = Run(self.fabric, module, hooks, self.loggers, self.progress, self._results)
        self._run, self._parts = run, Parts(run, datamodule, self.callbacks, Optimizers((), ()))
        try:
            if datamodule is not None:
                datamodule.prepare_data()
            module.prepare_data()
            if datamodule is not None:
                datamodule.setup(name)
            hooks.call(None, "setup", name)
            yield self._parts
        except BaseException as error:
            hooks.call(None, "on_exception", error)
            for logger in self.loggers:
                logger.finalize("failed")
            raise
        finally:
            run.close_book()
            for stream in self._streams.values():
                stream.close()
            with ExitStack() as teardowns:  # the last one in comes first; one that fails keeps no other from running
                teardowns.callback(run.leave)
                for listener in reversed(hooks["teardown"]):
                    teardowns.callback(listener, name)
                if datamodule is not None:
                    teardowns.callback(datamodule.teardown, name)
        for logger in self.loggers:
            logger.finalize("success")

    def _stream(self, kind: str, loader: Any) -> Stream:
        assert self._run is not None
        method = LOADERS[kind]
        source = self.datamodule if self.datamodule is not None else self._run.module
        if loader is None:
            loader = getattr(source, method)()
        if loader is None:
            raise ModuleError(
                f"{type(source).__name__}.{method} returned None.",
                why="this run reads batches from it.",
                fix="return a DataLoader or any iterable of batches.",
            )
        stream = Stream(loader, limit=getattr(self.limits, kind), name=f"the {kind} loader")
        self._streams[kind] = stream
        return stream

    def _val_stream(self, loader: Any) -> Stream | None:
        """Validation while fitting is left out if there is no loader or no step for it."""
        assert self._run is not None
        source = self.datamodule if self.datamodule is not None else self._run.module
        base = DataModule if self.datamodule is not None else Module
        brings_one = type(source).val_dataloader is not base.val_dataloader
        if self.limits.val == 0 or (loader is None and not brings_one):
            return None
        _require(self._run.module, "validation_step")
        return self._stream("val", loader)

    def _load(
        self, parts: Parts, ckpt_path: str | os.PathLike[str] | None, *, resume: bool, verb: str | None = None
    ) -> Checkpoint | None:
        path = self._find(ckpt_path, resume)
        if path is None:
            return None
        checkpoint = read(path)
        restore_model(parts, checkpoint)
        if verb is not None and self.is_global_zero:
            announce_checkpoint(verb, path, checkpoint)
        if resume:
            warn_of_changes(parts, checkpoint)
            restore_callbacks(parts, checkpoint)
        if resume and "loggers" in checkpoint and is_newest_state(path):
            self._continued = path
            for key, logger in logger_keys(self.loggers):
                if path.parent.name == FOLDER:
                    logger.resume_in(path.parent.parent)
                if key in checkpoint["loggers"]:
                    logger.load_state_dict(checkpoint["loggers"][key])
        return checkpoint

    def _find(self, ckpt_path: str | os.PathLike[str] | None, resume: bool) -> Path | None:
        own = self.checkpoint_callback
        if ckpt_path == "best" and own is not None and own.best_model_path:
            return Path(own.best_model_path)
        runs = [Path(logger.save_dir) / logger.name for logger in self.loggers if isinstance(logger, CSVLogger)]
        folders = [callback.dirpath for callback in self.checkpoint_callbacks if callback.dirpath is not None]
        return find(
            ckpt_path,
            runs=runs[0] if runs else self.default_root_dir / "runs",
            own_folders=folders if runs else [*folders, self.default_root_dir / FOLDER],
            may_start=resume,
        )

    def _position(self, checkpoint: Checkpoint | None) -> str:
        """Where a resumed run goes on, for its first line."""
        if checkpoint is None:
            return ""
        how = "continued" if self._continued else "branched off"
        over = self.progress.epoch >= self.duration.epochs or self.progress.global_step >= self.duration.steps
        left = "; nothing left to train: raise max_epochs or max_steps" if over else ""
        return f"; {how} at epoch {self.progress.epoch}, step {self.progress.global_step}{left}"

    def _log_hyperparameters(self, parts: Parts) -> None:
        params = dict(parts.run.module.logged_hparams)
        if parts.datamodule is not None:
            params = {**parts.datamodule.logged_hparams, **params}
        if params and self.is_global_zero and self._continued is None:
            for logger in self.loggers:
                logger.log_hyperparams(params)

    def _model(self, model: Module | None) -> Module:
        if model is None and self.module is None:
            raise ModuleError(
                "no model to evaluate.", why="this trainer has not fitted one.", fix="trainer.test(model, ...)"
            )
        return model if model is not None else self.module  # type: ignore[return-value]

    def _loader(self, kind: str) -> Any:
        return self._streams[kind].loader if kind in self._streams else None

    def _length(self, kind: str) -> int | float:
        if kind not in self._streams:
            return 0
        length = self._streams[kind].length
        return float("inf") if length is None else length


def _datamodule(dataloaders: Any, datamodule: DataModule | None) -> DataModule | None:
    return dataloaders if isinstance(dataloaders, DataModule) else datamodule


def _require(module: Module, method: str) -> None:
    """Fail before anything runs when a method that will be called is missing, with the message that it would give."""
    if not overrides(module, method):
        getattr(module, method)(*([None, 0] if method.endswith("_step") else []))
