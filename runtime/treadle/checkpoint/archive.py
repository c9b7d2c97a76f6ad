"""The zip file that ``torch.save`` writes: a pickle, and the memory of its tensors beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import final
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from treadle.checkpoint.pickled import Malformed

_CHUNK = 2**20
_ENCRYPTED = 0x1


@final
class Archive:
    """Reads parts of ``path``, none larger than the file itself, each held against its checksum.

    Args:
        path: A zip file.
        map_location: Where tensors go.

    Raises:
        Malformed: It has no pickle, or its parts are larger than it.
        zipfile.BadZipFile: It is no zip file.
    """

    def __init__(self, path: Path, map_location: str | torch.device = "cpu") -> None:
        self._device = torch.device(map_location)
        self._zip = ZipFile(path)
        self._memory: dict[str, Tensor] = {}
        try:
            if sum(part.file_size for part in self._zip.infolist()) > path.stat().st_size:
                raise Malformed("its parts say that they are larger than the file")
            pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise Malformed("it is a zip archive, and not one of torch.save")
            self._folder = pickles[0].removesuffix("data.pkl")
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def pickle(self) -> bytes:
        return bytes(self._read("data.pkl"))

    def bytes_of(self, key: str) -> Tensor:
        """The storage ``key``: uint8, shape ``(bytes,)``; the same memory each time.

        Raises:
            Malformed: There is none, or one of a machine of the other byte order.
        """
        if key not in self._memory:
            if f"{self._folder}byteorder" in self._zip.NameToInfo and self._read("byteorder") != sys.byteorder.encode():
                raise Malformed("its numbers are in the byte order of another machine")
            content = self._read(f"data/{key}")
            stored = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            self._memory[key] = stored.to(self._device)
        return self._memory[key]

    def _read(self, name: str) -> bytearray:
        if (part := self._zip.NameToInfo.get(self._folder + name)) is None:
            raise Malformed(f"the part {name[:40]!r} is not in it")
        if part.compress_type != ZIP_STORED or part.flag_bits & _ENCRYPTED or part.file_size != part.compress_size:
            raise Malformed(f"the part {name[:40]!r} is compressed or encrypted")
        content, filled = bytearray(part.file_size), 0
        with self._zip.open(part) as source:
            while chunk := source.read(_CHUNK):
                content[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        if filled != part.file_size:
            raise Malformed(f"the part {name[:40]!r} ends in the middle")
        return content
