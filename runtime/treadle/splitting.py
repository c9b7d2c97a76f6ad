"""Batches in parts that fit into memory: split, weighed, and their size found by trying."""

from __future__ import annotations

import copy
import gc
from bisect import bisect_right
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import ceil
from typing import Any, NamedTuple, final

import torch
from torch import nn

from treadle.collectives import everywhere
from treadle.errors import ConfigError, DataError
from treadle.seeding import isolated_rng

OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, XPU, MPS, NCCL
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "RESOURCE_EXHAUSTED",  # XLA
)
"""What the messages of errors say that torch has no class of its own for."""


class Part(NamedTuple):
    """Some samples of a batch."""

    batch: Any
    """Of the batch's own types; its tensors are views."""
    samples: int


def split(batch: Any, size: int, samples: int | None = None) -> list[Part]:
    """``batch`` in parts of ``size`` samples, the last one of what is left.

    Tensors (and arrays) are split along their first dimension, wherever they are in tuples, lists, mappings, named tuples
    and dataclasses. A list or tuple of as many items as there are samples, none of them a tensor with that many, is split
    too: strings, or samples of different shapes. Numbers, strings, None and tensors without a dimension go to every part.

    >>> [part.batch for part in split((torch.arange(3), ["a", "b", "c"], 0.5), 2)]
    [(tensor([0, 1]), ['a', 'b'], 0.5), (tensor([2]), ['c'], 0.5)]

    Args:
        samples: How many there are; None: as the first tensor has.

    Raises:
        ConfigError: ``size`` is less than 1.
        DataError: Something in the batch has another number of samples, or can't be split.
    """
    _require_size(size)
    count = _samples_of(batch) if samples is None else samples
    if count is None:
        raise DataError(
            f"a batch without a tensor ({type(batch).__name__}) in micro-batches of {size}.",
            why="samples are counted along the first dimension of its first tensor.",
            fix="return tensors from the loader's collate_fn, or leave micro_batch_size out.",
        )
    starts = range(0, count, size)
    return [Part(_between(batch, start, start + size, count), min(size, count - start)) for start in starts]


@final
@dataclass(frozen=True)
class MicroBatches:
    """The parts of a batch, and how much each counts.

    With l_i the loss of sample i, parts k of n_k samples and n samples in all, the loss of the batch is ::

        L = 1/n sum_i l_i = sum_k (n_k / n) L_k,    L_k = 1/n_k sum_(i in k) l_i

    so that its gradient is the sum of those of ``fraction * loss of the part``, up to the rounding of sums, however the
    batch is split. This is so if the loss is a mean over samples that don't depend on each other: not with batch
    normalization in train mode, nor with losses that compare samples. Dropout draws other masks.

    >>> [fraction for _, fraction in MicroBatches(2)(torch.zeros(5, 3))]
    [0.4, 0.4, 0.2]

    Raises:
        ConfigError: ``size`` is less than 1.
    """

    size: int | None = None
    """Samples in a part; None: the whole batch, as it is."""

    def __post_init__(self) -> None:
        if self.size is not None:
            _require_size(self.size)

    def __call__(self, batch: Any, samples: int | None = None) -> Iterator[tuple[Any, float]]:
        """See :func:`split`, which raises."""
        if self.size is None or (samples is not None and samples <= self.size):
            yield batch, 1.0
            return
        parts = split(batch, self.size, samples)
        total = sum(part.samples for part in parts)
        for part in parts:
            yield part.batch, part.samples / total


