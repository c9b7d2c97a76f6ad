"""Know before you run: estimates against real steps, measured by torch's profiler on the CPU's allocator."""

import json
import linecache
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from treadle.errors import ConfigError, DataError, ModuleError
from treadle.estimating import Layout, estimate, report
from treadle.module import Module
from treadle.precision import precision_for
from treadle.testing import Classifier, Points

MARK = 7_777_777
"""Bytes of an allocation that is nobody else's."""


class Block(nn.Module):
    """Of a transformer, on inputs of shape (batch, time, 32)."""

    def __init__(self, width: int = 32, recompute: bool = False) -> None:
        super().__init__()
        self.norm, self.recompute = nn.LayerNorm(width), recompute
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.whole, x, use_reentrant=False) if self.recompute else self.whole(x)

    def whole(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, 32, num_layers=2, batch_first=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Trained(Module):
    """A net with a loss and an optimizer. ``optimizer`` is called with the parameters."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., Any] = torch.optim.AdamW, **settings: Any) -> None:
        super().__init__()
        self.net, self.optimizer, self.settings = net, optimizer, settings

    def loss(self, batch: Any) -> Tensor:
        logits = self.net(batch[0])
        return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.01, **self.settings)


def perceptron() -> tuple[nn.Module, Any]:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    return net, (torch.randn(64, 64), torch.randint(10, (64,)))


def convolutions() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return net, (torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))


def transformer(recompute: bool = False) -> tuple[nn.Module, Any]:
    blocks = [Block(recompute=recompute) for _ in range(2)]
    tokens = torch.randint(50, (8, 64))
    return nn.Sequential(nn.Embedding(50, 32), *blocks, nn.Linear(32, 50)), (tokens, tokens)


def recomputing() -> tuple[nn.Module, Any]:
    return transformer(recompute=True)


def recurrent() -> tuple[nn.Module, Any]:
    return Recurrent(), (torch.randn(8, 20, 16), torch.randint(5, (8,)))


NETS = [perceptron, convolutions, transformer, recomputing, recurrent]
each_net = pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)


class Truth(NamedTuple):
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def size_of(tensors: Any) -> int:
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in local}.values())


def really(module: Trained, batch: Any, *, net: Any = None, autocast: Any = nullcontext) -> Truth:
    """The second step of a real run. ``net``: takes the place of the module's."""
    module.net = net or module.net
    optimizer = module.configure_optimizers()
    before = size_of([*module.parameters(), *module.buffers(), *batch])

    def step() -> None:
        torch.empty(MARK, dtype=torch.uint8)
        with autocast():
            loss = module.loss(batch)
        torch.empty(MARK, dtype=torch.uint8)
        optimizer.zero_grad()
        loss.backward()
        del loss
        optimizer.step()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
        step()
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    alive, marks, peak = before, [], 0
    for event in events:
        if event.nbytes() == MARK:
            marks.append(alive)  # at the start of each step, and at the end of its forward pass
        if abs(event.nbytes()) != MARK:
            alive += event.nbytes()
        peak = max(peak, alive) if len(marks) > 2 else 0
    weights, gradients = size_of([*module.parameters(), *module.buffers()]), size_of(
        p.grad for p in module.parameters()
    )
    state = size_of(t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
    kept = weights + gradients + state + size_of(batch)
    return Truth(weights, gradients, state, marks[3] - kept, peak)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@contextmanager
def without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


class TestOnOneRank:
    @each_net
    def test_is_what_a_real_step_takes(self, make: Any) -> None:
        """Weights, gradients and optimizer to the byte; activations and the peak but for what kernels take for a while,
        and the states of generators that checkpoint() keeps: within one hundredth."""
        net, batch = make()
        found = estimate(Trained(net, fused=True), batch)
        with without_onednn():
            truth = really(Trained(net, fused=True), batch)
        assert (found.weights, found.gradients, found.optimizer) == truth[:3]
        states = 2 * torch.get_rng_state().nbytes
        assert found.activations == pytest.approx(truth.activations, abs=0.01 * truth.activations + states)
        assert found.peak == pytest.approx(truth.peak, rel=0.01)

    @pytest.mark.parametrize("make", [perceptron, transformer], ids=lambda make: make.__name__)
    def test_knows_what_autocast_copies(self, make: Any) -> None:
        net, batch = make()
        found = estimate(Trained(net, fused=True), batch, precision="bf16-mixed")
        truth = really(Trained(net, fused=True), batch, autocast=precision_for("bf16-mixed").autocast)
        assert found.activations == pytest.approx(truth.activations, rel=0.01)
        # Where the processor computes in bf16, its kernels lay a layer's weights out anew, which no program asked for.
        scratch = max(p.numel() for p in net.parameters()) * 2 if torch.cpu._is_avx512_bf16_supported() else 0
        assert 0.99 * found.peak <= truth.peak <= 1.01 * found.peak + scratch

    def test_counts_weights_in_their_format(self) -> None:
        net, batch = perceptron()
        whole, half = (estimate(Trained(net), batch, precision=p) for p in ("32-true", "bf16-true"))
        assert half.weights * 2 == whole.weights
        assert half.gradients * 2 == whole.gradients
        assert net[0].weight.dtype is torch.float32

    def test_counts_float8_as_the_mixed_precision_around_it(self) -> None:
        """Which this machine can't compute in; nor need it."""
        net, batch = perceptron()
        found, mixed = (estimate(Trained(net), batch, precision=p) for p in ("float8", "bf16-mixed"))
        assert found.precision == "float8"
        assert found.peak == mixed.peak
        assert found.notes == (
            "float8 is counted as bf16-mixed: copies of linear layers' weights and inputs are smaller",
        )

    @pytest.mark.parametrize(
        "optimizer, settings",
        [
            (torch.optim.SGD, {}),
            (torch.optim.SGD, {"momentum": 0.9}),
            (torch.optim.Adam, {"foreach": True}),
            (torch.optim.AdamW, {"amsgrad": True}),
            (torch.optim.Adafactor, {}),
            (torch.optim.RMSprop, {}),
        ],
        ids=["sgd", "momentum", "adam", "amsgrad", "adafactor", "rmsprop"],
    )
    def test_knows_every_optimizer(self, optimizer: Any, settings: dict[str, Any]) -> None:
        net, batch = perceptron()
        found = estimate(Trained(net, optimizer, **settings), batch)
        truth = really(Trained(net, optimizer, **settings), batch)
        assert found.optimizer == truth.optimizer
        assert found.peak == pytest.approx(truth.peak, rel=0.01)

    def test_leaves_frozen_weights_without_gradients(self) -> None:
        net, batch = perceptron()
        net[0].requires_grad_(False)
        found = estimate(Trained(net), batch)
        assert found.parameters - found.trainable == 64 * 128 + 128
        assert found.weights - found.gradients == 4 * (64 * 128 + 128)

    def test_keeps_gradients_while_they_accumulate(self) -> None:
        """From the second batch of a window on, they are there in the backward pass."""
        net, batch = transformer()
        one, four = (estimate(Trained(net), batch, accumulate=n) for n in (1, 4))
        assert one.peak is not None
        assert four.peak is not None
        assert one.peak < four.peak <= one.peak + one.gradients
        assert four.flops == 4 * (one.flops or 0)

    def test_takes_another_optimizer(self) -> None:
        net, batch = perceptron()
        assert estimate(Trained(net), batch, optimizer_of=lambda m: torch.optim.SGD(m.parameters())).optimizer == 0


class TestFlops:
    def test_are_two_for_each_multiply_add(self) -> None:
        """One product forward; backward one for the weight, and one for what comes before if anything does."""
        net = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 10))
        batch = torch.randn(8, 16), torch.randint(10, (8,))
        assert estimate(Trained(net), batch).flops == 2 * 8 * (2 * 16 * 32 + 3 * 32 * 10)

    def test_have_attention_in_them(self) -> None:
        """Two products of (time, width) forward and five backward, as kernels that don't store the matrix do."""
        net, batch = transformer()
        linear = 3 * 2 * 8 * 64 * (2 * (32 * 96 + 32 * 32 + 2 * 32 * 128) + 32 * 50)
        attention = 2 * (2 + 5) * 2 * 8 * 64 * 64 * 32
        assert estimate(Trained(net), batch).flops == linear + attention

    def test_grow_with_what_is_computed_again(self) -> None:
        again, once = (estimate(Trained(net), batch) for net, batch in (recomputing(), transformer()))
        assert (again.flops or 0) > (once.flops or 0)
        assert (again.activations or 0) < (once.activations or 0) / 2

    def test_say_what_they_leave_out(self) -> None:
        """An operation of another library may be most of the work."""

        class Own(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.treadle_tests.doubled(x)

        with torch.library._scoped_library("treadle_tests", "FRAGMENT") as library:
            library.define("doubled(Tensor x) -> Tensor")
            library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
            net, batch = nn.Sequential(Own(), nn.Linear(4, 3)), (torch.randn(2, 4), torch.tensor([0, 1]))
            (note,) = estimate(Trained(net), batch).notes
        assert note == "the FLOPs of treadle_tests.doubled are not counted: torch has no formula for them"


class TestTheModule:
    def test_stays_as_it_is(self) -> None:
        net, batch = convolutions()
        module, state = Trained(net), {key: value.clone() for key, value in net.state_dict().items()}
        drawn = torch.get_rng_state()
        estimate(module, batch)
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())
        assert torch.equal(torch.get_rng_state(), drawn)
        assert "_logbook" not in module.__dict__

    def test_keeps_what_its_step_remembers(self) -> None:
        module = Classifier()
        estimate(module, next(iter(Points().train_dataloader())))
        assert module.seen == []

    def test_may_have_been_made_on_meta(self) -> None:
        net, batch = transformer()
        with torch.device("meta"):
            bare, _ = transformer()
        assert estimate(Trained(bare), batch) == estimate(Trained(net), batch)

    def test_may_be_larger_than_this_machine(self) -> None:
        """32 layers of 16,384: nine billion weights, 137 GB with their gradients and Adam's state."""
        with torch.device("meta"):
            net = nn.Sequential(*(nn.Linear(16_384, 16_384, bias=False) for _ in range(32)))
        batch = torch.empty(512, 16_384, device="meta"), torch.empty(512, dtype=torch.int64, device="meta")
        found = estimate(Trained(net, fused=True), batch)
        assert found.parameters == 32 * 16_384**2
        assert (found.peak or 0) > 4 * 4 * found.parameters

    def test_may_make_its_layers_in_configure_model(self) -> None:
        class Late(Trained):
            def configure_model(self) -> None:
                self.net = perceptron()[0]

        net, batch = perceptron()
        assert estimate(Late(nn.Identity()), batch).weights == estimate(Trained(net), batch).weights

    def test_counts_tied_weights_once(self) -> None:
        net = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 50, bias=False))
        net[1].weight = net[0].weight
        tokens = torch.randint(50, (2, 8))
        assert estimate(Trained(net), (tokens, tokens)).parameters == 50 * 32

    def test_may_step_several_optimizers_itself(self) -> None:
        """Manual optimization: what it does is counted, as it does it."""

        class Two(Module):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

            def training_step(self, batch: Tensor, batch_idx: int) -> None:
                first, second = self.optimizers()
                with first.toggle_model():
                    self.manual_backward(self.b(self.a(batch)).mean())
                    first.step()
                    first.zero_grad()
                second.step(self.b(batch).mean())

            def configure_optimizers(self) -> Any:
                return torch.optim.Adam(self.a.parameters()), torch.optim.SGD(self.b.parameters())

        found = estimate(Two(), torch.randn(4, 8))
        assert found.notes == ()
        assert found.optimizer == 2 * 72 * 4 + 2 * 4
        assert found.gradients == 2 * 72 * 4
        assert found.flops == 2 * 4 * 64 * (2 + 2 + 2)

    def test_may_train_nothing(self) -> None:
        net, batch = perceptron()
        found = estimate(Trained(net), batch, optimizer_of=lambda module: None)
        assert (found.gradients, found.optimizer) == (0, 0)
        assert found.flops

    def test_with_lazy_layers_is_refused(self) -> None:
        with pytest.raises(ModuleError, match="has a lazy layer"):
            estimate(Trained(nn.LazyLinear(4)), (torch.randn(2, 3), torch.tensor([0, 1])))

    def test_that_can_not_be_copied_is_refused(self) -> None:
        net, batch = perceptron()
        net.register_buffer("a", torch.zeros(1))
        module = Trained(net)
        module.drawn_from = (item for item in "generators can't be copied")  # type: ignore[assignment]
        with pytest.raises(ModuleError, match="Trained can't be copied: TypeError"):
            estimate(module, batch)


