"""From a module to a checked file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from treadle.checkpoint import Checkpoint, read
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.export import onnx_file, pt2_file, weights_file
from treadle.export.card import write_card
from treadle.export.checking import Checked, Tolerance, check, try_out
from treadle.export.example import example_of
from treadle.export.formats import Format, format_for, require_packages
from treadle.export.loading import load_exported, read_weights
from treadle.export.manifest import Manifest
from treadle.export.program import frozen, program_of
from treadle.module import class_name
from treadle.seeding import isolated_rng

ATOL = RTOL = 1e-4


@dataclass(frozen=True)
class Written:
    """A file, and how it was checked before it got its name."""

    path: Path
    manifest: Manifest
    size: int
    """Bytes."""
    checked: Checked | None
    """None for weights, every one of which is bit for bit the module's."""
    tolerance: Tolerance
    card: Path | None = None
    """The model card beside weights; None too where there is one that somebody has changed."""

    def __str__(self) -> str:
        """One line."""
        of = self.manifest.model
        if self.manifest.created_from is not None:
            of += f" from {self.manifest.created_from} (epoch {self.manifest.epoch}, step {self.manifest.global_step})"
        what = f"{self.path}: {of}, {_human(self.size)}"
        if self.checked is None:
            card = f"; {self.card.name} says how to load it" if self.card is not None else ""
            return f"{what}; every tensor is bit for bit the module's{card}"
        sizes = ", ".join(map(str, self.checked.batch_sizes))
        batches = f"batches of {sizes}" if sizes else "the example"
        return (
            f"{what}; read back, its outputs for {batches} are the module's: largest difference "
            f"{self.checked.largest_difference:.3g}, allowed {self.tolerance}"
        )


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str | Format | None = None,  # noqa: A002 - the field's name for it
    example: Any = None,
    data: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    atol: float = ATOL,
    rtol: float = RTOL,
    dynamic_batch: bool = True,
) -> Written:
    """Write ``forward`` of ``module``, in eval mode, as a file that runs without its code; or its weights alone.

    The file is written under another name and read back. Its outputs must be the module's for the example, for one sample
    and for one more than the example has; of weights, each tensor bit for bit. Only then it gets its name; otherwise
    there is no file. The module stays as it is: what is exported is a copy.

    Args:
        module: With the weights to export; on any device, the file is for the CPU.
        path: ``.pt2`` for a ``torch.export`` program, ``.onnx``, or ``.safetensors`` for weights, with a model card beside
            them.
        format: ``torch.export``, ``onnx`` or ``safetensors``; None: what the suffix says.
        example: Inputs of ``forward``: a tensor, a tuple of arguments, or a dict of them by name. None: the module's
            ``example_input_array``; else what its step gives to ``forward`` for the first batch of ``data``.
        data: A DataModule, which is set up. None: the module's own loaders. Its predictions' loader is taken, else that
            of validation, else that of training.
        checkpoint: Where the weights come from, for what the file says of itself. They are not loaded from it.
        atol: The absolute part of how far outputs may differ; half precision needs more than the default.
        rtol: The part relative to the module's own.
        dynamic_batch: The batch may have any size: the first dimension of the first input and of all others that have the
            same in the example. False: each input has the example's shape.

    Raises:
        ConfigError: No such format, missing packages, no example, or a path that can't be written.
        ModuleError: ``forward`` can't be exported, or the file computes something else.
        CheckpointError: ``checkpoint`` can't be read; the disk is full.
    """
    path = Path(path)
    kind = format_for(path, format)
    require_packages(kind, to="write")
    tolerance = _tolerance(atol, rtol)
    source = None if checkpoint is None else Path(checkpoint)
    saved = None if source is None else read(source)
    manifest = _of_run(Manifest.here(class_name(module)), source, saved)
    with torch.no_grad(), isolated_rng(), _modes_kept(module):
        if kind is Format.SAFETENSORS:
            return _weights(module, path, manifest, saved, tolerance)
        return _program(module, path, kind, manifest, tolerance, (example, data, dynamic_batch))


def _weights(
    module: nn.Module, path: Path, manifest: Manifest, saved: Checkpoint | None, tolerance: Tolerance
) -> Written:
    state = module.state_dict()
    with _unnamed(path) as partial:
        weights_file.write(state, manifest, partial)
        _require_same_bits(state, read_weights(partial), manifest.model)
    card = write_card(path, module, manifest, saved)
    return Written(path, manifest, path.stat().st_size, None, tolerance, card)


def _program(
    module: nn.Module,
    path: Path,
    kind: Format,
    manifest: Manifest,
    tolerance: Tolerance,
    source: tuple[Any, Any, bool],
) -> Written:
    given, data, dynamic_batch = source
    copied = frozen(module)
    example = example_of(frozen(module), given, data, dynamic_batch=dynamic_batch)  # whose steps may change it
    try_out(frozen(module), example)
    program = program_of(copied, example)
    manifest = replace(manifest, inputs=program.inputs, outputs=program.outputs)
    with _unnamed(path) as partial:
        if kind is Format.PT2:
            pt2_file.write(program.exported, manifest, partial)
        else:
            onnx_file.write(program, manifest, partial)
        try:
            exported = load_exported(partial)
        except CheckpointError as error:
            raise ModuleError(
                f"the exported {manifest.model} can't be read back.",
                why=str(error.what).replace(str(partial), "the file"),
                fix="keep to torch's own operators, and to tuples, lists and dicts with plain keys; or export to .onnx.",
            ) from error
        checked = check(exported, copied, example, tolerance)
    return Written(path, manifest, path.stat().st_size, checked, tolerance)


def _of_run(manifest: Manifest, source: Path | None, saved: Checkpoint | None) -> Manifest:
    if source is None or saved is None:
        return manifest
    return replace(manifest, epoch=saved["epoch"], global_step=saved["global_step"], created_from=source.name)


def _tolerance(atol: float, rtol: float) -> Tolerance:
    for name, value in (("atol", atol), ("rtol", rtol)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(
                f"{name}={value!r}.", why="it is how far outputs may differ: a number, 0 or more.", fix=f"{name}=1e-4"
            )
    return Tolerance(float(atol), float(rtol))


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    """Users' ``state_dict`` and ``__deepcopy__`` run meanwhile."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _unnamed(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that gets its name at the end, if nothing went wrong; else it goes."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder.", why="an export is one file.", fix=f"{path / ('model' + path.suffix)}")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            mode = partial.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"{path} can't be written.",
                why=f"{error.strerror or error}.",
                fix="name a file in a folder that you may write in.",
            ) from None
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.chmod(mode)  # safetensors' files are for their owner alone, whatever the umask
            partial.replace(path)
        except OSError as error:
            raise CheckpointError(
                f"{path} was not written.",
                why=f"{error.strerror or error}.",
                fix="make room, or export to another disk.",
            ) from error
    finally:
        partial.unlink(missing_ok=True)


def _require_same_bits(state: dict[str, Any], found: dict[str, Tensor], model: str) -> None:
    for name in [*state, *(name for name in found if name not in state)]:
        ours, theirs = state.get(name), found.get(name)
        if ours is None or theirs is None or not _same_bits(ours, theirs):
            raise ModuleError(
                f"{name!r} of {model} is not the same in the file.",
                why="each tensor is read back and compared bit for bit. Nothing was written.",
                fix="check the disk; does another thread train the module meanwhile?",
            )


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    raw = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs)]
    return torch.equal(*raw)


def _human(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size} bytes"
