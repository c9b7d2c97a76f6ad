"""SpikeDetection that leaves steps out, goes back, or keeps a bad state from being saved."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_trainer_ranks
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
)
from treadle.errors import ConfigError, TrainingError, TreadleWarning
from treadle.testing import MemoryLogger

SPIKE = r"treadle\[spike\]: .*The step is left out"
BACK = r"treadle\[rollback\]: .*went back to its last good state"


def points(count: int, *, bad: Sequence[int] = (), value: float = math.nan) -> list[Tensor]:
    """``count`` batches of shape (4, 3), drawn from a seed; those in ``bad`` have one such value in them."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, generator=generator) for _ in range(count)]
    for index in bad:
        batches[index][1, 1] = value
    return batches


def without(batches: Sequence[Tensor], *bad: int) -> list[Tensor]:
    return [batch for index, batch in enumerate(batches) if index not in bad]


class Net(treadle.Module):
    """Has everything that a step moves: momenta, a schedule, statistics of BatchNorm."""

    def __init__(self, configure: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.configure = configure

    def forward(self, batch: Tensor) -> Tensor:
        outputs: Tensor = self.layers(batch)
        return outputs

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> Any:
        if self.configure is not None:
            return self.configure(self)
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"},
        }


class BadGradient(Net):
    """The gradient of a batch whose first number is 7 is not finite, and its loss is."""

    def training_step(self, batch: Tensor) -> Tensor:
        loss = super().training_step(batch)
        if batch[0, 0] == 7.0:
            zero = (self.layers[0].weight * 0).sum()
            loss = loss + torch.sqrt(zero)  # infinity times 0 is no number
        return loss


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.layers(batch).square().mean()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class OwnStep(Net):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


def moved(trainer: treadle.Trainer, module: nn.Module) -> dict[str, Any]:
    """Everything that a step moves."""
    state: dict[str, Any] = {name: value.clone() for name, value in module.state_dict().items()}
    for index, optimizer in enumerate(trainer.optimizers):
        for number, values in optimizer.state_dict()["state"].items():
            state.update({f"{index}.{number}.{key}": value for key, value in values.items()})
    for index, schedule in enumerate(trainer.lr_scheduler_configs):
        state[f"schedule.{index}"] = schedule.scheduler.state_dict()["_last_lr"]
    return state


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.fixture
def skip(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., tuple[dict[str, Any], treadle.Trainer, Any]]:
    """A fit that leaves steps out: what it moved, its trainer, its detection."""

    def run(batches: Any, module: Net | None = None, detection: Any = None, **settings: Any) -> Any:
        module = module or Net()
        detection = detection or SpikeDetection(on_spike="skip", rtol=1000.0)
        others = settings.pop("callbacks", [])
        trainer = make_bare(callbacks=[detection, *others], **settings)
        trainer.fit(module, batches)
        return moved(trainer, module), trainer, detection

    return run


