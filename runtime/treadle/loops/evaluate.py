"""Evaluation: validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from treadle.batches import apply
from treadle.callbacks.hooks import profiled
from treadle.data.stream import Batches, no_batch
from treadle.loops.calling import bind
from treadle.loops.run import Run
from treadle.loops.transfer import transfer_for
from treadle.metric_objects import load_metric_states, metric_states
from treadle.metrics import Logbook, as_floats, scope_of
from treadle.module import overrides


@dataclass(frozen=True)
class Stage:
    """One kind of evaluation, by the names it goes by."""

    name: Literal["validate", "test", "predict"]
    hooks: Literal["validation", "test", "predict"]
    step: str


VALIDATE = Stage("validate", "validation", "validation_step")
TEST = Stage("test", "test", "test_step")
PREDICT = Stage("predict", "predict", "predict_step")


class BrokenOff(Exception):
    """An evaluation was asked to end between two batches."""


def evaluate(
    run: Run,
    stage: Stage,
    streams: Sequence[Batches],
    *,
    state: str | None = None,
    keep: bool = True,
    breaks_off: Callable[[], bool] | None = None,
) -> list[dict[str, float]]:
    """Run ``stage`` over one pass of each of ``streams``, one after the other.

    ::

        in eval mode, without gradients:
            for each loader:
                for each batch:
                    step
            reduce what was logged: means weighted by the size of each batch
        restore each submodule's own mode

    Args:
        state: What ``run.stage`` says meanwhile; default: the stage's name.
        keep: Write the metrics to the loggers and the results; off for a sanity check.
        breaks_off: Asked after each batch, on all ranks after equally many, whether to break it off.

    Returns:
        The metrics of each loader, by the names they were logged under.

    Raises:
        BrokenOff: It was; what was logged so far is forgotten, and hooks of its end are not called.
    """
    if not any(stream.length != 0 for stream in streams):
        return [{} for _ in streams]
    outer = run.book, run.stage
    book = run.new_book(lambda: 1)
    book.outer = run.book
    run.open_book(book, state or stage.name)
    call = run.hooks.call
    with evaluating(run, stage):
        call(book, f"on_{stage.hooks}_start")
        call(book, f"on_{stage.hooks}_epoch_start")
        run.fabric.sync_buffers(run.module)  # hooks may have swapped in averages, which each rank has its own of
        try:
            for _ in steps(run, stage, streams, book, keep, breaks_off):
                pass
        except BrokenOff:
            book.scope = run.current_stream = None
            book.reset()
            _reopen(run, outer)
            raise
        book.epoch_is_over = True
        call(book, f"on_{stage.hooks}_epoch_end")
        several = len(streams) > 1
        run.agree(book)
        values = [book.epoch_values(loader=index if several else None) for index in range(len(streams))]
        if keep:
            run.keep(book)
            run.write(book.epoch_values(of="logger"), step=max(run.progress.global_step - 1, 0))
        found = [as_floats(of_loader) for of_loader in values]
        book.scope = None
        call(None, f"on_{stage.hooks}_end")
    book.reset()  # metric objects are the module's, and go on with the next evaluation
    _reopen(run, outer)
    return found


def predict(run: Run, streams: Sequence[Batches], *, return_predictions: bool) -> list[Any] | None:
    """``predict_step`` over one pass of each of ``streams``.

    Returns:
        What it returned for each batch, on the CPU, in a list for each loader where there are several; None when not
        asked for, and then nothing piles up in memory.
    """
    if not any(stream.length != 0 for stream in streams):
        return [] if return_predictions else None
    run.stage = PREDICT.name
    book = run.new_book(lambda: 1)  # which no hook of a prediction has a scope for
    kept: list[list[Any]] = [[] for _ in streams]
    with evaluating(run, PREDICT):
        run.hooks.call(book, "on_predict_start")
        run.hooks.call(book, "on_predict_epoch_start")
        for index, outputs in steps(run, PREDICT, streams, book, False):
            if return_predictions:
                kept[index].append(apply(outputs, _on_cpu))
        run.hooks.call(book, "on_predict_epoch_end")
        run.hooks.call(book, "on_predict_end")
    run.close_book()
    if not return_predictions:
        return None
    return kept[0] if len(kept) == 1 else kept


def steps(
    run: Run,
    stage: Stage,
    streams: Sequence[Batches],
    book: Logbook,
    write_steps: bool,
    breaks_off: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Any]]:
    """For each batch the index of its loader and the output of the stage's step, the hooks called around it."""
    user_step = getattr(run.module, stage.step)
    several = len(streams) > 1
    in_lockstep = run.fabric.strategy.in_lockstep
    method = run.fabric.method(run.module, stage.step) if in_lockstep else user_step
    starts, ends = run.hooks[f"on_{stage.hooks}_batch_start"], run.hooks[f"on_{stage.hooks}_batch_end"]
    written = 0
    for loader, stream in enumerate(streams):
        if stream.length == 0:
            continue
        number = loader if several else None
        step = bind(method, signature_of=user_step, loader=number)
        if run.profiler is not None:
            step = profiled(run.profiler, f"[Module]{type(run.module).__name__}.{stage.step}", step)
        transfer = transfer_for(run, loader)
        scope, book.batch_size = scope_of(stage.step, number), stream.batch_size
        start_scope = scope_of(f"on_{stage.hooks}_batch_start", number)
        end_scope = scope_of(f"on_{stage.hooks}_batch_end", number)
        index = -1
        missed = stream.shared is not None
        for index, loaded in enumerate(stream):
            if index and breaks_off is not None and breaks_off():
                raise BrokenOff
            if stream.counts == 0.0:  # another rank's
                if in_lockstep:
                    with _unseen(run, book):
                        step(transfer(loaded), index)
                continue
            missed = False
            batch = transfer(loaded)
            if run.profiler is not None:
                run.profiler.start(f"run_{stage.hooks}_batch")
            run.current_stream, run.last_batch = stream, stream.consumed == stream.length
            book.scope = start_scope
            for listener in starts:
                listener(batch, index, loader)
            book.scope = scope
            with run.fabric.autocast():
                outputs = step(batch, index)
            book.scope = end_scope
            for listener in ends:
                listener(outputs, batch, index, loader)
            if write_steps and (row := book.take_step_row()):
                run.write(row, step=written)
            written += 1
            if run.profiler is not None:
                run.profiler.stop(f"run_{stage.hooks}_batch")
            yield loader, outputs
        stream.end_epoch()
        book.empty = book.empty or missed
        if index < 0:
            raise no_batch(stream.name)
    run.current_stream = None


@contextmanager
def evaluating(run: Run, stage: Stage) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards each submodule is in the mode it was in, or in the one that the
    module's hook puts it into."""
    module = run.module
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    getattr(module, f"on_{stage.hooks}_model_eval")()
    try:
        # A strategy that gathers weights writes into memory that training has made, which inference mode forbids.
        inference = run.inference_mode and not run.fabric.strategy.in_lockstep
        with torch.inference_mode() if inference else torch.no_grad():
            yield
    finally:
        restored = f"on_{stage.hooks}_model_train"
        if overrides(module, restored):
            back: Callable[[], None] = getattr(module, restored)
            back()
        else:
            _restore(modes)


@contextmanager
def _unseen(run: Run, book: Logbook) -> Iterator[None]:
    """What a step does inside leaves no trace: nothing logged, nothing gathered by a metric object."""
    before = metric_states(run.module)
    book.muted = True
    try:
        with run.fabric.autocast():
            yield
    finally:
        book.muted = False
        load_metric_states(run.module, before, run.fabric.device)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for submodule, training in modes:
        submodule.training = training


def _reopen(run: Run, outer: tuple[Logbook | None, str]) -> None:
    book, stage = outer
    if book is None:
        run.close_book()
    else:
        run.open_book(book, stage)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