class TestAStepThatReadsValues:
    class Reading(Trained):
        def loss(self, batch: Any) -> Tensor:
            loss = super().loss(batch)
            return loss if loss.item() < 1e9 else loss * 0

    def test_is_counted_as_far_as_it_can_be(self) -> None:
        net, batch = perceptron()
        found, whole = estimate(self.Reading(net), batch), estimate(Trained(net), batch)
        assert (found.weights, found.gradients, found.optimizer) == (whole.weights, whole.gradients, whole.optimizer)
        assert (found.activations, found.peak, found.flops) == (None, None, None)

    def test_is_told_where_and_why(self) -> None:
        net, batch = perceptron()
        (note,) = estimate(self.Reading(net), batch).notes
        line = next(n for n, text in enumerate(linecache.getlines(__file__), 1) if "return loss if loss.item()" in text)
        assert note == (
            f"activations and FLOPs could not be counted: the value of a tensor is read, in {__file__}:{line} "
            "(return loss if loss.item() < 1e9 else loss * 0)"
        )

    def test_is_told_of_shapes_too(self) -> None:
        class Masked(Trained):
            def loss(self, batch: Any) -> Tensor:
                return self.net(batch[0])[batch[0][:, 0] > 0].mean()

        net, batch = perceptron()
        (note,) = estimate(Masked(net), batch).notes
        assert "the shape of a result depends on values" in note

    def test_may_read_the_whole_numbers_of_a_batch(self) -> None:
        """Lengths and indices: they are known."""

        class Cut(Trained):
            def loss(self, batch: Any) -> Tensor:
                return super().loss((batch[0][:, : int(batch[2].max())], batch[1]))

        lengths = torch.tensor([5, 6, 3, 1, 1, 1, 1, 1])
        found = estimate(Cut(Recurrent()), (torch.randn(8, 9, 16), torch.randint(5, (8,)), lengths))
        assert found.flops == estimate(Trained(Recurrent()), (torch.randn(8, 6, 16), torch.randint(5, (8,)))).flops

    def test_may_be_one_that_fails(self) -> None:
        net, (inputs, targets) = perceptron()
        (note,) = estimate(Trained(net), (inputs[:, :3], targets)).notes
        assert "RuntimeError: " in note
        assert f"in {__file__}:" in note

    def test_leaves_an_optimizer_that_evaluates_it_uncounted(self) -> None:
        net, batch = perceptron()
        found = estimate(Trained(net, torch.optim.LBFGS), batch)
        assert (found.optimizer, found.peak) == (None, None)
        assert found.activations
        assert found.notes[0].startswith("the state of LBFGS could not be counted: it evaluates the loss itself")


