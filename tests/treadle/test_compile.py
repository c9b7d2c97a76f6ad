"""``torch.compile`` by one flag."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from treadle.compiling import Compile, What, compile_for
from treadle.errors import ConfigError

# Dynamo looks whether a tensor has a gradient, and hides the warning that this makes; as an error it can't be hidden.
pytestmark = pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


class Tower(nn.Module):
    """An embedding, blocks that repeat, a head: as most models."""

    def __init__(self, blocks: int = 3, make: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([(make or Block)() for _ in range(blocks)])
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Sequence(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.ReLU())


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.loss = nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Stepping(Perceptron):
    """What a Module is to the compiler: a step that logs."""

    automatic_optimization = True

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[Tensor] = []

    def log(self, name: str, value: Tensor) -> None:
        self.logged.append(value.detach())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch).pow(2).mean()
        self.log("loss", loss)
        return loss


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).pow(2).mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


BATCH = torch.linspace(-1, 1, 24).reshape(6, 4)


class TestRepeatedBlocks:
    def test_are_compiled_once_for_all_of_them(self) -> None:
        """Twenty layers take as long to compile as two."""
        counter = CompileCounter()
        model = Tower(blocks=20)
        assert Compile(what="blocks", backend=counter).apply(model) == 20
        for _ in range(2):
            model(BATCH)
        assert counter.frame_count == 1

    @pytest.mark.parametrize("make", [Block, Sequence], ids=["own class", "subclass of Sequential"])
    def test_compute_what_they_computed(self, make: type[nn.Module]) -> None:
        model = Tower(make=make)
        expected = gradients(copy.deepcopy(model), BATCH)
        counter = CompileCounter()
        Compile(backend=counter).apply(model)
        torch.testing.assert_close(gradients(model, BATCH), expected)
        assert counter.frame_count > 0

    def test_may_be_layers_of_torch(self) -> None:
        """``nn.TransformerEncoderLayer.compile()`` compiles nothing, and says nothing."""
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        model = nn.Sequential(*[copy.deepcopy(layer) for _ in range(2)])
        expected = model(BATCH[None])
        counter = CompileCounter()
        assert Compile(what="blocks", backend=counter).apply(model) == 2
        torch.testing.assert_close(model(BATCH[None]), expected)
        assert counter.frame_count > 0

    def test_of_every_container_are_compiled(self) -> None:
        """Dynamo gives a frame up after eight compilations, and doesn't say so: containers don't share one."""
        counter = CompileCounter()
        model = nn.Module()
        for size in range(1, 11):
            pair = [nn.Sequential(nn.Linear(4, size), nn.Linear(size, 4)) for _ in range(2)]
            model.add_module(f"stage{size}", nn.Sequential(*pair, nn.ReLU()))
        assert Compile(what="blocks", backend=counter).apply(model) == 20
        with torch.no_grad():
            for stage in model.children():
                stage(BATCH)
        assert counter.frame_count == 10

    def test_that_lie_twice_in_a_model_are_one(self) -> None:
        shared = Block()
        model = nn.Sequential(shared, shared, nn.Linear(4, 1))
        assert Compile(what="blocks", backend="eager").apply(model) == 1

    def test_run_under_inductors_partitioner(self) -> None:
        model = Tower()
        expected = gradients(copy.deepcopy(model), BATCH)
        Compile(what="blocks", backend="aot_eager").apply(model)
        torch.testing.assert_close(gradients(model, BATCH), expected)


class TestAModelWithoutThem:
    def test_has_its_parts_compiled_whole(self) -> None:
        """A perceptron is one Sequential, whose own compile() does nothing; losses have nothing to compile."""
        model = Perceptron()
        expected = model(BATCH)
        counter = CompileCounter()
        assert Compile(backend=counter).apply(model) == 1
        torch.testing.assert_close(model(BATCH), expected)
        assert (counter.frame_count, counter.op_count) == (1, 3)

    def test_has_its_forward_compiled_where_it_has_layers_only(self) -> None:
        counter = CompileCounter()
        model = Flat()
        assert Compile(backend=counter).apply(model) == 1
        model(BATCH)
        assert (counter.frame_count, counter.op_count) == (1, 3)


class TestAStep:
    def test_is_one_graph_up_to_what_it_logs(self) -> None:
        module = Stepping()
        expected = module.training_step(BATCH, 0)
        counter = CompileCounter()
        assert Compile(what="step", backend=counter).apply(module) == 1
        for index in range(4):
            torch.testing.assert_close(module.training_step(BATCH, index), expected)
        assert counter.frame_count == 1
        assert len(module.logged) == 5

    def test_must_leave_the_optimizers_to_the_trainer(self) -> None:
        module = Stepping()
        module.automatic_optimization = False
        with pytest.raises(ConfigError, match="Stepping optimizes manually"):
            Compile(what="step").apply(module)


class TestTheModule:
    @pytest.mark.parametrize("what", ["auto", "blocks", "forward"])
    def test_keeps_the_names_of_its_weights(self, what: What) -> None:
        """A checkpoint of a compiled module loads into one that isn't."""
        model, plain = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())
        Compile(what=what, backend="eager").apply(model)
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(plain(BATCH), model._call_impl(BATCH))

    def test_may_be_compiled_again(self) -> None:
        counter = CompileCounter()
        model = Tower()
        settings = Compile(backend=counter)
        for _ in range(2):
            assert settings.apply(model) == 3
            expected = model(BATCH)
        torch.testing.assert_close(model(BATCH), expected)

    def test_is_not_compiled_in_its_copies(self) -> None:
        model = Tower()
        Compile(backend="eager").apply(model)
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied.blocks[0].linear.weight.zero_()
        assert not torch.equal(copied(BATCH), model(BATCH))


