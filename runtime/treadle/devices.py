"""Accelerators: from a name to the devices of this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from treadle import plugins
from treadle.errors import ConfigError, nearest

Devices = int | str | Sequence[int]
"""How many (``2``), all there are (``-1`` or ``"auto"``), or which ones (``[0, 2]`` or ``"0,2"``)."""


def kind_of(accelerator: str) -> str:
    """The kind of device that ``accelerator`` names: ``auto`` (an accelerator if there is one), ``cpu``, ``gpu``, ``cuda``,
    ``mps``, or one that an installed package brings.

    Raises:
        ConfigError: The name is unknown, or this machine has no such device.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    match accelerator:
        case "cpu":
            return "cpu"
        case "auto":
            return found.type if found else "cpu"
        case "gpu" | "cuda" | "mps":
            if found and accelerator in ("gpu", found.type):
                return found.type
            raise ConfigError(
                f"accelerator={accelerator!r}: this machine has none that torch {torch.__version__} can use.",
                why=f"torch.accelerator reports {found.type if found else 'no accelerator'}.",
                fix='accelerator="auto", or install a torch built for the device.',
            )
        case str() as name if (provided := plugins.named("treadle.accelerators", name)) is not None:
            return torch.device(provided()).type  # a function of an installed package
        case _:
            known = ["auto", "cpu", "gpu", "cuda", "mps", *plugins.names("treadle.accelerators")]
            raise ConfigError(
                f"accelerator={accelerator!r} is unknown.",
                why=f"known accelerators are {', '.join(known)}.",
                fix=nearest(str(accelerator), known),
            )


def chosen(devices: Devices, kind: str) -> list[int]:
    """The indices of the devices to use on this machine. On CPUs, one process each; ``auto`` is one.

    Raises:
        ConfigError: More than there are, the same one twice, none, or no number.
    """
    there = _count(kind)
    if devices == "auto":
        return list(range(there or 1))
    if isinstance(devices, str):
        try:
            numbers = [int(part) for part in devices.split(",")]
        except ValueError:
            raise _senseless(devices) from None
        devices = numbers if "," in devices else numbers[0]
    if isinstance(devices, bool) or not isinstance(devices, (int, list, tuple)):
        raise _senseless(devices)
    if isinstance(devices, int):
        if devices == -1:
            return list(range(there or 1))
        if devices < 1:
            raise _senseless(devices)
        devices = list(range(devices))
    indices = list(devices)
    whole = all(isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices)
    if not indices or not whole or len(set(indices)) < len(indices):
        raise _senseless(devices)
    if there is not None and max(indices) >= there:
        raise ConfigError(
            f"devices={devices!r}, and this machine has {there} of kind {kind}.",
            why="each rank has a device of its own.",
            fix=f'devices={there}, or devices="auto" for all of them.',
        )
    return indices


def device_at(kind: str, index: int) -> torch.device:
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, index)


def _count(kind: str) -> int | None:
    """How many there are; None for CPUs, on which there may be as many processes as one likes."""
    if kind == "cpu":
        return None
    module = torch.get_device_module(kind)
    return int(module.device_count()) if hasattr(module, "device_count") else 1


def _senseless(devices: object) -> ConfigError:
    return ConfigError(
        f"devices={devices!r} makes no sense.",
        why='it is how many (2), which ones ([0, 2] or "0,2"), or all of them ("auto" or -1).',
        fix="devices=1",
    )
