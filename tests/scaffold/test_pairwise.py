"""The rows of `scaffold template test`: every two answers meet, in few rows."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from scaffold.template_testing.pairwise import bound, pairwise

sizes = st.lists(st.integers(1, 5), max_size=6).map(lambda levels: {f"q{n}": size for n, size in enumerate(levels)})
small = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(
    lambda levels: {f"q{n}": size for n, size in enumerate(levels)}
)


def cells(row):
    return set(row.items())


def targets(sizes):
    """Every value alone, and every two values of two parameters."""
    values = [[(name, value) for value in range(size)] for name, size in sizes.items()]
    yield from ({cell} for column in values for cell in column)
    for first, second in itertools.combinations(values, 2):
        yield from ({a, b} for a, b in itertools.product(first, second))


def all_rows(sizes):
    return [dict(zip(sizes, values, strict=True)) for values in itertools.product(*map(range, sizes.values()))]


class TestWhereEveryRowIsAllowed:
    @given(sizes)
    @settings(max_examples=80, deadline=None)
    def test_every_pair_is_in_some_row(self, sizes):
        """Any two values of two questions meet in some row, and each row answers every question."""
        covering = pairwise(sizes)
        assert all(row.keys() == sizes.keys() for row in covering.rows)
        assert all(any(target <= cells(row) for row in covering.rows) for target in targets(sizes))
        assert covering.impossible == ()

    @given(sizes)
    @settings(max_examples=80, deadline=None)
    def test_there_are_no_more_rows_than_the_greedy_bound(self, sizes):
        """The number of rows is logarithmic in the number of questions, not exponential."""
        assert len(pairwise(sizes).rows) <= bound(sizes)

    @given(sizes)
    @settings(max_examples=40, deadline=None)
    def test_no_row_is_there_for_nothing(self, sizes):
        """Each row brings something that no row before it had."""
        seen: list[set] = []
        for row in pairwise(sizes).rows:
            held = [target for target in targets(sizes) if target <= cells(row)]
            assert not sizes or any(target not in seen for target in held)
            seen += held

    @given(sizes)
    @settings(max_examples=20, deadline=None)
    def test_the_same_values_give_the_same_rows(self, sizes):
        """A number names the same combination tomorrow."""
        assert pairwise(sizes) == pairwise(dict(sizes))

    def test_known_sizes(self):
        """Four questions of three values need nine rows, seven of two need four to eight; no question is one row."""
        assert len(pairwise(dict.fromkeys("abcd", 3)).rows) <= 12
        assert len(pairwise(dict.fromkeys("abcdefg", 2)).rows) <= 8
        assert pairwise({}).rows == ({},)
        assert [*pairwise({"a": 3}).rows] == [{"a": 0}, {"a": 1}, {"a": 2}]


class TestWhereSomeRowsAreNot:
    @given(small, st.data())
    @settings(max_examples=120, deadline=None)
    def test_what_can_be_covered_is_and_what_cannot_is_named(self, sizes, data):
        """No row is a forbidden one, no value stands where its question does not apply, and nothing possible is lost."""
        cell = st.sampled_from([(name, value) for name, size in sizes.items() for value in range(size)])
        forbidden = data.draw(st.lists(st.frozensets(cell, min_size=1, max_size=2), max_size=4))
        # A question applies only where an earlier one has one answer, as with Copier's `when`.
        names = list(sizes)
        when = {
            name: data.draw(st.none() | st.sampled_from([(n, v) for n in names[:place] for v in range(sizes[n])]))
            for place, name in enumerate(names)
            if place
        }

        def effective(row):
            kept = {}
            for name in names:
                condition = when.get(name)
                if condition is None or kept.get(condition[0]) == condition[1]:
                    kept[name] = row[name]
            return None if any(ban <= cells(kept) for ban in forbidden) else kept

        covering = pairwise(sizes, effective=effective)
        valid = [cells(row) for row in map(effective, all_rows(sizes)) if row is not None]
        covered = [cells(row) for row in covering.rows]
        assert all(row in valid for row in covered if valid)
        impossible = [set(target) for target in covering.impossible]
        for target in targets(sizes):
            possible = any(target <= row for row in valid)
            assert any(target <= row for row in covered) == possible
            assert any(named <= target for named in impossible) == (not possible)

    def test_only_linked_questions_are_searched(self):
        """Many questions that nothing depends on do not slow down the search for a row that cannot be."""
        sizes = {"switch": 2, "detail": 5, **{f"free{n}": 5 for n in range(8)}}
        tried = 0

        def effective(row):
            nonlocal tried
            tried += 1
            return row if row["switch"] else {name: value for name, value in row.items() if name != "detail"}

        covering = pairwise(sizes, effective=effective, linked={"detail": ["switch"]})
        assert {frozenset(target) for target in covering.impossible} == {
            frozenset({("switch", 0), ("detail", value)}) for value in range(5)
        }
        assert tried < 200

    def test_what_is_not_found_within_the_limits_is_given_up_and_named(self):
        """A condition that only one row in a million meets does not hang the command."""
        sizes = dict.fromkeys("abcdefgh", 5)
        covering = pairwise(sizes, effective=lambda row: row if sum(row.values()) == 32 else None)
        assert covering.given_up
        assert all(sum(row.values()) == 32 for row in covering.rows if row)
