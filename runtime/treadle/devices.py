"""Accelerators: from a name to a ``torch.device``."""

from __future__ import annotations

import torch

from treadle import plugins
from treadle.errors import ConfigError, nearest


def device_for(accelerator: str) -> torch.device:
    """The device that ``accelerator`` names: ``auto`` (an accelerator if there is one), ``cpu``, ``gpu``, ``cuda``, ``mps``.

    Raises:
        ConfigError: The name is unknown, or this machine has no such device.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    match accelerator:
        case "cpu":
            return torch.device("cpu")
        case "auto":
            return _indexed(found) if found else torch.device("cpu")
        case "gpu" | "cuda" | "mps":
            if found and (accelerator == "gpu" or accelerator == found.type):
                return _indexed(found)
            raise ConfigError(
                f"accelerator={accelerator!r}: this machine has none that torch {torch.__version__} can use.",
                why=f"torch.accelerator reports {found.type if found else 'no accelerator'}.",
                fix='accelerator="auto", or install a torch built for the device.',
            )
        case str() as name if (provided := plugins.named("treadle.accelerators", name)) is not None:
            return torch.device(provided())  # a function of an installed package
        case _:
            known = ["auto", "cpu", "gpu", "cuda", "mps", *plugins.names("treadle.accelerators")]
            raise ConfigError(
                f"accelerator={accelerator!r} is unknown.",
                why=f"known accelerators are {', '.join(known)}.",
                fix=nearest(str(accelerator), known),
            )


def _indexed(device: torch.device) -> torch.device:
    return torch.device(device.type, 0)
