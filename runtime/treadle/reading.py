"""What users read of a Trainer, in their hooks and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from treadle.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from treadle.data import DataModule
from treadle.errors import ModuleError
from treadle.fabric import Fabric
from treadle.loggers import Logger
from treadle.loops.loading import Loaders
from treadle.loops.manual import ManualOptimization
from treadle.loops.run import Results, Run
from treadle.loops.settings import Duration, Limits, Rhythm, Stepping
from treadle.loops.state import Parts
from treadle.metrics import as_floats, as_tensors
from treadle.module import Module
from treadle.optim import Schedule, TrainerOptimizer
from treadle.precision import Precision
from treadle.progress import Progress
from treadle.strategies import Strategy

if TYPE_CHECKING:
    from treadle.profilers import Profiler


@dataclass(frozen=True)
class TrainerState:
    """What a Trainer does at the moment."""

    fn: str | None
    """``fit``, ``validate``, ``test`` or ``predict``; None before the first."""
    stage: str | None
    """``train``, ``sanity_check``, ``validate``, ``test`` or ``predict`` while a loop runs."""
    status: str
    """``initializing``, ``running``, ``finished``, ``interrupted`` (by the keyboard) or ``failed``."""


class Metrics(dict[str, Tensor]):
    """What was logged. Nobody would see what is written into this copy."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise ModuleError(
            f"callback_metrics[{name!r}] = ... is not how a metric is made.",
            why="callback_metrics tells what was logged; it is a copy, and is not saved.",
            fix=f'self.log("{name}", value), in a step or a hook of a batch or an epoch.',
        )


