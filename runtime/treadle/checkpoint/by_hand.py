"""Tensors, numpy's values and a few small types, made by hand of what a pickle says of them."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from treadle.checkpoint.pickled import Entries, Global, Made, Malformed, Outside, named

if TYPE_CHECKING:
    from treadle.checkpoint.rebuilding import Rebuilding

MOST_REPEATED = 2**24
"""Elements of a tensor that has fewer in memory, as an expanded one has."""
MOST_AXES = 64

DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_NUMPY = {
    "b1": torch.bool,
    **{f"i{size}": getattr(torch, f"int{8 * size}") for size in (1, 2, 4, 8)},
    **{f"u{size}": getattr(torch, f"uint{8 * size}") for size in (1, 2, 4, 8)},
    **{f"f{size}": getattr(torch, f"float{8 * size}") for size in (2, 4, 8)},
    **{f"c{size}": getattr(torch, f"complex{8 * size}") for size in (8, 16)},
}
_OWN_ORDER = "<" if struct.pack("=H", 1) == b"\1\0" else ">"


class Unreadable(Exception):
    """Nothing plain stands for it; the text says what it is."""


def by_hand(to: Rebuilding, described: Made) -> Any:
    """What an ordinary unpickler would get from calling torch, numpy or a builtin, without calling them.

    Raises:
        Malformed: A tensor that can't be.
        Unreadable: It is none of the kinds that are made here.
    """
    match described.name, described.arguments:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (stored, at, size, steps, *rest):
            return _tensor(to, stored, at, size, steps, rest[2:])
        case "torch._utils._rebuild_tensor_v3", (
            stored,
            at,
            size,
            steps,
            _,
            _,
            Global(module="torch", name=kind),
            *rest,
        ):
            return _tensor(to, stored, at, size, steps, rest, DTYPES.get(kind))
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_):
            return to.value(data, "a parameter")
        case "torch._utils._rebuild_device_tensor_from_cpu_tensor", (data, *_):
            return to.value(data, "a tensor")
        case "torch._tensor._rebuild_from_type_v2", (by, Global() as kind, tuple() as arguments, _):
            if str(kind) in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                return by_hand(to, Made(by, arguments, True))
            raise Unreadable(f"a {kind}, a tensor of a type of its own")
        case "torch.Size", (tuple() as size,):
            return torch.Size(_counts(size))
        case "torch.device", (str() as kind,):
            return _device(kind)
        case "torch.device", (str() as kind, int() as index):
            return _device(f"{kind}:{index % 2**31}")
        case "_codecs.encode", (str() as text, "latin1"):
            return text.encode("latin1")
        case "builtins.bytes" | "builtins.bytearray", (content, *_):
            return _bytes(to, content)
        case "builtins.bytes" | "builtins.bytearray", ():
            return b""
        case "builtins.set" | "builtins.frozenset", (list() | tuple() as items,):
            return {to.key(item) for item in items}
        case "builtins.complex", (float() as real, float() as imaginary):
            return complex(real, imaginary)
        case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", (kind, content):
            return _elements(to, kind, content, 1)[0].item()
        case "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct", _:
            return _array(to, described.state)
    raise Unreadable(named(described))


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise Unreadable(f"the torch.device {name[:40]!r}, which there is not") from None


def _counts(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise Malformed("a shape that is none")
    if len(numbers) > MOST_AXES:
        raise Malformed(f"a shape of {len(numbers):,} axes")
    return numbers


def _shape(size: Any) -> tuple[int, ...]:
    whole = (
        isinstance(size, Made) and size.name == "torch.Size" and isinstance(size.arguments, tuple) and size.arguments
    )
    numbers = _counts(size.arguments[0] if whole else size)
    if math.prod(number or 1 for number in numbers) >= 2**62:
        raise Malformed("a shape of more elements than there can be")
    return numbers


def _tensor(
    to: Rebuilding,
    stored: Any,
    offset: Any,
    size: Any,
    stride: Any,
    metadata: list[Any],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A view of a storage; several may be of the same.

    Raises:
        Malformed: It would reach over the end of its memory, or isn't described as a tensor.
    """
    if any(isinstance(item, (Entries, Made)) and item.entries for item in metadata):
        raise Unreadable("a conjugate or negative view of a tensor")
    match stored:
        case Outside(identity=("storage", Global(name=name), str() as key, _, int() as count)) if name in _STORAGES:
            of = _STORAGES[name]
        case _:
            raise Malformed("a tensor without a storage")
    size, stride, (offset, count) = _shape(size), _counts(stride), _counts((offset, count))
    if len(size) != len(stride):
        raise Malformed(f"a tensor of {len(size)} axes with {len(stride)} strides")
    memory, dtype = to.storages.bytes_of(key), dtype or of
    if count * of.itemsize > memory.numel():
        raise Malformed(f"a storage that says it has {count * of.itemsize:,} bytes, and has {memory.numel():,}")
    length, elements = count * of.itemsize // dtype.itemsize, math.prod(size)
    if elements > max(length, MOST_REPEATED):
        raise Malformed(f"a tensor of {elements:,} elements, of which {length:,} are stored")
    if not elements:
        return torch.empty(0, dtype=dtype, device=memory.device).reshape(size)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= length:
        raise Malformed(f"a tensor that reaches over the end of its {length:,} elements")
    return memory[: length * dtype.itemsize].view(dtype).as_strided(size, stride, offset)


def _array(to: Rebuilding, state: Any) -> Tensor:
    """Of what is put into an empty numpy array: version, shape, dtype, whether columns come first, and bytes."""
    match state:
        case (_, tuple() as size, kind, bool() as columns_first, content):
            size = _shape(size)
        case _:
            raise Unreadable("a numpy array of a kind of its own")
    flat = _elements(to, kind, content, math.prod(size))
    return flat.reshape(size[::-1]).permute(*reversed(range(len(size)))) if columns_first else flat.reshape(size)


def _elements(to: Rebuilding, kind: Any, content: Any, count: int) -> Tensor:
    match kind:
        case Made(name="numpy.dtype", arguments=(str() as code, *_), state=(_, str() as order, *_)) if code in _NUMPY:
            dtype = _NUMPY[code]
        case _:
            raise Unreadable("a numpy value of a type that torch has no equivalent of")
    content = _bytes(to, content)
    if order not in ("|", "=", _OWN_ORDER) or len(content) != count * dtype.itemsize:
        raise Unreadable("a numpy value whose bytes are not its elements, or in another order")
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _bytes(to: Rebuilding, content: Any) -> bytes:
    """Protocol 2 has no bytes, and writes them as text to be encoded."""
    found = to.value(content, "bytes")
    if not isinstance(found, bytes):
        raise Unreadable("bytes of something else")
    return found
