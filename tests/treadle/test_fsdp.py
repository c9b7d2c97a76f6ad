"""FSDP on real ranks: the same training as on one device, each rank with its part of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # before forking: each rank would import it
import torch.distributed.tensor.parallel
from ranks import on_ranks
from torch import Tensor, nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError, TreadleWarning
from treadle.precision import FullPrecision, precision_for
from treadle.strategies import sharding
from treadle.strategies.base import Strategy
from treadle.strategies.fsdp import FSDP
from treadle.strategies.wrapping import blocks_of, roots_of, units_of

TOLERANCE = 1e-6
"""Absolute and relative, of losses and weights after five steps of AdamW: gradients are summed in another order."""


class Block(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.calls = 0
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.add(self.up.weight.dtype)
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))


class Language(nn.Module):
    """Predicts the next of eleven tokens."""

    def __init__(self, *, tied: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block(8, dropout) for _ in range(2))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight
        self.norm.eval()  # running statistics are of each rank

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x.flatten(0, 1)))
        return logits

    def training_step(self, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(tokens), tokens.roll(-1, 1).flatten())

    def validation_step(self, tokens: Tensor) -> Tensor:
        return self.training_step(tokens)


def made(seed: int = 0, device: str = "cpu", **settings: Any) -> Language:
    torch.manual_seed(seed)
    with torch.device(device):
        module = Language(**settings)
    torch.manual_seed(seed)
    return module


def batches(count: int = 5) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randint(11, (8, 6), generator=generator)


Trained = dict[str, Any]


def trained(
    ranks: Ranks | None,
    strategy: Strategy | None,
    module: Language | None = None,
    *,
    precision: str = "32-true",
    max_norm: float | None = None,
    micro_batches: int = 1,
) -> Trained:
    """Losses of the whole batch, norms, weights and optimizer state after five steps. Without ranks: on one device."""
    module = module or made()
    formats = precision_for(precision)
    step: Callable[..., Tensor] = module.training_step
    index, count = 0, 1
    if strategy is not None and ranks is not None:
        strategy.start(ranks, formats)
        placed = strategy.place(module)
        assert placed is module
        step, index, count = strategy.method(module, "training_step"), strategy.share.index, strategy.share.count
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    losses, norms = [], []
    for batch in batches():
        total = torch.zeros(())
        micros = batch.chunk(count)[index].chunk(micro_batches)
        for number, micro in enumerate(micros):
            last = number == micro_batches - 1
            quiet: AbstractContextManager[Any] = nullcontext()
            if strategy is not None and not last:
                quiet = strategy.local_gradients(module)
            with quiet:
                with formats.autocast():
                    loss = step(micro) / micro_batches
                loss.backward()
            total += loss.detach().float()
            if strategy is not None and not last:
                assert all(parameter.grad is None for parameter in parameters)
        norm = sharding.total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            sharding.clip_to_norm(parameters, max_norm, norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(ranks.reduce(total).item() if ranks is not None else total.item())
        norms.append(norm.item())
    return {
        "losses": losses,
        "norms": norms,
        "weights": sharding.whole(dict(module.state_dict())),
        "optimizer": sharding.whole_optimizer_state(optimizer),
        "calls": [block.calls for block in module.blocks],
        "seen": [block.seen for block in module.blocks],
    }


def assert_same(found: Trained, expected: Trained, tolerance: float = TOLERANCE) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance, abs=tolerance)
    assert found["norms"] == pytest.approx(expected["norms"], rel=tolerance, abs=tolerance)
    assert list(found["weights"]) == list(expected["weights"])
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=tolerance, atol=tolerance)


class Adversaries(nn.Module):
    """Two optimizers, and backward passes inside of the step."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.critics = nn.ModuleDict({"real": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))})

    def training_step(self, batch: Tensor, optimizers: list[torch.optim.Optimizer]) -> Tensor:
        of_generator, of_critic = optimizers
        critic = self.critics["real"]
        made_up = self.generator(batch[:, :3])
        loss = nn.functional.softplus(critic(made_up.detach())).mean() + nn.functional.softplus(-critic(batch)).mean()
        loss.backward()
        critic(batch)  # gathered before the step, and stale after it if it stayed
        of_critic.step()
        of_critic.zero_grad()
        fooled = nn.functional.softplus(-critic(made_up)).mean()
        fooled.backward()
        of_generator.step()
        of_generator.zero_grad()
        of_critic.zero_grad()
        return (loss + fooled).detach()