class TestABatchWithANumberMissing:
    def test_leaves_the_run_as_one_that_never_had_it(self, skip: Any) -> None:
        """Weights, statistics, momenta and schedules, bit for bit."""
        batches = points(6, bad=[2, 4])
        with pytest.warns(TreadleWarning, match=SPIKE) as warned:
            found, trainer, detection = skip(batches)
        expected, plain, _ = skip(without(batches, 2, 4))
        assert same(found, expected)
        assert (trainer.global_step, trainer.progress.batches) == (plain.global_step, 6) == (4, 6)
        assert detection.skipped_batches == 2
        assert len(warned) == 1
        assert "the loss is nan in epoch 0, batch 2 (step 2)" in str(warned[0].message)

    def test_moves_no_average(self, skip: Any) -> None:
        batches = points(5, bad=[2])
        found, expected = EMAWeightAveraging(0.5), EMAWeightAveraging(0.5)
        with pytest.warns(TreadleWarning, match=SPIKE):
            skip(batches, callbacks=[found])
        skip(without(batches, 2), callbacks=[expected])
        assert found.updates == expected.updates == 4
        assert same(found._average.tensors, expected._average.tensors)

    def test_drops_the_window_it_is_in(self, skip: Any) -> None:
        batches = points(6, bad=[3])
        with pytest.warns(TreadleWarning, match=SPIKE):
            found, trainer, detection = skip(batches, accumulate_grad_batches=2)
        expected, _, _ = skip(without(batches, 2, 3), accumulate_grad_batches=2)
        assert same(found, expected)
        assert (trainer.global_step, detection.skipped_batches) == (2, 2)

    def test_drops_the_batch_of_its_part(self, skip: Any) -> None:
        batches = points(5, bad=[1])
        with pytest.warns(TreadleWarning, match=SPIKE):
            found, trainer, _ = skip(batches, micro_batch_size=2)
        expected, _, _ = skip(without(batches, 1), micro_batch_size=2)
        assert same(found, expected)
        assert trainer.global_step == 4

    def test_leaves_the_scale_of_16_bits_alone(self, skip: Any) -> None:
        batches = points(5, bad=[1])
        with pytest.warns(TreadleWarning, match=SPIKE):
            found, trainer, _ = skip(batches, precision="16-mixed")
        expected, plain, _ = skip(without(batches, 1), precision="16-mixed")
        assert same(found, expected)
        assert trainer.fabric.precision.state_dict() == plain.fabric.precision.state_dict()

    def test_is_counted_in_the_rows_of_the_epochs(self, skip: Any) -> None:
        logger = MemoryLogger()
        with pytest.warns(TreadleWarning, match=SPIKE):
            skip(points(4, bad=[1]), logger=logger, max_epochs=2)
        assert [row["skipped_batches"] for row in logger.rows if "skipped_batches" in row] == [1.0, 2.0]

    def test_at_the_end_of_a_loader_without_length_drops_what_is_left(self, skip: Any) -> None:
        """The window turns out to be over only then."""
        batches = points(5, bad=[4])
        with pytest.warns(TreadleWarning, match=SPIKE):
            found, trainer, _ = skip(iter(batches), accumulate_grad_batches=2)
        expected, _, _ = skip(iter(batches[:4]), accumulate_grad_batches=2)
        assert same(found, expected)
        assert trainer.global_step == 2


class TestAGradientThatIsNotFinite:
    def test_leaves_the_step_out_though_the_loss_is(self, skip: Any) -> None:
        batches = points(5)
        batches[2][0, 0] = 7.0
        with pytest.warns(TreadleWarning, match=r"the gradients are not finite in epoch 0, batch 2 \(step 2\)"):
            found, _, _ = skip(batches, BadGradient())
        expected, _, _ = skip(without(batches, 2), BadGradient())
        assert same(found, expected)

    def test_is_left_to_the_scale_in_16_bits(self, skip: Any) -> None:
        """Which halves. The step is left out there, and counted as before."""
        batches = points(4)
        batches[2][0, 0] = 7.0
        _, trainer, detection = skip(batches, BadGradient(), precision="16-mixed")
        assert detection.skipped_batches == 0
        _, plain, _ = skip(without(batches, 2), BadGradient(), precision="16-mixed")
        scales = [t.fabric.precision.state_dict()["scale"] for t in (trainer, plain)]
        assert scales[0] == scales[1] / 2


class TestALossThatJumps:
    def test_leaves_the_step_out_though_its_numbers_are_finite(self, skip: Any) -> None:
        class Plain(Net):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(3, 1))

        batches = points(6)
        batches[3] *= 1e4
        detection = SpikeDetection(on_spike="skip", rtol=1000.0)
        with pytest.warns(TreadleWarning, match="The 3 before it are .* on average"):
            found, trainer, _ = skip(batches, Plain(), detection)
        expected, _, _ = skip(without(batches, 3), Plain())
        assert same(found, expected)
        assert trainer.global_step == 5


class TestTooManyInARow:
    def test_are_an_error_that_says_what_to_do(self, skip: Any) -> None:
        with pytest.warns(TreadleWarning, match=SPIKE), pytest.raises(TrainingError) as error:
            skip(points(8, bad=range(2, 8)), detection=SpikeDetection(on_spike="skip", max_skips=2))
        assert "the loss is nan in epoch 0, batch 4 (step 2)" in error.value.what
        assert "3 steps in a row were left out" in error.value.what
        assert "max_skips=2" in error.value.why

    def test_but_not_as_many_with_good_ones_between(self, skip: Any) -> None:
        with pytest.warns(TreadleWarning, match=SPIKE):
            _, trainer, detection = skip(
                points(8, bad=[1, 2, 4, 5]), detection=SpikeDetection(on_spike="skip", max_skips=2, rtol=1000.0)
            )
        assert (trainer.global_step, detection.skipped_batches) == (4, 4)


