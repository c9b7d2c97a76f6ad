"""A batch in parts: the same step as on the whole of it, in less memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.collectives import Ranks
from treadle.errors import ConfigError, ModuleError
from treadle.loops.micro_batches import reserve_for
from treadle.strategies import DDP
from treadle.testing import MemoryLogger

QUIET: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "precision": "64-true"}


def points(batch_size: int = 16, size: int = 50) -> DataLoader[Any]:
    """Fixed points in batches, the last one smaller."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size)


class Net(treadle.Module):
    """Two layers. ``room`` is how many samples its step has memory for; ``seen`` the sizes of what it was given."""

    def __init__(self, room: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
        self.room, self.seen = room, list[int]()

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        self.seen.append(len(x))
        loss = nn.functional.cross_entropy(self.layers(x), y)
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Logs(Net):
    """Logs the loss, and what depends on the batch in other ways."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, x = self.loss(batch), batch[0]
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("number", float(x.mean()), on_epoch=True)
        self.log("own", x[:, 0].mean(), on_epoch=True, batch_size=2 * len(x))
        for reduce_fx in ("sum", "min", "max"):
            self.log(reduce_fx, getattr(x, reduce_fx)(), on_step=True, on_epoch=True, reduce_fx=reduce_fx)
        return loss


class Weighs(Net):
    """Counts points on one side only: a mean over some of the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.layers(x), y, reduction="none")
        weight = y.sum()
        mean = (loss * y).sum() / weight.clamp(min=1)
        self.log("loss", mean, on_step=True, on_epoch=True)
        return {"loss": mean, "weight": weight, "size": len(x)}


