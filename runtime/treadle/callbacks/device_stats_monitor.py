"""Log how much memory and time the run takes from the machine."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from treadle.callbacks.base import Callback
from treadle.errors import ConfigError, warn

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

_TELLING = (
    "allocated_bytes.all.current",
    "allocated_bytes.all.peak",
    "reserved_bytes.all.current",
    "reserved_bytes.all.peak",
    "num_alloc_retries",
    "num_ooms",
)
"""Of the hundred numbers in ``memory_stats``."""


@final
class DeviceStatsMonitor(Callback):
    """Logs the accelerator's memory and the process's own, before and after the batch of each log point. Nothing syncs.

    The columns are ``DeviceStatsMonitor.on_train_batch_start/<name>`` and ``...on_train_batch_end/<name>``, with the
    names of ``torch.cuda.memory_stats`` for the device, and for this process (workers that load data are others):

    - ``process_cpu_percent``: its share of one core since the last of these columns; 200 is two cores in full.
    - ``process_memory_bytes``: what it holds of the machine's memory now (Linux).
    - ``process_peak_memory_bytes``: the most that it ever held.
    - ``load_average``: how many processes wanted a core, over the last minute.

    Args:
        cpu_stats: Log those of the process. Default: if there is no accelerator to log.

    Raises:
        ConfigError: While fitting, there is no logger.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self.cpu_stats = cpu_stats
        self._read_at = (0.0, 0.0)

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if not trainer.loggers and not trainer.fast_dev_run:
            raise ConfigError(
                "DeviceStatsMonitor in a run without a logger.",
                why="there is nothing to log to.",
                fix="Trainer(logger=True), or leave DeviceStatsMonitor out.",
            )
        if self.cpu_stats is False and not device_stats(trainer.fabric.device):
            warn("device-stats", f"DeviceStatsMonitor(cpu_stats=False) has nothing to log on {trainer.fabric.device}.")
        self._read_at = _clocks()

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            self._log(trainer, module, "on_train_batch_start")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.progress.window == 0 and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, module, "on_train_batch_end")

    def _log(self, trainer: Trainer, module: Module, hook: str) -> None:
        stats = device_stats(trainer.fabric.device)
        if self.cpu_stats or (self.cpu_stats is None and not stats):
            since, self._read_at = self._read_at, _clocks()
            stats.update(_process_stats(since, self._read_at))
        named = {f"DeviceStatsMonitor.{hook}/{name}": value for name, value in stats.items()}
        module.log_dict(named, on_step=True, on_epoch=False)


def device_stats(device: torch.device) -> dict[str, float]:
    """The memory of an accelerator, in the words of its ``memory_stats``; empty for a CPU, or one that keeps no count."""
    if device.type == "mps":
        return {
            "allocated_bytes.all.current": torch.mps.current_allocated_memory(),
            "reserved_bytes.all.current": torch.mps.driver_allocated_memory(),
        }
    read = getattr(torch.get_device_module(device.type), "memory_stats", None)
    if device.type == "cpu" or read is None:
        return {}
    stats = read(device)
    return {name: float(stats[name]) for name in _TELLING if name in stats}


def _clocks() -> tuple[float, float]:
    """Seconds passed, and seconds this process has computed."""
    return time.monotonic(), time.process_time()


def _process_stats(since: tuple[float, float], now: tuple[float, float]) -> dict[str, float]:
    passed, computed = now[0] - since[0], now[1] - since[1]
    stats = {"process_cpu_percent": 100 * computed / passed if passed > 0 else 0.0, "load_average": os.getloadavg()[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pages = Path("/proc/self/statm")
    if pages.exists():
        now_held = int(pages.read_text().split()[1]) * resource.getpagesize()
        stats["process_memory_bytes"] = float(now_held)
        peak = max(peak, now_held)  # which the kernel brings up to date now and then
    stats["process_peak_memory_bytes"] = float(peak)
    return stats
