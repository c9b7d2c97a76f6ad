"""In which floating point formats weights, activations and gradients are."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer

from treadle.errors import CheckpointError, ConfigError, TreadleWarning
from treadle.precision import (
    Float8,
    Float16Mixed,
    FullPrecision,
    Precision,
    SkipsSteps,
    TruePrecision,
    precision_for,
)
from treadle.precision.true import default_format

CPU = torch.device("cpu")
NAMES = ["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]

single, double, half, bfloat = torch.float32, torch.float64, torch.float16, torch.bfloat16


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def batches(count: int, dtype: torch.dtype | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(32, 4, generator=generator).to(dtype or single)
        yield x, x.sum(1, keepdim=True) / 4


def train(
    precision: Precision, model: nn.Module, optimizer: Optimizer, data: Iterator[tuple[Tensor, Tensor]]
) -> list[float]:
    """A loop that knows a precision by its methods only."""
    losses = []
    for x, y in data:
        with precision.autocast():
            loss = mse_loss(model(x), y)
        optimizer.zero_grad()
        precision.backward(loss)
        precision.unscale(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        precision.step(optimizer)
        losses.append(loss.item())
    return losses


def infinite(model: nn.Module) -> Tensor:
    """A loss with infinite gradients."""
    return sum((p * math.inf).sum() for p in model.parameters())  # type: ignore[return-value]


def scale(precision: Float16Mixed) -> float:
    return float(precision.state_dict()["scale"])


class TestEveryName:
    @pytest.mark.parametrize("name", NAMES)
    def test_trains(self, name: str) -> None:
        precision = precision_for(name)
        model = precision.convert(network())
        losses = train(precision, model, SGD(model.parameters(), lr=0.2), batches(60, precision.weights))
        assert losses[-1] < losses[0] / 4
        assert precision.name == name

    @pytest.mark.parametrize(
        "name, weights, activations",
        [
            ("32-true", single, single),
            ("64-true", double, double),
            ("16-true", half, half),
            ("bf16-true", bfloat, bfloat),
            ("16-mixed", single, half),
            ("bf16-mixed", single, bfloat),
        ],
    )
    def test_says_which_formats_there_are(self, name: str, weights: torch.dtype, activations: torch.dtype) -> None:
        precision = precision_for(name)
        model = precision.convert(network())
        ((x, _),) = batches(1, precision.weights)
        with precision.autocast():
            out = model(x)
        precision.backward(out.float().sum())
        assert {p.dtype for p in model.parameters()} == {weights}
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {weights}
        assert out.dtype == activations
        assert precision.weights == (weights if name.endswith("true") and name != "32-true" else None)
        assert precision.compute == (activations if name.endswith("mixed") else None)

    @pytest.mark.parametrize("name", NAMES)
    def test_may_be_entered_inside_of_itself(self, name: str) -> None:
        """Fabric enters it around a module's forward, and a loop of one's own around all of it."""
        precision = precision_for(name)
        with precision.autocast():
            with precision.autocast():
                pass
            inside = torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
        assert inside == (precision.weights or single, precision.compute is not None)
        assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == (single, False)

    @pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed"])
    def test_sees_the_new_weights_after_a_step_inside_of_a_pass(self, name: str) -> None:
        """Manual optimization steps inside of ``training_step``; autocast would go on with its copies of old weights."""
        precision = precision_for(name)
        model, ((x, _),) = nn.Linear(4, 1), batches(1)
        optimizer = SGD(model.parameters(), lr=1.0)
        with precision.autocast():
            before = model(x)
            precision.backward(before.float().mean() / 8)  # times 2**16, within float16
            precision.step(optimizer)
            within = model(x)
        with precision.autocast():
            afterwards = model(x)
        assert torch.equal(within, afterwards)
        assert not torch.equal(before, within)

    @pytest.mark.parametrize("name", NAMES)
    def test_gives_a_closure_to_the_optimizer(self, name: str) -> None:
        precision = precision_for(name)
        model = precision.convert(network())
        optimizer, ((x, y),) = SGD(model.parameters(), lr=0.1), batches(1, precision.weights)
        before = copy.deepcopy(model.state_dict())

        def closure() -> Tensor:
            with precision.autocast():
                loss = mse_loss(model(x), y)
            precision.backward(loss)
            return loss.detach()

        assert isinstance(precision.step(optimizer, closure), Tensor)
        assert not any(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize(
        "short, name",
        [
            (16, "16-mixed"),
            ("16", "16-mixed"),
            ("bf16", "bf16-mixed"),
            (32, "32-true"),
            ("32", "32-true"),
            (64, "64-true"),
        ],
    )
    def test_has_the_short_one_of_lightning(self, short: str | int, name: str) -> None:
        assert precision_for(short).name == name


class TestAnUnknownName:
    @pytest.mark.parametrize(
        "name, says",
        [
            ("bf16-mixd", "did you mean 'bf16-mixed'?"),
            ("float-8", "did you mean 'float8'?"),
            ("8", "use one of '32-true', '64-true'"),
            (half, "neither a name nor an object"),
            (FullPrecision, "neither a name nor an object"),
            (None, "neither a name nor an object"),
        ],
        ids=str,
    )
    def test_is_told_the_nearest(self, name: Any, says: str) -> None:
        with pytest.raises(ConfigError) as error:
            precision_for(name)
        assert says in str(error.value)

    def test_is_not_asked_of_an_object(self) -> None:
        own = TruePrecision("bf16-true")
        assert precision_for(own) is own


class TestADeviceWithoutAFormat:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this GPU may have bfloat16")
    @pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true"])
    def test_is_named(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"{name.replace('bf16', '16')}"):
            precision_for(name, torch.device("cuda"))

    def test_has_no_64_bits_on_a_mac(self) -> None:
        with pytest.raises(ConfigError, match="64-true"):
            precision_for("64-true", torch.device("mps"))

    def test_has_no_float8_without_a_gpu(self) -> None:
        with pytest.raises(ConfigError, match=r"capability 8\.9"):
            precision_for("float8")


class TestTrueFormats:
    def test_leave_complex_and_whole_numbers_alone(self) -> None:
        """Rotary embeddings keep complex buffers; ``Module.to(dtype)`` would drop their imaginary half."""
        model = network()
        model.register_buffer("rotation", torch.polar(torch.ones(3), torch.arange(3.0)))
        model.register_buffer("count", torch.arange(3))
        precision_for("bf16-true").convert(model)
        assert (model.rotation.dtype, model.count.dtype) == (torch.complex64, torch.int64)

    def test_keep_tied_weights_and_the_optimizers_parameters(self) -> None:
        model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        model[1].weight = model[0].weight
        before = list(model.parameters())
        precision_for("64-true").convert(model)
        assert [id(p) for p in model.parameters()] == [id(p) for p in before]
        assert model[1].weight is model[0].weight

    def test_are_the_default_of_new_tensors_in_a_step_only(self) -> None:
        precision = precision_for("bf16-true")

        def step() -> None:
            with precision.autocast():
                assert torch.zeros(2).dtype == bfloat
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            step()
        assert torch.zeros(2).dtype == single
        with default_format(double):
            assert torch.zeros(2).dtype == double

    def test_warn_where_an_optimizer_would_divide_by_zero(self) -> None:
        """Adam's 1e-8 is 0 in float16: weights whose gradients are 0 become NaN."""
        precision, model = precision_for("16-true"), nn.Linear(4, 1).half()
        with pytest.warns(TreadleWarning, match=r"AdamW has eps=1e-08, which is 0 in float16"):
            precision.step(AdamW(model.parameters()))
        precision.step(AdamW(model.parameters(), fused=True))
        precision_for("bf16-true").step(AdamW(model.parameters()))


