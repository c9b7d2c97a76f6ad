"""Rhythms in words."""

import ast

import pytest

from treadle import Every
from treadle.errors import ConfigError


class TestARhythm:
    @pytest.mark.parametrize(
        "words, count, unit",
        [
            *[("200 steps", 200, "steps"), ("1 step", 1, "steps"), ("step", 1, "steps")],
            *[("1 epoch", 1, "epochs"), ("3 epochs", 3, "epochs")],
            *[("30 min", 1800, "seconds"), ("90 s", 90, "seconds"), ("2 h", 7200, "seconds"), ("0.5s", 0.5, "seconds")],
            *[("1.5 hours", 5400, "seconds"), ("10 minutes", 600, "seconds"), ("  5   secs ", 5, "seconds")],
        ],
    )
    def test_is_a_number_and_a_unit(self, words: str, count: float, unit: str) -> None:
        every = Every(words)
        assert (every.count, every.unit) == (count, unit)

    def test_is_equal_to_another_that_means_the_same(self) -> None:
        assert Every("1 h") == Every("60 min")
        assert len({Every("1 h"), Every("60 min"), Every("2 h")}) == 2

    @pytest.mark.parametrize("words", ["200 steps", "1 epoch", "90 s", "1.5 hours"])
    def test_is_shown_as_it_could_be_typed(self, words: str) -> None:
        name, shown = repr(Every(words)).rstrip(")").split("(")
        assert name == "Every"
        assert Every(ast.literal_eval(shown)) == Every(words)

    @pytest.mark.parametrize(
        "words", ["", "often", "0 steps", "-1 epochs", "1.5 steps", "2 fortnights", "steps 3", "5"]
    )
    def test_that_is_none_is_an_error(self, words: str) -> None:
        with pytest.raises(ConfigError, match="is not a rhythm") as error:
            Every(words)
        assert 'Every("200 steps")' in error.value.fix
