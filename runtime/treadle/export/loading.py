"""An exported file, loaded to be called. Needs none of the code that the model was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from treadle.errors import CheckpointError, ConfigError
from treadle.export import onnx_file, pt2_file, weights_file
from treadle.export.formats import Format, format_for, require_packages
from treadle.export.manifest import BATCH, Manifest, TensorSpec


@dataclass(frozen=True)
class Exported:
    """A program: called with the tensors that ``manifest.inputs`` names, in that order, it returns those of
    ``manifest.outputs``.

    It computes on the CPU and without gradients. May be called from several threads, unless the model changes buffers of
    its own in ``forward``.
    """

    manifest: Manifest
    compute: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    """The same, for inputs that nobody checked."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """
        Raises:
            ConfigError: Another number of inputs than there are, or one of another type or shape.
        """
        _require_fitting(inputs, self.manifest.inputs)
        with torch.no_grad():
            return self.compute(inputs)


def load_exported(path: Path) -> Exported:
    """The program in a ``.pt2`` or ``.onnx`` file that :func:`treadle.export.export` wrote.

    **A file from a stranger.** ``torch.export.load`` must not be given one: it unpickles what the file brings, with
    objects, and evaluates expressions and Python code that are in it as text. A file of ours has nothing to unpickle and
    no code as text, and here everything else is refused before torch looks at it: pickles, compiled libraries, operators
    that are not torch's own or touch files, names and expressions that are more than that. No way to run code from a file
    is known to us to be left. That is a careful reading of torch's loader, not a promise of it: a file can still be made
    to take all memory or to crash the process. For strangers' files use ONNX, in a process that has nothing to lose.

    Raises:
        CheckpointError: No such file, a damaged one, one that is not of treadle, or one that holds more than a program.
        ConfigError: Not such a suffix; packages are missing.
    """
    path = Path(path)
    kind = format_for(path)
    if kind is Format.SAFETENSORS:
        raise ConfigError(
            f"{path} holds weights and no program.",
            why="safetensors is a format of tensors.",
            fix=f"treadle.export.read_weights({str(path)!r}), or export the checkpoint as .pt2 or .onnx.",
        )
    _require_file(path)
    require_packages(kind, to="read")
    manifest, compute = pt2_file.read(path) if kind is Format.PT2 else onnx_file.read(path)
    return Exported(manifest, compute)


def read_manifest(path: Path) -> Manifest:
    """What an exported file of any format says of itself. Loads no weights.

    Raises:
        CheckpointError: No such file, a damaged one, or one that is not of treadle.
        ConfigError: Not such a suffix; ONNX's packages are missing.
    """
    path = Path(path)
    kind = format_for(path)
    _require_file(path)
    match kind:
        case Format.PT2:
            return pt2_file.read_manifest(path)
        case Format.ONNX:
            require_packages(kind, to="read")
            return onnx_file.read(path)[0]
        case Format.SAFETENSORS:
            return weights_file.read_manifest(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The ``state_dict`` in a ``.safetensors`` file that :func:`treadle.export.export` wrote, tied weights under each of
    their names.

    Raises:
        CheckpointError: No such file, a damaged one, or one that is not of treadle.
        ConfigError: The package is missing.
    """
    path = Path(path)
    _require_file(path)
    require_packages(Format.SAFETENSORS, to="read")
    return weights_file.read(path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not an exported file.",
            why="there is a folder of that name." if path.is_dir() else "no such file.",
            fix="give the path that was exported to.",
        )


def _require_fitting(inputs: tuple[Tensor, ...], specs: tuple[TensorSpec, ...]) -> None:
    wanted = ", ".join(map(str, specs))
    if len(inputs) != len(specs):
        raise ConfigError(
            f"{len(inputs)} inputs where there are {len(specs)}.",
            why=f"the program takes {wanted}.",
            fix="give each of them, in that order.",
        )
    sizes: dict[str, int] = {}
    for value, spec in zip(inputs, specs, strict=True):
        fits = isinstance(value, Tensor) and value.dtype == spec.torch_dtype and value.dim() == len(spec.shape)
        if fits:
            for size, allowed in zip(value.shape, spec.shape, strict=True):
                if isinstance(allowed, int):
                    fits = fits and size == allowed
                elif allowed == BATCH:
                    fits = fits and size >= 1 and sizes.setdefault(allowed, size) == size
        if not fits:
            kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
            shape = list(value.shape) if isinstance(value, Tensor) else ""
            raise ConfigError(
                f"input {spec.name!r} is {kind}{shape}.",
                why=f"the program takes {wanted}, with one size of the batch, of 1 or more.",
                fix=f"give {spec}.",
            )