class TestScaledLosses:
    def test_leave_gradients_scaled_until_they_are_asked_for(self) -> None:
        """Clipping after ``unscale`` is clipping of the gradients themselves, however often it is called."""
        precision, model = Float16Mixed(CPU), network()
        optimizer, ((x, y),) = SGD(model.parameters(), lr=0.1), batches(1)
        with precision.autocast():
            loss = mse_loss(model(x), y)
        expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        precision.backward(loss)
        assert model[0].weight.grad is not None
        assert model[0].weight.grad.abs().max() > 1000 * expected[0].abs().max()
        precision.unscale(optimizer)
        precision.unscale(optimizer)
        found = [p.grad for p in model.parameters()]
        torch.testing.assert_close(found, list(expected), rtol=2e-2, atol=1e-4)
        norm = nn.utils.get_total_norm(found)
        torch.testing.assert_close(norm, nn.utils.get_total_norm(expected), rtol=2e-2, atol=1e-4)

    def test_accumulate_over_several_backwards(self) -> None:
        precision, model = Float16Mixed(CPU), nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=1.0)
        for factor in (1.0, 2.0, 4.0):
            precision.backward(model.bias.sum() * factor)
        precision.unscale(optimizer)
        assert model.bias.grad == 7.0

    def test_accumulate_over_a_backward_after_unscaling(self) -> None:
        """Who clips after each of several batches gets the sum of what was clipped and what came after."""
        precision, model = Float16Mixed(CPU), nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=1.0)
        precision.backward(model.bias.sum() * 8.0)
        precision.unscale(optimizer)
        model.bias.grad.mul_(0.25)  # type: ignore[union-attr]
        precision.backward(model.bias.sum())
        precision.unscale(optimizer)
        assert model.bias.grad == 3.0

    def test_survive_a_step_that_a_loop_leaves_out_by_hand(self) -> None:
        precision, model = Float16Mixed(CPU), nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=1.0)
        for value in (5.0, 3.0):
            optimizer.zero_grad()
            precision.backward(model.bias.sum() * value)
            precision.unscale(optimizer)
        assert model.bias.grad == 3.0

    def test_move_nothing_without_gradients(self) -> None:
        precision, model = Float16Mixed(CPU), nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=1.0)
        before = copy.deepcopy(model.state_dict())
        precision.unscale(optimizer)
        precision.step(optimizer)
        precision.step(optimizer, lambda: None)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert scale(precision) == 2.0**16

    def test_step_twice_on_the_same_gradients(self) -> None:
        precision, model = Float16Mixed(CPU), nn.Linear(4, 1, bias=False)
        optimizer = SGD(model.parameters(), lr=1.0)
        nn.init.zeros_(model.weight)
        precision.backward(model.weight.sum())
        precision.step(optimizer)
        precision.step(optimizer)
        assert (model.weight == -2.0).all()

    def test_are_for_weights_in_32_bits(self) -> None:
        with pytest.raises(ConfigError, match=r"Sequential\.0\.weight is in float16"):
            Float16Mixed(CPU).convert(network().half())

    def test_are_not_for_an_optimizer_that_evaluates_them(self) -> None:
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters())
        precision = Float16Mixed(CPU)
        with pytest.raises(ConfigError, match="LBFGS with precision"):
            precision.step(optimizer, lambda: 0.0)


