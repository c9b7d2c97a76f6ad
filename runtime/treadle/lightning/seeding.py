"""``seed_everything`` with the arguments it had."""

from __future__ import annotations

import os
import sys

import treadle.seeding
from treadle.errors import ConfigError


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed ``random``, ``numpy`` and ``torch``. Returns the seed.

    Args:
        seed: From 0 to 2**32 - 1; None is 0.
        workers: Loader workers draw from the generators that are seeded here, always: a Trainer gives them a seed for
            each batch, and continues with the same ones in a resumed run. So True and False are the same.
        verbose: Say which seed, in a line on standard error of rank 0.

    Raises:
        ConfigError: ``seed`` is no such number, or ``workers`` is not a bool.
    """
    if not isinstance(workers, bool):
        raise ConfigError(
            f"seed_everything(workers={workers!r}).",
            why="it is True or False.",
            fix="seed_everything(42, workers=True)",
        )
    used = treadle.seeding.seed_everything(0 if seed is None else seed)
    if verbose and os.environ.get("RANK", "0") == "0":  # called before there is a process group to ask
        print(f"seed set to {used}" + ("" if seed is not None else ": none was given"), file=sys.stderr)
    return used