class Readings:
    """The attributes of a Trainer that only tell. ``Trainer`` derives from it, and sets what it reads."""

    fabric: Fabric
    duration: Duration
    limits: Limits
    rhythm: Rhythm
    stepping: Stepping
    callbacks: list[Callback]
    loggers: list[Logger]
    default_root_dir: Path
    progress: Progress
    datamodule: DataModule | None
    ckpt_path: Path | None
    """The checkpoint that the last call loaded."""
    _log_dir: Path | None
    """Of rank 0, on the others, which have no loggers of their own."""
    _results: Results
    _run: Run | None
    _parts: Parts | None
    _loaders: Loaders | None
    _function: str | None
    _status: str
    _profiler: Profiler | None

    # --- where the run stands ---

    @property
    def state(self) -> TrainerState:
        return TrainerState(self._function, (self._run.stage or None) if self._run else None, self._status)

    @property
    def interrupted(self) -> bool:
        """The last call was ended by the keyboard."""
        return self._status == "interrupted"

    @property
    def module(self) -> Module | None:
        """The module of the last call."""
        return self._parts.run.module if self._parts else None

    @property
    def model(self) -> Module | None:
        """The same."""
        return self.module

    @property
    def current_epoch(self) -> int:
        """The running epoch, from 0; after a fit, how many there were."""
        return self.progress.epoch

    @property
    def last_epoch(self) -> int:
        """The epoch of the batch trained on last."""
        return self.progress.last_epoch

    @property
    def global_step(self) -> int:
        """Training steps that updated weights, however many optimizers stepped in each."""
        return self.progress.global_step

    @property
    def optimizer_steps(self) -> list[int]:
        """Steps of each optimizer."""
        return list(self.progress.optimizer_steps)

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch at hand is the last of its epoch; False where the loader can't tell."""
        return self._run is not None and self._run.last_batch

    @property
    def should_stop(self) -> bool:
        """Set it to end the fit after the batch at hand, or once ``min_epochs`` and ``min_steps`` are over. It is not
        saved: who sets it does so again in a resumed run, in ``on_train_start``."""
        return self._run is not None and self._run.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if self._run is not None:
            self._run.should_stop = value

    @property
    def sanity_checking(self) -> bool:
        return self._stage_is("sanity_check")

    @property
    def training(self) -> bool:
        return self._stage_is("train")

    @property
    def validating(self) -> bool:
        return self._stage_is("validate")

    @property
    def testing(self) -> bool:
        return self._stage_is("test")

    @property
    def predicting(self) -> bool:
        return self._stage_is("predict")

    @property
    def evaluating(self) -> bool:
        return self.validating or self.testing

    def _stage_is(self, name: str) -> bool:
        return self._run is not None and self._run.stage == name

    # --- settings ---

    @property
    def max_epochs(self) -> int | None:
        return self.duration.max_epochs

    @property
    def min_epochs(self) -> int:
        return self.duration.min_epochs

    @property
    def max_steps(self) -> int:
        return self.duration.max_steps

    @property
    def min_steps(self) -> int:
        return self.duration.min_steps

    @property
    def log_every_n_steps(self) -> int:
        return self.rhythm.log_every_n_steps

    @property
    def val_check_interval(self) -> Any:
        return self.rhythm.val_check_interval

    @property
    def num_sanity_val_steps(self) -> int:
        return self.rhythm.num_sanity_val_steps

    @property
    def reload_dataloaders_every_n_epochs(self) -> int:
        return self.rhythm.reload_dataloaders_every_n_epochs

    @property
    def limit_train_batches(self) -> int | float:
        return self.limits.train

    @property
    def limit_val_batches(self) -> int | float:
        return self.limits.val

    @property
    def limit_test_batches(self) -> int | float:
        return self.limits.test

    @property
    def limit_predict_batches(self) -> int | float:
        return self.limits.predict

    @property
    def overfit_batches(self) -> int | float:
        return self.limits.overfit

    @property
    def check_val_every_n_epoch(self) -> int | None:
        return self.rhythm.check_val_every_n_epoch

    @property
    def gradient_clip_val(self) -> float | None:
        return self.stepping.gradient_clip_val

    @property
    def gradient_clip_algorithm(self) -> str:
        return self.stepping.gradient_clip_algorithm

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches for one optimizer step. Set in ``on_train_epoch_start``, it holds from that epoch on."""
        return self.stepping.accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        self.stepping.accumulate_grad_batches = value

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole fit, for schedules that need to know; infinity if nothing bounds it."""
        if self._loaders is None or "train" not in self._loaders.given or self.duration.epochs == float("inf"):
            return self.duration.steps if self.duration.steps == float("inf") else int(self.duration.steps)
        length = self._loaders.train.length
        if length is None:
            return self.duration.steps if self.duration.steps == float("inf") else int(self.duration.steps)
        epochs = int(self.duration.epochs)
        steps = sum(-(-length // self._accumulation_in(epoch)) for epoch in range(epochs))
        return int(min(steps, self.duration.steps))

    def _accumulation_in(self, epoch: int) -> int:
        for callback in self.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                return callback.get_accumulate_grad_batches(epoch)
        return self.stepping.accumulate_grad_batches

    # --- metrics ---

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The newest value of everything logged. A copy: to add to it, ``self.log``."""
        metrics = self._results.tensors()
        if self._run is not None and (book := self._run.book) is not None:
            metrics.update(as_tensors(book.newest()))
            if book.epoch_is_over:
                metrics.update(as_tensors(book.callback_values()))
        return Metrics(metrics)

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
        return (book is not None and book.is_fresh(metric)) or self._results.is_fresh(metric, self.progress.batches)

    # --- parts ---

    @property
    def logger(self) -> Logger | None:
        return self.loggers[0] if self.loggers else None

    @property
    def log_dir(self) -> Path | None:
        """The folder of the first logger that has one; rank 0's on all ranks."""
        if self._log_dir is not None:
            return self._log_dir
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
    def progress_bar_callback(self) -> Callback | None:
        from treadle.callbacks import RichProgressBar

        return next((callback for callback in self.callbacks if isinstance(callback, RichProgressBar)), None)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The bare ones."""
        return list(self._parts.optimizers.optimizers) if self._parts else []

    @property
    def wrapped_optimizers(self) -> list[TrainerOptimizer]:
        """As ``Module.optimizers()`` gives them; empty outside of a fit."""
        return list(self._parts.loop.optimization.wrapped) if self._parts and self._parts.loop else []

    @property
    def lr_scheduler_configs(self) -> list[Schedule]:
        """The schedulers with their settings. Live: what is in it when one is due is stepped."""
        return self._parts.optimizers.schedules if self._parts else []

    @property
    def manual_optimization(self) -> ManualOptimization:
        """
        Raises:
            ModuleError: No fit runs, or it optimizes automatically.
        """
        found = self._parts.loop.optimization if self._parts and self._parts.loop else None
        if not isinstance(found, ManualOptimization):
            raise ModuleError(
                "manual_backward was called in automatic optimization.",
                why="there the Trainer does it, with the loss that training_step returns.",
                fix="set self.automatic_optimization = False in __init__, or leave the call out.",
            )
        return found

    @property
    def profiler(self) -> Profiler:
        """For spans of one's own: ``with self.trainer.profiler.profile("augment"): ...``; without one it does nothing."""
        from treadle.profilers import PassThroughProfiler

        return self._profiler or PassThroughProfiler()

    # --- data ---

    @property
    def train_dataloader(self) -> Any:
        return self._loader("train")

    @property
    def val_dataloaders(self) -> Any:
        return self._loader("val")

    @property
    def test_dataloaders(self) -> Any:
        return self._loader("test")

    @property
    def predict_dataloaders(self) -> Any:
        return self._loader("predict")

    def _loader(self, kind: str) -> Any:
        return self._loaders.loader(kind) if self._loaders else None

    @property
    def num_training_batches(self) -> int | float:
        """Batches an epoch; infinity if the loader can't tell, 0 without one."""
        return next(iter(self._lengths("train")), 0)

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each loader."""
        return self._lengths("val")

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        steps = self.rhythm.num_sanity_val_steps
        return [length if steps < 0 else min(steps, length) for length in self._lengths("val")]

    @property
    def num_test_batches(self) -> list[int | float]:
        return self._lengths("test")

    @property
    def num_predict_batches(self) -> list[int | float]:
        return self._lengths("predict")

    def _lengths(self, kind: str) -> list[int | float]:
        return self._loaders.lengths(kind) if self._loaders else []

    @property
    def predict_batch_indices(self) -> list[int] | None:
        """Which samples of the data set are in the batch that is predicted; None if the loader can't tell."""
        stream = self._run.current_stream if self._run else None
        return None if stream is None else stream.indices

    # --- machine ---

    @property
    def strategy(self) -> Strategy:
        return self.fabric.strategy

    @property
    def precision(self) -> str:
        """By its name: ``32-true``."""
        return self.fabric.precision.name

    @property
    def precision_plugin(self) -> Precision:
        return self.fabric.precision

    @property
    def accelerator(self) -> str:
        """The kind of device: ``cpu``, ``cuda`` or ``mps``."""
        return self.fabric.device.type

    @property
    def device_ids(self) -> list[int]:
        return self.fabric.device_indices

    @property
    def num_devices(self) -> int:
        return len(self.device_ids)

    @property
    def num_nodes(self) -> int:
        return self.fabric.world.nodes

    @property
    def is_global_zero(self) -> bool:
        return self.fabric.is_global_zero

    @property
    def global_rank(self) -> int:
        return self.fabric.global_rank

    @property
    def local_rank(self) -> int:
        return self.fabric.local_rank

    @property
    def node_rank(self) -> int:
        return self.fabric.node_rank

    @property
    def world_size(self) -> int:
        return self.fabric.world_size

    def print(self, *values: object, **settings: Any) -> None:
        """Print once, on rank 0, above the progress bar."""
        self.fabric.print(*values, **settings)
