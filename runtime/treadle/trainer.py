"""The Trainer: wires what the loops need, and holds no algorithm."""

from __future__ import annotations

import hashlib
import os
import signal as signals
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch.nn.parameter import is_lazy

from treadle.arguments import (
    callbacks_for,
    described,
    folder_for,
    from_environment,
    listed,
    loggers_for,
    policies,
    precision_and_plugins,
    profiler_of,
    require_bare,
    require_unique_keys,
    takes_each_batch,
    with_the_modules,
    without_writers,
)
from treadle.callbacks import Callback
from treadle.callbacks.hooks import Hooks
from treadle.callbacks.signatures import check as check_signatures
from treadle.checkpoint import Checkpoint, write
from treadle.checkpoint.lineage import Lineage
from treadle.checkpoint.remote import location
from treadle.checkpoint.sharded import write_sharded
from treadle.compiling import Compile, compile_for
from treadle.console import announce, announce_checkpoint, table
from treadle.data import DataModule
from treadle.data.parallel import Shared
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.fabric import Fabric, tell_position
from treadle.loggers import Logger
from treadle.loops.checkpointing import Checkpointing
from treadle.loops.evaluate import TEST, VALIDATE, Stage, evaluate, predict
from treadle.loops.failing import report
from treadle.loops.faults import explained
from treadle.loops.fit import FitLoop
from treadle.loops.loading import Loaders
from treadle.loops.manual import ManualOptimization
from treadle.loops.optimization import AutomaticOptimization
from treadle.loops.run import Results, Run
from treadle.loops.settings import (
    Duration,
    Limits,
    Numerics,
    Rhythm,
    Stepping,
    ValCheckInterval,
    check_count,
    check_flag,
)
from treadle.loops.state import Parts, loads_when_placed, restore_training
from treadle.loops.transfer import transfer_for
from treadle.module import Module, class_name, load_weights, overrides, require_weights_only
from treadle.optim import Optimizers, read_optimizers, warn_of_step_counting
from treadle.precision import Precision
from treadle.progress import Progress
from treadle.reading import Readings
from treadle.remote import run_elsewhere
from treadle.signals import heard
from treadle.strategies import Strategy
from treadle.strategies.sharding import saves_shards

if TYPE_CHECKING:
    from treadle.profilers import Profiler

Function = Literal["fit", "validate", "test", "predict"]


