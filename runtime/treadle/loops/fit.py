"""Training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from treadle.data import Stream
from treadle.data.stream import no_batch, set_epoch
from treadle.errors import ConfigError, warn
from treadle.loops.evaluate import VALIDATE, evaluate
from treadle.loops.optimization import AutomaticOptimization
from treadle.loops.run import Run
from treadle.loops.settings import Duration, Rhythm
from treadle.metrics import Logbook, SlotState, scope_of
from treadle.seeding import RNGState, isolated_rng, restore_rng


@dataclass(frozen=True)
class Resumed:
    """The moment a run was saved."""

    rng: RNGState
    metrics: Sequence[SlotState]

    def restore(self, book: Logbook, device: torch.device) -> None:
        """Put generators and accumulators back, whatever hooks have drawn and logged since."""
        restore_rng(self.rng)
        book.load_state_dict(self.metrics, device)


@dataclass
class FitLoop:
    """Trains until the duration is over or somebody asks to stop.

    Everything it remembers is in ``run.progress``, the stream, the logbook and the optimization: saved at a savepoint
    and loaded into another process, the loop goes on as if nothing had happened.
    """

    run: Run
    book: Logbook
    stream: Stream
    val_stream: Stream | None
    optimization: AutomaticOptimization
    duration: Duration
    rhythm: Rhythm
    accumulate: int
    resumed: Resumed | None = None
    """For a resumed run: what hooks of its start must leave no trace in."""

    def __post_init__(self) -> None:
        self.val_every = validation_interval(self.rhythm.val_check_interval, self.stream)

    def __call__(self) -> None:
        """
        ::

            validate a few batches, unless resuming
            while there is something left to train:
                train an epoch
        """
        run = self.run
        if self.resumed is None:
            self.sanity_check()
        run.open_book(self.book, "train")
        run.hooks.call(self.book, "on_train_start")
        while not self.is_over():
            self.epoch()
        run.results.keep(self.book, run.progress.batches)
        run.close_book()
        run.hooks.call(None, "on_train_end")

    def epoch(self) -> None:
        """
        ::

            for each batch that is left in the epoch:
                train on it
                log, if it is time to
                validate, if it is time to
                savepoint
            close the epoch
        """
        run, progress, stream = self.run, self.run.progress, self.stream
        batches = self.start_epoch()
        batch_starts, batch_ends = run.hooks["on_train_batch_start"], run.hooks["on_train_batch_end"]
        savepoints = run.hooks["on_savepoint"]
        start_scope, end_scope = scope_of("on_train_batch_start"), scope_of("on_train_batch_end")
        to_device, train, book = run.fabric.to_device, self.optimization.train, self.book
        log_every, stepped = self.rhythm.log_every_n_steps, progress.global_step
        for loaded in batches:
            batch, index = to_device(loaded), progress.batch
            if batch_starts:
                book.scope = start_scope
                if -1 in [listener(batch, index) for listener in batch_starts]:
                    return self.close_epoch()
            planned, closes = self.window(index) if self.accumulate > 1 else (1, True)
            outputs = train(batch, index, planned, closes)
            progress.batch += 1
            progress.batches += 1
            if batch_ends:
                book.scope = end_scope
                for listener in batch_ends:
                    listener(outputs, batch, index)
            if progress.global_step != stepped:
                stepped = progress.global_step
                if stepped % log_every == 0:
                    run.write(book.take_step_row(), step=stepped - 1)
            if self.val_every and self.validation_is_due():
                self.validate()
            stops = self.should_stop() and stream.consumed != stream.length
            book.scope = None
            for listener in savepoints:
                listener(stops)
            if stops:
                return self.break_off()
        if not progress.batch:
            raise no_batch(stream.name, f" in epoch {progress.epoch}")
        self.close_epoch()

    def start_epoch(self) -> Any:
        """The batches that are left of the epoch. In a resumed run, hooks that run again leave no trace: those of the
        start, and inside an epoch those of its start too."""
        run, resumed, inside = self.run, self.resumed, self.stream.consumed > 0
        self.resumed = None
        if resumed is not None and not inside:
            resumed.restore(self.book, run.fabric.device)
        run.hooks.call(self.book, "on_train_epoch_start")
        set_epoch(self.stream.loader, run.progress.epoch)
        batches = iter(self.stream)
        if resumed is not None and inside:
            resumed.restore(self.book, run.fabric.device)
        return batches

    def close_epoch(self) -> None:
        """
        ::

            step on what is left of an accumulation window
            validate, if it is time to
            step schedulers
            tell hooks; log the epoch's metrics; step schedulers that follow one
            savepoint
        """
        run, progress = self.run, self.run.progress
        if progress.window:
            self.optimization.close_window(self.window(progress.batch - 1)[0])
        if self.val_every is None and self.epoch_is_validated() and progress.validated != progress.batches:
            self.validate()
        if progress.batch and not progress.global_step:
            warn(
                "no-step",
                f"epoch {progress.epoch} took no optimizer step: training_step returned None for every batch.",
            )
        self.optimization.step_epoch_schedules(on_plateau=False)
        self.end_epoch_hooks()
        self.optimization.step_epoch_schedules(on_plateau=True)
        self.book.reset()
        self.stream.end_epoch()
        progress.epoch += 1
        progress.batch = 0
        final = self.is_over()
        self.book.scope = None
        for listener in run.hooks["on_savepoint"]:
            listener(final)

    def break_off(self) -> None:
        """The run ends inside an epoch. It is saved already: resumed, it goes on from there, and what is told to hooks
        and loggers here is told again at the epoch's real end."""
        self.end_epoch_hooks()

    def end_epoch_hooks(self) -> None:
        run, progress = self.run, self.run.progress
        run.results.keep(self.book, progress.batches)
        self.book.scope = scope_of("on_train_epoch_end")
        for listener in run.hooks["on_train_epoch_end"]:
            listener()
            run.results.keep(self.book, progress.batches)  # the next may follow what this one logged
        run.write(self.book.epoch_values(of="logger"), step=max(progress.global_step - 1, 0))

    def window(self, index: int) -> tuple[int, bool]:
        """How many batches are in the accumulation window of batch ``index``, and whether it closes it. The last
        window of an epoch may be shorter; of a loader without length, nobody knows before it ends."""
        size, length = self.accumulate, self.stream.length
        if length is None:
            return 1, (index + 1) % size == 0
        start = index - index % size
        return min(size, length - start), (index + 1) % size == 0 or index + 1 == length

    def validation_is_due(self) -> bool:
        assert self.val_every is not None
        return self.run.progress.batch % self.val_every == 0 and self.epoch_is_validated()

    def epoch_is_validated(self) -> bool:
        return (self.run.progress.epoch + 1) % self.rhythm.check_val_every_n_epoch == 0

    def validate(self) -> None:
        if self.val_stream is not None and self.val_stream.length != 0:
            evaluate(self.run, VALIDATE, self.val_stream)
            self.run.progress.validated = self.run.progress.batches

    def sanity_check(self) -> None:
        """Validate a few batches, and leave no trace: no row, no result, no random number drawn."""
        steps, run = self.rhythm.num_sanity_val_steps, self.run
        if self.val_stream is None or steps == 0:
            return
        few = Stream(self.val_stream.loader, limit=self._sanity_limit(steps), name=self.val_stream.name)
        with isolated_rng(run.fabric.device), few.isolated():
            run.stage = "sanity_check"
            run.hooks.call(None, "on_sanity_check_start")
            evaluate(run, VALIDATE, few, state="sanity_check", keep=False)
            run.hooks.call(None, "on_sanity_check_end")

    def _sanity_limit(self, steps: int) -> int | float:
        assert self.val_stream is not None
        length = self.val_stream.length
        if steps < 0:
            return 1.0 if length is None else length
        return steps if length is None else min(steps, length)

    def should_stop(self) -> bool:
        """Whether to stop after the batch just trained on."""
        progress, duration = self.run.progress, self.duration
        if progress.global_step >= duration.steps:
            return True
        enough = progress.epoch >= duration.min_epochs and progress.global_step >= duration.min_steps
        return self.run.should_stop and enough

    def is_over(self) -> bool:
        return self.should_stop() or self.run.progress.epoch >= self.duration.epochs or self.stream.length == 0


def validation_interval(interval: int | float, stream: Stream) -> int | None:
    """Validate after so many batches; None is at the end of each epoch.

    Raises:
        ConfigError: An interval that no epoch reaches, or a fraction of an unknown length.
    """
    if interval == 1.0 and isinstance(interval, float):
        return None
    if isinstance(interval, int):
        if stream.length is not None and interval > stream.length > 0:
            raise ConfigError(
                f"val_check_interval={interval} is more than the {stream.length} batches of an epoch.",
                why="validation would never run.",
                fix=f"val_check_interval={stream.length}, or 1.0 for once an epoch.",
            )
        return interval
    if stream.length is None:
        raise ConfigError(
            f"val_check_interval={interval} with a training loader that has no length.",
            why="a fraction is of the number of batches.",
            fix="give the interval as a count, for example val_check_interval=100.",
        )
    return max(1, int(stream.length * interval))
