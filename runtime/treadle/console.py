"""What a run prints: one line at its start, a table of metrics after an evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from treadle.checkpoint import Checkpoint
from treadle.checkpoint.remote import is_remote
from treadle.fabric import Fabric
from treadle.module import Module, class_name
from treadle.version import __version__


def announce(module: Module, fabric: Fabric, folder: Path | None, position: str, policies: str = "") -> None:
    """The one line at the start of a fit, on standard error."""
    count = sum(parameter.numel() for parameter in module.parameters())
    what = f"{class_name(module)}, {count:,} parameters, {_devices(fabric)}, {fabric.precision.name}"
    where = "writing no logs" if folder is None else _short(folder)
    print(
        f"treadle {__version__}: {what}; {where}{position}{policies and f'; {policies}'}", file=sys.stderr, flush=True
    )


def _devices(fabric: Fabric) -> str:
    """Which, how many, under what strategy, and who started them."""
    if fabric.world_size == 1:
        return str(fabric.device)
    world = fabric.world
    nodes = f" on {world.nodes} nodes" if world.nodes > 1 else ""
    return f"{world.size} x {fabric.device.type}{nodes} by {fabric.strategy.name} ({world.environment})"


def announce_checkpoint(verb: str, path: Path, checkpoint: Checkpoint) -> None:
    """The one line before an evaluation: which weights it looks at."""
    at = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
    print(f"treadle {__version__}: {verb} {_short(path)}, {at}", file=sys.stderr, flush=True)


def table(stage: str, metrics: Sequence[dict[str, float]]) -> str:
    """The metrics of an evaluation, one a line; of several loaders, each once."""
    together = {name: value for of_loader in metrics for name, value in of_loader.items()}
    width = max(map(len, [stage, *together]))
    return "\n".join([stage, *(f"{name:{width}}  {value:.6g}" for name, value in sorted(together.items()))])


def _short(path: Path) -> str:
    if is_remote(path):
        return str(path)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
