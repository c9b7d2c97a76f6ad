"""From what a loader gives to what a step gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle.data import DataModule
from treadle.loops.run import Run
from treadle.module import Module, overrides


def transfer_for(run: Run, loader: int = 0) -> Callable[[Any], Any]:
    """What brings a batch of loader number ``loader`` to the device: the hooks of the data module where it overrides
    them, else those of the module; where nobody does, one call."""
    before = _hook(run, "on_before_batch_transfer")
    move = _hook(run, "transfer_batch_to_device")
    after = _hook(run, "on_after_batch_transfer")
    if before is None and move is None and after is None:
        return run.fabric.to_device
    device = run.fabric.device

    def transfer(batch: Any) -> Any:
        if before is not None:
            batch = before(batch, loader)
        batch = run.fabric.to_device(batch) if move is None else move(batch, device, loader)
        return batch if after is None else after(batch, loader)

    return transfer


def _hook(run: Run, name: str) -> Callable[..., Any] | None:
    owners: list[tuple[object, type]] = [(run.datamodule, DataModule), (run.module, Module)]
    for owner, base in owners:
        if owner is not None and overrides(owner, name, base):
            hook: Callable[..., Any] = getattr(owner, name)
            return hook
    return None