class Trainer(Readings):
    """Trains and evaluates a ``Module``.

    Every argument may also come from the environment: ``TREADLE_TRAINER_MAX_EPOCHS=3``.

    Args:
        accelerator: ``auto`` (an accelerator if the machine has one), ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        devices: How many on each machine, one rank each; which ones; or ``auto``: every accelerator there is, one process
            on CPUs, or as many as torchrun, SLURM or another has started.
        num_nodes: Machines; more than one are started by torchrun, SLURM or another.
        strategy: ``auto`` (``ddp`` on several ranks), ``single``, ``ddp``, ``ddp_find_unused_parameters_true``, ``fsdp``,
            ``fsdp_cpu_offload``; ``ddp_fork`` or ``ddp_spawn`` for ranks started from a notebook; or an object of
            ``treadle.strategies`` or your own.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``bf16-true``, ``16-true``, ``64-true``, ``float8``, or your own
            ``Precision``.
        compile: ``torch.compile`` for ``blocks`` (layers that repeat), ``forward`` (the module's parts) or the whole ``step``;
            True for the first of these that fits; or a ``treadle.compiling.Compile``.
        sync_batchnorm: Batch normalization over the batches of all ranks.
        use_distributed_sampler: Deal a loader's batches out to the ranks; off, every rank reads the loader as it is.
        logger: True (the default) for CSV files in ``default_root_dir/runs``; False for none; one ``Logger`` or several.
        callbacks: One or several. Without a ``ModelCheckpoint`` among them, a default one is added.
        fast_dev_run: Run so many batches (True: 1) of each loader, once, and write nothing.
        max_epochs: Default: 1000, or no bound with ``max_steps``; -1 is no bound.
        min_epochs: Callbacks and ``should_stop`` don't end the run before; ``max_steps`` does.
        max_steps: Optimizer steps; -1 is no bound.
        min_steps: The same in optimizer steps; ``max_epochs`` ends it all the same.
        max_time: Train no longer than that: ``"DD:HH:MM:SS"``, a ``timedelta``, or its arguments in a dict.
        limit_train_batches: Batches an epoch: a count (int) or a fraction of the loader (float).
        limit_val_batches: The same for each validation loader; 0 turns validation off.
        limit_test_batches: The same for tests.
        limit_predict_batches: The same for predictions.
        overfit_batches: Train and validate on so many batches, the same in each epoch, shuffling off.
        val_check_interval: Validate every so many batches (int), at every such fraction of an epoch (float), or at a
            rhythm: ``"200 steps"``, ``"30 min"``, ``"DD:HH:MM:SS"``, a ``timedelta``, ``Every(...)``.
        check_val_every_n_epoch: Validate in every so many epochs. None: ``val_check_interval`` counts across epochs.
        num_sanity_val_steps: Batches to validate before training starts; -1 all, 0 none. Default: 2.
        log_every_n_steps: Write what was logged on steps once in so many.
        enable_checkpointing: Save; the default. Off, no ``ModelCheckpoint`` may be given.
        enable_progress_bar: Show one, if standard error is a terminal; the default.
        enable_model_summary: Print the layers and their sizes before a fit. Default: no.
        accumulate_grad_batches: Batches for one optimizer step; gradients are the mean over them, in an epoch's shorter
            last window too.
        micro_batch_size: Samples of a batch in one forward and backward pass, for the memory's sake: a step's gradient is
            that of the undivided batch. ``auto``: as many as fit, found before the first step. None: all at once.
        gradient_clip_val: Bound for the gradients; None for no clipping.
        gradient_clip_algorithm: Whether it bounds their joint L2 norm (``norm``) or each element (``value``).
        deterministic: Only algorithms that give the same result each time, or an error; ``"warn"``: or a warning.
        benchmark: Let cuDNN find its fastest algorithms.
        inference_mode: Evaluate in ``torch.inference_mode``; False for ``torch.no_grad``.
        profiler: ``simple``, ``advanced``, ``pytorch``, or your own ``Profiler``.
        detect_anomaly: Stop at the first loss or gradient that is not a number. Slow: syncs each step.
        barebones: Nothing but training: no logger, no checkpoint, no bar, and ``self.log`` does nothing. To measure what
            these cost.
        plugins: Your own ``Precision``; or ``"none"`` for a Trainer without the policies that installed packages bring.
        reload_dataloaders_every_n_epochs: Ask for new loaders once in so many epochs; 0 never.
        default_root_dir: Where ``runs`` lies; default: the working directory.
        enable_autolog_hparams: Hand the hyperparameters to the loggers.

    Raises:
        ConfigError: A value out of its range, two that contradict each other, or an argument that there isn't.
    """

    @from_environment
    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
        compile: bool | str | Compile | None = None,  # noqa: A002 - the field's name for it
        sync_batchnorm: bool = False,
        use_distributed_sampler: bool = True,
        logger: bool | Logger | Sequence[Logger] | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: bool | int = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | Mapping[str, float] | None = None,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        overfit_batches: int | float = 0,
        val_check_interval: ValCheckInterval = 1.0,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int = 50,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        micro_batch_size: int | Literal["auto"] | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        profiler: str | Profiler | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: str | Precision | Sequence[Precision] | None = None,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
    ) -> None:
        check_count("fast_dev_run", fast_dev_run)
        check_flag("barebones", barebones)
        for name, flag in (
            ("enable_autolog_hparams", enable_autolog_hparams),
            ("sync_batchnorm", sync_batchnorm),
            ("use_distributed_sampler", use_distributed_sampler),
            ("enable_checkpointing", enable_checkpointing),
            ("enable_progress_bar", enable_progress_bar),
            ("enable_model_summary", enable_model_summary),
        ):
            if flag is not None:
                check_flag(name, flag)
        self.fast_dev_run, self.barebones = int(fast_dev_run), barebones
        given = listed(callbacks)
        if barebones:
            require_bare(
                logger, enable_checkpointing, enable_progress_bar, enable_model_summary, profiler, fast_dev_run
            )
            logger = enable_checkpointing = enable_progress_bar = False
            num_sanity_val_steps = 0
        if self.fast_dev_run:
            logger = enable_checkpointing = False
            max_epochs, max_steps, val_check_interval, check_val_every_n_epoch = 1, self.fast_dev_run, 1.0, 1
            num_sanity_val_steps = overfit_batches = 0
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = self.fast_dev_run
            given = without_writers(given)
        precision, named = precision_and_plugins(precision, plugins)
        self.fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
        )
        self._compile = compile_for(compile)
        self._sync_batchnorm, self.deals_out = sync_batchnorm, use_distributed_sampler
        self.duration = Duration(
            max_epochs=max_epochs,
            min_epochs=0 if min_epochs is None else min_epochs,
            max_steps=max_steps,
            min_steps=0 if min_steps is None else min_steps,
        )
        self.limits = Limits(
            train=limit_train_batches,
            val=limit_val_batches,
            test=limit_test_batches,
            predict=limit_predict_batches,
            overfit=overfit_batches,
        )
        self.rhythm = Rhythm(
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=2 if num_sanity_val_steps is None else num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            reload_dataloaders_every_n_epochs=reload_dataloaders_every_n_epochs,
        )
        self.stepping = Stepping(
            accumulate_grad_batches=accumulate_grad_batches,
            micro_batch_size=micro_batch_size,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )
        self.numerics = Numerics(
            detect_anomaly=detect_anomaly,
            deterministic=deterministic,
            benchmark=benchmark,
            inference_mode=inference_mode,
        )
        self._profiler = profiler_of(profiler)
        self.default_root_dir = folder_for(default_root_dir)
        policy_callbacks, policy_loggers, self._policies = policies(named)
        self.loggers = loggers_for(logger, self.default_root_dir)
        if not (barebones or self.fast_dev_run):
            self.loggers += policy_loggers
        self.callbacks = callbacks_for(
            [*given, *policy_callbacks],
            bar=enable_progress_bar is not False,
            summary=bool(enable_model_summary),
            max_time=max_time,
            checkpointing=enable_checkpointing,
        )
        self._logs_hparams = enable_autolog_hparams
        self.progress = Progress()
        self.datamodule: DataModule | None = None
        self.ckpt_path: Path | None = None
        self._log_dir = None
        self._results = Results()
        self._run: Run | None = None
        self._parts: Parts | None = None
        self._loaders: Loaders | None = None
        self._function: str | None = None
        self._status = "initializing"
        self._checkpointing: Checkpointing | None = None
        self._replaced: tuple[list[Callback], list[Callback]] | None = None

    # --- the four things it does ---

    def fit(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train ``model``.

        Args:
            model: What to train.
            train_dataloaders: A ``DataLoader`` or any iterable of batches; several of them in a list, a dict or a
                ``CombinedLoader``; or a ``DataModule``. Default: the model's own.
            val_dataloaders: The same for validation; none is fine.
            datamodule: Brings its loaders; the two must not be given then.
            ckpt_path: Continue from a checkpoint: a path, ``"last"`` (the newest state of the newest run), ``"best"``, or
                ``"auto"`` (``"last"`` if there is one, else a new run). The newest state of a run continues that run, in
                its folder and bit for bit; an older one branches off into a new folder.
            weights_only: Always: nothing but tensors and plain values is read.

        Raises:
            TreadleError: See ``treadle.errors``.
        """
        require_weights_only(weights_only)
        if self.fabric.starts_elsewhere:
            run_elsewhere(self, "fit", model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
            return
        train_dataloaders, datamodule = _split(train_dataloaders, datamodule)
        if val_dataloaders is not None and datamodule is not None:
            raise _two_sources()
        self.progress, self._results = Progress(), Results()
        given = {"train": train_dataloaders, "val": val_dataloaders}
        with (
            heard(tells=self.is_global_zero, at_work=False) as asked,
            self._stage("fit", model, datamodule, given) as (parts, loaders),
        ):
            _require(model, "training_step")
            _require(model, "configure_optimizers")
            if loaders.validates:
                _require(model, "validation_step")
            if self.fabric.precision.weights is not None:  # a checkpoint's weights are loaded in their format
                self.fabric.precision.convert(model)
            checkpoint = self._load(parts, ckpt_path, resume=True)
            self._place(model, checkpoint)
            parts.optimizers = read_optimizers(model.configure_optimizers())
            parts.loop = self._fit_loop(parts, loaders)
            self._start_run(parts, checkpoint)
            parts.run.hooks.call(None, "on_fit_start")
            self._log_hyperparameters(parts)
            if checkpoint is not None:
                restore_training(parts, checkpoint)
                parts.loop.saved_data = dict(checkpoint.get("lineage", {}).get("data", {}))
            checkpoint = None  # as large as the run's state
            parts.loop.asked, asked.at_work = asked, True
            with torch.autograd.set_detect_anomaly(True) if self.numerics.detect_anomaly else nullcontext():
                parts.loop()
            asked.at_work, signal = False, parts.loop.agreement.signal
            if signal:
                self._make_way(signal)
            parts.run.hooks.call(None, "on_fit_end")
            if signal == signals.SIGINT:
                raise KeyboardInterrupt
        signal = signal or (asked.number if self.world_size == 1 else 0)
        if signal:  # a rank that another process of ours waits for has not failed
            waited_for = self.fabric.world.environment == "ours" and not self.is_global_zero
            raise SystemExit(0 if waited_for else 128 + signal)

    def validate(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate on the validation data.

        Args:
            model: Default: the one that was fitted, with the best weights that a ``ModelCheckpoint`` kept, or as it is
                if none did.
            dataloaders: A ``DataLoader``, any iterable of batches, several of them, or a ``DataModule``. Default: the
                model's own.
            ckpt_path: Load weights and counters first: a path, ``"last"`` or ``"best"``.
            verbose: Print a table.
            datamodule: Brings its loader.
            weights_only: Always: nothing but tensors and plain values is read.

        Returns:
            For each loader a dict of metrics, by the names they were logged under.
        """
        return self._evaluate(VALIDATE, "val", model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: DataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """As :meth:`validate`, on the test data."""
        return self._evaluate(TEST, "test", model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def predict(
        self,
        model: Module | None = None,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Apply ``predict_step`` to each batch.

        Args:
            model: As in :meth:`validate`.
            dataloaders: As in :meth:`validate`.
            datamodule: Brings its loader.
            return_predictions: Default: unless a ``BasePredictionWriter`` takes each batch.
            ckpt_path: As in :meth:`validate`.
            weights_only: Always: nothing but tensors and plain values is read.

        Returns:
            Its results in order, on the CPU, in a list for each loader where there are several; None if not asked for,
            and then memory stays flat.
        """
        require_weights_only(weights_only)
        if self.fabric.starts_elsewhere:
            return run_elsewhere(  # type: ignore[no-any-return]
                self, "predict", self._model(model), dataloaders, datamodule, return_predictions, ckpt_path
            )
        ckpt_path = self._weights_for(model, ckpt_path)
        loader, datamodule = _split(dataloaders, datamodule)
        given = {"predict": loader}
        with self._counters_kept(), self._stage("predict", self._model(model), datamodule, given) as (parts, loaders):
            checkpoint = self._load(parts, ckpt_path, resume=False, verb="predict")
            self._place_for_evaluation(parts.run.module, checkpoint)
            wanted = not takes_each_batch(self.callbacks) if return_predictions is None else return_predictions
            return predict(parts.run, loaders.evaluation("predict"), return_predictions=wanted)

    def _evaluate(
        self,
        stage: Stage,
        kind: str,
        model: Module | None,
        dataloaders: Any,
        ckpt_path: str | os.PathLike[str] | None,
        verbose: bool,
        datamodule: DataModule | None,
        weights_only: bool | None,
    ) -> list[dict[str, float]]:
        require_weights_only(weights_only)
        if self.fabric.starts_elsewhere:
            return run_elsewhere(  # type: ignore[no-any-return]
                self, stage.name, self._model(model), dataloaders, ckpt_path, verbose, datamodule
            )
        ckpt_path = self._weights_for(model, ckpt_path)
        loader, datamodule = _split(dataloaders, datamodule)
        given = {kind: loader}
        with self._counters_kept(), self._stage(stage.name, self._model(model), datamodule, given) as (parts, loaders):
            _require(parts.run.module, stage.step)
            checkpoint = self._load(parts, ckpt_path, resume=False, verb=stage.name if verbose else None)
            self._place_for_evaluation(parts.run.module, checkpoint)
            metrics = evaluate(parts.run, stage, loaders.evaluation(kind))
            if verbose and self.is_global_zero:
                print(table(stage.name, metrics))
            return metrics

    # --- saving, and making ---

    def save_checkpoint(self, filepath: str | os.PathLike[str], weights_only: bool = False) -> None:
        """Save the run as it stands. Rows logged so far are on disk before the checkpoint is. Every rank calls it.

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
        checkpoint, path = self.state_of_run(weights_only=weights_only), location(filepath)
        together = saves_shards(self.fabric.strategy)

        def save() -> None:
            with _said_of(path):
                self.flush_loggers()
                if not together:
                    write(path, checkpoint)

        self.fabric.ranks.from_rank_zero(save)
        if together:
            with _said_of(path):
                write_sharded(path, checkpoint, self.fabric.ranks)

    def state_of_run(self, *, weights_only: bool = False) -> Checkpoint:
        """What :meth:`save_checkpoint` writes: tensors and plain values. Tensors are the live ones, which the next step
        changes. Every rank calls it; on ranks other than 0 it is not whole."""
        assert self._parts is not None
        assert self._checkpointing is not None
        return self._checkpointing.state(self._parts, weights_only=weights_only)

    @property
    def continues(self) -> bool:
        """The fit goes on with the run that it resumes, in its folders; else it began anew, or branched off."""
        return self._continues

    @property
    def lineage(self) -> Lineage:
        """What checkpoints say of where the run comes from; found when a fit starts, on rank 0. What is added there is
        saved with it."""
        assert self._checkpointing is not None, "nothing runs"
        return self._checkpointing.lineage

    def flush_loggers(self) -> None:
        """Rows logged so far are on disk when this returns."""
        for logger in self._own_loggers:
            logger.save()

    def claim_folder(self, folder: Path) -> None:
        """Make ``folder``, and keep other runs out of it as long as this one runs: on rank 0, for what writes there.

        Raises:
            CheckpointError: Another run writes to it.
            ConfigError: It can't be written.
        """
        assert self._checkpointing is not None
        self._checkpointing.claim(folder)

    def to_device(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """``batch`` as a step is given it: through the transfer hooks of the data module or the module."""
        assert self._run is not None, "called outside of fit, validate, test and predict"
        return transfer_for(self._run, dataloader_idx)(batch)

    def init_module(self) -> AbstractContextManager[Any]:
        """Modules made inside have their parameters on the device from the start."""
        return self.fabric.init_module()

    # --- wiring ---

    @contextmanager
    def _stage(
        self, name: Function, module: Module, datamodule: DataModule | None, given: dict[str, Any]
    ) -> Iterator[tuple[Parts, Loaders]]:
        """Everything around a loop: attach, prepare, set up; afterwards, or after an error, tear down."""
        _require_objects(name, module, datamodule)
        module.__dict__["_trainer"] = self
        self.fabric.launch()
        progress = self.progress  # and not the Trainer, which would live as long as the process
        tell_position(lambda: f"epoch {progress.epoch}, batch {progress.batch}")
        if self.world_size > 1:
            settings = {name: value for name, value in self.__dict__["_settings"].items() if name != "default_root_dir"}
            self.fabric.ranks.agree(
                {**settings, **_identity(module, datamodule)},
                fix="start every rank with the same command and the same config.",
            )
        self._take_callbacks_of(module)
        require_unique_keys(self.callbacks)
        self.datamodule, self._log_dir = datamodule, None
        self._checkpointing = Checkpointing(self.fabric, self.loggers, self.checkpoint_callbacks, self.default_root_dir)
        if name != "fit":
            self._results = Results()  # those of the call before are its own
        if datamodule is not None:
            datamodule.__dict__["_trainer"] = self
        check_signatures(self.callbacks, module, datamodule)
        hooks = Hooks.of(self, self.callbacks, module, self._profiler)
        run = Run(
            fabric=self.fabric,
            module=module,
            datamodule=datamodule,
            hooks=hooks,
            loggers=self.loggers,
            progress=self.progress,
            results=self._results,
            inference_mode=self.numerics.inference_mode,
            profiler=self._profiler,
            fitting=name == "fit",
            silent=self.barebones,
        )
        if name != "fit":  # which agrees on it once its run has begun
            self._agree_on_log_dir(lambda: self.log_dir)
        shared = Shared.of(self.fabric.strategy.share, self.fabric.ranks) if self.deals_out else None
        loaders = self._loaders = Loaders(
            module, datamodule, given, self.limits, shared, self.fabric.ranks, self.fabric.strategy.share.index
        )
        self._run, self._parts = run, Parts(run, datamodule, self.callbacks, Optimizers())
        self._function, self._status = name, "running"
        for callback in self.callbacks:
            callback.__dict__["_module"] = module
        try:
            with self.numerics.applied(), self._profiled(name):
                self._prepare_data(module, datamodule)
                if datamodule is not None:
                    datamodule.setup(name)
                hooks.call(None, "setup", name)
                module.configure_model()
                loaders.ready = True
                yield self._parts, loaders
        except BaseException as raised:
            error = self.fabric.failure(explained(raised, run, loaders, self.stepping.micro_batch_size))
            self._status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with ExitStack() as told:  # as below
                if name == "fit":
                    told.callback(self._report, error)
                for logger in reversed(self._own_loggers):
                    told.callback(logger.finalize, "failed")
                for listener in reversed(hooks["on_exception"]):
                    told.callback(listener, error)
                if datamodule is not None:
                    told.callback(datamodule.on_exception, error)
            if error is raised:
                raise
            raise error from raised
        finally:
            run.close_book()
            loaders.close()
            self._checkpointing.close()
            with ExitStack() as teardowns:  # the last one in comes first; one that fails keeps no other from running
                teardowns.callback(run.leave)
                for callback in self.callbacks:
                    teardowns.callback(callback.__dict__.pop, "_module", None)
                for listener in reversed(hooks["teardown"]):
                    teardowns.callback(listener, name)
                if datamodule is not None:
                    teardowns.callback(datamodule.teardown, name)
        self._status = "finished"
        for logger in self._own_loggers:
            logger.finalize("success")

    def _report(self, error: BaseException) -> None:
        """A fit failed that had begun."""
        loop = self._parts.loop if self._parts is not None else None
        if loop is not None and loop.begun and self.is_global_zero and isinstance(error, Exception):
            assert self._checkpointing is not None
            report(error, self.progress, self.checkpoint_callbacks, self.log_dir, self._checkpointing.lineage)

    @property
    def _own_loggers(self) -> list[Logger]:
        """Rank 0's: the others have none."""
        return self.loggers if self.is_global_zero else []

    def _prepare_data(self, module: Module, datamodule: DataModule | None) -> None:
        """Once on each machine, or once at all, before any rank goes on; see ``prepare_data_per_node``."""
        for owner in (datamodule, module):
            if owner is not None:
                per_node = getattr(owner, "prepare_data_per_node", True)
                if (self.local_rank if per_node else self.global_rank) == 0:
                    owner.prepare_data()
        self.fabric.barrier()

    def _place(self, model: Module, checkpoint: Checkpoint | None) -> None:
        """On the devices, compiled if that was asked for."""
        waits = checkpoint is not None and loads_when_placed(model, checkpoint)
        if self._sync_batchnorm:
            self.fabric.sync_batchnorm(model)
        if self._compile is not None:
            self._compile.apply(model)
        self.fabric.setup(model)
        if waits:
            load_weights(model, cast(Checkpoint, checkpoint))

    def _place_for_evaluation(self, model: Module, checkpoint: Checkpoint | None) -> None:
        waits = checkpoint is not None and loads_when_placed(model, checkpoint)
        self.fabric.place_for_evaluation(model)
        if waits:
            load_weights(model, cast(Checkpoint, checkpoint))

    def _make_way(self, signal: int) -> None:
        """The run was asked to end, and is saved. Under a scheduler that warns by SIGUSR1, it is queued again."""
        self.fabric.barrier()
        if not self.is_global_zero:
            return
        if signal == signals.SIGINT:
            saved = any(callback.last_model_path for callback in self.checkpoint_callbacks)
            how = '; saved, ckpt_path="auto" goes on from there' if saved else "; nothing saves this run"
            at = f"epoch {self.progress.epoch}, step {self.progress.global_step}"
            print(f"treadle: interrupted in {at}{how}", file=sys.stderr, flush=True)
        else:
            queued = signal == getattr(signals, "SIGUSR1", None) and self.fabric.environment.requeue(os.environ)
            name = signals.Signals(signal).name
            print(f"treadle: ended by {name}{', and queued again' if queued else ''}", file=sys.stderr, flush=True)

    def _take_callbacks_of(self, module: Module) -> None:
        """Merge in those that the module brings; those that the module before brought go."""
        if self._replaced is not None and self.callbacks == self._replaced[1]:
            self.callbacks = self._replaced[0]
        own = with_the_modules(self.callbacks, module)
        self._replaced = (self.callbacks, own) if own != self.callbacks else None
        self.callbacks = own

    @contextmanager
    def _profiled(self, name: str) -> Iterator[None]:
        if self._profiler is None:
            yield
            return
        self._profiler.setup(stage=name, rank=self.global_rank, folder=lambda: self.run_folder)
        try:
            yield
        finally:
            self._profiler.teardown(stage=name)

    @contextmanager
    def _counters_kept(self) -> Iterator[None]:
        """An evaluation of a checkpoint is at that one's epoch and step; afterwards a fit's counters are its own again."""
        before = self.progress.state_dict()
        try:
            yield
        finally:
            if before["batches"]:
                self.progress.load_state_dict(before)

    def _fit_loop(self, parts: Parts, loaders: Loaders) -> FitLoop:
        run, optimizers = parts.run, parts.optimizers
        book = run.new_book(lambda: 1)
        self.progress.optimizer_steps = self.progress.optimizer_steps or [0] * len(optimizers.optimizers)
        automatic = run.module.automatic_optimization
        if automatic:
            warn_of_step_counting(
                optimizers.schedules, epochs=self.duration.epochs, steps=lambda: self.estimated_stepping_batches
            )
        return FitLoop(
            run,
            book,
            loaders,
            (
                AutomaticOptimization(run, book, optimizers, self.stepping, check_finite=self.numerics.detect_anomaly)
                if automatic
                else ManualOptimization(run, book, optimizers, self.stepping)
            ),
            optimizers.schedules if automatic else (),
            self.duration,
            self.rhythm,
            self.stepping,
        )

    def _start_run(self, parts: Parts, checkpoint: Checkpoint | None) -> None:
        """The run's folder, and the line that says where it is."""
        self._agree_on_log_dir(self._own_folder)
        if self.is_global_zero:
            folder = self.run_folder if self.loggers else None
            announce(parts.run.module, self.fabric, folder, self._position(checkpoint), self._policies)

    def _agree_on_log_dir(self, found: Callable[[], Path | None]) -> None:
        log_dir = self.fabric.ranks.from_rank_zero(found)
        if not self.is_global_zero:
            self._log_dir = log_dir

    def _own_folder(self) -> Path | None:
        """On rank 0."""
        assert self._checkpointing is not None
        if not self._continues:
            for logger in self.loggers:
                logger.start_run()
        self._checkpointing.open(self.run_folder)
        self._checkpointing.trace(self.log_dir, self.progress.global_step)
        return self.log_dir

    @property
    def _continues(self) -> bool:
        return self._checkpointing is not None and self._checkpointing.continues

    def _load(
        self, parts: Parts, ckpt_path: str | os.PathLike[str] | None, *, resume: bool, verb: str | None = None
    ) -> Checkpoint | None:
        assert self._loaders is not None
        assert self._checkpointing is not None
        checkpoint = self._checkpointing.load(parts, self._loaders, ckpt_path, resume=resume)
        path = self.ckpt_path = self._checkpointing.path
        if checkpoint is not None and path is not None and verb is not None and self.is_global_zero:
            announce_checkpoint(verb, path, checkpoint)
        return checkpoint

    def _weights_for(
        self, model: Module | None, ckpt_path: str | os.PathLike[str] | None
    ) -> str | os.PathLike[str] | None:
        """Without a model and a path, an evaluation is of the best that the fit kept."""
        own = self.checkpoint_callback
        if model is None and ckpt_path is None and own is not None and own.best_model_path:
            return own.best_model_path
        return ckpt_path

    def _position(self, checkpoint: Checkpoint | None) -> str:
        """Where a resumed run goes on, for its first line."""
        if checkpoint is None:
            return ""
        how = "continued" if self._continues else "branched off"
        over = self.progress.epoch >= self.duration.epochs or self.progress.global_step >= self.duration.steps
        left = "; nothing left to train: raise max_epochs or max_steps" if over else ""
        return f"; {how} at epoch {self.progress.epoch}, step {self.progress.global_step}{left}"

    def _log_hyperparameters(self, parts: Parts) -> None:
        params = dict(parts.run.module.logged_hparams)
        if parts.datamodule is not None:
            params = {**parts.datamodule.logged_hparams, **params}
        if params and self._logs_hparams and self.is_global_zero and not self._continues:
            for logger in self.loggers:
                logger.log_hyperparams(params)

    def _model(self, model: Module | None) -> Module:
        if model is None and self.module is None:
            raise ModuleError(
                "no model to evaluate.", why="this trainer has not fitted one.", fix="trainer.test(model, ...)"
            )
        return model if model is not None else self.module  # type: ignore[return-value]


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """
    Raises:
        CheckpointError: ``path`` could not be written.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error.strerror or error}.",
            why="checkpoints are written whole or not at all; the one before is intact.",
            fix="make room or choose another path.",
        ) from error


def _identity(module: Module, datamodule: DataModule | None) -> dict[str, object]:
    """What the ranks of a run have in common besides the Trainer's settings."""
    shapes = [(name, None if is_lazy(p) else tuple(p.shape)) for name, p in module.named_parameters()]
    hparams = {**(dict(datamodule.hparams) if datamodule is not None else {}), **dict(module.hparams)}
    return {
        "the model": class_name(module),
        "its parameters": hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest(),
        **{name: value for name, value in hparams.items() if isinstance(value, (bool, int, float, str, type(None)))},
    }


def _split(dataloaders: Any, datamodule: DataModule | None) -> tuple[Any, DataModule | None]:
    """A data module may stand where loaders do.

    Raises:
        ConfigError: There is one already, or loaders besides it.
    """
    if dataloaders is not None and datamodule is not None:
        raise _two_sources()
    return (None, dataloaders) if isinstance(dataloaders, DataModule) else (dataloaders, datamodule)


def _two_sources() -> ConfigError:
    return ConfigError(
        "loaders and a data module were given.",
        why="a data module brings the loaders itself.",
        fix="pass one of them: datamodule=..., or the loaders.",
    )


def _require_objects(function: str, module: Any, datamodule: Any) -> None:
    if not isinstance(module, Module):
        raise ModuleError(
            f"{function} was given {described(module)}.",
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


def _require(module: Module, method: str) -> None:
    """Fail before anything runs when a method that will be called is missing, with the message that it would give."""
    if not overrides(module, method):
        getattr(module, method)(*([None, 0] if method.endswith("_step") else []))
