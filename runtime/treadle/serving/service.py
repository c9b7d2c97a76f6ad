"""A model from being loaded to being let go: whether it takes requests, and those it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Literal, final

import torch

from treadle.errors import ConfigError
from treadle.export import Exported, Manifest
from treadle.serving.batching import Batcher, Tensors
from treadle.serving.limits import Limits
from treadle.serving.refusals import Refusal
from treadle.serving.schema import Schema


@final
class Service:
    """Takes requests between ``start`` and ``close``.

    Args:
        manifest: Of the model.
        load: Called by ``start``, in the thread that will compute.
        limits: Of what is taken on.

    Raises:
        ConfigError: A model with this manifest can't be served.
    """

    def __init__(self, manifest: Manifest, load: Callable[[], Exported], limits: Limits) -> None:
        self.phase: Literal["loading", "ready", "stopping"] = "loading"
        self.limits = limits
        self.schema = Schema(manifest, limits)
        self.at_hand = 0
        """Requests that were admitted and are not answered."""
        self.refused = 0
        """Requests that found the queue full."""
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="treadle-serving")
        self._batcher: Batcher | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model and let it compute the smallest and the largest batch; then take requests.

        Raises:
            TreadleError: The model can't be loaded, or its warm-up fails.
        """
        exported = await asyncio.get_running_loop().run_in_executor(self._thread, self._warm)
        self._batcher = Batcher(exported, self._thread, self.limits)
        self._running = asyncio.create_task(self._batcher.run())
        if self.phase == "loading":  # it may have been asked to stop meanwhile
            self.phase = "ready"

    def _warm(self) -> Exported:
        exported = self._load()
        specs = exported.manifest.inputs
        for size in sorted({1, self.limits.max_batch}):
            # Ones: as indices, lengths and masks they are valid where zeros may not be.
            try:
                exported(*(torch.ones((size, *_rest(spec.shape)), dtype=spec.torch_dtype) for spec in specs))
            except Exception as error:
                raise ConfigError(
                    f"the model fails on a batch of {size}, all ones: {type(error).__name__}: {error}",
                    why="the smallest and the largest batch are computed once before requests are taken.",
                    fix="set max_batch to the largest batch it was exported for, or export it with a dynamic batch.",
                ) from error
        return exported

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Inside, the request counts as one at hand.

        Raises:
            Refusal: It takes none now.
        """
        self.check_ready()
        if self.at_hand >= self.limits.max_queue:
            self.refused += 1
            raise Refusal(503, f"the queue is full: {self.at_hand} requests are at hand. Try again in a second.")
        self.at_hand += 1
        try:
            yield
        finally:
            self.at_hand -= 1

    def check_ready(self) -> None:
        """
        Raises:
            Refusal: The model is not loaded and warm, or the server is shutting down.
        """
        if self.phase == "loading":
            raise Refusal(503, "the model is not loaded yet.")
        if self.phase == "stopping":
            raise Refusal(503, "the server is shutting down.")

    async def compute(self, inputs: Tensors) -> Tensors:
        """The outputs for the inputs of one request.

        Raises:
            Refusal: The model fails on them.
        """
        assert self._batcher is not None
        return await self._batcher.compute(inputs)

    def stats(self) -> dict[str, int | float]:
        """Counts since the start."""
        if self._batcher is None:
            return {}
        counts = self._batcher.counts
        return {
            **vars(counts),
            "refused": self.refused,
            "mean_batch": round(counts.mean_batch, 3),
            "at_hand": self.at_hand,
            "waiting": self._batcher.waiting,
        }

    def stop_admitting(self) -> None:
        """What is at hand is still answered."""
        self.phase = "stopping"
        if self._batcher is not None:
            self._batcher.flush()

    def give_up(self) -> None:
        """What waits or is computed gets a refusal instead."""
        if self._batcher is not None:
            self._batcher.give_up()

    async def close(self) -> None:
        """Let the thread go. What is still at hand is lost."""
        self.stop_admitting()
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._thread.shutdown(wait=False, cancel_futures=True)


def _rest(shape: tuple[int | str, ...]) -> list[int]:
    """All dimensions but the batch; Schema has checked that their sizes are fixed."""
    return [int(size) for size in shape[1:]]
