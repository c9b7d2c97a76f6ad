"""Micro-batches: the same gradients however a batch is split, and the largest part that fits on every rank."""

import socket
from collections import OrderedDict, UserDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from treadle.errors import ConfigError, DataError
from treadle.splitting import MicroBatches, dry_run, is_out_of_memory, largest_that_fits, split, undone


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Sample:
    x: Tensor
    names: list[str]
    scale: float = 2.0


def alone(size: int) -> int:
    """One rank agrees with itself."""
    return size


class TestABatchInParts:
    def test_keeps_every_sample_in_order(self) -> None:
        parts = split(torch.arange(7), 3)
        assert [part.batch.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
        assert [part.samples for part in parts] == [3, 3, 1]

    def test_is_whole_if_it_fits(self) -> None:
        ((part, samples),) = split(torch.arange(7), 100)
        assert (part.tolist(), samples) == (list(range(7)), 7)

    def test_shares_the_memory_of_the_batch(self) -> None:
        batch = torch.zeros(4)
        split(batch, 2)[1].batch.fill_(1)
        assert batch.tolist() == [0, 0, 1, 1]

    @pytest.mark.parametrize(
        "of",
        [
            lambda x: (x, torch.stack([x, x], 1)),
            lambda x: [x, torch.stack([x, x], 1)],
            lambda x: {"x": x, "inner": {"y": [x + 1]}},
            lambda x: OrderedDict(x=x),
            lambda x: UserDict(x=x),
            lambda x: Pair(x, x + 1),
            lambda x: Sample(x, [f"sample {i}" for i in x.tolist()]),
            lambda x: (x, x.numpy()),
        ],
        ids=["tuple", "list", "dicts", "ordered", "mapping", "named", "dataclass", "numpy"],
    )
    def test_has_parts_of_its_own_type(self, of: Callable[[Tensor], Any]) -> None:
        first, second = split(of(torch.arange(5)), 3)
        assert repr(first.batch) == repr(of(torch.arange(3)))
        assert repr(second.batch) == repr(of(torch.arange(3, 5)))

    def test_has_its_share_of_lists_of_samples(self) -> None:
        """Strings, and samples whose shapes differ: one item for each sample."""
        boxes = [torch.zeros(n, 4) for n in (2, 0, 5)]
        first, second = split((torch.zeros(3, 8), ("a", "b", "c"), boxes), 2)
        assert first.batch[1:] == (("a", "b"), boxes[:2])
        assert second.batch[1:] == (("c",), boxes[2:])

    def test_has_what_is_no_sample_in_each(self) -> None:
        first, second = split({"x": torch.zeros(3), "t": torch.tensor(0.5), "name": "abc", "n": 3, "none": None}, 2)
        for part in (first.batch, second.batch):
            assert {key: value for key, value in part.items() if key != "x"} == {
                "t": torch.tensor(0.5),
                "name": "abc",
                "n": 3,
                "none": None,
            }

    def test_may_be_told_how_many_samples_there_are(self) -> None:
        """A list of tensors of any shapes has no first dimension to look at."""
        images = [torch.zeros(3, n, n) for n in (4, 5, 6, 7)]
        first, second = split(images, 3, samples=4)
        assert [len(part.batch) for part in (first, second)] == [3, 1]

    def test_with_rows_that_are_no_samples_is_refused(self) -> None:
        """An edge list, or class weights: to give it to every part could be as wrong as to cut it."""
        with pytest.raises(DataError, match=r"a batch of 3 samples has a tensor of shape \(2, 8\)"):
            split((torch.zeros(3), torch.zeros(2, 8)), 2)

    def test_of_something_unknown_is_refused(self) -> None:
        with pytest.raises(DataError, match="a batch has a object in it, which can't be split"):
            split((torch.zeros(3), object()), 2)

    def test_without_a_tensor_is_refused(self) -> None:
        with pytest.raises(DataError, match="a batch without a tensor"):
            split(["a", "b"], 1)

    @pytest.mark.parametrize("size", [0, -1, 1.5, True])
    def test_has_at_least_one_sample_in_each(self, size: Any) -> None:
        with pytest.raises(ConfigError, match=f"micro_batch_size={size}"):
            split(torch.zeros(3), size)
        with pytest.raises(ConfigError, match=f"micro_batch_size={size}"):
            MicroBatches(size)


class TestGradients:
    @settings(max_examples=50, deadline=None)
    @given(samples=st.integers(1, 17), size=st.integers(1, 20), seed=st.integers(0, 2**16))
    def test_do_not_depend_on_the_split(self, samples: int, size: int, seed: int) -> None:
        """The sum over the parts of fraction x gradient of the mean loss is that of the undivided batch."""
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).double()
        batch = (
            torch.randn(samples, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (samples,), generator=generator),
        )

        def gradients(micro_batches: MicroBatches) -> list[Tensor]:
            model.zero_grad()
            for (inputs, classes), fraction in micro_batches(batch):
                (fraction * nn.functional.cross_entropy(model(inputs), classes)).backward()
            return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

        torch.testing.assert_close(gradients(MicroBatches(size)), gradients(MicroBatches()), rtol=1e-9, atol=1e-12)

    @given(samples=st.integers(1, 100), size=st.integers(1, 100))
    def test_weigh_one_together(self, samples: int, size: int) -> None:
        assert sum(fraction for _, fraction in MicroBatches(size)(torch.zeros(samples))) == pytest.approx(1.0)

    @pytest.mark.parametrize("micro_batches", [MicroBatches(), MicroBatches(8)], ids=["whole", "large"])
    def test_of_what_fits_are_those_of_the_batch_itself(self, micro_batches: MicroBatches) -> None:
        """It isn't even looked at, whatever its type."""
        batch = object()
        assert list(micro_batches(batch, samples=3)) == [(batch, 1.0)]


