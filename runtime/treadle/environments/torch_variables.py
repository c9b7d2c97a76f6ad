"""The variables that torch's own ``env://`` reads: several environments leave them, and add some of their own."""

from __future__ import annotations

from treadle.environments.base import Variables, World
from treadle.environments.numbers import number, port_of, require_order

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torch_world(variables: Variables, name: str, *, node: str = "NODE_RANK") -> World:
    """Where the process stands by ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT`` and, where they are set,
    ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE`` and ``node``; without these, all on this machine if rank 0's address is, else one
    rank a machine.

    Raises:
        ConfigError: One is missing or no number, or they contradict each other.
    """
    rank, size = number(variables, "RANK"), number(variables, "WORLD_SIZE")
    address = variables.get("MASTER_ADDR") or "127.0.0.1"
    here = address in ("127.0.0.1", "localhost", "::1")
    alone = "LOCAL_RANK" not in variables  # on its machine; how many are there with it is not guessed
    local_rank = number(variables, "LOCAL_RANK", rank if here else 0)
    local_size = number(variables, "LOCAL_WORLD_SIZE", size if here else 1 if alone else None)
    require_order(rank, size, f"RANK and WORLD_SIZE ({name})")
    require_order(local_rank, local_size, f"LOCAL_RANK and LOCAL_WORLD_SIZE ({name})")
    node_rank, nodes = number(variables, node, rank // local_size), -(-size // local_size)
    require_order(local_size - 1, size, f"LOCAL_WORLD_SIZE and WORLD_SIZE ({name})")
    return World(
        environment=name,
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        node_rank=node_rank,
        nodes=max(nodes, node_rank + 1),  # machines need not have as many
        address=address,
        port=port_of(variables),
        started=True,
    )
