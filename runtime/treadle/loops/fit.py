"""Training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from treadle.callbacks.hooks import profiled
from treadle.data.fingerprint import fingerprint
from treadle.data.stream import Batches, evaluation_streams, no_batch
from treadle.errors import CheckpointError, ModuleError, warn
from treadle.loops.agreement import Agreement
from treadle.loops.evaluate import VALIDATE, BrokenOff, evaluate
from treadle.loops.loading import Loaders
from treadle.loops.moments import BeforeValidation, Resumed, spread_rng
from treadle.loops.optimization import Optimization
from treadle.loops.run import Run
from treadle.loops.scheduling import step_schedules
from treadle.loops.settings import Duration, Rhythm, Stepping
from treadle.loops.transfer import transfer_for
from treadle.loops.validating import ValidationRhythm
from treadle.metrics import Logbook, scope_of
from treadle.optim import Schedule
from treadle.seeding import isolated_rng
from treadle.signals import Asked
from treadle.strategies import FollowsFreezing


@dataclass
class FitLoop:
    """Trains until the duration is over or somebody asks to stop.

    Everything it remembers is in ``run.progress``, the stream, the logbook and the optimization: saved at a savepoint
    and loaded into another process, the loop goes on as if nothing had happened.
    """

    run: Run
    book: Logbook
    loaders: Loaders
    optimization: Optimization
    schedules: Sequence[Schedule]
    """Those that the loop steps: of automatic optimization."""
    duration: Duration
    rhythm: Rhythm
    stepping: Stepping
    resumed: Resumed | None = None
    """For a resumed run: what hooks of its start must leave no trace in."""
    data: dict[str, str] = field(default_factory=dict)
    """A fingerprint of the training data, under ``train``; samples of all ranks' batches together, under ``batch``."""
    saved_data: dict[str, str] = field(default_factory=dict)
    """The same when a resumed run was saved."""
    asked: Asked = field(default_factory=Asked)
    """A signal that asks the run to end."""
    begun: bool = False
    _saved_finally: bool = True
    """The last savepoint was told to be the last; true before the first."""
    _validated_at: float | None = None
    """On the clock of ``ValidationRhythm``, which is made anew with new loaders."""

    def __call__(self) -> None:
        """
        ::

            validate a few batches, unless resuming
            end the epoch in which a resumed run was over
            while there is something left to train:
                train an epoch
        """
        run = self.run
        self.agreement = Agreement(run.fabric.ranks, lambda: (run.should_stop, self.asked.number))
        run.progress.now = self.agreement.now
        if self.resumed is None:
            self.sanity_check()
            spread_rng(run.fabric.ranks, run.fabric.strategy.share.index, run.fabric.device)
        if run.fabric.world_size > 1:
            self.agreement.reach()
        self.open_stream()
        run.open_book(self.book, "train")
        run.hooks.call(self.book, "on_train_start")
        self.begun = True
        if self.resumed is not None and run.progress.batch and self.should_stop():
            self.finish_epoch()
        while not self.is_over():
            self.epoch()
        if not self._saved_finally:  # somebody asked to stop in the very last savepoint
            self.savepoint(final=True)
        run.keep(self.book)
        run.close_book()
        run.hooks.call(None, "on_train_end")
        self.agreement.reach()  # a signal that came meanwhile is not forgotten

    def epoch(self) -> None:
        """
        ::

            for each batch that is left in the epoch:
                train on it
                log, if it is time to
                validate, if it is time to or somebody asked to stop
                savepoint
            close the epoch
        """
        run, progress = self.run, self.run.progress
        batches = self.start_epoch()
        if progress.validating and not self.validation.inside:
            return self.close_epoch()
        if progress.validating and self.settle(validates=True, stops=False):
            return self.break_off()
        batch_starts, batch_ends = run.hooks["on_train_batch_start"], run.hooks["on_train_batch_end"]
        start_scope, end_scope = scope_of("on_train_batch_start"), scope_of("on_train_batch_end")
        to_device, train, book = transfer_for(run), self.optimization.train, self.book
        if run.profiler is not None:
            train = profiled(run.profiler, "run_training_batch", train)
        stream, validation, optimization, agreement = self.stream, self.validation, self.optimization, self.agreement
        # Gradients that lie in parts on the ranks are gathered in their parts: less memory, and a checkpoint has them.
        in_parts = run.fabric.strategy.in_lockstep
        optimization.window_is_known = stream.length is not None and not batch_starts and not in_parts
        several = run.fabric.world_size > 1
        accumulates, log_every = self.stepping.accumulate_grad_batches > 1, self.rhythm.log_every_n_steps
        taken = progress.global_step
        for loaded in batches:
            batch, index = to_device(loaded), progress.batch
            run.last_batch = stream.consumed == stream.length
            if batch_starts:
                book.scope = start_scope
                skips = -1 in [listener(batch, index) for listener in batch_starts]
                if several:  # one rank's wish is everybody's, or they would wait for it
                    skips = bool(run.fabric.all_reduce(torch.tensor(int(skips)), "max"))
                if skips:
                    return self.close_epoch()
            planned, closes = self.window(index) if accumulates else (1, True)
            if several:
                optimization.counts = stream.counts
                run.fabric.ranks.repeats = book.muted = stream.counts == 0.0
            outputs = train(batch, index, planned, closes)
            progress.batch += 1
            progress.batches += 1
            if progress.batch == stream.length and self.schedules:
                step_schedules(self.schedules, run, interval="epoch", on_plateau=False)
            if batch_ends:
                book.scope, told = end_scope, as_mapping(outputs)
                for listener in batch_ends:
                    listener(told, batch, index)
            book.muted = False
            agreement.after_batch()
            outputs = told = batch = loaded = None  # their memory is free while validation runs
            stepped = progress.stepped = progress.global_step != taken
            if stepped:
                taken = progress.global_step
                if taken % log_every == 0:
                    run.write(run.take_step_row(book), step=taken - 1)
            stops = self.should_stop() and stream.consumed != stream.length
            asked = stops and agreement.stops and not agreement.signal and progress.validated != progress.batches
            due = asked or (validation.inside and validation.after_batch(progress, stepped=stepped))
            if self.settle(validates=due, stops=stops):
                return self.break_off()
        if not progress.batch:
            raise no_batch(stream.name, f" in epoch {progress.epoch}")
        self.close_epoch()

    def settle(self, *, validates: bool, stops: bool) -> bool:
        """After a batch: validate if it is time to, savepoint. Returns whether the run ends here, which it does anyway
        if it ``stops``."""
        run, progress, stream = self.run, self.run.progress, self.stream
        whole = not validates or self.validate()
        if whole and progress.stepped and self.schedules and progress.batch != stream.length:
            step_schedules(self.schedules, run, interval="step", on_plateau=True)
        stops = stops or not whole or (self.should_stop() and stream.consumed != stream.length)
        self.savepoint(final=stops)
        return stops

    def savepoint(self, *, final: bool) -> None:
        """State is whole. ``final``: the run ends here."""
        self._saved_finally = final
        self.book.scope = None
        for listener in self.run.hooks["on_savepoint"]:
            listener(final)

    def open_stream(self) -> None:
        """The training data, and what depends on how much there is."""
        self.stream: Batches = self.loaders.train
        self.look_at_data()
        self.book.batch_size = self.stream.batch_size
        self.validation = ValidationRhythm(self.rhythm, self.stream.length, self.run.progress.now, self._validated_at)
        self._opened_in = self.run.progress.epoch
        self._started_at = -1
        if self._validated_at is None:
            self._validated_at = self.validation.validated()

    def look_at_data(self) -> None:
        """
        Raises:
            CheckpointError: A resumed run would go on in other data.
        """
        found, saved = fingerprint(self.stream.loader, self.run.datamodule), self.saved_data
        self.data, self.saved_data = {} if found is None else {"train": found}, {}
        changes = self.rhythm.reload_dataloaders_every_n_epochs  # and is meant to
        if found is not None and saved.get("train", found) != found and not changes:
            raise CheckpointError(
                f"the training data changed since the run was saved: {saved['train']} then, {found} now.",
                why="a resumed run goes on in the middle of its data, and these are others.",
                fix="bring the data back, or start a new run from the weights: MyModule.load_from_checkpoint(path).",
            )
        if (size := getattr(self.stream.loader, "batch_size", None)) is not None:
            count = self.run.fabric.strategy.share.count if self.stream.shared is not None else 1
            self.data["batch"] = str(size * count)
            if self.stream.consumed and saved.get("batch", self.data["batch"]) != self.data["batch"]:
                raise CheckpointError(
                    f"a step takes {size * count} samples, and took {saved['batch']} when the run was saved inside an epoch.",
                    why="its position counts batches: with others, samples would be left out or come twice.",
                    fix="the batch size as it was, that of all ranks together; another one from the end of an epoch on.",
                )

    def start_epoch(self) -> Iterable[Any]:
        """The batches that are left of the epoch. In a resumed run, hooks that run again leave no trace: those of the
        start, and inside an epoch those of its start too."""
        run, resumed, inside = self.run, self.resumed, self.stream.consumed > 0
        self.resumed = None
        if resumed is not None and not inside:
            resumed.restore(self.book, run)
        if not inside:
            self.reload(again=resumed is not None)
        run.hooks.call(self.book, "on_train_epoch_start")
        if isinstance(run.fabric.strategy, FollowsFreezing):
            run.fabric.strategy.refresh(run.module)
        self.stream.set_epoch(run.progress.epoch)
        batches = iter(self.stream)
        if resumed is not None and inside:
            resumed.restore(self.book, run)
        self._started_at = -1 if inside else run.progress.global_step  # of an epoch seen from its start
        return batches if run.profiler is None else _profiled_batches(run, batches)

    def reload(self, *, again: bool) -> None:
        """Ask for the loaders anew, if it is time to; ``again`` in a resumed run, now that the generators are right."""
        every, epoch = self.rhythm.reload_dataloaders_every_n_epochs, self.run.progress.epoch
        if every and epoch and epoch % every == 0 and (again or epoch != self._opened_in):
            self.loaders.forget("train")
            self.loaders.forget("val")
            self.open_stream()

    def close_epoch(self) -> None:
        """
        ::

            step on what is left of an accumulation window
            step schedulers, if the last batch was not known to be the last
            validate, if it is time to
            step schedulers that count steps and follow a metric
            tell hooks; log the epoch's metrics; step schedulers that count epochs and follow one
            savepoint
        """
        run, progress = self.run, self.run.progress
        if progress.window and not self.close_window():
            return self.break_off()
        ended_as_known = progress.batch == self.stream.length
        if not ended_as_known and not progress.validating:
            step_schedules(self.schedules, run, interval="epoch", on_plateau=False)
        if self.validation.after_epoch(progress) and progress.validated != progress.batches and not self.validate():
            self.savepoint(final=True)
            return self.break_off()
        if progress.global_step == self._started_at:
            self.tell_of_no_step()
        if ended_as_known and progress.stepped:
            step_schedules(self.schedules, run, interval="step", on_plateau=True)
        self.end_epoch_hooks()
        step_schedules(self.schedules, run, interval="epoch", on_plateau=True)
        self.book.reset()
        self.stream.end_epoch()
        progress.epoch += 1
        progress.batch = 0
        self.savepoint(final=self.is_over())

    def close_window(self) -> bool:
        """The epoch ends inside an accumulation window, which nobody could know before or a hook decided: step on what
        there is, with everything that follows a step. Returns whether the epoch goes on to its end."""
        run, progress = self.run, self.run.progress
        taken = progress.global_step
        self.book.scope = scope_of("training_step")
        self.optimization.close_window(self.window(progress.batch - 1)[0], progress.batch - 1)
        if progress.global_step == taken:
            return True
        if progress.global_step % self.rhythm.log_every_n_steps == 0:
            run.write(run.take_step_row(self.book), step=taken)
        whole = not (self.validation.inside and self.validation.after_step(progress)) or self.validate()
        if whole:
            step_schedules(self.schedules, run, interval="step", on_plateau=True)
        self.savepoint(final=not whole)
        return whole

    def finish_epoch(self) -> None:
        """A resumed run was over when its last batch was saved: what follows that savepoint is still to do."""
        self.start_epoch()
        if self.run.progress.validating and self.validation.inside and self.settle(validates=True, stops=False):
            self.break_off()
        elif self.stream.consumed == self.stream.length:
            self.close_epoch()
        else:
            self.break_off()

    def break_off(self) -> None:
        """The run ends inside an epoch. It is saved already: resumed, it goes on from there, and what is told to hooks
        and loggers here is told again at the epoch's real end."""
        self.end_epoch_hooks()

    def end_epoch_hooks(self) -> None:
        run, progress = self.run, self.run.progress
        self.book.epoch_is_over = True
        run.keep(self.book)
        self.book.scope = scope_of("on_train_epoch_end")
        for listener in run.hooks["on_train_epoch_end"]:
            listener()
            run.keep(self.book)  # the next may follow what this one logged
        run.write(self.book.epoch_values(of="logger"), step=max(progress.global_step - 1, 0))

    def tell_of_no_step(self) -> None:
        """
        Raises:
            ModuleError: Only steps can end the run.
        """
        epoch = self.run.progress.epoch
        why = (
            "training_step returned None for every batch, or a hook skipped them all."
            if self.run.module.automatic_optimization
            else "in manual optimization, training_step calls step() of what self.optimizers() returns."
        )
        if self.duration.epochs == float("inf") and self.duration.steps != float("inf"):
            raise ModuleError(
                f"epoch {epoch} took no optimizer step, and only max_steps={self.duration.max_steps} would end the run.",
                why=why,
                fix="look at what training_step returns, or set max_epochs.",
            )
        if self.run.progress.batch and not self.run.progress.global_step:
            warn("no-step", f"epoch {epoch} took no optimizer step: {why}")

    def window(self, index: int) -> tuple[int, bool]:
        """How many batches are in the accumulation window of batch ``index``, and whether it closes it. The last
        window of an epoch may be shorter; of a loader without length, nobody knows before it ends."""
        size, length = self.stepping.accumulate_grad_batches, self.stream.length
        if length is None:
            return 1, (index + 1) % size == 0
        start = index - index % size
        return min(size, length - start), (index + 1) % size == 0 or index + 1 == length

    def validate(self) -> bool:
        """Whether it went through to its end. Broken off for a signal, it leaves no trace but ``progress.validating``."""
        run, streams = self.run, self.loaders.val
        if any(stream.length != 0 for stream in streams):
            if not self.optimization.has_gradients:
                run.module.on_validation_model_zero_grad()
            run.results.keep_steps(self.book, run.progress.batches)
            before = BeforeValidation.of(run, streams)
            try:
                evaluate(run, VALIDATE, streams, breaks_off=self.ends_between_batches(streams))
            except BrokenOff:
                run.hooks.call(None, "on_validation_interrupted")
                before.restore(run, streams)
                run.progress.validating = True
                return False
            run.progress.validated = run.progress.batches
        run.progress.validating = False
        self._validated_at = self.validation.validated()
        self.agreement.reach()  # somebody may have asked to stop meanwhile
        return True

    def ends_between_batches(self, streams: Sequence[Batches]) -> Callable[[], bool] | None:
        """Of a validation: whether a signal asks the run to end. None where ranks read as many batches as they like, and
        could not agree after one of them."""
        agreement = self.agreement
        if self.run.fabric.world_size > 1 and any(stream.shared is None for stream in streams):
            return None

        def ends() -> bool:
            agreement.after_batch()
            return agreement.signal != 0

        return ends

    def sanity_check(self) -> None:
        """Validate a few batches, and leave no trace: no row, no result, no random number drawn."""
        steps, run = self.rhythm.num_sanity_val_steps, self.run
        if steps == 0 or not self.loaders.validates:
            return
        with isolated_rng(run.fabric.device):
            run.stage = "sanity_check"
            run.hooks.call(None, "on_sanity_check_start")
            few = self.sanity_streams()
            with ExitStack() as undone:
                for stream in few:
                    undone.callback(stream.close)
                    undone.enter_context(stream.isolated())
                evaluate(run, VALIDATE, few, state="sanity_check", keep=False)
            run.hooks.call(None, "on_sanity_check_end")

    def sanity_streams(self) -> list[Batches]:
        """The validation loaders, with fewer batches of each."""
        steps, whole = self.rhythm.num_sanity_val_steps, self.loaders.val
        few = []
        for stream in whole:
            limit = stream.length if steps < 0 else steps if stream.length is None else min(steps, stream.length)
            few += evaluation_streams(
                stream.loader, limit=1.0 if limit is None else limit, name=stream.name, shared=stream.shared
            )
        return few

    def should_stop(self) -> bool:
        """Whether to stop after the batch just trained on."""
        progress, duration, agreement = self.run.progress, self.duration, self.agreement
        if progress.global_step >= duration.steps or agreement.signal:
            return True
        enough = progress.epoch >= duration.min_epochs and progress.global_step >= duration.min_steps
        return (agreement.stops or (self.run.should_stop and self.run.fabric.world_size == 1)) and enough

    def is_over(self) -> bool:
        """Between two epochs. Collective."""
        if self.run.fabric.world_size > 1:
            self.agreement.reach()
        return self.should_stop() or self.run.progress.epoch >= self.duration.epochs or self.stream.length == 0


def as_mapping(outputs: Any) -> Any:
    """What ``training_step`` returned, as hooks are given it: a mapping with the loss, which needs its graph no more."""
    if isinstance(outputs, Tensor):
        return {"loss": outputs.detach()}
    if outputs is None:
        return {}
    if isinstance(outputs, Mapping) and isinstance(loss := outputs.get("loss"), Tensor):
        return {**outputs, "loss": loss.detach()}
    return outputs


def _profiled_batches(run: Run, batches: Iterable[Any]) -> Iterator[Any]:
    """The same, with the time that each takes to arrive."""
    assert run.profiler is not None
    iterator, end = iter(batches), object()
    while True:
        with run.profiler.profile("train_dataloader_next"):
            batch = next(iterator, end)
        if batch is end:
            return
        yield batch