def rank_skips(make_bare: Any, bad: bool, settings: dict[str, Any]) -> Any:
    """Ranks take turns at the batches; the third of rank 1 is bad."""
    batches = points(8, bad=[5] if bad else [])
    batches = batches if bad else without(batches, 4, 5)
    module = Net()
    detection = SpikeDetection(rtol=1000.0, **settings)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = make_bare(callbacks=detection)
        trainer.fit(module, DataLoader(torch.stack(batches), batch_size=None))
    told = [str(w.message) for w in warned if "SpikeDetection" not in str(w.message) and "treadle[" in str(w.message)]
    return moved(trainer, module), trainer.global_step, detection.skipped_batches, detection.rollbacks, told


class TestOneOfTwoRanks:
    def test_leaves_the_step_out_on_both(self, make_bare: Any) -> None:
        settings = {"on_spike": "skip"}
        found, expected = (on_trainer_ranks(2, rank_skips, make_bare, bad, settings) for bad in (True, False))
        for rank in (0, 1):
            parameters = {k: v for k, v in found[rank][0].items() if "running" not in k}  # each rank has seen its own
            assert same(parameters, {k: expected[rank][0][k] for k in parameters})
            assert found[rank][1:3] == (3, 1)

    def test_goes_back_on_both(self, make_bare: Any) -> None:
        settings = {"on_spike": "rollback", "check_every": 1}
        found = on_trainer_ranks(2, rank_skips, make_bare, True, settings)
        parameters = [{k: v for k, v in rank[0].items() if "running" not in k} for rank in found]
        assert same(*parameters)
        assert all(rank[1] == 4 and rank[3] == 1 for rank in found)
        assert all(bool(torch.isfinite(v).all()) for p in parameters for v in p.values() if isinstance(v, Tensor))


