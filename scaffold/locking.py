"""One process at a time. A lock ends with its process, so a killed one leaves none behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(place: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock of ``place`` in the block: a folder that is there, or a file, which is made and stays.

    Args:
        patience: Seconds to wait for whoever holds it.

    Raises:
        TimeoutError: It was held all the time.
    """
    held = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another scaffold has held {place} for {patience:.0f} seconds") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(held)
