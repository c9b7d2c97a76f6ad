"""Saving beside training: the state is copied once, and written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor


@final
class Staging:
    """Host memory that holds one copy of a state, used again for the next one: at most so much for any number of saves.

    From an accelerator the copy is only put into its queue, behind the kernels of the step: :meth:`settle` waits for it.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._copied: list[Any] = []
        """Events, one for each device."""

    def copy(self, state: Any) -> Any:
        """``state`` with each tensor in it replaced by its copy on the host. Tensors that are one stay one.

        What the last call returned is overwritten.
        """
        used: dict[tuple[Any, ...], Tensor] = {}
        copies: dict[tuple[Any, ...], Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []

        def staged(value: Any, at: tuple[Any, ...]) -> Any:
            if isinstance(value, Tensor):
                source = value.detach()
                if source.is_meta:
                    return source
                if source.layout != torch.strided or type(source) is not Tensor or source.is_conj() or source.is_neg():
                    return source.to("cpu", copy=True)
                same = (source.device, source.data_ptr(), source.dtype, tuple(source.shape), source.stride())
                if not source.numel() or same not in copies:
                    buffer = self._buffer(at, source)
                    used[at] = copies[same] = buffer
                    pairs.append((buffer, source))
                return copies[same]
            if isinstance(value, dict):
                items = {key: staged(item, (*at, type(key), key)) for key, item in value.items()}
                return items if type(value) is dict else type(value)(items)
            if type(value) in (list, tuple):
                return type(value)(staged(item, (*at, index)) for index, item in enumerate(value))
            return value

        with torch.no_grad():
            result = staged(state, ())
            if pairs:
                torch._foreach_copy_(
                    [buffer for buffer, _ in pairs], [source for _, source in pairs], non_blocking=True
                )
        self._buffers = used
        self._copied = [_event(device) for device in {s.device for _, s in pairs} if device.type != "cpu"]
        return result

    def settle(self) -> None:
        """Wait until the copies are there. Called by the thread that reads them."""
        for event in self._copied:
            event.synchronize()

    def _buffer(self, at: tuple[Any, ...], source: Tensor) -> Tensor:
        known = self._buffers.get(at)
        if known is not None and known.shape == source.shape and known.dtype == source.dtype:
            return known
        return torch.empty_like(source, device="cpu", pin_memory=source.device.type == "cuda")


def _event(device: torch.device) -> Any:
    event = torch.Event(device)
    event.record()
    return event


@final
class Background:
    """Does one thing at a time in a thread. What went wrong there is raised where the next thing is asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Something was begun, has ended, and was not waited for yet. Costs nothing."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work``, once what was begun before has ended."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again in wait()
                self._error = error

        # Not a daemon: a program that ends waits for the checkpoint it was promised.
        self._thread = threading.Thread(target=run, name="treadle-saving")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being done any more.

        Raises:
            BaseException: What ended it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