def played(ranks: Ranks | None) -> Trained:
    torch.manual_seed(0)
    module = Adversaries()
    step: Callable[..., Tensor] = module.training_step
    if ranks is not None:
        strategy = FSDP()
        strategy.start(ranks, FullPrecision())
        strategy.place(module)
        step = strategy.method(module, "training_step")
    optimizers = [torch.optim.Adam(part.parameters(), lr=0.05) for part in (module.generator, module.critics)]
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(4):
        batch = torch.randn(8, 4, generator=generator)
        mine = batch if ranks is None else batch.chunk(ranks.size)[ranks.rank]
        loss = step(mine, optimizers)
        losses.append(loss.item() if ranks is None else ranks.reduce(loss).item())
    return {"losses": losses, "norms": [], "weights": sharding.whole(dict(module.state_dict()))}


def placed(ranks: Ranks, module: nn.Module, **settings: Any) -> nn.Module:
    strategy = FSDP(**settings)
    strategy.start(ranks, FullPrecision())
    return strategy.place(module)


def refused(ranks: Ranks, module: nn.Module, **settings: Any) -> str:
    try:
        placed(ranks, module, **settings)
    except ConfigError as error:
        return str(error)
    return "it was taken"


class Asked:
    """A policy of selective checkpointing that saves the products of matrices."""

    def __init__(self) -> None:
        self.operations = 0

    def __call__(self, context: Any, operation: Any, *arguments: Any, **settings: Any) -> Any:
        from torch.utils.checkpoint import CheckpointPolicy

        self.operations += 1
        save = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE


def on_two(ranks: Ranks) -> dict[str, Any]:
    """All that is asked of two ranks, in one start of them."""
    policy = Asked()
    return {
        "plain": trained(ranks, FSDP()),
        "by_name": trained(ranks, FSDP(wrap=["Block", "Embedding"], reshard_after_forward=False)),
        "clipped": trained(ranks, FSDP(), max_norm=0.1),
        "accumulated": trained(ranks, FSDP(), micro_batches=2),
        "half": trained(ranks, FSDP(), precision="bf16-mixed"),
        "offloaded": trained(ranks, FSDP(cpu_offload=True)),
        "checkpointed": trained(ranks, FSDP(activation_checkpointing=["Block"])),
        "checkpointed_units": trained(ranks, FSDP(activation_checkpointing=True)),
        "selective": (trained(ranks, FSDP(activation_checkpointing=policy)), policy.operations),
        "meta": trained(ranks, FSDP(), made(device="meta")),
        "meta_tied": trained(ranks, FSDP(), made(device="meta", tied=True)),
        "meta_attention": sharding.whole(dict(placed(ranks, _attention("meta", seed=ranks.rank)).state_dict())),
        "own_seeds": sharding.whole(dict(placed(ranks, made(seed=ranks.rank)).state_dict())),
        "tied": trained(ranks, FSDP(), made(tied=True)),
        "played": played(ranks),
        "continued": _continued(ranks),
        "parts": _parts(ranks),
        "evaluated": _evaluated(ranks),
        "evaluated_whole": _evaluated(ranks, reshard_after_forward=False),
        "failed_once": _failed_once(ranks),
        "again": _again(ranks),
        "frozen": _frozen(ranks),
        "wrong_shape": _wrong_state(ranks),
        "tied_units": _tied_units(ranks),
        "refused": {
            "nothing": refused(ranks, nn.ReLU()),
            "unknown": refused(ranks, made(), wrap=["Blok"]),
            "container": refused(ranks, made(), wrap=["ModuleList"]),
            "no_units": refused(ranks, nn.Linear(2, 2), activation_checkpointing=True),
            "unknown_recomputed": refused(ranks, made(), activation_checkpointing=["Attention"]),
            "undrawable": refused(ranks, _undrawable()),
            "loose": refused(ranks, _loose()),
            "shared": refused(ranks, _shared()),
            "uneven": refused(ranks, made(), reshard_after_forward=3),
        },
    }


def _attention(device: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device(device):
        module = nn.MultiheadAttention(8, 2)
    torch.manual_seed(seed)
    return module


def _undrawable() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Module()).to("meta")
    module[1].scale = nn.Parameter(torch.ones(2, device="meta"))
    return module


def _loose() -> nn.Module:
    module = Adversaries()
    module.temperature = nn.Parameter(torch.ones(()))
    return module


def _shared() -> nn.Module:
    module = Adversaries()
    module.generator[2].weight = module.critics["real"][0].weight
    return module


def _tied_units(ranks: Ranks) -> str:
    with pytest.warns(TreadleWarning) as caught:
        placed(ranks, made(tied=True), wrap=["Embedding", "Linear"])
    return str(caught[0].message)


