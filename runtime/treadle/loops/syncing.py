"""What was logged, over all ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from treadle.collectives import Ranks, everywhere
from treadle.errors import ModuleError, warn
from treadle.metric_objects import find, found_again
from treadle.metrics import Logbook, Number, Slot, SlotState

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Key(NamedTuple):
    """What ranks must have in common of a metric."""

    name: str
    loader: int | None
    reduce_fx: str
    metric: str | None
    """The attribute of the module that a metric object is."""


def agree_on_epoch(book: Logbook, ranks: Ranks, group: ProcessGroup | None, owner: object) -> None:
    """Reduce over all ranks what each has added up over the epoch, where that was not done yet. Collective: two small
    messages, and one for each kind of reduction. On one rank, nothing.

    A rank that saw no batch contributes nothing, and gets the values too. A metric object reduces itself (torchmetrics
    does).

    Raises:
        ModuleError: The ranks logged different metrics; on every rank.
    """
    if ranks.size == 1:
        return
    own = {key: slot for key, slot in _to_agree_on(book, owner) if slot.total is not None or slot.gathered}
    keys, teller = _common(list(own), ranks, empty=book.empty or (book.repeated and not own))
    if teller is not None:
        empty = [SlotState(**{**slot, "value": None, "total": None}) for slot in book.state_dict()]
        book.open_like(ranks.broadcast(empty, teller))
    slots = dict(_to_agree_on(book, owner))
    for key in keys:
        if key.metric is not None:
            metric = own[key].metric if key in own else found_again(owner, key.metric)
            if not hasattr(metric, "sync") and not hasattr(metric, "dist_sync_fn"):
                warn("metric", f"{type(metric).__name__} doesn't reduce over ranks: {key.name} is what each rank saw.")
            value = metric.compute()
            if key in slots:
                slots[key].agreed = slots[key]._number(value)
    totals = {key: (slot.total, slot.weight) for key, slot in own.items()}
    for key, total, weight in _over_ranks([key for key in keys if key.metric is None], totals, ranks, group):
        if key in slots:
            slots[key].agreed = slots[key].finished(total, weight)


def _to_agree_on(book: Logbook, owner: object) -> Iterator[tuple[Key, Slot]]:
    for slot in book.slots():
        if slot.on_epoch and slot.syncs_epoch and slot.agreed is None:
            metric = find(owner, slot.metric) if slot.metric is not None else None
            yield Key(slot.plain_name, slot.loader, slot.reduce_fx, metric), slot


def _over_ranks(
    keys: Sequence[Key], own: Mapping[Key, tuple[Number | None, Number]], ranks: Ranks, group: ProcessGroup | None
) -> Iterator[tuple[Key, Tensor, Number]]:
    """The total and the weight of each of ``keys`` over all ranks, from those that this one has."""
    for kind in ("mean", "sum", "min", "max"):
        of_kind = [key for key in keys if key.reduce_fx == kind]
        if not of_kind:
            continue
        nothing = {"min": float("inf"), "max": float("-inf")}.get(kind, 0.0)
        found = [own.get(key, (nothing, 0.0)) for key in of_kind]
        weights = [weight for _, weight in found] if kind == "mean" else []
        stacked = _stacked([*[total for total, _ in found], *weights], ranks.device)
        reduced = ranks.reduce(stacked, "sum" if kind == "mean" else kind, group)
        for index, key in enumerate(of_kind):
            yield key, reduced[index], reduced[len(of_kind) + index] if weights else 0.0


def agree_on_step(book: Logbook, ranks: Ranks, group: ProcessGroup | None) -> None:
    """Reduce over all ranks the values of the step at hand that were logged with ``sync_dist``. Collective, as above."""
    if ranks.size == 1:
        return
    own = {
        Key(slot.step_name, slot.loader, slot.reduce_fx, None): slot
        for slot in book.fresh()
        if slot.syncs_steps and slot.metric is None
    }
    keys, _ = _common(list(own), ranks, empty=book.repeated and not own)
    values = {key: (slot.value, 1.0) for key, slot in own.items()}
    for key, total, weight in _over_ranks(keys, values, ranks, group):
        if key in own:
            own[key].value = total / weight if key.reduce_fx == "mean" else total


def _common(keys: list[Key], ranks: Ranks, *, empty: bool) -> tuple[list[Key], int | None]:
    """The keys of all ranks, in one order; and a rank that has all of them, where others have not."""
    keys = sorted(keys, key=repr)
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=7)
    number = int.from_bytes(digest.digest(), "big")
    largest = ranks.reduce(torch.tensor([number, -number], dtype=torch.int64), "max").tolist()
    if largest == [number, -number]:
        return keys, None
    found = ranks.gather_objects((keys, empty))
    told = [(rank, names) for rank, (names, is_empty) in enumerate(found) if not is_empty]
    first_rank, first = told[0]
    for rank, names in told[1:]:
        if names != first:
            raise everywhere(_different(first_rank, first, rank, names))
    return first, first_rank


def _different(one: int, keys: list[Key], other: int, others: list[Key]) -> ModuleError:
    gaps = [
        f"rank {there} logged {', '.join(_said(key) for key in extra)}, rank {missing} didn't"
        for there, missing, extra in (
            (one, other, [key for key in keys if key not in others]),
            (other, one, [key for key in others if key not in keys]),
        )
        if extra
    ]
    return ModuleError(
        f"the ranks logged different metrics: {'; '.join(gaps)}.",
        why="a value over all ranks needs one from each.",
        fix="log it on every rank (with batch_size=0 where there is nothing to count), or with sync_dist=False.",
    )


def _said(key: Key) -> str:
    return f"{key.name!r} ({key.reduce_fx})"


def _stacked(values: Sequence[Number | None], device: torch.device) -> Tensor:
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(value, dtype=wide, device=device).reshape(()) for value in values])