class OwnStep(Net):
    """Its optimizer_step calls the closure itself."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class Searches(Net):
    """Its optimizer evaluates the loss several times in a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Observer(treadle.Callback):
    """``gradients`` before each step, ``outputs`` of each batch, ``calls`` of hooks."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.outputs: list[Any] = []
        self.calls: list[str] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in module.parameters()]))

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        module.log("backward", loss, on_epoch=True)
        self.calls.append("backward")

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.calls.append("zero_grad")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append("start")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)
        self.calls.append("end")


def fit(module: Net, size: Any, loader: Any = None, **settings: Any) -> tuple[treadle.Trainer, Observer, MemoryLogger]:
    observer, logger = Observer(), MemoryLogger()
    trainer = treadle.Trainer(
        **{**QUIET, "max_epochs": 2, "callbacks": observer, "logger": logger, "log_every_n_steps": 1, **settings},
        micro_batch_size=size,
    )
    trainer.fit(module, points() if loader is None else loader)
    return trainer, observer, logger


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class TestAStepInParts:
    @pytest.mark.parametrize("size", [1, 3, 15, 16, 99])
    @pytest.mark.parametrize("kind", [Net, Weighs, OwnStep, Searches], ids=lambda kind: kind.__name__)
    def test_has_the_gradients_of_the_whole_batch(self, kind: type[Net], size: int) -> None:
        _, whole, _ = fit(kind(), None)
        _, parts, _ = fit(kind(), size)
        assert len(whole.gradients) >= 8
        close(parts.gradients, whole.gradients)

    @pytest.mark.parametrize("kind", [Net, Weighs, OwnStep], ids=lambda kind: kind.__name__)
    def test_has_those_of_a_window_of_batches(self, kind: type[Net]) -> None:
        """The windows of three and of one batch, the last of them smaller."""
        trainer, whole, _ = fit(kind(), None, accumulate_grad_batches=3)
        other, parts, _ = fit(kind(), 3, accumulate_grad_batches=3)
        assert (trainer.global_step, len(whole.gradients)) == (4, 4)
        assert other.global_step == 4
        close(parts.gradients, whole.gradients)

    def test_is_one_batch_to_hooks(self) -> None:
        """Backward hooks see each part."""
        _, observer, _ = fit(Net(), 6, max_steps=1)
        assert observer.calls == ["start", "zero_grad", "backward", "backward", "backward", "end"]

    def test_returns_the_loss_of_the_batch(self) -> None:
        _, whole, _ = fit(Net(), None)
        _, parts, _ = fit(Net(), 5)
        close(parts.outputs, whole.outputs)

    def test_returns_what_else_there_was_in_lists(self) -> None:
        _, whole, _ = fit(Weighs(), None, max_steps=1)
        _, parts, _ = fit(Weighs(), 6, max_steps=1)
        (one,), (other,) = whole.outputs, parts.outputs
        close(other["loss"], one["loss"])
        assert (float(other["weight"]), other["size"]) == (float(one["weight"]), [6, 6, 4])

    def test_evaluates_on_whole_batches(self) -> None:
        class Evaluates(Net):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.seen.append(-len(batch[0]))

        module = Evaluates()
        trainer = treadle.Trainer(max_epochs=1, micro_batch_size=6, logger=False, num_sanity_val_steps=0, **QUIET)
        trainer.fit(module, points(size=16), points(size=16))
        assert module.seen == [6, 6, 4, -16]


class TestWhatIsLogged:
    @pytest.mark.parametrize("kind", [Logs, Weighs], ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("size", [1, 6])
    def test_is_that_of_the_batch(self, kind: type[Net], size: int) -> None:
        """Each row of a step, and each mean over an epoch, weighted as it would be."""
        whole, parts = (fit(kind(), size)[2].rows for size in (None, size))
        names = [name for name in whole[0] if "backward" not in name]
        assert len(names) > 2
        assert len(whole) == len(parts)
        for one, other in zip(whole, parts, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                if "backward" not in name:  # a part's share is what its hook is given
                    assert other[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12), name

    def test_of_a_metric_object_is_what_it_gathers(self) -> None:
        class Counts:
            """How many samples it has seen."""

            def __init__(self) -> None:
                self.reset()

            def update(self, batch: Tensor) -> None:
                self.count += len(batch)

            def compute(self) -> float:
                return float(self.count)

            def reset(self) -> None:
                self.count = 0

        class Gathers(Net):
            def __init__(self) -> None:
                super().__init__()
                self.samples = Counts()

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                self.samples.update(batch[0])
                self.log("samples", self.samples, on_step=False, on_epoch=True)
                return self.loss(batch)

        for size in (6, "auto"):
            trainer, _, _ = fit(Gathers(), size, max_epochs=1)
            assert trainer.callback_metrics["samples"] == 50

    def test_twice_with_other_settings_is_refused(self) -> None:
        class Confused(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                self.log("loss", 1.0, prog_bar=len(batch[0]) == 4)
                return self.loss(batch)

        with pytest.raises(ConfigError, match="twice in one hook with different settings"):
            fit(Confused(), 6)


class TestAPartWithoutALoss:
    def test_is_refused_beside_others(self) -> None:
        class Skips(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return None if len(batch[0]) == 4 else self.loss(batch)

        with pytest.raises(ModuleError, match="None for a part of a batch"):
            fit(Skips(), 6)

    def test_skips_the_batch_if_none_has_one(self) -> None:
        class Skips(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return None if batch_idx == 1 else self.loss(batch)

        trainer, observer, _ = fit(Skips(), 6, max_epochs=1)
        assert trainer.global_step == 3
        assert observer.outputs[1] == {}


class TestAuto:
    def test_takes_the_largest_that_fits(self, capsys: pytest.CaptureFixture[str]) -> None:
        """16 samples and room for 5: two halves don't fit, four quarters do."""
        module = Net(room=5)
        _, observer, _ = fit(module, "auto", max_epochs=1)
        assert module.seen[:5] == [16, 8, 4, 6, 4]
        assert set(module.seen[4:]) == {4, 2}
        assert "treadle: micro_batch_size=4 found: 4 for a batch of 16\n" in capsys.readouterr().err
        _, whole, _ = fit(Net(), None, max_epochs=1)
        close(observer.gradients, whole.gradients)

    def test_takes_the_whole_batch_if_that_fits(self, capsys: pytest.CaptureFixture[str]) -> None:
        fit(Net(), "auto", max_steps=1)
        assert "micro_batch_size=16 found: the whole batch fits\n" in capsys.readouterr().err

    def test_leaves_no_trace(self) -> None:
        """Weights, statistics, random numbers and rows are those of a run that was told the size."""

        class Normalizes(Logs):
            def __init__(self) -> None:
                super().__init__(room=5, dropout=0.5)
                self.layers.insert(1, nn.BatchNorm1d(8))

        modules, rows = [Normalizes(), Normalizes()], []
        for module, size in zip(modules, (4, "auto"), strict=True):
            torch.manual_seed(0)
            rows.append(fit(module, size)[2].rows)
            rows.append(torch.get_rng_state().tolist())
        assert rows[:2] == rows[2:]
        states = [module.state_dict() for module in modules]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    def test_finds_what_would_fail_before_the_first_step(self) -> None:
        class Breaks(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                raise ZeroDivisionError

        module = Breaks()
        with pytest.raises(ZeroDivisionError):
            fit(module, "auto")
        assert module.trainer.global_step == 0

    def test_without_room_for_one_sample_says_so(self) -> None:
        with pytest.raises(ConfigError, match="not even one sample fits"):
            fit(Net(room=0), "auto")

    def test_is_found_once_and_kept_in_the_checkpoint(self, tmp_path: Path) -> None:
        """A resumed run takes the same parts, and so the same steps, whatever would fit by then."""

        def run(module: Net, steps: int, ckpt_path: str | None = None) -> None:
            module.double()
            treadle.Trainer(
                max_steps=steps,
                max_epochs=9,
                micro_batch_size="auto",
                enable_progress_bar=False,
                default_root_dir=tmp_path,
            ).fit(module, points(), ckpt_path=ckpt_path)

        run(Net(room=5), 2)
        (saved,) = tmp_path.rglob("last.ckpt")
        assert torch.load(saved, weights_only=True)["optimization"]["micro_batch_size"] == 4
        resumed, straight = Net(), Net(room=5)
        run(resumed, 6, ckpt_path="last")
        assert resumed.seen[:4] == [4, 4, 4, 4]
        run(straight, 6)
        states = resumed.state_dict(), straight.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class TestAWrongSetting:
    @pytest.mark.parametrize("size", [0, -1, 2.5, True, "many"], ids=str)
    def test_is_refused(self, size: Any) -> None:
        with pytest.raises(ConfigError, match=f"micro_batch_size={size!r}"):
            treadle.Trainer(micro_batch_size=size)

    def test_in_manual_optimization_is_refused(self) -> None:
        module = Net()
        module.automatic_optimization = False
        with pytest.raises(ConfigError, match=r"micro_batch_size=3, and Net optimizes manually"):
            fit(module, 3)

    def test_for_batches_that_cannot_be_split_says_what_is_in_them(self) -> None:
        with pytest.raises(treadle.errors.DataError, match="has a tensor of shape"):
            fit(Net(), 2, [(torch.zeros(4, 4), torch.zeros(3))])


class TestWhatIsReserved:
    @pytest.mark.parametrize(
        "kind, settings, copies",
        [
            (torch.optim.SGD, {}, 1),
            (torch.optim.SGD, {"momentum": 0.9}, 2),
            (torch.optim.AdamW, {}, 3),
            (torch.optim.AdamW, {"amsgrad": True}, 4),
        ],
        ids=["sgd", "momentum", "adamw", "amsgrad"],
    )
    def test_is_the_gradients_and_the_state_to_come(self, kind: Any, settings: dict[str, Any], copies: int) -> None:
        layer = nn.Linear(30, 20)
        layer.bias.requires_grad_(False)
        optimizer = kind(layer.parameters(), lr=0.1, **settings)
        assert reserve_for(optimizer) == copies * 30 * 20 * 4
        assert not optimizer.state

    def test_is_the_gradients_once_there_is_a_state(self) -> None:
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(3)).sum().backward()
        optimizer.step()
        assert reserve_for(optimizer) == 8 * 4


