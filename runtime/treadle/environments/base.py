"""What an environment knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Variables = Mapping[str, str]
"""Of the process, as ``os.environ``."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Where this process stands among the ranks of its job."""

    environment: str = "alone"
    """Who says so."""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of its node."""
    local_size: int = 1
    node_rank: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    """Where rank 0 listens."""
    port: int = 0
    """0: nobody has chosen one yet."""
    started: bool = False
    """All ranks run already; else whoever finds this starts them."""
    job: str | None = None
    """The same for all ranks of a job and when it is started again, and for no other job; None where nobody says."""
    restarts: int = 0
    """How often the job was started before this time."""


@runtime_checkable
class Environment(Protocol):
    """Who started this process, by the variables it left. One file each; the only readers of them."""

    @property
    def name(self) -> str:
        """As users and messages say it: ``"slurm"``."""
        ...

    def detect(self, variables: Variables) -> bool:
        """Whether this process is one of its."""
        ...

    def world(self, variables: Variables) -> World:
        """Where the process stands.

        Raises:
            ConfigError: The variables contradict each other or are not numbers.
        """
        ...

    def requeue(self, variables: Variables) -> bool:
        """Ask for the job to be started again, once this run has ended. False where nobody can be asked, or where it
        happens by itself."""
        ...
