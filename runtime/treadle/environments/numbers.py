"""Numbers in variables."""

from __future__ import annotations

from treadle.environments.base import Variables, World
from treadle.errors import ConfigError


def number(variables: Variables, name: str, default: int | None = None) -> int:
    """The whole number in the variable ``name``, not below 0.

    Raises:
        ConfigError: There is none and no default, or it is something else.
    """
    text = variables.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(
            (
                f"the environment variable {name} is {text!r}."
                if text
                else f"the environment variable {name} is missing."
            ),
            why="whoever starts several ranks says in such variables where each stands: whole numbers.",
            fix=f"unset RANK, WORLD_SIZE and their like for one process, or set {name} too.",
        )
    return int(text)


def require_order(rank: int, size: int, what: str) -> None:
    """
    Raises:
        ConfigError: ``rank`` is none of ``size``.
    """
    if rank >= size:
        raise ConfigError(
            f"{what}: rank {rank} of {size}.",
            why="ranks count from 0 to one less than their number.",
            fix="look at who set these variables; unset them for one process.",
        )


def port_of(variables: Variables, default: int | None = None) -> int:
    """MASTER_PORT.

    Raises:
        ConfigError: It is none, and there is no default.
    """
    port = number(variables, "MASTER_PORT", default)
    if port > 65535:
        raise ConfigError(
            f"MASTER_PORT is {port}.",
            why="ports end at 65535.",
            fix="MASTER_PORT=29500",
        )
    return port


def agreeing(world: World, variables: Variables) -> World:
    """``world``, if RANK and WORLD_SIZE, where somebody has set them beside who started this, say the same.

    Raises:
        ConfigError: They don't.
    """
    for name, value in (("RANK", world.rank), ("WORLD_SIZE", world.size)):
        if variables.get(name) and number(variables, name) != value:
            raise ConfigError(
                f"{name} is {variables[name]}, and {world.environment} says {value}.",
                why=f"{world.environment} started this process, and somebody has set {name} too.",
                fix=f"unset {name}; TREADLE_ENVIRONMENT=variables takes RANK and WORLD_SIZE as they are.",
            )
    return world


def in_blocks(world: World, fix: str) -> World:
    """``world`` of a launcher that doesn't say which node this is: as many ranks on each, in a row.

    Raises:
        ConfigError: They are placed otherwise.
    """
    if world.size % world.local_size or world.rank % world.local_size != world.local_rank:
        raise ConfigError(
            f"rank {world.rank} of {world.size} is number {world.local_rank} of {world.local_size} on its machine.",
            why=f"{world.environment} doesn't say which machine it is, so each must have as many ranks, in a row.",
            fix=fix,
        )
    return world
