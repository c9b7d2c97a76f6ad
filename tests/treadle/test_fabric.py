"""Fabric alone, in somebody's own loop."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import treadle
from treadle.errors import ConfigError


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


BATCHES = [
    (torch.randn(4, 2, generator=g), torch.randn(4, 1, generator=g)) for g in [torch.Generator()] for _ in range(6)
]


class TestAPlainLoop:
    @pytest.mark.parametrize("max_norm", [None, 0.1])
    def test_adopts_it_line_by_line_and_stays_the_same_bit_for_bit(self, max_norm: float | None) -> None:
        plain, ours = self.plain(max_norm), self.with_fabric(max_norm)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))

    @staticmethod
    def plain(max_norm: float | None) -> nn.Module:
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        torch.manual_seed(1)
        for points, targets in BATCHES:
            loss = (net(points) - targets).square().mean()
            loss.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        return net

    @staticmethod
    def with_fabric(max_norm: float | None) -> nn.Module:
        fabric = treadle.Fabric(accelerator="cpu")
        net = model()
        net, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
        torch.manual_seed(1)
        for batch in BATCHES:
            points, targets = fabric.to_device(batch)
            with fabric.autocast():
                loss = (net(points) - targets).square().mean()
            fabric.backward(loss)
            if max_norm is not None:
                fabric.clip_gradients(net, max_norm=max_norm)
            fabric.step(optimizer)
            optimizer.zero_grad()
        return net

    def test_equals_the_trainers(self) -> None:
        """The three ways to write it end with the same weights."""

        class Regression(treadle.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = model()

            def training_step(self, batch: Any) -> Tensor:
                points, targets = batch
                loss: Tensor = (self.net(points) - targets).square().mean()
                return loss

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters(), lr=0.01)

        ours = Regression()
        torch.manual_seed(1)
        treadle.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        ).fit(ours, BATCHES)
        plain = self.plain(None)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


class TestClipping:
    def clipped(self, **bound: float) -> tuple[Tensor, Tensor | None]:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, -4.0])
        norm = treadle.Fabric().clip_gradients([parameter], **bound)
        return parameter.grad, norm

    def test_by_norm_returns_the_norm_before(self) -> None:
        gradient, norm = self.clipped(max_norm=1.0)
        torch.testing.assert_close(gradient, torch.tensor([0.6, -0.8]))
        assert norm is not None
        assert norm.item() == 5.0

    def test_by_value_bounds_each_element(self) -> None:
        gradient, norm = self.clipped(clip_val=3.5)
        assert gradient.tolist() == [3.0, -3.5]
        assert norm is None

    def test_of_a_module_without_gradients_changes_nothing(self) -> None:
        norm = treadle.Fabric().clip_gradients(nn.Linear(1, 1), max_norm=1.0)
        assert norm is not None
        assert norm.item() == 0.0

    @pytest.mark.parametrize("bounds", [{}, {"max_norm": 1.0, "clip_val": 1.0}], ids=["none", "both"])
    def test_needs_exactly_one_bound(self, bounds: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="names not exactly one bound") as error:
            self.clipped(**bounds)
        assert error.value.fix == "pass max_norm=1.0 or clip_val=0.5."


Pair = namedtuple("Pair", "points label")


class Movable:
    """Knows how to move itself, as batches of other libraries do."""

    device = "cpu"

    def to(self, device: torch.device) -> "Movable":
        moved = Movable()
        moved.device = device.type
        return moved


class Opaque:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass(frozen=True)
class Sample:
    first: Tensor
    name: str


class TestMovingABatch:
    """On ``meta``, a device that every machine has."""

    @pytest.fixture
    def move(self) -> Any:
        fabric = treadle.Fabric()
        fabric.device = torch.device("meta")
        return fabric.to_device

    def test_moves_every_tensor_in_it(self, move: Any) -> None:
        moved = move({"a": torch.ones(1), "b": [torch.ones(1), (torch.ones(1), "text")], "c": 1, "d": None})
        assert [moved["a"].device.type, moved["b"][0].device.type, moved["b"][1][0].device.type] == ["meta"] * 3
        assert (moved["b"][1][1], moved["c"], moved["d"]) == ("text", 1, None)
        assert type(moved["b"][1]) is tuple

    def test_keeps_named_tuples(self, move: Any) -> None:
        moved = move(Pair(torch.ones(1), label=3))
        assert isinstance(moved, Pair)
        assert moved.points.device.type == "meta"
        assert moved.label == 3

    def test_asks_objects_that_can_move_themselves(self, move: Any) -> None:
        assert move([Movable()])[0].device == "meta"

    def test_keeps_the_type_of_a_mapping(self, move: Any) -> None:
        """As collate functions return them: an OrderedDict, a UserDict."""
        for kind in (OrderedDict, UserDict):
            moved = move(kind({"x": torch.ones(1), "name": "a"}))
            assert type(moved) is kind
            assert (moved["x"].device.type, moved["name"]) == ("meta", "a")

    def test_moves_the_fields_of_a_dataclass(self, move: Any) -> None:
        batch = Sample(torch.ones(1), "a")
        moved = move(batch)
        assert (moved.first.device.type, moved.name, batch.first.device.type) == ("meta", "a", "cpu")

    def test_leaves_other_objects_alone(self, move: Any) -> None:
        batch = Opaque(torch.ones(1))
        assert move(batch) is batch

    def test_does_not_copy_what_is_there_already(self) -> None:
        batch = torch.ones(1)
        assert treadle.Fabric(accelerator="cpu").to_device(batch) is batch


class TestOneProcess:
    def test_is_rank_zero_of_one(self) -> None:
        fabric = treadle.Fabric()
        assert (fabric.global_rank, fabric.world_size, fabric.is_global_zero) == (0, 1, True)
        assert fabric.all_reduce(torch.tensor(2.0)).item() == 2.0
        fabric.barrier()

    def test_prints_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        treadle.Fabric().print("a", 1)
        assert capsys.readouterr().out == "a 1\n"


class TestAReduction:
    def test_of_an_unknown_name_is_an_error_on_one_rank_too(self) -> None:
        with pytest.raises(ConfigError, match=r"no reduction 'summ'.\n.*\n  fix: did you mean 'sum'"):
            treadle.Fabric(accelerator="cpu").all_reduce(torch.tensor(2.0), "summ")  # type: ignore[arg-type]


class TestSeveralRanksThatWereNotLaunched:
    def test_place_nothing(self) -> None:
        with pytest.raises(ConfigError, match=r"fabric\.setup before fabric\.launch\(\)"):
            treadle.Fabric(devices=2).setup(nn.Linear(1, 1))


class TestSomebodysOwnParts:
    def test_are_taken_as_they_are(self) -> None:
        """A precision is an object with the methods of the protocol; here one that halves every loss."""

        class Half(FullLike):
            name = "half"

            def backward(self, loss: Tensor) -> None:
                (loss / 2).backward()

        weight = nn.Parameter(torch.zeros(()))
        fabric = treadle.Fabric(precision=Half())
        fabric.backward(weight * 1.0)
        assert weight.grad is not None
        assert weight.grad.item() == 0.5


class FullLike:
    """All that a precision needs."""

    name = "mine"
    compute = None
    weights = None

    def convert(self, module: nn.Module) -> nn.Module:
        return module

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None: ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
