"""What is in memory, and what was computed: kept operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TORCHS_OWN = {"aten", "prim", "prims", "profiler", "_c10d_functional", "c10d_functional", "c10d"}


@final
class Ledger(TorchDispatchMode):
    """While it is entered: the bytes of all tensors that are alive, their peak, and the FLOPs of what runs.

    Works on tensors without memory (``FakeTensorMode``, entered first) as on real ones. A storage counts from the
    operation that returned it until it is freed, whoever holds it, autograd's saved tensors included. On the CPU bytes and
    peaks are those of the allocator, except for what a kernel allocates and frees inside of itself.

    FLOPs are those of matrix products, convolutions and attention, two for each multiply-add, by torch's own formulas; what
    is element by element isn't counted. ``uncounted`` names operations of other libraries, which may be large.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

        self._formulas = dict(flop_registry)
        aten = torch.ops.aten
        for name, formula in (("", sdpa_flop), ("_backward", sdpa_backward_flop)):  # as on GPUs, where torch counts it
            packet = getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{name}", None)
            if packet is not None:
                self._formulas.setdefault(packet, formula)
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._copies: set[int] = set()
        self.bytes = 0
        """Alive now."""
        self.peaks: dict[str, int] = {}
        """The largest that ``bytes`` was, by phase."""
        self.flops: dict[str, int] = {}
        """By phase."""
        self.uncounted: set[str] = set()
        self.reads_one = False
        """Whoever reads the value of a tensor reads 1: so that what has no values can go on where none matters."""
        self._phase = ""

    def restart(self) -> None:
        """Forget peaks and FLOPs so far, not what is alive."""
        self.peaks.clear()
        self.flops.clear()

    def enter(self, phase: str) -> None:
        """What follows belongs to ``phase``."""
        self._phase = phase
        self._note_peak()

    def holds(self, tensors: Iterable[Tensor]) -> None:
        """``tensors`` were there before."""
        for tensor in tensors:
            self._see(tensor)

    def beyond(self, tensors: Iterable[Tensor]) -> int:
        """The bytes alive that belong to none of ``tensors``."""
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(size for key, (_, size) in self._alive.items() if key not in known)

    def copied(self) -> int:
        """The bytes alive of parameters in another format (autocast keeps them for the backward pass)."""
        return sum(size for key, (_, size) in self._alive.items() if key in self._copies)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.reads_one and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        result = func(*args, **kwargs)
        for item in tree_leaves(result):
            if isinstance(item, Tensor):
                self._see(item)
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], torch.nn.Parameter):
            self._copies.add(result.untyped_storage()._cdata)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            count = int(formula(*args, **kwargs, out_val=result))
            self.flops[self._phase] = self.flops.get(self._phase, 0) + count
        elif func.namespace not in _TORCHS_OWN:
            self.uncounted.add(str(func._overloadpacket))
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, lambda _: self._free(key)), size
        self.bytes += size
        self._note_peak()

    def _note_peak(self) -> None:
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self.bytes)

    def _free(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)[1]
        self._copies.discard(key)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of their storages, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
