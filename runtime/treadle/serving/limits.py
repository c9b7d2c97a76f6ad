"""How much a server takes on at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from treadle.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one server process.

    Raises:
        ConfigError: One of them is out of its range.
    """

    max_batch: int = 32
    """Samples in one forward pass, and so in one request."""
    max_wait_ms: float = 5.0
    """Milliseconds that a request waits for others to be computed with. 0: it shares with what waits already."""
    max_queue: int = 256
    """Requests at hand at once: being read, waiting or computed. The next one is refused (503)."""
    max_body_mb: float = 16.0
    """Megabytes of JSON in one request; a larger one is refused (413) before it is read."""
    shutdown_s: float = 20.0
    """Seconds for the requests at hand when the server is asked to stop; what is not answered by then is lost."""

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_queue", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}={getattr(self, name)} takes no request.",
                    why=f"{name} is a count, {least} or more.",
                    fix=f"set {name}={getattr(Limits, name)}.",
                )
        for name, zero_is_fine in (("max_wait_ms", True), ("max_body_mb", False), ("shutdown_s", True)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_is_fine):
                raise ConfigError(
                    f"{name}={value} is no such amount.",
                    why=f"{name} is a number of {'0 or more' if zero_is_fine else 'more than 0'}.",
                    fix=f"set {name}={getattr(Limits, name):g}.",
                )

    @property
    def max_body(self) -> int:
        """Bytes."""
        return int(self.max_body_mb * 1_000_000)