@pytest.mark.parametrize("settings", [{}, {"fused": True}], ids=["plain", "fused"])
class TestInfiniteGradients:
    def test_skip_the_step_and_halve_the_scale(self, settings: dict[str, Any]) -> None:
        precision, model = Float16Mixed(CPU), network()
        optimizer = AdamW(model.parameters(), **settings)
        assert isinstance(precision, SkipsSteps)
        before = copy.deepcopy(model.state_dict())
        precision.backward(infinite(model))
        precision.step(optimizer)
        assert precision.skipped
        assert scale(precision) == 2.0**15
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert not any(state["step"] for state in optimizer.state.values())

        train(precision, model, optimizer, batches(1))
        assert not precision.skipped
        assert scale(precision) == 2.0**15
        assert all(state["step"] == 1 for state in optimizer.state.values())

    def test_are_skipped_after_clipping_too(self, settings: dict[str, Any]) -> None:
        precision, model = Float16Mixed(CPU), network()
        optimizer = AdamW(model.parameters(), **settings)
        before = copy.deepcopy(model.state_dict())
        precision.backward(infinite(model))
        precision.unscale(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        precision.step(optimizer)
        precision.step(optimizer)
        assert precision.skipped
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_are_rare_once_the_scale_is_found(self, settings: dict[str, Any]) -> None:
        """It doubles after a while without any."""
        precision, model = Float16Mixed(CPU, init_scale=4.0, growth_interval=3), network()
        train(precision, model, AdamW(model.parameters(), **settings), batches(7))
        assert scale(precision) == 16.0


class TestSeveralOptimizers:
    """A generator and a discriminator, say: ``step`` is called for each."""

    def two(self) -> tuple[nn.Linear, Optimizer, nn.Linear, Optimizer]:
        one, other = nn.Linear(1, 1), nn.Linear(1, 1)
        for model in (one, other):
            nn.init.zeros_(model.bias)
        return one, SGD(one.parameters(), lr=1.0), other, SGD(other.parameters(), lr=1.0)

    def test_step_on_gradients_of_one_scale(self) -> None:
        """The first one's infinite gradients halve the scale; the second's, computed before, are not half as large then."""
        precision = Float16Mixed(CPU)
        one, first, other, second = self.two()
        precision.backward(one.bias.sum() * math.inf)
        precision.backward(other.bias.sum() * 3.0)
        precision.step(first)
        skipped = precision.skipped
        precision.step(second)
        assert (skipped, precision.skipped) == (True, False)
        assert (one.bias.item(), other.bias.item()) == (0.0, -3.0)
        assert scale(precision) == 2.0**15

    def test_move_the_scale_once(self) -> None:
        precision = Float16Mixed(CPU)
        one, first, other, second = self.two()
        precision.backward(one.bias.sum() * math.inf + other.bias.sum() * math.inf)
        precision.unscale(first)
        precision.unscale(second)
        precision.step(first)
        precision.step(second)
        assert scale(precision) == 2.0**15

    def test_may_be_unscaled_before_another_steps(self) -> None:
        precision = Float16Mixed(CPU)
        one, first, other, second = self.two()
        precision.backward(other.bias.sum() * 3.0)
        precision.unscale(second)
        precision.backward(one.bias.sum() * 2.0)
        precision.step(first)
        precision.backward(one.bias.sum() * math.inf)
        precision.step(first)
        precision.backward(one.bias.sum() * 0.0)
        precision.step(second)
        assert (one.bias.item(), other.bias.item()) == (-2.0, -3.0)

    def test_may_gather_gradients_over_the_steps_of_another(self) -> None:
        """Gradients that wait for a step follow the scale."""
        precision = Float16Mixed(CPU)
        one, first, other, second = self.two()
        precision.step(second)  # it has been seen
        for value in (1.0, math.inf, 1.0, math.inf):
            one.zero_grad()
            precision.backward(one.bias.sum() * value)
            precision.backward(other.bias.sum())
            precision.step(first)
        assert scale(precision) == 2.0**14
        precision.step(second)
        assert (one.bias.item(), other.bias.item()) == (-2.0, -4.0)


class TestARunStoppedAndResumed:
    @pytest.mark.parametrize("name", NAMES)
    def test_ends_with_the_same_weights_as_one_never_stopped(self, name: str, tmp_path: Path) -> None:
        """The scale and its age are in the checkpoint: bit for bit."""

        def fresh() -> tuple[Precision, nn.Module, Optimizer]:
            precision = precision_for(name)
            if name == "16-mixed":
                precision = Float16Mixed(CPU, init_scale=2.0**30, growth_interval=4)  # falls, then rises
            model = precision.convert(network())
            return precision, model, AdamW(model.parameters(), lr=0.01, eps=1e-4)

        whole, model, optimizer = fresh()
        train(whole, model, optimizer, batches(40, whole.weights))

        first, first_model, first_optimizer = fresh()
        train(first, first_model, first_optimizer, batches(23, first.weights))
        torch.save([first.state_dict(), first_model.state_dict(), first_optimizer.state_dict()], tmp_path / "state")
        states = torch.load(tmp_path / "state", weights_only=True)

        second, second_model, second_optimizer = fresh()
        for part, state in zip((second, second_model, second_optimizer), states, strict=True):
            part.load_state_dict(state)
        rest = list(batches(40, second.weights))[23:]
        train(second, second_model, second_optimizer, iter(rest))

        assert second.state_dict() == whole.state_dict()
        expected = model.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in second_model.state_dict().items())

    def test_may_change_to_scaled_losses(self) -> None:
        precision = Float16Mixed(CPU)
        precision.load_state_dict(FullPrecision().state_dict())
        assert scale(precision) == 2.0**16

    def test_must_not_bring_the_state_of_something_else(self) -> None:
        with pytest.raises(CheckpointError, match="lacks _growth_tracker"):
            Float16Mixed(CPU).load_state_dict({"scale": 2.0, "age": 3})