def _continued(ranks: Ranks) -> dict[str, Any]:
    """Five steps on one device, its checkpoint loaded into FSDP, and saved again."""
    alone = trained(None, None)
    module = made(seed=7)
    strategy = FSDP()
    strategy.start(ranks, FullPrecision())
    strategy.place(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5)
    sharding.load_full_state(module, alone["weights"])
    sharding.load_whole_optimizer_state(optimizer, alone["optimizer"])
    return {
        "weights": sharding.whole(dict(module.state_dict())),
        "optimizer": sharding.whole_optimizer_state(optimizer),
        "kept": sharding.whole_optimizer_state(optimizer, keep=ranks.rank == 0),
    }


def _parts(ranks: Ranks) -> dict[str, Any]:
    """What each rank holds of each weight."""
    module = placed(ranks, made())
    return {name: parameter.to_local().numel() for name, parameter in module.named_parameters()}  # type: ignore[operator]


def _evaluated(ranks: Ranks, **settings: Any) -> dict[str, Any]:
    module = made()
    strategy = FSDP(**settings)
    strategy.start(ranks, FullPrecision())
    strategy.place(module)
    batch = next(batches(1))
    with torch.no_grad():
        loss = strategy.method(module, "validation_step")(batch)
    return {
        "loss": loss.item(),
        "sharded": all(sharding.is_sharded(parameter) for parameter in module.parameters()),
        "own": sorted(set(vars(module)) & {"training_step", "validation_step"}),
    }


def _frozen(ranks: Ranks) -> list[list[str]]:
    """Which of the embedding and the blocks got gradients: with two of them frozen, then with none, then with one."""
    module = made()
    strategy = FSDP()
    strategy.start(ranks, FullPrecision())
    strategy.place(module)
    step, batch, found = strategy.method(module, "training_step"), next(batches(1)), []
    for frozen in (["embed", "blocks.0"], [], ["blocks.1"]):
        for name in ("embed", "blocks.0", "blocks.1"):
            module.get_submodule(name).requires_grad_(name not in frozen)
        step(batch).backward()
        parts = {name: module.get_submodule(name) for name in ("embed", "blocks.0", "blocks.1")}
        found.append([name for name, part in parts.items() if all(p.grad is not None for p in part.parameters())])
        module.zero_grad()
    return found


def _again(ranks: Ranks) -> dict[str, Any]:
    module = made()
    first = [id(parameter) for parameter in placed(ranks, module).parameters()]
    strategy = FSDP()
    strategy.start(ranks, FullPrecision())
    strategy.place(module)
    strategy.method(module, "training_step")(next(batches(1))).backward()
    return {
        "placed": first,
        "weights": [id(parameter) for parameter in module.parameters() if parameter.grad is not None],
        "refused": refused(ranks, module, wrap=["Block", "Linear"]),
    }


def _failed_once(ranks: Ranks) -> list[float]:
    """A step that fails in the middle, on all ranks, and one after it."""
    module = made()
    strategy = FSDP()
    strategy.start(ranks, FullPrecision())
    strategy.place(module)
    step, batch = strategy.method(module, "training_step"), next(batches(1))
    with pytest.raises(IndexError):
        step(batch + 11)
    loss = step(batch)
    loss.backward()
    return [loss.item(), sharding.total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()]


def _wrong_state(ranks: Ranks) -> str:
    module = placed(ranks, made())
    state = {**made().state_dict(), "head.weight": torch.zeros(12, 8)}
    del state["head.bias"]
    with pytest.raises(RuntimeError) as raised:
        sharding.load_full_state(module, state)
    return str(raised.value)


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return on_ranks(2, on_two)


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained(None, None)


