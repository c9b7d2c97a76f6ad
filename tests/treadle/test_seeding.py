"""Generators: seeded together, captured and put back exactly."""

import random
from typing import Any

import numpy as np
import pytest
import torch

import treadle
from treadle.checkpoint import read, write
from treadle.errors import ConfigError
from treadle.seeding import capture_owned, capture_rng, isolated_rng, restore_owned, restore_rng


def drawn() -> tuple[float, float, float, float]:
    """A number from each, two of them of the kinds that keep half of what they draw for the next time."""
    return random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()), torch.randn(()).item()


class TestSeedEverything:
    def test_seeds_python_numpy_and_torch(self) -> None:
        treadle.seed_everything(5)
        first = drawn()
        treadle.seed_everything(5)
        assert drawn() == first
        treadle.seed_everything(6)
        assert drawn() != first

    def test_returns_the_seed(self) -> None:
        assert treadle.seed_everything(2**32 - 1) == 2**32 - 1

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", None, True])
    def test_refuses_what_is_no_seed(self, seed: Any) -> None:
        with pytest.raises(ConfigError, match="is not a whole number from 0 to"):
            treadle.seed_everything(seed)


class TestTheGlobalGenerators:
    def test_go_on_from_where_they_were_captured(self) -> None:
        drawn()
        state = capture_rng()
        first = [drawn() for _ in range(3)]
        restore_rng(state)
        assert [drawn() for _ in range(3)] == first

    def test_go_on_from_a_file(self, tmp_path: Any) -> None:
        """Their state is tensors and plain values."""
        weights = {"format": 1, "treadle_version": "", "epoch": 0, "global_step": 0, "progress": {}, "state_dict": {}}
        state = capture_rng()
        write(tmp_path / "a.ckpt", {**weights, "hparams_name": "", "hyper_parameters": {}, "rng": state})
        first = drawn()
        restore_rng(read(tmp_path / "a.ckpt")["rng"])
        assert drawn() == first

    def test_are_untouched_by_an_isolated_block(self) -> None:
        state = capture_rng()
        expected = drawn()
        restore_rng(state)
        with isolated_rng():
            drawn()
        assert drawn() == expected

    def test_are_untouched_by_an_isolated_block_that_fails(self) -> None:
        state = capture_rng()
        expected = drawn()
        restore_rng(state)
        with pytest.raises(KeyError):
            self.draw_and_fail()
        assert drawn() == expected

    @staticmethod
    def draw_and_fail() -> None:
        with isolated_rng():
            drawn()
            raise KeyError


class Owner:
    """Has generators of every kind as attributes."""

    def __init__(self) -> None:
        self.python = random.Random(1)
        self.legacy = np.random.RandomState(1)
        self.pcg = np.random.default_rng(1)
        self.mersenne = np.random.Generator(np.random.MT19937(1))
        self.torch = torch.Generator().manual_seed(1)
        self.other = "no generator"

    def drawn(self) -> list[float]:
        return [
            self.python.gauss(0, 1),
            float(self.legacy.randn()),
            float(self.pcg.normal()),
            float(self.mersenne.normal()),
            torch.randn((), generator=self.torch).item(),
        ]


class TestTheGeneratorsOfAnObject:
    def test_go_on_from_where_they_were_captured(self) -> None:
        owner = Owner()
        owner.drawn()
        state = capture_owned(owner)
        first = owner.drawn()
        restore_owned(owner, state)
        assert owner.drawn() == first

    def test_go_on_in_another_object_of_another_process(self, tmp_path: Any) -> None:
        owner = Owner()
        state = capture_owned(owner)
        torch.save(state, tmp_path / "state")
        first = owner.drawn()
        another = Owner()
        another.drawn()
        restore_owned(another, torch.load(tmp_path / "state", weights_only=True))
        assert another.drawn() == first

    def test_that_it_no_longer_has_are_left_out(self) -> None:
        state = capture_owned(Owner())
        fewer = Owner()
        del fewer.python
        restore_owned(fewer, state)
        assert set(capture_owned(fewer)) == {"legacy", "pcg", "mersenne", "torch"}

    @pytest.mark.parametrize("owner", [None, 5, [], object()])
    def test_may_be_none(self, owner: Any) -> None:
        assert capture_owned(owner) == {}