def stand_at(ranks: Ranks) -> None:
    """What a launcher leaves in the environment."""
    for name, value in {
        "RANK": ranks.rank,
        "WORLD_SIZE": ranks.size,
        "LOCAL_RANK": ranks.rank,
        "LOCAL_WORLD_SIZE": ranks.size,
        "MASTER_ADDR": ranks.world.address,
        "MASTER_PORT": ranks.world.port,
    }.items():
        os.environ[name] = str(value)


def parallel(ranks: Ranks, cases: dict[str, tuple[type[Net], Any, dict[str, Any]]]) -> dict[str, Any]:
    """For each case the gradients of each step, the rows, and how many samples each pass had."""
    stand_at(ranks)
    found = {}
    for name, (kind, size, settings) in cases.items():
        module = kind(room=[6, 3][ranks.rank] if size == "auto" else 1000)
        _, observer, logger = fit(module, size, points(batch_size=8, size=58), **settings)
        found[name] = ([g.tolist() for g in observer.gradients], logger.rows, module.seen)
    return found


class TestTwoRanks:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls) -> list[dict[str, Any]]:
        ddp = {"strategy": "ddp"}
        return on_ranks(
            2,
            parallel,
            {
                "whole": (Logs, None, ddp),
                "parts": (Logs, 3, ddp),
                "auto": (Logs, "auto", ddp),
                "static": (Logs, "auto", {"strategy": DDP(static_graph=True)}),
                "window": (Logs, None, {**ddp, "accumulate_grad_batches": 2}),
                "window in parts": (Logs, 3, {**ddp, "accumulate_grad_batches": 2}),
                "weighted": (Weighs, None, ddp),
                "weighted in parts": (Weighs, 3, ddp),
                "sharded": (Logs, 3, {"strategy": "fsdp", "callbacks": []}),
            },
        )

    @pytest.mark.parametrize(
        "whole, parts",
        [
            ("whole", "parts"),
            ("whole", "auto"),
            ("whole", "static"),
            ("window", "window in parts"),
            ("weighted", "weighted in parts"),
        ],
    )
    def test_have_the_gradients_and_rows_of_whole_batches(
        self, found: list[dict[str, Any]], whole: str, parts: str
    ) -> None:
        """58 samples in batches of 8: in the last round one rank has three parts, and the other one."""
        for rank in found:
            assert len(rank[whole][0]) == len(rank[parts][0]) > 3
            close(torch.tensor(rank[parts][0]), torch.tensor(rank[whole][0]))
        rows, others = found[0][whole][1], found[0][parts][1]
        for one, other in zip(rows, others, strict=True):
            for name in (name for name in one if "backward" not in name):
                assert other[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12), name

    def test_agree_on_what_fits_on_both(self, found: list[dict[str, Any]]) -> None:
        """One has room for 6 samples, the other for 3; both try the same sizes, and take 3."""
        tries = [8, 4, 2, 3]
        assert [rank["auto"][2][:4] for rank in found] == [tries, tries]
        assert max(size for rank in found for size in rank["auto"][2][4:]) == 3

    def test_take_as_many_passes_where_each_communicates(self, found: list[dict[str, Any]]) -> None:
        """With FSDP, the rank whose last batch is small repeats a part that counts nothing."""
        assert len(found[0]["sharded"][2]) == len(found[1]["sharded"][2])
        for one, other in zip(found[0]["whole"][1], found[0]["sharded"][1], strict=True):
            for name in (name for name in one if name in other and "backward" not in name):
                assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9), name


def refused(ranks: Ranks) -> tuple[str, bool]:
    """What a search says, and whether all ranks are known to say it."""
    stand_at(ranks)
    with pytest.raises(ConfigError) as raised:
        fit(Net(), "auto", strategy="fsdp", callbacks=[])
    return raised.value.what, raised.value.__dict__["on_every_rank"]


class TestAutoWhereEachPassCommunicates:
    def test_is_refused(self) -> None:
        """FSDP can't go on after a pass that broke off, and the other ranks would wait."""
        assert on_ranks(2, refused) == [("micro_batch_size=\"auto\" with 'fsdp'.", True)] * 2