class Watches(treadle.Callback):
    """The state after each batch, before which it comes in the list."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.lr: list[float] = []

    def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
        self.states.append(moved(trainer, module))


class TestGoingBack:
    def test_puts_back_all_that_steps_move_and_goes_on_with_the_next_batches(self, make_bare: Any) -> None:
        """Checked after each second step; the bad one is the fourth, and the state of the second comes back."""
        batches, watches, average = points(8, bad=[3]), Watches(), EMAWeightAveraging(0.5)
        detection, module = SpikeDetection(on_spike="rollback", check_every=2, rtol=1000.0), Net()
        trainer = make_bare(callbacks=[average, detection, watches])
        with pytest.warns(TreadleWarning, match=BACK):
            trainer.fit(module, batches)
        assert same(watches.states[3], watches.states[1])
        assert (trainer.global_step, trainer.progress.batches, detection.rollbacks) == (8, 8, 1)
        expected, plain, plain_average = Net(), make_bare(), EMAWeightAveraging(0.5)
        plain = make_bare(callbacks=plain_average)
        plain.fit(expected, without(batches, 2, 3))
        assert same(moved(trainer, module), moved(plain, expected))
        assert average.updates == plain_average.updates == 6
        assert same(average._average.tensors, plain_average._average.tensors)

    @pytest.mark.parametrize("first", ["average", "detection"])
    def test_does_not_depend_on_the_order_of_callbacks(self, make_bare: Any, first: str) -> None:
        detection = SpikeDetection(on_spike="rollback", check_every=2, rtol=1000.0)
        average = EMAWeightAveraging(0.5)
        callbacks = [average, detection] if first == "average" else [detection, average]
        with pytest.warns(TreadleWarning, match=BACK):
            make_bare(callbacks=callbacks).fit(Net(), points(4, bad=[3]))
        assert average.updates == 2

    def test_before_the_first_check_is_to_the_start(self, make_bare: Any) -> None:
        """Optimizers that had kept nothing keep nothing; averages too."""
        module, average = Net(), EMAWeightAveraging(0.5)
        start = moved(trainer := make_bare(), module)
        trainer = make_bare(callbacks=[SpikeDetection(on_spike="rollback", check_every=3), average])
        with pytest.warns(TreadleWarning, match=BACK):
            trainer.fit(module, points(3, bad=[1]))
        weights = {name: value for name, value in moved(trainer, module).items() if name in start}
        assert same(weights, start)
        assert not trainer.optimizers[0].state
        assert average.updates == 0
        assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.05]

    def test_comes_before_the_epochs_validation(self, make_bare: Any) -> None:
        class Validated(Net):
            def validation_step(self, batch: Tensor) -> None:
                self.log("val", self.layers(batch).square().mean())

        trainer = make_bare(callbacks=SpikeDetection(on_spike="rollback", check_every=100))
        with pytest.warns(TreadleWarning, match=BACK):
            trainer.fit(Validated(), points(3, bad=[1]), points(1))
        assert math.isfinite(trainer.callback_metrics["val"])

    def test_notices_weights_that_are_no_numbers_after_a_good_loss(self, make_bare: Any) -> None:
        batches, module = points(4), BadGradient()
        batches[2][0, 0] = 7.0
        with pytest.warns(TreadleWarning, match="the weights are not finite"):
            make_bare(callbacks=SpikeDetection(on_spike="rollback", check_every=1)).fit(module, batches)
        assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())

    def test_brings_the_scale_of_16_bits_back(self, make_bare: Any) -> None:
        class Huge(Net):
            def training_step(self, batch: Tensor) -> Tensor:
                loss = super().training_step(batch)
                return loss * 1e30 if batch[0, 0] == 7.0 else loss

        batches = points(3)
        batches[2][0, 0] = 7.0
        detection = SpikeDetection(on_spike="rollback", check_every=1, rtol=1000.0)
        trainer, plain = make_bare(precision="16-mixed", callbacks=detection), make_bare(precision="16-mixed")
        with pytest.warns(TreadleWarning, match=BACK):
            trainer.fit(Huge(), batches)
        plain.fit(Huge(), batches[:2])
        assert trainer.fabric.precision.state_dict() == plain.fabric.precision.state_dict()

    def test_works_with_manual_optimization(self, make_bare: Any) -> None:
        module = Manual()
        with pytest.warns(TreadleWarning, match=BACK):
            make_bare(callbacks=SpikeDetection(on_spike="rollback", check_every=1)).fit(module, points(4, bad=[2]))
        assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())

    def test_works_beside_stochastic_weight_averaging(self, make_bare: Any) -> None:
        average = StochasticWeightAveraging(0.01, swa_epoch_start=1)
        module = Net()
        callbacks = [SpikeDetection(on_spike="rollback", check_every=1, rtol=1000.0), average]
        with pytest.warns(TreadleWarning, match=BACK):
            make_bare(callbacks=callbacks, max_epochs=3).fit(module, points(3, bad=[1]))
        assert all(bool(torch.isfinite(value).all()) for value in average._average.tensors.values())

    def test_uses_the_memory_of_its_copy_again(self, make_bare: Any) -> None:
        class Looks(treadle.Callback):
            def __init__(self, detection: SpikeDetection) -> None:
                self.detection, self.kept = detection, list[set[int]]()

            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                self.kept.append({tensor.data_ptr() for tensor in self.detection._good._tensors.values()})

        detection = SpikeDetection(on_spike="rollback", check_every=1, rtol=1000.0)
        looks = Looks(detection)
        make_bare(callbacks=[detection, looks]).fit(Net(), points(5))
        assert looks.kept[1] == looks.kept[0]
        assert looks.kept[4] == looks.kept[0]

    def test_again_and_again_is_an_error(self, make_bare: Any) -> None:
        module = Net()
        detection = SpikeDetection(on_spike="rollback", check_every=1, max_rollbacks=2, rtol=1000.0)
        with pytest.warns(TreadleWarning, match=BACK), pytest.raises(TrainingError) as error:
            make_bare(callbacks=detection).fit(module, points(8, bad=range(2, 8)))
        assert "in epoch 0, batch 4 (step 4)" in error.value.what
        assert "went back 3 times in a row" in error.value.what
        assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


class Stop(Exception):
    pass


class Ends(treadle.Callback):
    """Ends the process, as far as the run can tell, once a savepoint is over."""

    def __init__(self, after: int | None, saves_to: Path | None) -> None:
        self.after, self.saves_to = after, saves_to

    def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
        if trainer.progress.batches == self.after:
            if self.saves_to is not None:
                trainer.save_checkpoint(self.saves_to)
            raise Stop


class TestStoppedAndResumed:
    """Before, in and after the bad batches, from what a ModelCheckpoint or a hook saved."""

    BATCHES = 7

    def run(self, folder: Path, detection: dict[str, Any], stop: int | None, by_hand: bool, **settings: Any) -> Any:
        module, logger, average = Net(), MemoryLogger(), EMAWeightAveraging(0.5)
        hand = folder / "hand.ckpt"
        ends = Ends(stop, hand if by_hand else None)
        found = SpikeDetection(rtol=1000.0, **detection)
        resumes = settings.pop("resumes", False)
        saving = [] if by_hand else [ModelCheckpoint(dirpath=folder, every_n_train_steps=1)]
        # A callback that raises in place of a kill has to come after the one that saves.
        trainer = treadle.Trainer(
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_checkpointing=not by_hand,
            logger=logger,
            log_every_n_steps=1,
            max_epochs=2,
            callbacks=[average, found, *saving],
            **settings,
        )
        trainer.callbacks.append(ends)
        path = (hand if by_hand else folder / "last.ckpt") if resumes else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"treadle\[(spike|rollback|replay)\]")
            try:
                trainer.fit(module, self.data(), ckpt_path=path)
            except Stop:
                assert stop is not None
        counts = (found.skipped_batches, found.rollbacks, trainer.global_step, average.updates)
        return moved(trainer, module), [repr(row) for row in logger.rows], counts, average._average.tensors

    def data(self) -> Any:
        return DataLoader(torch.stack(points(self.BATCHES, bad=[3])), batch_size=None, shuffle=False)

    @pytest.mark.parametrize("by_hand", [False, True], ids=["ModelCheckpoint", "by hand"])
    @pytest.mark.parametrize(
        "detection, settings",
        [
            ({"on_spike": "skip"}, {}),
            ({"on_spike": "skip"}, {"accumulate_grad_batches": 2}),
            ({"on_spike": "rollback", "check_every": 2}, {}),
            ({"on_spike": "rollback", "check_every": 3}, {}),
            ({"on_spike": "rollback", "check_every": 1}, {"accumulate_grad_batches": 2}),
        ],
        ids=str,
    )
    def test_is_as_never_stopped(
        self, tmp_path: Path, detection: dict[str, Any], settings: dict[str, Any], by_hand: bool
    ) -> None:
        """Weights, momenta, schedules, averages, counters and rows, bit for bit."""
        whole = self.run(tmp_path / "whole", detection, None, by_hand, **settings)
        assert whole[2][0] + whole[2][1] > 0
        for stop in range(1, 2 * self.BATCHES):
            folder = tmp_path / str(stop)
            self.run(folder, detection, stop, by_hand, **settings)
            if not (folder / ("hand.ckpt" if by_hand else "last.ckpt")).exists():
                continue
            again = self.run(folder, detection, None, by_hand, resumes=True, **settings)
            assert same(again[0], whole[0]), f"state differs after {stop} batches"
            assert again[1] == whole[1], f"rows differ after {stop} batches"
            assert again[2] == whole[2], f"counters differ after {stop} batches"
            assert same(again[3], whole[3]), f"averages differ after {stop} batches"


def resume_on_ranks(folder: Path, stop: int | None, resumes: bool) -> Any:
    module, detection = Net(), SpikeDetection(on_spike="rollback", check_every=2, rtol=50.0)
    trainer = treadle.Trainer(
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        max_epochs=1,
        callbacks=[detection, Ends(stop, folder / "hand.ckpt")],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = DataLoader(torch.stack(points(12, bad=[7])), batch_size=None)
            trainer.fit(module, data, ckpt_path=folder / "hand.ckpt" if resumes else None)
        except Stop:
            assert stop is not None
    return moved(trainer, module), detection._judge.compared, detection.rollbacks, os.environ["RANK"]


class TestStoppedAndResumedOnTwoRanks:
    def test_is_as_never_stopped(self, tmp_path: Path) -> None:
        """Each rank has its own losses behind it and before it."""
        whole = on_trainer_ranks(2, resume_on_ranks, tmp_path / "whole", None, False)
        for stop in (3, 5):
            folder = tmp_path / str(stop)
            on_trainer_ranks(2, resume_on_ranks, folder, stop, False)
            again = on_trainer_ranks(2, resume_on_ranks, folder, None, True)
            for one, other in zip(again, whole, strict=True):
                parameters = {k: v for k, v in one[0].items() if "running" not in k}
                assert same(parameters, {k: other[0][k] for k in parameters})
                assert one[1:] == other[1:]
        assert whole[0][2] == 1


class TestAStateKnownToBeBad:
    @pytest.mark.parametrize("on_spike", ["stop", "rollback"])
    def test_is_not_saved(self, tmp_path: Path, make_trainer: Any, on_spike: Any) -> None:
        """Losses are looked at before a checkpoint is written, however rarely they are looked at otherwise."""
        saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2)
        detection = SpikeDetection(on_spike=on_spike, check_every=100, rtol=1000.0)
        trainer = make_trainer(callbacks=[saving, detection], logger=False)
        expectation: Any = pytest.raises(TrainingError) if on_spike == "stop" else pytest.warns(match=BACK)
        with expectation as raised:
            trainer.fit(Net(), points(6, bad=[3]))
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert state["global_step"] == (2 if on_spike == "stop" else 6)
        assert all(bool(torch.isfinite(value).all()) for value in state["state_dict"].values())
        if on_spike == "stop":
            assert "the loss is nan in epoch 0, batch 3 (step 3)" in raised.value.what
            assert f'ckpt_path="{tmp_path / "last.ckpt"}"' in raised.value.fix


class TestWhereAStepCantBeLeftOut:
    def lbfgs(self, net: nn.Module) -> Any:
        return torch.optim.LBFGS(net.parameters(), max_iter=2)

    @pytest.mark.parametrize("kind", ["lbfgs", "own step", "manual"])
    def test_skipping_is_refused(self, make_bare: Any, kind: str) -> None:
        module = {"lbfgs": lambda: Net(self.lbfgs), "own step": OwnStep, "manual": Manual}[kind]()
        trainer = make_bare(callbacks=SpikeDetection(on_spike="skip"))
        with pytest.raises(ConfigError, match="manual optimization" if kind == "manual" else "may leave a step out"):
            trainer.fit(module, points(2))

    def test_going_back_is_refused_where_windows_are_the_modules(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=SpikeDetection(on_spike="rollback"), accumulate_grad_batches=2)
        with pytest.raises(ConfigError, match="accumulate_grad_batches > 1"):
            trainer.fit(Manual(), points(2))

    @pytest.mark.parametrize("kind", ["lbfgs", "own step"])
    def test_going_back_works(self, make_bare: Any, kind: str) -> None:
        module = Net(self.lbfgs) if kind == "lbfgs" else OwnStep()
        with pytest.warns(TreadleWarning, match=BACK):
            make_bare(callbacks=SpikeDetection(on_spike="rollback", check_every=1)).fit(module, points(4, bad=[2]))
        assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


class TestSettingsThatMakeNoSense:
    @pytest.mark.parametrize(
        "settings, says",
        [
            ({"on_spike": "leave"}, "rollback"),
            ({"on_spike": "skip", "check_every": 5}, "each is looked at"),
            ({"max_skips": -1}, "counts from 0"),
            ({"max_rollbacks": -1}, "counts from 0"),
        ],
        ids=str,
    )
    def test_are_an_error(self, settings: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError) as error:
            SpikeDetection(**settings)
        assert says in error.value.why


class TestAWindowThatTheRunWentBackIn:
    def test_is_dropped(self, tmp_path: Path, make_trainer: Any) -> None:
        """A checkpoint in the middle of it looks at its losses; its gradients are of weights that are gone."""

        class SavesInside(ModelCheckpoint):
            def is_due(self, trainer: Any, final: bool) -> bool:
                return bool(trainer.progress.window) or final

        module = Net()
        detection = SpikeDetection(on_spike="rollback", check_every=100, rtol=1000.0)
        callbacks = [detection, SavesInside(dirpath=tmp_path), GradientAccumulationScheduler({0: 2})]
        batches = points(6, bad=[2])
        trainer = make_trainer(callbacks=callbacks, logger=False)
        with pytest.warns(TreadleWarning, match=BACK):
            trainer.fit(module, batches)
        plain, expected = make_trainer(logger=False, accumulate_grad_batches=2), Net()
        plain.fit(expected, batches[4:])  # the copy is of the first window's middle, before its step
        parameters = {k: v for k, v in moved(trainer, module).items() if "running" not in k and "tracked" not in k}
        assert same(parameters, {name: moved(plain, expected)[name] for name in parameters})
        assert trainer.global_step == 2
