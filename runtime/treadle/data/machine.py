"""What the machine has left."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

GROUP = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Bytes."""

    free: int
    total: int

    def __str__(self) -> str:
        return f"{size(self.free)} of {size(self.total)} free"


def host_memory() -> Room | None:
    """Of the machine, or of the container that this runs in; None where nobody tells (not on Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    told = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    machine = Room(told["MemAvailable"], told["MemTotal"])
    try:
        limit = (GROUP / "memory.max").read_text().strip()
        used = int((GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return machine
    if limit == "max" or int(limit) >= machine.total:
        return machine
    reclaimed = int(statistics.get("inactive_file", 0))  # a cache, which gives way
    return Room(min(machine.free, max(0, int(limit) - used + reclaimed)), int(limit))


def shared_memory() -> Room | None:
    """Where worker processes put their batches: ``/dev/shm``; None where there is none."""
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return Room(free, total)


def size(count: int | float) -> str:
    """
    >>> size(1536), size(3 << 30)
    ('1.5 KiB', '3.0 GiB')
    """
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