class TestTheFlag:
    def test_is_off_without_a_value(self) -> None:
        assert compile_for(None) is None
        assert compile_for(False) is None

    def test_takes_true_a_name_or_settings(self) -> None:
        settings = Compile(what="step", dynamic=True)
        assert compile_for(True) == Compile(what="auto")
        assert compile_for("forward") == Compile(what="forward")
        assert compile_for(settings) is settings

    @pytest.mark.parametrize(
        "make, says",
        [
            (lambda: compile_for("block"), "did you mean 'blocks'?"),
            (lambda: compile_for(3), "compile=3."),
            (lambda: Compile(mode="max-autotun"), "did you mean 'max-autotune'?"),
            (lambda: Compile(mode="default", backend="eager"), "modes are inductor's"),
            (lambda: Compile(backend="inducter").apply(Tower()), "did you mean 'inductor'?"),
            (lambda: Compile(what="blocks").apply(Perceptron()), "nothing repeats in Perceptron"),
            (lambda: Compile(what="step").apply(Perceptron()), "Perceptron has no training_step"),
            (lambda: Compile().apply(nn.Linear(2, 2)), "nothing to compile in Linear"),
        ],
        ids=["what", "type", "mode", "mode of another", "backend", "no blocks", "no step", "a layer"],
    )
    def test_says_what_is_wrong(self, make: object, says: str) -> None:
        with pytest.raises(ConfigError) as error:
            make()  # type: ignore[operator]
        assert says in str(error.value)


def on_two_ranks(rank: int, store: str, results: Any) -> None:
    """Activation checkpointing, then compilation, then the strategy's wrapping."""
    import torch.distributed as dist
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    def whole(gradient: Tensor) -> list[float]:
        full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        return full.flatten().tolist()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        for strategy in ("ddp", "fsdp"):
            for compiled in (False, True):
                torch.manual_seed(0)
                model: nn.Module = Tower(blocks=4)
                for index, block in enumerate(model.blocks):
                    model.blocks[index] = checkpoint_wrapper(block)
                counter = CompileCounter()
                if compiled:
                    assert Compile(what="blocks", backend=counter).apply(model) == 4
                if strategy == "ddp":
                    placed: nn.Module = DistributedDataParallel(model)
                else:
                    for block in model.blocks:
                        fully_shard(block)
                    placed = fully_shard(model)
                for step in range(2):
                    model.zero_grad()
                    placed(BATCH * (rank + 1 + step)).pow(2).mean().backward()
                results[rank, strategy, compiled] = [whole(p.grad) for p in model.parameters() if p.grad is not None]
                results[rank, strategy, compiled, "graphs"] = counter.frame_count
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def gradients_on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    with torch.multiprocessing.get_context("fork").Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.start_processes(on_two_ranks, (store, found), nprocs=2, start_method="fork")
        yield dict(found)


class TestUnderAStrategy:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_gives_the_same_gradients_on_all_ranks(self, gradients_on_two_ranks: dict[Any, Any], strategy: str) -> None:
        results = gradients_on_two_ranks
        for rank in (0, 1):
            assert results[rank, strategy, True, "graphs"] > 0
            assert len(results[rank, strategy, True]) == 12
            for found, expected in zip(results[rank, strategy, True], results[0, strategy, False], strict=True):
                assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