def on_two_ranks(rank: int, port: int, results: Any) -> None:
    """What DDP and FSDP really take, by the CPU's allocator."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # which nobody writes into
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    net, batch = blocks()
    replica = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    replicated = really(Trained(net, fused=True), batch, net=replica)
    net, batch = blocks()
    for block in net[1:-1]:
        fully_shard(block)
    sharded = really(Trained(fully_shard(net), fused=True), batch)
    if rank == 0:
        results.put((replicated, sharded))
    dist.barrier()
    dist.destroy_process_group()


def blocks() -> tuple[nn.Sequential, Any]:
    tokens = torch.randint(100, (8, 32))
    return nn.Sequential(nn.Embedding(100, 64), *(Block(64) for _ in range(4)), nn.Linear(64, 100)), (tokens, tokens)


@pytest.fixture(scope="module")
def truth() -> tuple[Truth, Truth]:
    """With DDP, and with FSDP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = get_context("fork").SimpleQueue()
    torch.multiprocessing.start_processes(on_two_ranks, (port, results), nprocs=2, start_method="fork")
    found: tuple[Truth, Truth] = results.get()
    return found


class TestOnSeveralRanks:
    def test_each_has_everything_with_ddp(self, truth: tuple[Truth, Truth]) -> None:
        found = estimate(Trained(*blocks()[:1], fused=True), blocks()[1], ranks=2, strategy="ddp")
        assert (found.weights, found.gradients, found.optimizer) == truth[0][:3]
        assert found.activations == pytest.approx(truth[0].activations, rel=0.01)
        assert found.peak == pytest.approx(truth[0].peak, rel=0.01)

    def test_each_has_its_part_with_fsdp(self, truth: tuple[Truth, Truth]) -> None:
        """The peak is within a fifth: buffers of communication come and go as it suits torch."""
        found = estimate(Trained(*blocks()[:1], fused=True), blocks()[1], ranks=2, strategy="fsdp")
        assert (found.weights, found.gradients, found.optimizer) == truth[1][:3]
        assert found.peak == pytest.approx(truth[1].peak, rel=0.2)

    def test_activations_are_not_divided(self) -> None:
        net, batch = transformer()
        one, many = (estimate(Trained(net), batch, ranks=n, strategy=s) for n, s in ((1, "single"), (8, "fsdp")))
        assert many.activations == one.activations
        assert many.flops == one.flops

    def test_the_first_holds_what_does_not_divide(self) -> None:
        """Ten rows on four ranks: three, three, three and one."""
        net, batch = nn.Linear(8, 10, bias=False), (torch.randn(2, 8), torch.tensor([0, 1]))
        assert estimate(Trained(net), batch, ranks=4, strategy="fsdp").weights == 3 * 8 * 4

    def test_a_unit_that_is_gathered_counts(self) -> None:
        net, batch = transformer()
        named, whole = (
            estimate(Trained(net), batch, ranks=4, strategy=Layout(shard=4, wrap=wrap)) for wrap in ("Block", "GELU")
        )
        block, rest = 4 * sum(p.numel() for p in net[1].parameters()), 4 * (50 * 32 + 32 * 50 + 50)
        assert named.gathered == rest + 4 * block
        assert whole.gathered == 3 * (2 * block + rest)

    def test_mixed_precision_gathers_in_its_format(self) -> None:
        """And has no copies of weights by autocast."""
        net, batch = transformer()
        alone = estimate(Trained(net), batch, precision="bf16-mixed")
        full, mixed = (
            estimate(Trained(net), batch, ranks=4, strategy="fsdp", precision=p) for p in ("32", "bf16-mixed")
        )
        assert mixed.gathered < full.gathered
        assert (mixed.activations or 0) < (alone.activations or 0)

    def test_a_mesh_divides_three_ways(self) -> None:
        """Two replicas of two shards, with the layers of the plan on two ranks each."""
        net, batch = transformer()
        layout = Layout(data=2, shard=2, tensor=2, plan=("net.1.mlp.*", "net.2.mlp.*"))
        alone, found = estimate(Trained(net), batch), estimate(Trained(net), batch, ranks=8, strategy=layout)
        divided = 4 * 2 * sum(p.numel() for p in net[1].mlp.parameters())
        assert found.weights == (alone.weights - divided) // 2 + divided // 4
        assert (found.flops or 0) < (alone.flops or 0)
        assert any("an upper bound" in note for note in found.notes)

    def test_activation_checkpointing_of_the_strategy_counts(self) -> None:
        net, batch = transformer()
        kept, again = (
            estimate(Trained(net), batch, ranks=2, strategy=Layout(shard=2, activation_checkpointing=setting))
            for setting in (None, "Block")
        )
        assert (again.activations or 0) < (kept.activations or 0) / 2
        assert (again.flops or 0) > (kept.flops or 0)

    @pytest.mark.parametrize("strategy", ["single", Layout(data=2, shard=2)], ids=["single", "mesh"])
    def test_must_be_as_many_as_the_strategy_has(self, strategy: Any) -> None:
        net, batch = perceptron()
        with pytest.raises(ConfigError, match="3 ranks"):
            estimate(Trained(net), batch, ranks=3, strategy=strategy)

    @pytest.mark.parametrize("settings", [{"ranks": 0}, {"accumulate": 0}, {"strategy": "ddpp"}, {"precision": "31"}])
    def test_wrong_settings_are_refused(self, settings: dict[str, Any]) -> None:
        net, batch = perceptron()
        with pytest.raises(ConfigError):
            estimate(Trained(net), batch, **settings)

    def test_a_mesh_has_whole_dimensions(self) -> None:
        with pytest.raises(ConfigError, match="a mesh with shard=0"):
            Layout(shard=0)


