"""Ranks in a grid of data x shard x tensor: the same training as on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # before forking: each rank would import it
import torch.distributed.tensor.parallel
from ranks import on_ranks
from torch import Tensor, nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError
from treadle.precision import FullPrecision
from treadle.strategies import sharding
from treadle.strategies.base import Strategy
from treadle.strategies.mesh import Mesh, planned, sizes_for

TOLERANCE = 1e-6
"""Absolute and relative, of losses and weights after three steps of AdamW: sums are taken in another order."""

PLAN: dict[str, Any] = {
    "embed": "colwise_gather",
    "blocks.*.attention.[qkv]": "colwise",
    "blocks.*.attention.out": "rowwise",
    "blocks.*.up": "colwise",
    "blocks.*.down": "rowwise",
    "head": "colwise_gather",
}


class Attention(nn.Module):
    """Causal, of heads of four features; how many there are depends on the rank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Softmax doesn't see a bias of keys: its gradient would be rounding errors, and AdamW's steps with it.
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=name != "k") for name in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x)))
        return x + self.down(torch.relu(self.up(x)))


class Language(nn.Module):
    """Predicts the next of twelve tokens."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList(Block(8, dropout) for _ in range(2))
        self.head = nn.Linear(8, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    def training_step(self, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())


def made(device: str = "cpu", dropout: float = 0.0) -> Language:
    torch.manual_seed(0)
    with torch.device(device):
        module = Language(dropout)
    torch.manual_seed(0)
    return module


Trained = dict[str, Any]


def trained(ranks: Ranks | None, strategy: Strategy | None, module: Language | None = None) -> Trained:
    """Losses of the whole batch, norms and weights after three clipped steps. Without ranks: on one device."""
    module = module or made()
    step, index, count = module.training_step, 0, 1
    if ranks is not None and strategy is not None:
        strategy.start(ranks, FullPrecision())
        strategy.place(module)
        step, index, count = strategy.method(module, "training_step"), strategy.share.index, strategy.share.count
        torch.manual_seed(index)  # of what is drawn in the step, by the data that the rank reads
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    generator, losses, norms = torch.Generator().manual_seed(1), [], []
    for _ in range(3):
        loss = step(torch.randint(12, (8, 6), generator=generator).chunk(count)[index])
        loss.backward()
        norm = sharding.total_norm([p.grad for p in parameters if p.grad is not None])
        sharding.clip_to_norm(parameters, 0.5, norm)
        optimizer.step()
        optimizer.zero_grad()
        if ranks is not None and strategy is not None:
            loss = ranks.reduce(loss, group=strategy.share.group)
        losses.append(loss.item())
        norms.append(norm.item())
    return {
        "losses": losses,
        "norms": norms,
        "weights": sharding.whole(dict(module.state_dict())),
        "optimizer": sharding.whole_optimizer_state(optimizer),
        "layout": {name: str(getattr(p, "placements", ())) for name, p in module.named_parameters()},
        "part": {name: list(getattr(p, "_local_tensor", p).shape) for name, p in module.named_parameters()},
        "share": (index, count),
    }


def refused(ranks: Ranks, module: nn.Module, **settings: Any) -> str:
    try:
        mesh = Mesh(**settings)
        mesh.start(ranks, FullPrecision())
        mesh.place(module)
    except ConfigError as error:
        return str(error)
    return "it was taken"


def _continued(ranks: Ranks) -> Trained:
    """A checkpoint of one device, loaded and saved again."""
    alone = trained(None, None)
    module, mesh = made(), Mesh(shard=2, tensor=2, plan=PLAN)
    mesh.start(ranks, FullPrecision())
    mesh.place(module)
    optimizer = torch.optim.AdamW(module.parameters())
    sharding.load_full_state(module, alone["weights"])
    sharding.load_whole_optimizer_state(optimizer, alone["optimizer"])
    return {
        "weights": sharding.whole(dict(module.state_dict())),
        "optimizer": sharding.whole_optimizer_state(optimizer),
    }


def _started_twice(ranks: Ranks) -> bool:
    strategy = Mesh(data=2, shard="auto")
    strategy.start(ranks, FullPrecision())
    first = strategy.share
    strategy.start(ranks, FullPrecision())
    return first == strategy.share and first.count == 4


def on_four(ranks: Ranks) -> dict[str, Any]:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel

    of_sequences = {
        # Norms see their part of the positions; what follows gathers them, and the blocks' outputs are split again.
        "embed": RowwiseParallel(input_layouts=_replicate(), output_layouts=Shard(1)),
        "blocks.*.norm": "sequence",
        "blocks.*.attention": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=_replicate()),
        "blocks.*.attention.[qkv]": "colwise",
        "blocks.*.attention.out": RowwiseParallel(output_layouts=Shard(1)),
        "blocks.*.up": ColwiseParallel(input_layouts=Shard(1)),
        "blocks.*.down": RowwiseParallel(output_layouts=Shard(1)),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=_replicate()),
    }
    assert SequenceParallel is not None
    return {
        "shard_tensor": trained(ranks, Mesh(shard=2, tensor=2, plan=PLAN)),
        "data_shard": trained(ranks, Mesh(data=2, shard=2)),
        "data_tensor": trained(ranks, Mesh(data=-1, tensor=2, plan=PLAN, activation_checkpointing=True)),
        "tensor": trained(ranks, Mesh(tensor="auto", plan={k: v for k, v in PLAN.items() if "attention" not in k})),
        "data": trained(ranks, Mesh(data=4)),
        "meta": trained(ranks, Mesh(shard=2, tensor=2, plan=PLAN), made("meta")),
        "sequence": trained(ranks, Mesh(shard=2, tensor=2, plan=of_sequences)),
        "dropout": trained(ranks, Mesh(shard=2, tensor=2, plan=PLAN), made(dropout=0.3)),
        "continued": _continued(ranks),
        "started_twice": _started_twice(ranks),
        "refused": {
            "product": refused(ranks, made(), data=3, shard=2),
            "no_multiple": refused(ranks, made(), data="auto", tensor=3),
            "no_plan": refused(ranks, made(), shard=2, tensor=2),
            "unknown_layer": refused(ranks, made(), shard=2, tensor=2, plan={"blocks.*.upp": "colwise"}),
            "not_a_layer": refused(ranks, made(), shard=2, tensor=2, plan={"blocks.*.attention": "rowwise"}),
            "indivisible": refused(ranks, nn.Sequential(nn.Linear(2, 3)), shard=2, tensor=2, plan={"0": "colwise"}),
            "unused_plan": refused(ranks, made(), shard=4, plan={"blocks.*.upp": "colwise"}),
            "nothing": refused(ranks, nn.ReLU(), shard=4),
        },
    }


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return on_ranks(4, on_four)


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained(None, None)


class TestAMeshOfFourRanks:
    @pytest.mark.parametrize(
        "mesh", ["shard_tensor", "data_shard", "data_tensor", "tensor", "data", "meta", "sequence"]
    )
    def test_equals_one_device(self, four: list[dict[str, Any]], alone: Trained, mesh: str) -> None:
        """Same losses, norms and weights after three clipped steps on the same batches, on each rank."""
        for rank in four:
            found = rank[mesh]
            assert found["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE, abs=TOLERANCE)
            assert found["norms"] == pytest.approx(alone["norms"], rel=TOLERANCE, abs=TOLERANCE)
            for name, weight in alone["weights"].items():
                torch.testing.assert_close(found["weights"][name], weight, rtol=TOLERANCE, atol=TOLERANCE)

    def test_reads_one_part_of_the_data_per_data_and_shard_index(self, four: list[dict[str, Any]]) -> None:
        assert [rank["shard_tensor"]["share"] for rank in four] == [(0, 2), (0, 2), (1, 2), (1, 2)]
        assert [rank["data_shard"]["share"] for rank in four] == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert [rank["tensor"]["share"] for rank in four] == [(0, 1)] * 4

    def test_splits_layers_over_tensor_ranks_and_weights_over_shards(self, four: list[dict[str, Any]]) -> None:
        part = four[0]["shard_tensor"]["part"]
        assert part["blocks.0.up.weight"] == [4, 8]  # of (16, 8)
        assert part["blocks.0.down.weight"] == [4, 8]  # of (8, 16)
        assert part["blocks.0.norm.weight"] == [4]
        assert four[0]["data"]["part"]["blocks.0.up.weight"] == [16, 8]

    def test_draws_the_same_dropout_in_a_tensor_group(self, four: list[dict[str, Any]]) -> None:
        """Each rank seeds by its share of the data; weights that every tensor rank has stay the same."""
        weights = [rank["dropout"]["weights"] for rank in four]
        for name in weights[0]:
            assert all(torch.equal(weights[0][name], other[name]) for other in weights)

    def test_may_be_started_again(self, four: list[dict[str, Any]]) -> None:
        assert four[0]["started_twice"]


class TestACheckpointOfOneDevice:
    def test_loads_into_two_dimensions_and_comes_back(self, four: list[dict[str, Any]], alone: Trained) -> None:
        """Exactly, with the optimizer's state."""
        for rank in four:
            for name, weight in alone["weights"].items():
                assert torch.equal(rank["continued"]["weights"][name], weight)
            for index, values in alone["optimizer"]["state"].items():
                for key, value in values.items():
                    assert torch.equal(rank["continued"]["optimizer"]["state"][index][key], value)


