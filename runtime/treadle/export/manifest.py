"""What an exported file says of itself: a JSON object inside of it, under the name ``treadle.json`` or ``treadle``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from treadle.errors import CheckpointError
from treadle.version import __version__

FORMAT = 1
BATCH = "batch"
"""What a dimension is called that may have any size: that of the batch."""

_DTYPE = re.compile(r"(bool|bfloat16|float\w+|u?int\d+|complex\d+)")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: str
    """As torch writes it, without ``torch.``: ``float32``."""
    shape: tuple[int | str, ...]
    """``"batch"`` for the size of the batch, an expression of it (``"2*batch"``) for what follows from it."""

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def batched(self) -> bool:
        """The first dimension is that of the batch, of any size."""
        return self.shape[:1] == (BATCH,)

    def __str__(self) -> str:
        """
        >>> str(TensorSpec("image", "float32", ("batch", 3, 32, 32)))
        'image float32[batch, 3, 32, 32]'
        """
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Manifest:
    """Of the file, and of the run that its weights come from."""

    format: int
    treadle_version: str
    torch_version: str
    model: str
    """The name of its class."""
    inputs: tuple[TensorSpec, ...]
    """In the order they are given. Empty for weights alone."""
    outputs: tuple[TensorSpec, ...]
    """In the order they are returned. Empty for weights alone."""
    epoch: int | None = None
    global_step: int | None = None
    created_from: str | None = None
    """The name of the checkpoint file."""

    @classmethod
    def here(cls, model: str, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()) -> Manifest:
        """One that is written now, by this version."""
        return cls(FORMAT, __version__, str(torch.__version__), model, inputs, outputs)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> Manifest:
        """What :meth:`to_json` wrote, found in the file ``path``.

        Raises:
            CheckpointError: It is none, or of another format.
        """
        try:
            found = json.loads(text)
            number = found["format"]
            if number == FORMAT:
                return _checked(found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"what {path} says of itself can't be read.",
                why=f"it is not a manifest of treadle: {type(error).__name__}: {error}.",
                fix="export the checkpoint again.",
            ) from None
        raise CheckpointError(
            f"{path} has export format {number!r}, this version reads {FORMAT}.",
            why="the layout changed between releases.",
            fix="install the release of treadle that wrote it, or export the checkpoint again.",
        )


def _checked(found: dict[str, Any]) -> Manifest:
    return Manifest(
        format=FORMAT,
        treadle_version=_of(found, "treadle_version", str),
        torch_version=_of(found, "torch_version", str),
        model=_of(found, "model", str),
        inputs=tuple(map(_spec, _of(found, "inputs", list))),
        outputs=tuple(map(_spec, _of(found, "outputs", list))),
        epoch=_of(found, "epoch", int, type(None)),
        global_step=_of(found, "global_step", int, type(None)),
        created_from=_of(found, "created_from", str, type(None)),
    )


def _spec(found: dict[str, Any]) -> TensorSpec:
    shape, dtype = _of(found, "shape", list), _of(found, "dtype", str)
    if any(type(size) not in (int, str) or (isinstance(size, int) and size < 0) for size in shape):
        raise TypeError(f"shape {shape!r}")
    if not _DTYPE.fullmatch(dtype) or not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise TypeError(f"dtype {dtype!r}")
    return TensorSpec(_of(found, "name", str), dtype, tuple(shape))


def _of(found: dict[str, Any], name: str, *kinds: type) -> Any:
    """``found[name]``, which is of one of ``kinds`` (a bool is no int)."""
    if type(found[name]) not in kinds:
        raise TypeError(f"{name} {found[name]!r}")
    return found[name]