class TestFloat8:
    def test_names_the_recipe_that_was_meant(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'rowwise'"):
            Float8(CPU, recipe="row-wise", emulate=True)  # type: ignore[arg-type]

    def test_needs_layers_that_fit(self) -> None:
        with pytest.raises(ConfigError, match="its linear layers are 4x16, 16x1"):
            Float8(CPU, emulate=True).convert(network())

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_trains_emulated(self) -> None:
        """Layers of multiples of 16 only; weights stay in 32 bits and keep their names."""
        pytest.importorskip("torchao.float8", reason="treadle[float8] is not installed")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
        names, parameters = list(model.state_dict()), [id(p) for p in model.parameters()]
        precision = Float8(CPU, emulate=True)
        model = precision.convert(model)  # type: ignore[assignment]
        assert [type(model[i]).__name__ for i in (0, 2, 4)] == ["Linear", "Float8Linear", "Linear"]
        assert (list(model.state_dict()), [id(p) for p in model.parameters()]) == (names, parameters)
        losses = train(precision, model, SGD(model.parameters(), lr=0.2), batches(60))
        assert losses[-1] < losses[0] / 4
        assert {p.dtype for p in model.parameters()} == {single}

    def test_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "torchao.float8", None)
        with pytest.raises(ConfigError, match=r"treadle\[float8\]"):
            Float8(CPU, emulate=True).convert(nn.Sequential(nn.Linear(16, 16)))


