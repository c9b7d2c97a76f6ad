"""Precisions, and the one place that turns their names into objects."""

from __future__ import annotations

import torch

from treadle import plugins
from treadle.errors import ConfigError, nearest
from treadle.precision.base import Precision, SkipsSteps
from treadle.precision.float8 import Float8
from treadle.precision.full import FullPrecision
from treadle.precision.mixed import BFloat16Mixed
from treadle.precision.scaled import Float16Mixed
from treadle.precision.true import TruePrecision

__all__ = [
    "BFloat16Mixed",
    "Float8",
    "Float16Mixed",
    "FullPrecision",
    "Precision",
    "SkipsSteps",
    "TruePrecision",
    "precision_for",
]

NAMES = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "float8")


def precision_for(precision: str | int | Precision, device: torch.device | None = None) -> Precision:
    """The object behind a name; an object is returned as it is.

    Args:
        precision: ``"32-true"`` (or ``32``, ``"32"``), ``"64-true"`` (``64``), ``"16-mixed"`` (``16``), ``"bf16-mixed"``
            (``"bf16"``), ``"16-true"``, ``"bf16-true"``, ``"float8"``, or the name of an installed one.
        device: Where forward passes will run. None: the CPU.

    Raises:
        ConfigError: The name is unknown, or the device can't compute in that format.
    """
    device = device or torch.device("cpu")
    match str(precision) if isinstance(precision, (str, int)) else precision:
        case "32-true" | "32":
            return FullPrecision()
        case "64-true" | "64":
            _require_float64(device)
            return TruePrecision("64-true")
        case "16-true":
            return TruePrecision("16-true")
        case "bf16-true":
            _require_bfloat16("bf16-true", device)
            return TruePrecision("bf16-true")
        case "16-mixed" | "16":
            return Float16Mixed(device)
        case "bf16-mixed" | "bf16":
            _require_bfloat16("bf16-mixed", device)
            return BFloat16Mixed(device)
        case "float8":
            return Float8(device)
        case str() as name if (provided := plugins.named("treadle.precision", name)) is not None:
            return precision_for(provided(), device)  # a class or function of an installed package
        case str() as name:
            raise ConfigError(
                f"precision={name!r} is unknown.",
                why="a precision is the format of weights and of what is computed from them.",
                fix=nearest(name, [*NAMES, *plugins.names("treadle.precision")]),
            )
        case own:
            if isinstance(own, type) or not isinstance(own, Precision):
                raise ConfigError(
                    f"precision={own!r} is neither a name nor an object of one.",
                    why="your own has the methods of treadle.precision.Precision.",
                    fix=nearest(str(own), NAMES),
                )
            return own


def _require_bfloat16(name: str, device: torch.device) -> None:
    if not computes_bfloat16(device):
        raise ConfigError(
            f"precision={name!r} on {device}.",
            why="this device doesn't compute in bfloat16.",
            fix=f'precision="{name.replace("bf16", "16")}"',
        )


def computes_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` does so itself; a GPU that only emulates it would be slower than in 32 bits."""
    if device.type == "cpu":
        return True
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if supported is not None:
        return bool(supported())
    try:  # mps: from macOS 14 on
        torch.ones((), dtype=torch.bfloat16, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def _require_float64(device: torch.device) -> None:
    if device.type == "mps":
        raise ConfigError(
            'precision="64-true" on mps.', why="this device has no 64-bit floating point.", fix='accelerator="cpu"'
        )
