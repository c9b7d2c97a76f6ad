"""A ``state_dict`` as safetensors: a JSON header and raw tensors. Nothing of a program is in there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import CheckpointError, ModuleError
from treadle.export.manifest import Manifest

KEY = "treadle"
"""The manifest's in the header's metadata."""
TIED = "tied"
"""Other names of tensors that are stored once: a JSON object."""

_LONGEST = 100_000_000
"""Bytes of a header, by the format's specification."""


def write(state: dict[str, Any], manifest: Manifest, path: Path) -> None:
    """Tensors that share their memory are stored once.

    Raises:
        ModuleError: The state has something else than dense tensors.
        OSError: The disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored, tied = _without_ties(_tensors(state, manifest.model))
    metadata = {"format": "pt", KEY: manifest.to_json(), TIED: json.dumps(tied)}
    try:
        save_file({name: _compact(tensor) for name, tensor in stored.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        CheckpointError: It is damaged, or not of treadle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = _metadata(path)
    try:
        found: dict[str, Tensor] = load_file(path)
        tied = json.loads(metadata.get(TIED, "{}"))
        return {**found, **{name: found[other] for name, other in tied.items()}}
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from None


def read_manifest(path: Path) -> Manifest:
    """
    Raises:
        CheckpointError: It is damaged, or not of treadle.
    """
    metadata = _metadata(path)
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} was not exported by treadle.",
            why=f"a file of treadle has {KEY!r} in its header, and this one hasn't.",
            fix="safetensors.torch.load_file(path)",
        )
    return Manifest.from_json(metadata[KEY], path)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST, path.stat().st_size):
                raise ValueError(f"a header of {length:,} bytes")
            found = json.loads(file.read(length)).get("__metadata__", {})
        if not all(isinstance(value, str) for value in found.values()):
            raise ValueError("metadata that is no text")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None
    metadata: dict[str, str] = found
    return metadata


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its {path.stat().st_size:,} bytes are not a whole safetensors file.",
        why=f"reading it says: {error}.",
        fix="export the checkpoint again.",
    )


def _tensors(state: dict[str, Any], model: str) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ModuleError(
                f"{name!r} in the state of {model} is {kind}.",
                why="safetensors holds dense tensors and nothing else.",
                fix="export it as .pt2, or keep it out of the state_dict (register_buffer(..., persistent=False)).",
            )
    return {name: value.detach().cpu() for name, value in state.items()}


def _without_ties(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor under its first name, and the other names with that one."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr() or name, tensor.shape, tensor.stride(), tensor.dtype)
        if (known := first.setdefault(place, name)) == name:
            stored[name] = tensor
        else:
            tied[name] = known
    return stored, tied


def _compact(tensor: Tensor) -> Tensor:
    """Contiguous, and alone in its memory."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