class TestTheLargestSize:
    @given(full=st.integers(1, 300), limit=st.integers(1, 300))
    def test_makes_the_fewest_parts_that_fit(self, full: int, limit: int) -> None:
        found = largest_that_fits(lambda size: size <= limit, full, alone)
        assert found <= limit
        assert -(-full // found) == -(-full // min(limit, full))

    def test_is_the_whole_batch_at_once_if_that_fits(self) -> None:
        tried: list[int] = []
        assert largest_that_fits(lambda size: not tried.append(size), 64, alone) == 64
        assert tried == [64]

    def test_is_found_by_halving_and_then_between(self) -> None:
        """Parts as even as can be: 100 samples in three parts are 34, 34 and 32."""
        tried: list[int] = []

        def fits(size: int) -> bool:
            tried.append(size)
            return size <= 40

        assert largest_that_fits(fits, 100, alone) == 34
        assert tried == [100, 50, 25, 34]

    def test_is_the_smallest_of_all_ranks(self) -> None:
        """What fits here doesn't count if it doesn't elsewhere."""
        others = iter([1, 0, 1, 1])
        assert largest_that_fits(lambda size: size <= 4, 8, lambda fits: min(fits, next(others))) == 3

    def test_is_none_if_not_one_sample_fits(self) -> None:
        with pytest.raises(ConfigError, match="not even one sample fits into memory") as raised:
            largest_that_fits(lambda size: False, 8, alone)
        assert raised.value.__dict__["on_every_rank"]


class Normalized(nn.Module):
    """With all that a pass leaves behind: gradients, running statistics, generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.register_buffer("last", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.mean(0, keepdim=True)  # another tensor, not the same one filled
        return self.layers(x).pow(2).mean()


def limited(module: Normalized, limit: int) -> Callable[[Tensor], None]:
    """A step that runs out of memory with more than ``limit`` samples, after the forward pass."""

    def step(batch: Tensor) -> None:
        module.seen.append(len(batch))
        loss = module(batch)
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        loss.backward()
        batch.zero_()

    return step


class TestADryRun:
    def test_finds_what_fits(self) -> None:
        module = Normalized()
        assert dry_run(limited(module, 5), torch.randn(16, 4, 4), module=module, agree=alone) == 4
        assert module.seen == [16, 8, 4, 6]

    def test_leaves_no_trace(self) -> None:
        """Weights, gradients, running statistics, generators and the batch are what they were, bit for bit."""
        module, batch = Normalized(), torch.randn(16, 4, 4)
        module(batch).backward()
        state = {key: value.clone() for key, value in module.state_dict().items()}
        gradients = [(parameter.grad, parameter.grad.clone()) for parameter in module.parameters()]
        buffers, samples, drawn = list(module.buffers()), batch.clone(), torch.get_rng_state()
        dry_run(limited(module, 5), batch, module=module, agree=alone)
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        for parameter, (gradient, value) in zip(module.parameters(), gradients, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(gradient, value)
        assert all(now is then for now, then in zip(module.buffers(), buffers, strict=True))
        assert torch.equal(batch, samples)
        assert torch.equal(torch.get_rng_state(), drawn)

    def test_leaves_gradients_none_where_there_were_none(self) -> None:
        module = Normalized()
        dry_run(limited(module, 5), torch.randn(16, 4, 4), module=module, agree=alone)
        assert all(parameter.grad is None for parameter in module.parameters())

    def test_lets_the_caller_put_back_the_rest(self) -> None:
        module = Normalized()
        dry_run(limited(module, 5), torch.randn(16, 4, 4), module=module, agree=alone, restore=module.seen.clear)
        assert module.seen == []

    def test_passes_other_errors_on(self) -> None:
        """That is what it is for, too: the first step would have raised them. The traces are removed all the same."""
        module = Normalized()

        def step(batch: Tensor) -> None:
            module(batch).backward()
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            dry_run(step, torch.randn(16, 4, 4), module=module, agree=alone)
        assert all(parameter.grad is None for parameter in module.parameters())
        assert torch.equal(module.layers[1].running_mean, torch.zeros(4))

    def test_holds_memory_for_what_comes_later(self) -> None:
        """On the CPU, memory that is reserved and can't be had is the same as a step without enough."""
        module = Normalized()
        with pytest.raises(ConfigError, match="not even one sample fits"):
            dry_run(limited(module, 5), torch.randn(16, 4, 4), module=module, agree=alone, reserve=2**60)


def on_two_ranks(rank: int, port: int, results: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def agree(value: int) -> int:
        smallest = torch.tensor(value)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    module = Normalized()
    found = dry_run(limited(module, [9, 5][rank]), torch.randn(16, 4, 4), module=module, agree=agree)
    try:
        dry_run(limited(module, [9, 0][rank]), torch.randn(16, 4, 4), module=module, agree=agree)
        refused = False
    except ConfigError:
        refused = True
    results.put((found, refused, module.seen))
    dist.barrier()
    dist.destroy_process_group()


class TestTwoRanksWithDifferentMemory:
    def test_agree_on_what_fits_on_both(self) -> None:
        """One has room for 9 samples, the other for 5: both take 4, after the same tries; and both end if one has no room
        at all."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = get_context("fork").SimpleQueue()
        torch.multiprocessing.start_processes(on_two_ranks, (port, results), nprocs=2, start_method="fork")
        tries = [16, 8, 4, 6, 16, 8, 4, 2, 1]
        assert [results.get(), results.get()] == [(4, True, tries)] * 2


class TestOutOfMemory:
    def test_is_what_the_host_says_for_real(self) -> None:
        with pytest.raises(RuntimeError) as raised:
            torch.empty(2**60, dtype=torch.uint8)
        assert is_out_of_memory(raised.value)

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            MemoryError(),
            RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, max allowed: 9.07 GiB)"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("RESOURCE_EXHAUSTED: Attempting to allocate 20.00G"),
        ],
        ids=["torch", "python", "mps", "cuda", "cublas", "cudnn", "xla"],
    )
    def test_has_many_names(self, error: Exception) -> None:
        assert is_out_of_memory(error)

    def test_may_be_the_cause_of_another_error(self) -> None:
        error = ValueError("the step failed")
        error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
        assert is_out_of_memory(error)

    @pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
    def test_is_not_any_error(self, error: BaseException) -> None:
        assert not is_out_of_memory(error)


class TestUndone:
    def test_works_after_an_error_too(self) -> None:
        module = Normalized()
        with suppress(ZeroDivisionError), undone(module):
            module(torch.randn(4, 4, 4)).backward()
            assert int(module.layers[1].num_batches_tracked) == 1
            raise ZeroDivisionError
        assert all(parameter.grad is None for parameter in module.parameters())
        assert int(module.layers[1].num_batches_tracked) == 0
