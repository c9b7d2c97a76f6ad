"""Which formats there are, told by the suffix, and what writing and reading each of them needs."""

from __future__ import annotations

from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from treadle.errors import ConfigError, nearest


class Format(Enum):
    """Named as on the command line."""

    PT2 = "torch.export"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"

    @property
    def suffix(self) -> str:
        return ".pt2" if self is Format.PT2 else f".{self.value}"


_PACKAGES = {
    (Format.PT2, "write"): (),
    (Format.PT2, "read"): (),
    (Format.ONNX, "write"): ("onnx", "onnxscript", "onnxruntime"),  # the last to check what was written
    (Format.ONNX, "read"): ("onnxruntime",),
    (Format.SAFETENSORS, "write"): ("safetensors",),
    (Format.SAFETENSORS, "read"): ("safetensors",),
}


def format_for(path: Path, name: str | Format | None = None) -> Format:
    """That of ``name``; None: that of the suffix.

    Raises:
        ConfigError: No such format; a suffix of none, or of another than was named.
    """
    if name is not None:
        return _named(path, name)
    by_suffix = {kind.suffix: kind for kind in Format}
    if path.suffix not in by_suffix:
        raise ConfigError(
            f"{path.name!r} has the suffix {path.suffix!r}." if path.suffix else f"{path.name!r} has no suffix.",
            why=f"the suffix says the format: {', '.join(f'{k.suffix} for {k.value}' for k in Format)}.",
            fix=nearest(path.suffix, by_suffix),
        )
    return by_suffix[path.suffix]


def _named(path: Path, name: str | Format) -> Format:
    by_name = {kind.value: kind for kind in Format}
    found = name if isinstance(name, Format) else by_name.get(name)
    if found is None:
        raise ConfigError(
            f"{name!r} is not a format.", why=f"formats are {', '.join(by_name)}.", fix=nearest(str(name), by_name)
        )
    if path.suffix != found.suffix:
        raise ConfigError(
            f"format {found.value!r} in a file named {path.name!r}.",
            why="whoever reads the file goes by its suffix.",
            fix=f"name it {path.with_suffix(found.suffix).name!r}.",
        )
    return found


def require_packages(kind: Format, *, to: str) -> None:
    """
    Args:
        to: ``write`` or ``read``.

    Raises:
        ConfigError: One is not installed.
    """
    if missing := [package for package in _PACKAGES[kind, to] if find_spec(package) is None]:
        raise ConfigError(
            f"to {to} {kind.value}, {' and '.join(missing)} must be installed.",
            why="they are an extra: treadle itself needs only torch and rich.",
            fix='pip install "treadle[export]"',
        )
