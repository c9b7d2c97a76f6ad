"""Gradients and epoch means of the same samples are the same however they are split, if each batch says what it weighs."""

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import treadle
from treadle.testing import MemoryLogger

PROPERTY = settings(deadline=None, max_examples=60, derandomize="CI" in os.environ)
FLOAT32 = {"rel": 1e-5, "abs": 1e-5}
"""Tolerance of what is added up in float32: gradients of numbers of size 1."""

WEIGHTS = {
    "an int": int,
    "a float": float,
    "a tensor": lambda tokens: torch.tensor(tokens),
    "a tensor of floats": lambda tokens: torch.tensor(float(tokens)),
    "a tensor of shape (1,)": lambda tokens: torch.tensor([tokens]),
}
Sample = list[float]
"""Its tokens: some number of them, or none."""


class TokenMean(treadle.Module):
    """One weight w, and the loss (w + 1) * token, as a mean over a batch's tokens.

    Args:
        weigh: From the number of tokens of a batch to its weight; None: ``training_step`` returns none.
        skips: The batches for which it returns None.
    """

    def __init__(self, weigh: Any, skips: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.weigh, self.skips = weigh, skips
        self.gradients: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx in self.skips:
            return None
        tokens = batch[~batch.isnan()]
        mean = tokens.sum() / max(len(tokens), 1)
        self.log("token", mean, on_step=False, on_epoch=True)
        loss = (self.weight + 1) * mean
        return loss if self.weigh is None else {"loss": loss, "weight": self.weigh(len(tokens))}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(float(self.weight.grad or 0.0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class OwnStep(TokenMean):
    """Overrides ``optimizer_step``, so that the gradients are computed inside the step."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


def padded(samples: list[Sample]) -> Tensor:
    """A batch of shape (samples, 4): its size says nothing about its number of tokens."""
    return torch.tensor([sample + [float("nan")] * (4 - len(sample)) for sample in samples])


def mean_of(batches: list[list[Sample]]) -> float:
    """The mean over all tokens, whatever batch and sample they are in."""
    return float(np.mean([token for batch in batches for sample in batch for token in sample]))


class WithoutLength:
    """Batches of a loader that can't tell how many it has."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


def fitted(
    model: TokenMean, batches: list[list[Sample]], accumulate: int, *, sized: bool = True, **options: Any
) -> float:
    """Trains an epoch. Returns the epoch's mean token."""
    loader = [padded(batch) for batch in batches]
    trainer = treadle.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(model, loader if sized else WithoutLength(loader))
    assert trainer.global_step == len(model.gradients)
    return float(trainer.callback_metrics["token"])


token_counts = st.lists(st.lists(st.floats(-4, 4, width=16), max_size=4), min_size=1, max_size=9)


@st.composite
def splits(draw: Any) -> list[list[Sample]]:
    """Samples with some token among them, cut into consecutive batches."""
    samples = draw(token_counts.filter(any))
    cuts = draw(st.sets(st.integers(1, len(samples))))
    return [samples[start:end] for start, end in pairwise(sorted({0, *cuts, len(samples)}))]


@st.composite
def windows(draw: Any) -> tuple[list[list[list[Sample]]], int, frozenset[int]]:
    """Batches by windows of one size, the last may be shorter; and which of them are skipped."""
    batches, size = draw(splits()), draw(st.integers(1, 4))
    skips = draw(st.frozensets(st.integers(0, len(batches) - 1)))
    assume(len(skips) < len(batches))
    return [batches[start : start + size] for start in range(0, len(batches), size)], size, skips


def trained_on(by_window: list[list[list[Sample]]], size: int, skips: frozenset[int]) -> list[list[list[Sample]]]:
    """The same windows without what is skipped; a window of nothing else makes no step."""
    kept = [
        [batch for index, batch in enumerate(window) if number * size + index not in skips]
        for number, window in enumerate(by_window)
    ]
    return [window for window in kept if window]


class TestBatchesThatSayWhatTheyWeigh:
    @PROPERTY
    @given(
        splits(), st.sampled_from([TokenMean, OwnStep]), st.sampled_from(list(WEIGHTS)), st.sampled_from([None, 0.5])
    )
    def test_make_one_step_like_a_single_big_one(
        self, split: list[list[Sample]], module: type[TokenMean], kind: str, clip: float | None
    ) -> None:
        """Gradient, clipped step and epoch mean are those of all tokens in one batch, some batches having none."""
        mean, whole = mean_of(split), [[sample for batch in split for sample in batch]]
        for batches in (split, whole):
            model = module(WEIGHTS[kind])
            logged = fitted(model, batches, len(batches), gradient_clip_val=clip)
            assert model.gradients == pytest.approx([mean], **FLOAT32)
            assert logged == pytest.approx(mean, **FLOAT32)
            assert -model.weight.item() == pytest.approx(np.clip(mean, -(clip or 4), clip or 4), **FLOAT32)

    @PROPERTY
    @given(windows(), st.sampled_from(list(WEIGHTS)), st.booleans())
    def test_make_each_step_the_mean_over_its_window(self, drawn: Any, kind: str, sized: bool) -> None:
        """Short last windows and skipped batches too; the loader may not know its length."""
        by_window, size, skips = drawn
        steps = trained_on(by_window, size, skips)
        assume(all(any(sample for batch in step for sample in batch) for step in steps))  # some token for each step
        model = TokenMean(WEIGHTS[kind], skips)
        logged = fitted(model, [batch for window in by_window for batch in window], size, sized=sized)
        assert model.gradients == pytest.approx([mean_of(step) for step in steps], **FLOAT32)
        assert logged == pytest.approx(mean_of([batch for step in steps for batch in step]), **FLOAT32)

    # In the weights' own formats 255 + 255 is 254, 60000 + 60000 infinite, and 512 + 1 512.
    @pytest.mark.parametrize(
        "dtype, most", [(torch.uint8, 255), (torch.float16, 60000), (torch.bfloat16, 256)], ids=str
    )
    def test_may_say_so_in_any_format(self, dtype: torch.dtype, most: int) -> None:
        """As counts of a mask are: the sums of the weights are exact where the weights are."""
        weights = iter([most, most, 1])
        model = TokenMean(lambda tokens: torch.tensor(next(weights), dtype=dtype))
        logged = fitted(model, [[[1.0]], [[1.0]], [[4.0]]], 3)
        expected = (2 * most + 4) / (2 * most + 1)
        assert model.gradients == pytest.approx([expected], rel=1e-6)
        assert logged == pytest.approx(expected, rel=1e-6)


class TestBatchesThatDoNot:
    @PROPERTY
    @given(windows(), st.booleans())
    def test_count_alike_in_a_step(self, drawn: Any, sized: bool) -> None:
        """The gradient is the mean over the window's batches that were trained on; the epoch's mean goes by samples."""
        by_window, size, skips = drawn
        steps = trained_on(by_window, size, skips)
        means = [[mean_of([batch]) if any(batch) else 0.0 for batch in step] for step in steps]
        model = TokenMean(None, skips)
        logged = fitted(model, [batch for window in by_window for batch in window], size, sized=sized)
        assert model.gradients == pytest.approx([float(np.mean(step)) for step in means], **FLOAT32)
        samples = [len(batch) for step in steps for batch in step]
        assert logged == pytest.approx(np.average(np.concatenate(means), weights=samples), **FLOAT32)


class TestAWindowWhoseLastBatchIsSkipped:
    @pytest.mark.parametrize("module", [TokenMean, OwnStep])
    @pytest.mark.parametrize("weigh", [None, int], ids=["without weights", "with weights"])
    def test_makes_a_step_with_the_others(self, module: type[TokenMean], weigh: Any) -> None:
        model = module(weigh, skips=frozenset({1}))
        fitted(model, [[[3.0]], [[5.0]]], 2)
        assert model.gradients == [3.0]


# --- what self.log makes of an epoch ---

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, None]


class Logs(treadle.Module):
    """Logs the given values, one a batch, as ``x``."""

    def __init__(self, values: list[Any], sizes: list[int] | None, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.values, self.sizes, self.options = values, sizes, options

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        size = None if self.sizes is None else self.sizes[batch_idx]
        self.log("x", self.values[batch_idx], on_step=False, on_epoch=True, batch_size=size, **self.options)
        return self.weight * 1.0

    test_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestAnEpochsValue:
    @PROPERTY
    @given(
        st.lists(
            st.tuples(st.floats(-6e4, 6e4, width=32), st.integers(1, 9), st.sampled_from(DTYPES)),
            min_size=1,
            max_size=30,
        ),
        st.sampled_from(["mean", "sum", "min", "max"]),
        st.sampled_from(["fit", "test"]),
        st.booleans(),
    )
    def test_is_numpys_in_64_bits(self, logged: list[Any], how: str, verb: str, told: bool) -> None:
        """Of the values as they were, in any format; a mean weighted by batch sizes, the loader's or those it is told."""
        values = [value if dtype is None else torch.tensor(value, dtype=dtype) for value, _, dtype in logged]
        sizes = [size for _, size, _ in logged]
        model, logger = Logs(values, sizes if told else None, reduce_fx=how), MemoryLogger()
        trainer = treadle.Trainer(max_epochs=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False)
        getattr(trainer, verb)(model, [torch.zeros(1 if told else size) for size in sizes])
        floats = np.array([float(value) for value in values], dtype=np.float64)
        expected = np.average(floats, weights=sizes) if how == "mean" else getattr(np, how)(floats)
        assert logger.rows[-1]["x"] == pytest.approx(float(expected), rel=1e-12, abs=1e-12 * np.abs(floats).sum())


class TestABatchOfWeightZero:
    @pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
    def test_moves_nothing(self, kind: Any) -> None:
        """Alone in its step: as a tensor the gradient is zero, as a number there is no step."""
        weights = iter([0.0, 2.0])
        model = TokenMean(lambda tokens: kind(next(weights)))
        logged = fitted(model, [[[3.0]], [[5.0]]], 1)
        assert model.gradients == ([5.0] if kind is float else [0.0, 5.0])
        assert logged == 5.0

    def test_may_have_no_loss_when_it_is_a_number(self) -> None:
        """The mean over no tokens is not a number; the other batches of the window are."""
        weights = iter([0, 2])
        model = TokenMean(lambda tokens: next(weights))
        fitted(model, [[[float("nan")]], [[5.0]]], 2)
        assert model.gradients == [5.0]


class TestWeightsInSomeBatches:
    def test_are_an_error(self) -> None:
        """Gradients and means can't be weighted by tokens here and by samples there."""
        weights = iter([2.0, None])
        model = TokenMean(lambda tokens: next(weights))
        with pytest.raises(treadle.errors.ModuleError, match="some batches have a weight, and others have none"):
            fitted(model, [[[3.0]], [[5.0]]], 1)


class TestABatchOfUnknownSize:
    class Odd(treadle.Module):
        """Batches whose tensors disagree in their first dimension."""

        def __init__(self, weight: float | None) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.says = weight

        def training_step(self, batch: Any) -> Any:
            loss = self.weight * batch[0].mean()
            self.log("x", batch[0].mean(), on_epoch=True)
            return {"loss": loss, "weight": self.says}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    BATCHES = ((torch.ones(2), torch.ones(3)), (torch.ones(4) * 4, torch.ones(5)))

    def test_needs_none_when_the_step_says_its_weight(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(self.Odd(2.0), list(self.BATCHES))
        assert trainer.callback_metrics["x"].item() == 2.5

    def test_is_told_otherwise(self, make_bare: Any) -> None:
        with pytest.raises(treadle.errors.DataError, match="the size of a batch is not known"):
            make_bare().fit(self.Odd(None), list(self.BATCHES))