class TestInWords:
    def test_one_thing_a_line(self) -> None:
        net = nn.Linear(1024, 1024, bias=False)
        batch = torch.randn(32, 1024), torch.randint(10, (32,))
        text = estimate(Trained(net, torch.optim.SGD, momentum=0.9), batch, ranks=4, accumulate=2).described()
        lines = text.splitlines()
        assert lines[0] == "Trained on each of 4 ranks: strategy ddp, precision 32-true, 2 batches a step"
        assert lines[1:5] == [
            "  parameters    1,048,576",
            "  weights       4 MiB",
            "  gradients     4 MiB",
            "  optimizer     4 MiB",
        ]
        assert lines[-1] == "  FLOPs a step  268.4 MFLOP, 1.074 GFLOP on all"

    def test_what_is_not_known_is_said_to_be_so(self) -> None:
        net, batch = perceptron()
        text = estimate(TestAStepThatReadsValues.Reading(net), batch).described()
        assert "  activations   not counted\n" in text
        assert "  FLOPs a step  not counted\n  note: activations and FLOPs could not be counted" in text

    def test_or_as_json(self) -> None:
        net, batch = perceptron()
        found = estimate(Trained(net), batch)
        assert json.loads(json.dumps(found.as_dict()))["weights"] == found.weights


class TestReport:
    def test_reads_the_first_batch_of_a_datamodule(self) -> None:
        text = report(Classifier(), Points(batch_size=4), devices=2, num_nodes=2, strategy="ddp")
        assert text.startswith("Classifier on each of 4 ranks: strategy ddp, precision 32-true\n  parameters    22\n")
        assert "note" not in text

    def test_or_of_a_loader(self) -> None:
        loader = [next(iter(Points(batch_size=4).train_dataloader()))]
        assert report(Classifier(), loader) == report(Classifier(), Points(batch_size=4))

    def test_needs_one(self) -> None:
        with pytest.raises(DataError):
            report(Classifier(), [])