def largest_that_fits(try_size: Callable[[int], bool], full: int, agree: Callable[[int], int]) -> int:
    """The size of micro-batches with which a batch of ``full`` samples takes the fewest of them.

    Tries the whole batch, halves, quarters and so on until one fits, and then what lies between. A size fits if it does on
    all ranks.

    Args:
        try_size: Whether so many samples fit, on this rank.
        full: The same on all ranks.
        agree: Its argument's minimum over the ranks. All ranks call it equally often.

    Raises:
        ConfigError: Not even one sample fits, on some rank.
    """

    def fits(index: int) -> bool:
        return agree(int(try_size(sizes[index]))) > 0

    sizes = sorted(
        {ceil(full / parts) for parts in range(1, full + 1)}
    )  # any other makes as many parts as one of these
    fitting, too_large = len(sizes) - 1, len(sizes)
    while not fits(fitting):
        if fitting == 0:
            raise everywhere(_nothing_fits())
        fitting, too_large = bisect_right(sizes, sizes[fitting] // 2) - 1, fitting
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if fits(middle):
            fitting = middle
        else:
            too_large = middle
    return sizes[fitting]


def dry_run(
    step: Callable[[Any], Any],
    batch: Any,
    *,
    module: nn.Module,
    agree: Callable[[int], int],
    samples: int | None = None,
    device: torch.device | None = None,
    reserve: int = 0,
    restore: Callable[[], None] | None = None,
) -> int:
    """The largest micro-batch that fits, found by running ``step`` on the first samples of ``batch``.

    After each try, gradients, buffers (running statistics) and random generators are what they were, bit for bit, and
    ``batch`` is. What else ``step`` changes, ``restore`` must put back. An error of another kind passes through, so that
    this also finds what would fail in the first step.

    Args:
        step: A forward and a backward pass; raises when memory runs out. Optimizers must not step in it.
        batch: One optimizer batch of this rank.
        agree: See :func:`largest_that_fits`.
        samples: How many are in it; None: as :func:`split` counts.
        device: Of the module; default: the CPU.
        reserve: Bytes to hold on the device meanwhile: what steps after the first have and the first has not, the
            optimizer's state and the last gradients.
        restore: Called after each try, too.

    Raises:
        ConfigError: Not even one sample fits, on some rank.
        DataError: The batch can't be split.
    """
    full = -agree(-sum(part.samples for part in split(batch, 2**62, samples)))  # a rank with fewer tries all it has
    place = device or torch.device("cpu")

    def try_size(size: int) -> bool:
        first = copy.deepcopy(split(batch, size, samples)[0].batch)  # a step may write into it
        try:
            with undone(module, device):
                held = torch.empty(reserve, dtype=torch.uint8, device=place)
                step(first)
                del held
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            if restore is not None:
                restore()
        return True

    def try_and_clear(size: int) -> bool:
        fitted = try_size(size)
        _release(place)  # only here is the error gone, whose frames hold tensors
        return fitted

    return largest_that_fits(try_and_clear, full, agree)


@contextmanager
def undone(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """What passes inside leave behind is undone: gradients, buffers and random generators (with ``device``, its too) are
    what they were, bit for bit. Gradients from before are set aside meanwhile, and buffers copied to the host."""
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    buffers = [
        (owner, name, buffer, buffer.detach().to("cpu", copy=True))
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with isolated_rng(device):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                setattr(owner, name, buffer)
                buffer.copy_(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, says that the memory of a device or of the host ran out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in OUT_OF_MEMORY):
            return True
        cause = cause.__cause__
    return False


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _samples_of(batch: Any) -> int | None:
    if _is_array(batch):
        return int(batch.shape[0])
    return next((count for item in _items(batch) if (count := _samples_of(item)) is not None), None)


def _items(batch: Any) -> list[Any]:
    if isinstance(batch, (list, tuple)):
        return list(batch)
    if isinstance(batch, MutableMapping):
        return list(batch.values())
    if is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in fields(batch)]
    return []


def _between(item: Any, start: int, stop: int, count: int) -> Any:
    """Samples ``start`` to ``stop`` of ``item``, which has ``count``."""
    if _is_array(item):
        if item.shape[0] != count:
            raise DataError(
                f"a batch of {count} samples has a tensor of shape {tuple(item.shape)}.",
                why="each tensor in it is split along its first dimension, which is that of the samples.",
                fix=f"give it {count} rows, keep it in the module (register_buffer), or leave micro_batch_size out.",
            )
        return item[start:stop]
    if isinstance(item, (list, tuple)):
        named = hasattr(item, "_fields")
        if len(item) == count and not named and not any(_holds_samples(element, count) for element in item):
            return item[start:stop]
        parts = [_between(element, start, stop, count) for element in item]
        return type(item)(*parts) if named else type(item)(parts)
    if isinstance(item, (str, bytes, int, float, complex)) or item is None or getattr(item, "shape", None) == ():
        return item
    part = copy.copy(item)
    if isinstance(item, MutableMapping):
        for key, element in item.items():
            part[key] = _between(element, start, stop, count)
    elif is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            object.__setattr__(part, field.name, _between(getattr(item, field.name), start, stop, count))
    else:
        raise DataError(
            f"a batch has a {type(item).__name__} in it, which can't be split.",
            why="micro-batches are made of tensors in tuples, lists, mappings and dataclasses.",
            fix="return these from the loader's collate_fn, or leave micro_batch_size out.",
        )
    return part


def _holds_samples(item: Any, count: int) -> bool:
    if _is_array(item):
        return bool(item.shape[0] == count)
    return any(_holds_samples(element, count) for element in _items(item))


def _is_array(item: Any) -> bool:
    """A tensor or a numpy array with a first dimension."""
    shape = getattr(item, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and not isinstance(item, type)


def _require_size(size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(
            f"micro_batch_size={size!r}.", why="a micro-batch has at least one sample.", fix="micro_batch_size=1"
        )


def _nothing_fits() -> ConfigError:
    return ConfigError(
        "not even one sample fits into memory.",
        why="its forward and backward pass ran out of it on some rank, with micro_batch_size=1.",
        fix='precision="bf16-mixed"; strategy="fsdp" on more ranks, with activation_checkpointing; shorter samples or a '
        "smaller model.",
    )