class TestSizes:
    def test_one_may_be_what_the_others_leave(self) -> None:
        assert sizes_for({"data": "auto", "shard": 2, "tensor": 2}, 16) == (4, 2, 2)
        assert sizes_for({"data": 1, "shard": -1, "tensor": 1}, 3) == (1, 3, 1)

    @pytest.mark.parametrize(
        "sizes, ranks, fix",
        [
            ((2, 2, 1), 6, "shard=3"),
            ((3, 2, 1), 8, "data=4"),
            ((3, 3, 2), 10, "data=1, shard=5, tensor=2"),
            ((1, 1, 3), 4, "tensor=4"),
        ],
        ids=str,
    )
    def test_that_do_not_multiply_name_ones_that_do(self, sizes: tuple[int, int, int], ranks: int, fix: str) -> None:
        with pytest.raises(ConfigError) as raised:
            sizes_for(dict(zip(("data", "shard", "tensor"), sizes, strict=True)), ranks)
        assert raised.value.fix == fix

    @pytest.mark.parametrize("size", [0, -2, 1.5, True, "all"], ids=repr)
    def test_are_numbers_of_ranks(self, size: Any) -> None:
        with pytest.raises(ConfigError, match="is no number of ranks"):
            Mesh(shard=size)

    def test_are_left_to_one_dimension_only(self) -> None:
        with pytest.raises(ConfigError, match="data and shard are both 'auto'"):
            Mesh(data="auto", shard=-1)


