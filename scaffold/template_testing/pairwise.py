"""Rows in which every two values of two parameters meet: far fewer than all combinations, and enough for most faults.

Each row is built by the method of conditional expectations: parameter by parameter, the value is taken that leaves the
largest expected number of new pairs if the rest were drawn at random. A row then covers at least as many new pairs as a
random one does on average, which bounds the number of rows (see ``bound``). No randomness: the same values give the
same rows.

References:
    R. C. Bryce, C. J. Colbourn: A density-based greedy algorithm for higher strength covering arrays. Software Testing,
    Verification and Reliability 19 (2009).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, int]
"""Parameter to the index of its value."""

Cell = tuple[str, int]

Target = tuple[Cell, ...]
"""What some row is to hold: two cells, or one, for a value that meets no other."""

SEARCHED = 200
"""Rows looked at for one target before it is given up."""

SEARCHED_IN_ALL = 1_500
"""Rows looked at for all of them together."""


@dataclass(frozen=True, kw_only=True)
class Covering:
    """Rows and what they leave out."""

    rows: tuple[Row, ...]
    """Without the parameters that do not apply in a row."""
    impossible: tuple[Target, ...]
    """What no valid row holds. A value that is listed alone has no pairs here."""
    given_up: tuple[Target, ...]
    """What may be possible, and was not found within the limits."""


def pairwise(
    sizes: Mapping[str, int],
    *,
    effective: Callable[[Row], Row | None] = lambda row: row,
    linked: Mapping[str, Collection[str]] | None = None,
) -> Covering:
    """Rows that cover every pair of values.

    Args:
        sizes: How many values each parameter has, at least one.
        effective: What counts of a row: without the parameters that do not apply, or None when it is not allowed.
        linked: For each parameter those whose values may decide whether it applies or is allowed; default: all. The
            fewer, the sooner a pair is known to be impossible.
    """
    todo = dict.fromkeys(_targets(sizes))
    rows: list[Row] = []
    impossible: list[Target] = []
    given_up: list[Target] = []
    left = SEARCHED_IN_ALL
    # One row that is allowed: what a target is not linked with is taken from there, where the dense choice is refused.
    first = dict.fromkeys(sizes, 0)
    allowed = None if effective(first) is None else first
    while todo:
        dense = _densest({}, sizes, todo)
        row = effective(dense)
        allowed = dense if allowed is None and row is not None else allowed
        if row is None or not any(target in todo for target in _held(row)):
            target = next(iter(todo))
            wanted = dict(target)
            narrow = linked if allowed is not None else None
            free = [name for name in sizes if name not in wanted and _is_linked(name, wanted, narrow)]
            starts = [
                _densest(wanted, sizes, todo),
                *([{**allowed, **wanted}] if allowed is not None and linked else []),
            ]
            candidates = itertools.chain.from_iterable(_rows_from(start, free, sizes) for start in starts)
            row, searched, finished = _first(candidates, effective, wanted, min(SEARCHED, left))
            left -= searched
            if row is None:
                (impossible if finished else given_up).append(target)
                for beyond in [other for other in todo if set(target) <= set(other)]:
                    del todo[beyond]
                continue
        rows.append(row)
        for target in _held(row):
            todo.pop(target, None)
    return Covering(rows=tuple(rows) or ({},), impossible=tuple(impossible), given_up=tuple(given_up))


def bound(sizes: Mapping[str, int]) -> int:
    """The most rows ``pairwise`` needs where all rows are allowed: logarithmic in the number of parameters."""
    levels = sorted(sizes.values(), reverse=True)
    targets = sum(levels) + sum(a * b for a, b in itertools.combinations(levels, 2))
    worst = math.prod(levels[:2])
    if worst == 1:
        return 1
    # After n rows at most targets * (1 - 1/worst)^n are open; below one, there are none.
    return math.floor(math.log(targets) / -math.log1p(-1 / worst)) + 1


def _targets(sizes: Mapping[str, int]) -> Iterator[Target]:
    for name, size in sizes.items():
        yield from (((name, value),) for value in range(size))
    for first, second in itertools.combinations(sizes, 2):
        for a, b in itertools.product(range(sizes[first]), range(sizes[second])):
            yield (first, a), (second, b)


def _held(row: Row) -> Iterator[Target]:
    cells = tuple(row.items())
    yield from ((cell,) for cell in cells)
    yield from itertools.combinations(cells, 2)


def _densest(fixed: Row, sizes: Mapping[str, int], todo: Collection[Target]) -> dict[str, int]:
    """``fixed`` completed, in the order of ``sizes``, so that a random rest would cover most."""
    row = dict(fixed)
    for name, size in sizes.items():
        if name not in row:
            row[name] = max(range(size), key=lambda value: _expected((name, value), row, sizes, todo))
    return {name: row[name] for name in sizes}


def _expected(cell: Cell, row: Row, sizes: Mapping[str, int], todo: Collection[Target]) -> float:
    """How many open targets ``cell`` covers in ``row``, completed at random."""
    expected = float((cell,) in todo)
    before = True
    for other, size in sizes.items():
        if other == cell[0]:
            before = False
            continue
        options = (row[other],) if other in row else range(size)
        pairs = (((other, value), cell) if before else (cell, (other, value)) for value in options)
        expected += sum(pair in todo for pair in pairs) / len(options)
    return expected


def _is_linked(name: str, wanted: Row, linked: Mapping[str, Collection[str]] | None) -> bool:
    return linked is None or any(name in linked.get(one, ()) for one in wanted)


def _rows_from(start: Row, free: Sequence[str], sizes: Mapping[str, int]) -> Iterator[Row]:
    """``start``, and what becomes of it when only what is ``free`` changes."""
    options = [sorted(range(sizes[name]), key=start[name].__ne__) for name in free]
    for values in itertools.product(*options):
        yield {**start, **dict(zip(free, values, strict=True))}


def _first(
    candidates: Iterator[Row], effective: Callable[[Row], Row | None], wanted: Row, most: int
) -> tuple[Row | None, int, bool]:
    """The first valid row with ``wanted`` in it, how many were looked at, and whether those were all."""
    searched = 0
    for searched, candidate in enumerate(itertools.islice(candidates, most), start=1):
        row = effective(candidate)
        if row is not None and wanted.items() <= row.items():
            return row, searched, True
    return None, searched, next(candidates, None) is None