class TestTrainingOnTwoRanks:
    def test_equals_one_device(self, two: list[dict[str, Any]], alone: Trained) -> None:
        """Same losses, norms and weights after five steps of AdamW on the same batches."""
        assert_same(two[0]["plain"], alone)

    def test_is_the_same_on_all_ranks(self, two: list[dict[str, Any]]) -> None:
        for name, weight in two[0]["plain"]["weights"].items():
            assert torch.equal(weight, two[1]["plain"]["weights"][name])

    def test_equals_one_device_with_units_by_name(self, two: list[dict[str, Any]], alone: Trained) -> None:
        assert_same(two[0]["by_name"], alone)

    def test_clips_the_norm_of_all(self, two: list[dict[str, Any]]) -> None:
        expected = trained(None, None, max_norm=0.1)
        assert expected["norms"][0] > 0.1
        assert_same(two[0]["clipped"], expected)

    def test_accumulates_without_talking(self, two: list[dict[str, Any]]) -> None:
        assert_same(two[0]["accumulated"], trained(None, None, micro_batches=2))

    def test_in_bf16_gathers_bf16_and_keeps_float32(self, two: list[dict[str, Any]], alone: Trained) -> None:
        half = two[0]["half"]
        assert half["losses"] == pytest.approx(alone["losses"], rel=0.01)
        assert half["losses"] != alone["losses"]
        assert half["seen"] == [{torch.bfloat16}] * 2
        assert all(weight.dtype == torch.float32 for weight in half["weights"].values() if weight.is_floating_point())

    def test_equals_one_device_when_offloaded(self, two: list[dict[str, Any]], alone: Trained) -> None:
        assert_same(two[0]["offloaded"], alone)

    def test_holds_half_of_each_weight(self, two: list[dict[str, Any]]) -> None:
        for name, parameter in made().named_parameters():
            assert two[0]["parts"][name] + two[1]["parts"][name] == parameter.numel()
            assert two[0]["parts"][name] == parameter[: (len(parameter) + 1) // 2].numel()

    def test_begins_with_the_weights_of_rank_zero(self, two: list[dict[str, Any]]) -> None:
        """Ranks that drew other weights don't mix them."""
        for name, weight in made(seed=0).state_dict().items():
            assert torch.equal(two[1]["own_seeds"][name], weight)

    def test_goes_on_after_a_step_that_failed(self, two: list[dict[str, Any]]) -> None:
        module, batch = made(), next(batches(1))
        loss = module.training_step(batch)
        loss.backward()
        norm = sharding.total_norm([p.grad for p in module.parameters() if p.grad is not None])
        assert two[0]["failed_once"] == pytest.approx([loss.item(), norm.item()], abs=TOLERANCE)


class TestOtherNumbersOfRanks:
    def test_four_equal_one_device(self, alone: Trained) -> None:
        assert_same(on_ranks(4, trained, FSDP())[3], alone)

    def test_one_equals_one_device(self, alone: Trained) -> None:
        assert_same(on_ranks(1, trained, FSDP())[0], alone)


class TestFreezing:
    def test_may_change_between_steps(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["frozen"] == [["blocks.1"], ["embed", "blocks.0", "blocks.1"], ["embed", "blocks.0"]]


class TestPlacingAgain:
    def test_goes_on_with_the_same_parts(self, two: list[dict[str, Any]]) -> None:
        """Another Trainer tests what the first one trained."""
        assert two[0]["again"]["weights"] == two[0]["again"]["placed"]

    def test_refuses_other_settings(self, two: list[dict[str, Any]]) -> None:
        assert "was placed by strategy='fsdp' with other settings" in two[0]["again"]["refused"]


class TestActivationCheckpointing:
    def test_runs_each_block_twice(self, two: list[dict[str, Any]], alone: Trained) -> None:
        assert alone["calls"] == two[0]["plain"]["calls"] == [5, 5]
        assert two[0]["checkpointed"]["calls"] == two[0]["checkpointed_units"]["calls"] == [10, 10]

    def test_changes_nothing_else(self, two: list[dict[str, Any]], alone: Trained) -> None:
        """Names of weights included."""
        assert_same(two[0]["checkpointed"], alone)
        assert_same(two[0]["checkpointed_units"], alone)

    def test_asks_a_policy_for_each_operation(self, two: list[dict[str, Any]], alone: Trained) -> None:
        found, operations = two[0]["selective"]
        assert operations > 0
        assert_same(found, alone)


class TestAModuleOnTheMetaDevice:
    def test_trains_as_if_made_on_the_device(self, two: list[dict[str, Any]]) -> None:
        """From the same seed, bit for bit."""
        for what in ("losses", "norms"):
            assert two[0]["meta"][what] == two[0]["plain"][what]
        for name, weight in two[0]["plain"]["weights"].items():
            assert torch.equal(two[0]["meta"]["weights"][name], weight)

    def test_keeps_weights_tied(self, two: list[dict[str, Any]]) -> None:
        assert_same(two[0]["meta_tied"], trained(None, None, made(tied=True)))

    def test_is_drawn_by_rank_zero(self, two: list[dict[str, Any]]) -> None:
        for name, weight in _attention("cpu", seed=0).state_dict().items():
            assert torch.equal(two[0]["meta_attention"][name], weight)
            assert torch.equal(two[1]["meta_attention"][name], weight)


class TestTiedWeights:
    def test_train_as_on_one_device(self, two: list[dict[str, Any]]) -> None:
        found = two[0]["tied"]
        assert_same(found, trained(None, None, made(tied=True)))
        assert torch.equal(found["weights"]["head.weight"], found["weights"]["embed.weight"])

    def test_are_no_units_of_their_own(self, two: list[dict[str, Any]]) -> None:
        """wrap= named both of them: a warning says that it can't be."""
        assert "treadle[tied]: embed, head stay in what contains them" in two[0]["tied_units"]


class TestManualOptimization:
    def test_with_two_optimizers_equals_one_device(self, two: list[dict[str, Any]]) -> None:
        assert_same(two[0]["played"], played(None))


class TestACheckpoint:
    def test_of_one_device_loads_into_parts_and_comes_back(self, two: list[dict[str, Any]], alone: Trained) -> None:
        """Exactly, with the optimizer's state."""
        found = two[1]["continued"]
        for name, weight in alone["weights"].items():
            assert torch.equal(found["weights"][name], weight)
        assert found["optimizer"]["param_groups"] == alone["optimizer"]["param_groups"]
        for index, values in alone["optimizer"]["state"].items():
            for key, value in values.items():
                assert torch.equal(found["optimizer"]["state"][index][key], value)

    def test_is_held_by_the_rank_that_writes_it(self, two: list[dict[str, Any]], alone: Trained) -> None:
        zero, one = (rank["continued"]["kept"]["state"][0]["exp_avg"] for rank in two)
        assert torch.equal(zero, alone["optimizer"]["state"][0]["exp_avg"])
        assert one.numel() == 0

    def test_of_parts_loads_into_one_device(self, two: list[dict[str, Any]]) -> None:
        saved = two[0]["plain"]
        module = made(seed=3)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.5)
        sharding.load_full_state(module, saved["weights"])
        sharding.load_whole_optimizer_state(optimizer, saved["optimizer"])
        assert torch.equal(module.head.weight, saved["weights"]["head.weight"])
        assert optimizer.param_groups[0]["lr"] == 0.01
        assert torch.equal(optimizer.state[module.embed.weight]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])

    def test_of_another_module_is_refused_with_its_keys(self, two: list[dict[str, Any]]) -> None:
        assert 'Missing key(s) in state_dict: "head.bias"' in two[0]["wrong_shape"]
        assert "size mismatch for head.weight" in two[0]["wrong_shape"]
        assert "torch.Size([12, 8])" in two[0]["wrong_shape"]


