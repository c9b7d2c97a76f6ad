"""Random number generators: seed, capture, restore.

A run's randomness comes from the global generators of ``random``, ``numpy`` and ``torch`` (host and device) and from
generators that samplers and data sets own. All of them are state.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor

from treadle.errors import ConfigError

LARGEST_SEED = 2**32 - 1


class RNGState(TypedDict):
    """The global generators. Leaves are tensors and plain values, so ``weights_only=True`` reads them."""

    python: tuple[Any, ...]
    torch: Tensor
    numpy: dict[str, Any] | None
    device: dict[str, Tensor]


def seed_everything(seed: int) -> int:
    """Seed ``random``, ``numpy`` (when it is loaded) and ``torch`` on every device. Returns the seed.

    Raises:
        ConfigError: ``seed`` is not in [0, 2**32 - 1], the range that numpy takes.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(
            f"seed={seed!r} is not a whole number from 0 to {LARGEST_SEED}.",
            why="one seed serves python, numpy and torch, and numpy takes 32 bits.",
            fix="seed_everything(42)",
        )
    torch.manual_seed(seed)
    seed_host(seed)
    return seed


def seed_host(seed: int) -> None:
    """Seed the generators that run on the host, for a process that draws data only. ``seed`` may have 63 bits."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def capture_rng(device: torch.device | None = None) -> RNGState:
    """The state of every global generator; with ``device``, that accelerator's too (reading it syncs)."""
    on_device = {}
    if device is not None and device.type != "cpu":
        on_device[str(device)] = torch.get_device_module(device.type).get_rng_state(device)
    numpy = sys.modules.get("numpy")
    return RNGState(
        python=random.getstate(),
        torch=torch.get_rng_state(),
        numpy=_plain_numpy_state(numpy.random.get_state(legacy=False)) if numpy else None,
        device=on_device,
    )


def restore_rng(state: RNGState) -> None:
    """Put every global generator back to where ``capture_rng`` found it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if state["numpy"] is not None:
        import numpy as np

        np.random.set_state(_numpy_state(state["numpy"]))
    for name, rng in state["device"].items():
        device = torch.device(name)
        torch.get_device_module(device.type).set_rng_state(rng, device)


@contextmanager
def isolated_rng(device: torch.device | None = None) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside."""
    before = capture_rng(device)
    try:
        yield
    finally:
        restore_rng(before)


def _plain_numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    """MT19937's key is an array; everything else in a numpy state is plain already."""
    key = state["state"]["key"]
    return {**state, "state": {**state["state"], "key": torch.from_numpy(key.astype("int64"))}}


def _numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "state": {**state["state"], "key": state["state"]["key"].numpy().astype("uint32")}}


Owned = dict[str, Any]
"""The states of the generators that one object owns, by attribute name."""


def capture_owned(owner: object) -> Owned:
    """States of the torch, numpy and python generators among the attributes of ``owner``."""
    return {name: _generator_state(value) for name, value in _generators_of(owner)}


def restore_owned(owner: object, state: Owned) -> None:
    """Put the generators among the attributes of ``owner`` back to ``state``; ones it doesn't have are left out."""
    for name, value in _generators_of(owner):
        if name in state:
            _set_generator_state(value, state[name])


def _generators_of(owner: object) -> list[tuple[str, Any]]:
    numpy = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if numpy:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    return [(name, value) for name, value in getattr(owner, "__dict__", {}).items() if isinstance(value, kinds)]


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    numpy = sys.modules["numpy"]
    if isinstance(generator, numpy.random.RandomState):
        return _plain_numpy_state(generator.get_state(legacy=False))
    state = generator.bit_generator.state
    return _plain_numpy_state(state) if state["bit_generator"] == "MT19937" else state


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, internal, gauss = state
        generator.setstate((version, tuple(internal), gauss))
    elif isinstance(generator, sys.modules["numpy"].random.RandomState):
        generator.set_state(_numpy_state(state))
    else:
        generator.bit_generator.state = _numpy_state(state) if state["bit_generator"] == "MT19937" else state