def on_two_ranks(rank: int, store: str, results: Any) -> None:
    """Shards of FSDP2; infinite gradients on rank 1, in the shard of rank 1 only."""
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model, plain = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        plain.load_state_dict(model.state_dict())
        fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=single))
        precision = Float16Mixed(CPU, init_scale=2.0**8)
        optimizer = AdamW(model.parameters(), lr=0.1)
        other = AdamW(plain.parameters(), lr=0.1)
        x = torch.eye(4)

        precision.backward(model(x).float().sum())
        assert model.weight.grad is not None
        if rank == 1:
            model.weight.grad.to_local().fill_(math.inf)  # type: ignore[attr-defined]
        precision.unscale(optimizer)
        precision.step(optimizer)
        first = precision.skipped, precision.state_dict()["scale"]
        optimizer.zero_grad()

        precision.backward(model(x).float().pow(2).sum())
        waiting = model.weight.grad.clone()
        precision.unscale(optimizer)
        precision.backward(plain(x).sum())  # scales them again
        precision.unscale(optimizer)
        same = torch.equal(waiting.to_local() / 2**7, model.weight.grad.to_local())  # type: ignore[attr-defined]
        precision.step(optimizer)
        other.step()
        results[rank] = (*first, same, precision.skipped, model.weight.full_tensor().tolist())  # type: ignore[attr-defined]
    finally:
        dist.destroy_process_group()


class TestShards:
    def test_skip_a_step_on_all_ranks_that_is_infinite_on_one(self, tmp_path: Path) -> None:
        """Else the ranks' weights would part."""
        context = torch.multiprocessing.get_context("fork")
        with context.Manager() as manager:
            results = manager.dict()
            torch.multiprocessing.start_processes(
                on_two_ranks, (str(tmp_path / "store"), results), nprocs=2, start_method="fork"
            )
            assert [results[rank][:4] for rank in (0, 1)] == [(True, 2.0**7, True, False)] * 2
            assert results[0] == results[1]
