"""A ``torch.export`` program as a ``.pt2`` file: a zip archive of JSON and raw tensors."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.export.manifest import Manifest
from treadle.export.vetting import Refused, vet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

MANIFEST = "treadle.json"
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error)
"""What reading a file that isn't whole raises, somewhere in zipfile, json or torch. ``RecursionError`` is among them."""


def write(program: ExportedProgram, manifest: Manifest, path: Path) -> None:
    """
    Raises:
        ModuleError: Its inputs or outputs are in containers of types that torch can't write.
        OSError: The disk is full.
    """
    with _Patient(path, "w") as file:
        try:
            torch.export.save(program, file, extra_files={MANIFEST: manifest.to_json()})
        except RuntimeError as error:
            raise ModuleError(
                f"{manifest.model} can't be written as .pt2.",
                why=f"{type(error).__name__}: {_first_line(error)}",
                fix="take and return tensors in tuples, lists and dicts; or export it as .onnx.",
            ) from error
        if file.failure is not None:
            raise file.failure


class _Patient(io.FileIO):
    """A file that only remembers that the disk is full: an error under torch's archive writer would end the process."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        while rest and self.failure is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.failure = error
        return size


def read(path: Path) -> tuple[Manifest, Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """What the file says of itself, and its program. Nothing in it is executed, see :mod:`treadle.export.vetting`.

    Raises:
        CheckpointError: It is damaged, not of treadle, of another torch, or holds more than a program.
    """
    with path.open("rb") as file:  # one file from here on, whatever the name means by then
        manifest = _manifest(file, path)
        with _refusals(path):
            _check_sums(file)
            vet(_archive(file))
        file.seek(0)
        try:
            # Not torch.export.load: what this can't read, that tries once more as an older format, which is pickled.
            program = _package().load_pt2(file).exported_programs["model"]
            module = program.module(check_guards=False)  # which would be Python code, and is in no file of ours
        except Exception as error:
            raise CheckpointError(
                f"{path} can't be loaded: {type(error).__name__}: {_first_line(error)}",
                why=f"torch {manifest.torch_version} wrote it, this is {torch.__version__}; or it is damaged.",
                fix="export the checkpoint again with this release of torch.",
            ) from error
    structure = program.call_spec.in_spec

    def compute(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        args, kwargs = tree_unflatten(inputs, structure)
        return tuple(leaf for leaf in tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor))

    return manifest, compute


def read_manifest(path: Path) -> Manifest:
    """
    Raises:
        CheckpointError: It is damaged, or not of treadle.
    """
    with path.open("rb") as file:
        return _manifest(file, path)


def _manifest(file: IO[bytes], path: Path) -> Manifest:
    with _refusals(path):
        archive = _archive(file)
        if f"extra/{MANIFEST}" not in archive.get_all_records():
            raise CheckpointError(
                f"{path} was not exported by treadle.",
                why=f"a file of treadle has a record {MANIFEST!r}, and this one hasn't.",
                fix="torch.export.load(path), if you trust whoever wrote it: it unpickles what is in there.",
            )
        text = archive.get_record(f"extra/{MANIFEST}")
    return Manifest.from_json(text, path)


def _archive(file: IO[bytes]) -> Any:
    """As torch's loader reads it: another reader of zip archives may see another content."""
    file.seek(0)
    return torch._C.PyTorchFileReader(file)


def _check_sums(file: IO[bytes]) -> None:
    """Hold each record against its checksum, which torch doesn't for weights: a flipped bit would go unseen."""
    file.seek(0)
    with ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise BadZipFile(f"{damaged} is not what was written")


def _package() -> Any:
    try:
        from torch.export.pt2_archive import _package
    except ImportError:
        raise ConfigError(
            f"torch {torch.__version__} can't read .pt2 archives.",
            why="they came with later releases.",
            fix="pip install --upgrade torch",
        ) from None
    return _package


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise CheckpointError(
            f"{path} was not loaded: {refused}",
            why="of a .pt2 file only plain tensors and torch's own operators are read; anything else could run code.",
            fix="export the checkpoint again; ask where this file comes from.",
        ) from None
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged: its {path.stat().st_size:,} bytes are not a whole .pt2 file.",
            why=f"reading it says: {_first_line(error)}",
            fix="export the checkpoint again.",
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