class TestAnEvaluation:
    def test_leaves_the_weights_in_parts(self, two: list[dict[str, Any]]) -> None:
        """So that a step after it can't use the weights from before."""
        assert two[0]["evaluated"]["sharded"]
        assert two[0]["evaluated_whole"]["sharded"]
        with torch.no_grad():
            assert two[0]["evaluated"]["loss"] == pytest.approx(made().validation_step(next(batches(1))).item())

    def test_leaves_the_methods_of_the_module(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["evaluated"]["own"] == []


class TestWhatBecomesAUnit:
    def test_blocks_of_lists_and_sequences(self) -> None:
        assert list(blocks_of(made()).values()) == ["blocks.0", "blocks.1"]
        assert list(blocks_of(nn.Sequential(Block(2), Block(2))).values()) == ["0", "1"]

    def test_no_layers_without_submodules(self) -> None:
        assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == {}

    def test_classes_by_name_path_or_themselves(self) -> None:
        module = made()
        for wrap in ("Block", Block, ["Block"], {Block}, f"{Block.__module__}.Block"):
            assert list(units_of(module, roots_of(module), wrap).values()) == ["blocks.0", "blocks.1"]

    def test_each_submodule_with_manual_optimization(self) -> None:
        assert list(roots_of(Adversaries()).values()) == ["generator", "critics.real"]


class TestWhatCannotBePlaced:
    @pytest.mark.parametrize(
        "case, words",
        [
            ("nothing", ["ReLU has no parameters, with strategy='fsdp'", "fix: "]),
            ("unknown", ["wrap: no submodule of Language is a Blok", "did you mean 'Block'?"]),
            ("container", ["wrap: blocks is a ModuleList", "Block"]),
            ("no_units", ["activation_checkpointing=True: Linear has no units"]),
            ("unknown_recomputed", ["activation_checkpointing: no submodule of Language is a Attention"]),
            ("undrawable", ["1 has scale on the meta device, and no reset_parameters"]),
            ("loose", ["temperature is a parameter outside of any submodule"]),
            ("uneven", ["reshard_after_forward=3 with 2 ranks", "fix: True."]),
            ("shared", ["critics.real and generator share a parameter"]),
        ],
    )
    def test_is_said(self, two: list[dict[str, Any]], case: str, words: list[str]) -> None:
        for word in words:
            assert word in two[0]["refused"][case]
