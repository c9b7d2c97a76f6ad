"""Requests that arrive together become one forward pass, and each gets its part of the outputs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from treadle.serving.limits import Limits
from treadle.serving.refusals import Refusal

Tensors = tuple[Tensor, ...]

_logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """Since the start, warm-up excluded."""

    requests: int = 0
    """That were put into the queue."""
    batches: int = 0
    """Forward passes, those of a second try included."""
    computed: int = 0
    """Requests in these batches."""
    failed: int = 0
    """Requests whose own forward pass failed."""
    abandoned: int = 0
    """Requests whose client went away before there was an answer."""

    @property
    def mean_batch(self) -> float:
        """Requests per forward pass; 0 before the first."""
        return self.computed / self.batches if self.batches else 0.0


@dataclass(eq=False)
class _Waiting:
    inputs: Tensors
    since: float
    answer: asyncio.Future[Tensors]

    @property
    def size(self) -> int:
        return len(self.inputs[0])


@final
class Batcher:
    """A queue, first come first served, in front of one thread that computes.

    Args:
        forward: Called in ``thread`` with tensors whose first dimension is the batch; all it returns has the same one.
        thread: Of one worker, so that there is one forward pass at a time.
        limits: Of the batch and the wait.
    """

    def __init__(self, forward: Callable[..., Tensors], thread: Executor, limits: Limits) -> None:
        self.counts = Counts()
        self._forward, self._thread = forward, thread
        self._max_batch, self._patience = limits.max_batch, limits.max_wait_ms / 1000
        self._queue: deque[_Waiting] = deque()
        self._computing: list[_Waiting] = []
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def flush(self) -> None:
        """No more requests come: nothing waits for company any more."""
        self._patience = 0.0
        self._arrived.set()

    def give_up(self) -> None:
        """Refuse all that have no answer yet."""
        for request in (*self._computing, *self._queue):
            if not request.answer.done():
                request.answer.set_exception(Refusal(503, "the server stopped before this was computed."))

    async def compute(self, inputs: Tensors) -> Tensors:
        """The outputs for one request of at most ``max_batch`` samples. If cancelled, it leaves the queue.

        Raises:
            Refusal: The model fails on this request.
        """
        loop = asyncio.get_running_loop()
        request = _Waiting(inputs, loop.time(), loop.create_future())
        self._queue.append(request)
        self.counts.requests += 1
        self._arrived.set()
        try:
            return await request.answer
        except asyncio.CancelledError:
            self.counts.abandoned += 1
            if request in self._queue:
                self._queue.remove(request)
            raise

    async def run(self) -> None:
        """Compute what arrives, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._enough()
            batch = self._computing = self._next_batch()
            if not batch:  # all of it was cancelled meanwhile
                continue
            results = await loop.run_in_executor(self._thread, self._computed, [request.inputs for request in batch])
            for request, result in zip(batch, results, strict=True):
                if request.answer.done():  # cancelled or given up during the forward pass
                    continue
                if isinstance(result, Refusal):
                    request.answer.set_exception(result)
                else:
                    request.answer.set_result(result)

    async def _enough(self) -> None:
        """Return when a batch is full, or when its oldest request has waited its time. During a forward pass others arrive
        and wait: under load, batches fill without any further waiting."""
        loop = asyncio.get_running_loop()
        while sum(request.size for request in self._queue) < self._max_batch:
            left = self._queue[0].since + self._patience - loop.time() if self._queue else None
            if left is not None and left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return

    def _next_batch(self) -> list[_Waiting]:
        """The oldest requests that fit together. None is overtaken by a smaller one that would still fit."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (size := size + self._queue[0].size) <= self._max_batch:
            batch.append(self._queue.popleft())
        return batch

    def _computed(self, requests: list[Tensors]) -> list[Tensors | Refusal]:
        """In the thread. One request that fails must not fail the others: then each is tried alone, once."""
        self.counts.batches += 1
        self.counts.computed += len(requests)
        try:
            return list(self._together(requests))
        except Exception as error:
            _logger.exception("the model failed on %d request(s)", len(requests))
            if len(requests) == 1:
                self.counts.failed += 1
                told = (str(error).strip().splitlines() or [""])[0][:300]
                return [Refusal(500, f"the model failed on these inputs: {type(error).__name__}: {told}")]
        return [result for request in requests for result in self._computed([request])]

    def _together(self, requests: list[Tensors]) -> list[Tensors]:
        sizes = [len(inputs[0]) for inputs in requests]
        outputs = self._forward(*map(torch.cat, zip(*requests, strict=True)))
        for output in outputs:
            if output.shape[:1] != (sum(sizes),):
                raise ValueError(f"an output has shape {tuple(output.shape)} for a batch of {sum(sizes)}")
        return list(zip(*(output.split(sizes) for output in outputs), strict=True))