class TestAPlan:
    def test_takes_the_first_pattern_that_matches(self) -> None:
        styles = planned(made(), {"blocks.0.up": "rowwise", "blocks.*.up": "colwise"})
        assert list(styles.values()) == ["rowwise", "colwise"]

    def test_of_an_unknown_style_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'colwise'"):
            Mesh(tensor=2, plan={"head": "columnwise"})  # type: ignore[dict-item]


class TestWhatCannotBePlaced:
    @pytest.mark.parametrize(
        "case, words",
        [
            ("product", ["data=3 x shard=2 x tensor=1 on 4 ranks", "these make 6", "fix: "]),
            ("no_multiple", ["data=auto x shard=1 x tensor=3 on 4 ranks", "3, of which 4 is no multiple"]),
            ("no_plan", ["tensor=2 without a plan"]),
            ("unknown_layer", ["'blocks.*.upp' names no submodule of Language", "did you mean 'blocks."]),
            ("not_a_layer", ["blocks.0.attention is a Attention, and 'rowwise' splits Linear and Embedding", "fix: "]),
            ("indivisible", ["its 3 features don't divide by tensor=2"]),
            ("unused_plan", ["'blocks.*.upp' names no submodule"]),
            ("nothing", ["ReLU has no parameters, with strategy='mesh'"]),
        ],
    )
    def test_is_said(self, four: list[dict[str, Any]], case: str, words: list[str]) -> None:
        for word in words:
            assert word in four[0]["refused"][case]
