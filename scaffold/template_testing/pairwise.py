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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

Row = Mapping[str, int]
"""Parameter to the index of its value."""

Cell = tuple[str, int]

Target = tuple[Cell, ...]
"""What some row is to hold: two cells, or one, for a value that meets no other."""

SEARCHED = 2_000
"""Rows looked at for one target before it is given up as impossible."""


@dataclass(frozen=True, kw_only=True)
class Covering:
    """Rows and what they leave out."""

    rows: tuple[Row, ...]
    """Without the parameters that do not apply in a row."""
    impossible: tuple[Target, ...]
    """What no valid row holds (or none of the first SEARCHED). A value that is listed alone has no pairs here."""


def pairwise(
    sizes: Mapping[str, int],
    *,
    effective: Callable[[Row], Row | None] = lambda row: row,
    linked: Collection[str] | None = None,
) -> Covering:
    """Rows that cover every pair of values.

    Args:
        sizes: How many values each parameter has, at least one.
        effective: What counts of a row: without the parameters that do not apply, or None when it is not allowed.
        linked: Parameters on whose values ``effective`` may depend; default: all. The fewer, the quicker a pair is
            known to be impossible.
    """
    todo = dict.fromkeys(_targets(sizes))
    rows: list[Row] = []
    impossible: list[Target] = []
    while todo:
        row = effective(_densest({}, sizes, todo))
        if row is None or not any(target in todo for target in _held(row)):
            target = next(iter(todo))
            row = _row_with(target, sizes, todo, effective, sizes if linked is None else linked)
            if row is None:
                impossible.append(target)
                for beyond in [other for other in todo if set(target) <= set(other)]:
                    del todo[beyond]
                continue
        rows.append(row)
        for target in _held(row):
            todo.pop(target, None)
    return Covering(rows=tuple(rows) or ({},), impossible=tuple(impossible))


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


def _row_with(
    target: Target,
    sizes: Mapping[str, int],
    todo: Collection[Target],
    effective: Callable[[Row], Row | None],
    linked: Collection[str],
) -> Row | None:
    """A valid row that holds ``target``. Only ``linked`` parameters are varied: the others can't make it invalid."""
    wanted = dict(target)
    start = _densest(wanted, sizes, todo)
    free = [name for name in sizes if name in linked and name not in wanted]
    # The dense value first, so that the first row that is found is a good one.
    options = [sorted(range(sizes[name]), key=start[name].__ne__) for name in free]
    for values in itertools.islice(itertools.product(*options), SEARCHED):
        row = effective({**start, **dict(zip(free, values, strict=True))})
        if row is not None and wanted.items() <= row.items():
            return row
    return None
