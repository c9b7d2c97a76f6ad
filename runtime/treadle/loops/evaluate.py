"""Evaluation: validation, test and prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from treadle.data import Stream
from treadle.data.stream import no_batch
from treadle.loops.run import Run, takes_index
from treadle.metrics import Logbook, as_floats, scope_of
from treadle.module import Module


@dataclass(frozen=True)
class Stage:
    """One kind of evaluation, by the names it goes by."""

    name: Literal["validate", "test", "predict"]
    hooks: Literal["validation", "test", "predict"]
    step: str


VALIDATE = Stage("validate", "validation", "validation_step")
TEST = Stage("test", "test", "test_step")
PREDICT = Stage("predict", "predict", "predict_step")


def evaluate(
    run: Run, stage: Stage, stream: Stream, *, state: str | None = None, keep: bool = True
) -> dict[str, float]:
    """Run ``stage`` over one pass of ``stream``.

    ::

        in eval mode, without gradients:
            for each batch:
                step
            reduce what was logged: means weighted by the size of each batch
        restore each submodule's own mode

    Args:
        state: What ``run.stage`` says meanwhile; default: the stage's name.
        keep: Write the metrics to the loggers and the results; off for a sanity check.

    Returns:
        The metrics, by the names they were logged under.
    """
    if stream.length == 0:
        return {}
    outer = run.book, run.stage
    book = Logbook(stream.batch_size, run.fabric.all_reduce)
    run.open_book(book, state or stage.name)
    call = run.hooks.call
    with inference_mode(run.module):
        call(book, f"on_{stage.hooks}_start")
        call(book, f"on_{stage.hooks}_epoch_start")
        for _ in steps(run, stage, stream, book, keep):
            pass
        call(book, f"on_{stage.hooks}_epoch_end")
        values = book.epoch_values()
        if keep:
            run.results.keep(book, run.progress.batches)
            run.write(book.epoch_values(of="logger"), step=max(run.progress.global_step - 1, 0))
        book.scope = None
        call(None, f"on_{stage.hooks}_end")
    _reopen(run, outer)
    return as_floats(values)


def predict(run: Run, stream: Stream, *, return_predictions: bool) -> list[Any] | None:
    """``predict_step`` over one pass of ``stream``.

    Returns:
        What it returned for each batch, on the CPU; None when not asked for, and then nothing piles up in memory.
    """
    run.stage = PREDICT.name
    book = Logbook(stream.batch_size, run.fabric.all_reduce)  # which no hook of a prediction has a scope for
    kept: list[Any] | None = [] if return_predictions else None
    with inference_mode(run.module):
        run.hooks.call(book, "on_predict_start")
        run.hooks.call(book, "on_predict_epoch_start")
        for outputs in steps(run, PREDICT, stream, book, False):
            if kept is not None:
                kept.append(_on_cpu(outputs))
        run.hooks.call(book, "on_predict_epoch_end")
        run.hooks.call(book, "on_predict_end")
    run.close_book()
    return kept


def steps(run: Run, stage: Stage, stream: Stream, book: Logbook, write_steps: bool) -> Iterator[Any]:
    """The output of the stage's step for each batch, its hooks called around it."""
    step = run.fabric.method(run.module, stage.step)
    indexed = takes_index(getattr(run.module, stage.step))
    scope = scope_of(stage.step)
    starts, ends = run.hooks[f"on_{stage.hooks}_batch_start"], run.hooks[f"on_{stage.hooks}_batch_end"]
    start_scope, end_scope = scope_of(f"on_{stage.hooks}_batch_start"), scope_of(f"on_{stage.hooks}_batch_end")
    for index, loaded in enumerate(stream):
        batch = run.fabric.to_device(loaded)
        book.scope = start_scope
        for listener in starts:
            listener(batch, index)
        book.scope = scope
        with run.fabric.autocast():
            outputs = step(batch, index) if indexed else step(batch)
        book.scope = end_scope
        for listener in ends:
            listener(outputs, batch, index)
        if write_steps and (row := book.take_step_row()):
            run.write(row, step=index)
        yield outputs
    if not stream.consumed and stream.length != 0:
        raise no_batch(stream.name)


@contextmanager
def inference_mode(module: Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards each submodule is in the mode it was in."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        _restore(modes)


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for submodule, training in modes:
        submodule.training = training


def _reopen(run: Run, outer: tuple[Logbook | None, str]) -> None:
    book, stage = outer
    if book is None:
        run.close_book()
    else:
        run.open_book(book, stage)


def _on_cpu(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach().cpu()
    if isinstance(outputs, dict):
        return {key: _on_cpu(value) for key, value in outputs.items()}
    if type(outputs) in (list, tuple):
        return type(outputs)([_on_cpu(item) for item in outputs])
    return outputs
