"""LearningRateMonitor, DeviceStatsMonitor and SpikeDetection: callbacks that watch a run."""

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
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks.device_stats_monitor import DeviceStatsMonitor, device_stats
from treadle.callbacks.learning_rate_monitor import LearningRateMonitor
from treadle.callbacks.spike_detection import SpikeDetection
from treadle.errors import ConfigError, ModuleError, TrainingError, TreadleWarning
from treadle.testing import Classifier, MemoryLogger, NoisyPoints

FOUR_BATCHES = DataLoader(torch.ones(8), batch_size=2)  # type: ignore[arg-type]


class Optimized(treadle.Module):
    """One weight per layer; ``configure`` makes its optimizers from the layers."""

    def __init__(self, configure: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1)
        self.configure = configure

    def training_step(self, batch: Tensor) -> Tensor:
        return (self.one(batch[:, None]) + self.two(batch[:, None])).mean()

    def configure_optimizers(self) -> Any:
        return self.configure(self.one, self.two)


class Doubles(treadle.Module):
    """Predicts."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch * 2


class Alternating(Optimized):
    """Steps two optimizers itself."""

    def __init__(self, configure: Callable[..., Any]) -> None:
        super().__init__(configure)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor) -> Tensor:
        loss = super().training_step(batch)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return loss


def sgd(*layers: nn.Module, lr: float = 1.0, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=lr, **settings)


def halving(optimizer: torch.optim.Optimizer, **config: Any) -> dict[str, Any]:
    """Half the rate each time the scheduler steps."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.5), **config}}


@pytest.fixture
def watch(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., list[dict[str, float]]]:
    """The rows of a fit of four batches an epoch, with each step a log point."""

    def run(callback: treadle.Callback, module: treadle.Module, **settings: Any) -> list[dict[str, float]]:
        logger = MemoryLogger()
        settings = {"log_every_n_steps": 1, "logger": logger, "callbacks": callback, **settings}
        make_bare(**settings).fit(module, FOUR_BATCHES)
        return logger.rows

    return run


def column(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def names(rows: Sequence[dict[str, float]]) -> set[str]:
    return {name for row in rows for name in row} - {"step", "epoch"}


class TestTheLearningRateThatIsLogged:
    def test_is_the_one_that_the_step_of_the_row_was_taken_with(self, watch: Any) -> None:
        """The scheduler steps after each step; the first is taken with the rate it starts from."""
        monitor = LearningRateMonitor()
        rows = watch(monitor, Optimized(lambda *layers: halving(sgd(*layers), interval="step")))
        assert [(row["step"], row["lr-SGD"]) for row in rows] == [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)]
        assert monitor.lrs == {"lr-SGD": [1.0, 0.5, 0.25, 0.125]}

    def test_is_logged_at_log_points_only(self, watch: Any) -> None:
        monitor = LearningRateMonitor()
        module = Optimized(lambda *layers: halving(sgd(*layers), interval="step"))
        rows = watch(monitor, module, log_every_n_steps=2)
        assert [(row["step"], row["lr-SGD"]) for row in rows] == [(1, 0.5), (3, 0.125)]
        assert monitor.lrs == {"lr-SGD": [0.5, 0.125]}

    def test_is_logged_once_for_several_accumulated_batches(self, watch: Any) -> None:
        monitor = LearningRateMonitor()
        module = Optimized(lambda *layers: halving(sgd(*layers), interval="step"))
        rows = watch(monitor, module, accumulate_grad_batches=2)
        assert column(rows, "lr-SGD") == [1.0, 0.5]
        assert monitor.lrs == {"lr-SGD": [1.0, 0.5]}

    def test_is_in_the_row_of_an_epoch_if_the_scheduler_counts_epochs(self, watch: Any) -> None:
        monitor = LearningRateMonitor()
        rows = watch(monitor, Optimized(lambda *layers: halving(sgd(*layers))), max_epochs=3)
        assert column(rows, "lr-SGD") == [1.0, 0.5, 0.25]
        assert [row["epoch"] for row in rows if "lr-SGD" in row] == [0, 1, 2]
        assert monitor.lrs == {"lr-SGD": [1.0, 0.5, 0.25]}

    @pytest.mark.parametrize("interval, logged", [("step", [1.0] * 4 + [0.5] * 4), ("epoch", [1.0, 0.5])])
    def test_is_logged_at_the_interval_that_is_asked_for(self, watch: Any, interval: Any, logged: list[float]) -> None:
        rows = watch(LearningRateMonitor(interval), Optimized(lambda *layers: halving(sgd(*layers))), max_epochs=2)
        assert column(rows, "lr-SGD") == logged

    def test_needs_no_scheduler(self, watch: Any) -> None:
        rows = watch(LearningRateMonitor(), Optimized(sgd))
        assert column(rows, "lr-SGD") == [1.0] * 4

    def test_may_be_a_tensor(self, watch: Any) -> None:
        """As optimizers that run on the device keep it."""
        monitor = LearningRateMonitor()
        adam = lambda one, two: torch.optim.Adam(one.parameters(), lr=torch.tensor(0.5), foreach=False)  # noqa: E731
        assert column(watch(monitor, Optimized(adam)), "lr-Adam") == [0.5] * 4
        assert monitor.lrs == {"lr-Adam": [0.5] * 4}

    def test_is_known_to_other_callbacks(self, watch: Any) -> None:
        class Reads(treadle.Callback):
            found = math.nan

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                self.found = float(trainer.callback_metrics["lr-SGD"])

        reads = Reads()
        watch([LearningRateMonitor(), reads], Optimized(sgd))
        assert reads.found == 1.0


class TestTheNameOfALearningRate:
    def test_is_given_by_the_scheduler(self, watch: Any) -> None:
        rows = watch(LearningRateMonitor(), Optimized(lambda *layers: halving(sgd(*layers), name="rate")))
        assert names(rows) == {"rate"}

    def test_has_a_prefix(self, watch: Any) -> None:
        rows = watch(LearningRateMonitor(log_key_prefix="optim/"), Optimized(sgd))
        assert names(rows) == {"optim/lr-SGD"}

    def test_counts_parameter_groups(self, watch: Any) -> None:
        def two_rates(one: nn.Module, two: nn.Module) -> Any:
            return torch.optim.SGD([{"params": one.parameters(), "lr": 0.5}, {"params": two.parameters()}], lr=0.25)

        rows = watch(LearningRateMonitor(), Optimized(two_rates))
        assert (column(rows, "lr-SGD/pg1")[0], column(rows, "lr-SGD/pg2")[0]) == (0.5, 0.25)

    def test_takes_that_of_a_parameter_group(self, watch: Any) -> None:
        def named_groups(one: nn.Module, two: nn.Module) -> Any:
            groups = [{"params": one.parameters(), "name": "body"}, {"params": two.parameters(), "name": "head"}]
            return torch.optim.SGD(groups, lr=0.25)

        assert names(watch(LearningRateMonitor(), Optimized(named_groups))) == {"lr-SGD/body", "lr-SGD/head"}

    def test_counts_optimizers_of_a_kind(self, watch: Any) -> None:
        def three(one: nn.Module, two: nn.Module) -> Any:
            return [sgd(one, lr=1.0), torch.optim.Adam(one.parameters(), lr=2.0), sgd(two, lr=3.0)]

        row = watch(LearningRateMonitor(), Alternating(three))[0]
        assert {name: row[name] for name in names([row])} == {"lr-SGD": 1.0, "lr-Adam": 2.0, "lr-SGD-1": 3.0}

    def test_is_followed_by_that_of_momentum_and_weight_decay(self, watch: Any) -> None:
        def three(one: nn.Module, two: nn.Module) -> Any:
            adam = torch.optim.Adam(one.parameters(), betas=(0.75, 0.999), weight_decay=0.25)
            return [sgd(one, momentum=0.5, weight_decay=0.125), adam, torch.optim.Adagrad(two.parameters())]

        monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
        row = watch(monitor, Alternating(three))[0]
        assert (row["lr-SGD-momentum"], row["lr-SGD-weight_decay"]) == (0.5, 0.125)
        assert (row["lr-Adam-momentum"], row["lr-Adam-weight_decay"]) == (0.75, 0.25)
        assert "lr-Adagrad-momentum" not in row
        assert set(monitor.lrs) == {"lr-SGD", "lr-Adam", "lr-Adagrad"}

    def test_that_two_groups_share_is_an_error(self, watch: Any) -> None:
        def twins(one: nn.Module, two: nn.Module) -> Any:
            return torch.optim.SGD([{"params": layer.parameters(), "name": "same"} for layer in (one, two)], lr=1.0)

        with pytest.raises(ConfigError, match="two learning rates are called 'lr-SGD/same'"):
            watch(LearningRateMonitor(), Optimized(twins))


class TestALearningRateMonitor:
    def test_in_a_run_without_a_logger_is_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="LearningRateMonitor in a run without a logger"):
            make_bare(callbacks=LearningRateMonitor()).fit(Optimized(sgd), FOUR_BATCHES)

    def test_stays_in_a_fast_dev_run_which_has_none(self, make_bare: Any) -> None:

        class BringsOne(Optimized):
            def configure_callbacks(self) -> Any:
                return LearningRateMonitor()

        trainer = make_bare(callbacks=LearningRateMonitor(), fast_dev_run=True)
        trainer.fit(BringsOne(sgd), FOUR_BATCHES)
        assert (trainer.loggers, trainer.global_step) == ([], 1)

    def test_of_a_trainer_that_evaluates_needs_no_logger(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=LearningRateMonitor())
        assert trainer.predict(Doubles(), FOUR_BATCHES)

    def test_with_another_interval_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="logging_interval='batch'"):
            LearningRateMonitor("batch")  # type: ignore[arg-type]

    def test_starts_anew_with_each_fit(self, watch: Any) -> None:
        monitor = LearningRateMonitor()
        watch(monitor, Optimized(sgd))
        watch(monitor, Optimized(sgd))
        assert monitor.lrs == {"lr-SGD": [1.0] * 4}


class Stop(Exception):
    """Ends a run in the middle."""


class SaveEachBatch(treadle.Callback):
    """Saves ``last.ckpt`` at every savepoint, and stops there after so many batches."""

    def __init__(self, root: Path, stop_after: int | None) -> None:
        self.path, self.stop_after = root / "last.ckpt", stop_after

    def on_savepoint(self, trainer: treadle.Trainer, module: treadle.Module, final: bool) -> None:
        trainer.save_checkpoint(self.path)
        if trainer.progress.batches == self.stop_after:
            raise Stop


class Decaying(Classifier):
    """Its rate falls with each step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        config = {"scheduler": LambdaLR(optimizer, lambda step: 0.5**step), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}


def assert_state_survives(tmp_path: Path, callback: Callable[[], treadle.Callback], **settings: Any) -> None:
    """Stopped after any batch of ten and resumed, the callback ends in the state of a run that never stopped, and so
    do the rows."""

    def run(root: Path, stop_after: int | None, ckpt_path: Path | None = None) -> tuple[Any, Any]:
        treadle.seed_everything(1 if ckpt_path is None else 2)
        watcher, logger = callback(), MemoryLogger()
        trainer = treadle.Trainer(
            **{"default_root_dir": root, "max_epochs": 2, "log_every_n_steps": 3, "logger": logger, **settings},
            enable_progress_bar=False,
            enable_checkpointing=False,
            callbacks=[watcher, SaveEachBatch(root, stop_after)],
        )
        try:
            trainer.fit(Decaying(), DataLoader(NoisyPoints(), 4, shuffle=True), ckpt_path=ckpt_path)
        except Stop:
            assert stop_after is not None
        return watcher.state_dict(), logger.rows

    whole, rows = run(tmp_path / "whole", None)
    for stop_after in range(1, 10):
        root = tmp_path / str(stop_after)
        run(root, stop_after)
        state, resumed_rows = run(root, None, root / "last.ckpt")
        assert str(state) == str(whole), f"state differs after {stop_after} batches"
        assert resumed_rows == rows, f"rows differ after {stop_after} batches"


class TestStoppedAndResumed:
    @pytest.mark.parametrize("interval", ["step", "epoch"])
    def test_the_learning_rates_are_those_of_a_run_that_never_stopped(self, tmp_path: Path, interval: Any) -> None:
        assert_state_survives(tmp_path, lambda: LearningRateMonitor(interval))

    def test_and_inside_an_accumulation_window(self, tmp_path: Path) -> None:
        assert_state_survives(tmp_path, LearningRateMonitor, accumulate_grad_batches=2, log_every_n_steps=1)

    def test_losses_that_were_not_looked_at_yet_are_looked_at(self, tmp_path: Path) -> None:
        assert_state_survives(tmp_path, lambda: SpikeDetection(window=4, rtol=100.0))


class TestDeviceStats:
    PROCESS = frozenset({"process_cpu_percent", "process_peak_memory_bytes", "load_average", "process_memory_bytes"})

    def test_are_those_of_the_process_where_there_is_no_accelerator(self, watch: Any) -> None:
        rows = watch(DeviceStatsMonitor(), Optimized(sgd))
        found = {name.removeprefix("DeviceStatsMonitor.on_train_batch_start/") for name in rows[0]}
        assert found >= self.PROCESS
        start, end = (
            {name: rows[0][f"DeviceStatsMonitor.on_train_batch_{when}/{name}"] for name in self.PROCESS}
            for when in ("start", "end")
        )
        assert 10_000_000 < start["process_memory_bytes"] <= end["process_peak_memory_bytes"]
        assert start["process_cpu_percent"] >= 0

    def test_are_logged_at_log_points_only(self, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between them, nothing is asked of the machine."""
        asked = []
        read = treadle.callbacks.device_stats_monitor._process_stats  # type: ignore[attr-defined]
        monkeypatch.setattr(
            "treadle.callbacks.device_stats_monitor._process_stats", lambda *a: (asked.append(1), read(*a))[1]
        )
        rows = watch(DeviceStatsMonitor(), Optimized(sgd), log_every_n_steps=2)
        assert [row["step"] for row in rows] == [1, 3]
        assert len(asked) == 4

    def test_of_an_accelerator_are_the_telling_ones_of_its_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Six of about a hundred numbers."""
        stats = {"allocated_bytes.all.current": 7, "num_ooms": 1, "active.large_pool.freed": 3}
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
        assert device_stats(torch.device("cuda")) == {"allocated_bytes.all.current": 7.0, "num_ooms": 1.0}

    def test_leave_the_process_out_where_there_is_an_accelerator(
        self, watch: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("treadle.callbacks.device_stats_monitor.device_stats", lambda device: {"num_ooms": 0.0})
        rows = watch(DeviceStatsMonitor(), Optimized(sgd))
        assert names(rows) == {f"DeviceStatsMonitor.on_train_batch_{when}/num_ooms" for when in ("start", "end")}

    def test_hold_both_if_asked_for(self, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("treadle.callbacks.device_stats_monitor.device_stats", lambda device: {"num_ooms": 0.0})
        rows = watch(DeviceStatsMonitor(cpu_stats=True), Optimized(sgd))
        assert {"num_ooms", "process_cpu_percent"} <= {name.split("/")[1] for name in names(rows)}

    def test_of_nothing_are_a_warning(self, watch: Any) -> None:
        with pytest.warns(TreadleWarning, match=r"treadle\[device-stats\]: .*nothing to log on cpu"):
            watch(DeviceStatsMonitor(cpu_stats=False), Optimized(sgd))

    def test_without_a_logger_are_an_error(self, make_bare: Any) -> None:
        with pytest.raises(ConfigError, match="DeviceStatsMonitor in a run without a logger"):
            make_bare(callbacks=DeviceStatsMonitor()).fit(Optimized(sgd), FOUR_BATCHES)


class Losses(treadle.Module):
    """Its losses are the given ones, one a batch; None skips the batch."""

    def __init__(self, *losses: float | None, wrap: Callable[[Tensor], Any] = lambda loss: loss) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.losses, self.wrap, self.trained = losses, wrap, 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.losses[batch_idx]
        self.trained += 1
        return None if loss is None else self.wrap(self.weight * 0 + loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def detect(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., Losses]:
    """A fit with these losses, each looked at as it comes."""

    def run(detection: SpikeDetection | dict[str, Any], *losses: float | None, **settings: Any) -> Losses:
        if isinstance(detection, dict):
            detection = SpikeDetection(**{"check_every": 1, **detection})
        module = Losses(*losses, wrap=settings.pop("wrap", lambda loss: loss))
        make_bare(callbacks=detection, **settings).fit(module, [torch.ones(2)] * len(losses))
        return module

    return run


class TestALossThatJumps:
    def test_stops_the_run_with_an_error_that_says_where(self, detect: Any) -> None:
        """Three times the mean of those before, which is two means worse."""
        with pytest.raises(TrainingError, match=r"the loss is 3 in epoch 0, batch 2 \(step 2\)") as error:
            detect({}, 1.0, 1.0, 3.0, 1.0)
        assert "The 2 before it are 1 on average" in error.value.why
        assert "rtol=2.0" in error.value.why

    def test_but_less_than_rtol_goes_on(self, detect: Any) -> None:
        assert detect({}, 1.0, 1.0, 2.9, 1.0).trained == 4

    def test_for_the_better_goes_on(self, detect: Any) -> None:
        assert detect({}, 100.0, 1.0, 0.0, -50.0).trained == 4

    def test_downwards_where_more_is_better_stops(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match="the loss is -1 in epoch 0, batch 1"):
            detect({"mode": "max"}, 1.0, -1.0)

    def test_by_less_than_atol_goes_on(self, detect: Any) -> None:
        """Both bounds must be passed, where both are given."""
        assert detect({"atol": 5.0}, 1.0, 4.0).trained == 2
        with pytest.raises(TrainingError):
            detect({"atol": 5.0}, 1.0, 6.0)

    def test_by_atol_alone(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match="the loss is 101 in"):
            detect({"atol": 1.0, "rtol": None}, 100.0, 101.0)

    def test_is_compared_with_the_window_only(self, detect: Any) -> None:
        """Against all before it, 20 would not be three times the mean; against the last two it is."""
        with pytest.raises(TrainingError, match="The 2 before it are 4 on average"):
            detect({"window": 2}, 20.0, 4.0, 4.0, 20.0)
        assert detect({"window": 3}, 20.0, 4.0, 4.0, 20.0).trained == 4

    def test_while_warming_up_goes_on(self, detect: Any) -> None:
        assert detect({"warmup": 3, "window": 1}, 1.0, 10.0, 100.0).trained == 3
        with pytest.raises(TrainingError, match="batch 3"):
            detect({"warmup": 3, "window": 1}, 1.0, 10.0, 100.0, 1000.0)

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
    def test_out_of_the_numbers_stops_from_the_first_batch(self, detect: Any, loss: float) -> None:
        with pytest.raises(TrainingError, match=f"the loss is {loss} in epoch 0, batch 0") as error:
            detect({"warmup": 3}, loss)
        assert "It is not finite." in error.value.why

    def test_out_of_the_numbers_is_left_out_if_that_is_allowed(self, detect: Any) -> None:
        """And spoils no mean."""
        with pytest.raises(TrainingError, match="The 2 before it are 1 on average"):
            detect({"finite_only": False}, 1.0, math.inf, math.nan, 1.0, 3.0)

    def test_is_found_in_a_dict_too(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match="batch 1"):
            detect({}, 1.0, 9.0, wrap=lambda loss: {"loss": loss, "note": "mine"})

    def test_counts_batches_not_windows_under_accumulation(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match=r"batch 2 \(step 1\)"):
            detect({}, 1.0, 1.0, 9.0, 1.0, accumulate_grad_batches=2)

    def test_after_batches_that_were_skipped(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match=r"batch 3 \(step 1\)") as error:
            detect({}, None, 1.0, None, 9.0)
        assert error.value.why.startswith("The 1 before it")


class TestLossesThatAreLookedAtTogether:
    def test_are_those_since_the_last_log_point(self, make_bare: Any) -> None:
        """By default; the batch at fault is named, and training was one batch further."""
        module = Losses(1.0, 1.0, 9.0, 1.0, 1.0)
        with pytest.raises(TrainingError, match=r"batch 2 \(step 2\)"):
            make_bare(callbacks=SpikeDetection(), log_every_n_steps=2).fit(module, [torch.ones(2)] * 5)
        assert module.trained == 4

    def test_are_looked_at_at_the_end_of_an_epoch_at_the_latest(self, detect: Any) -> None:
        with pytest.raises(TrainingError, match="batch 1"):
            detect(SpikeDetection(), 1.0, 9.0, 1.0)

    @pytest.mark.parametrize("accumulated, reads", [(1, [3, 3, 2]), (2, [6, 2])])
    def test_are_read_from_the_device_once(
        self, detect: Any, monkeypatch: pytest.MonkeyPatch, accumulated: int, reads: list[int]
    ) -> None:
        """Eight batches, looked at after each third step and at the epoch's end."""
        found = []
        read = Tensor.tolist
        monkeypatch.setattr(Tensor, "tolist", lambda tensor: (found.append(tensor.numel()), read(tensor))[1])
        monkeypatch.setattr(Tensor, "__float__", lambda tensor: pytest.fail("a loss was read alone"))
        detect(SpikeDetection(check_every=3), *[1.0] * 8, accumulate_grad_batches=accumulated)
        assert [count for count in found if count <= 6] == reads

    def test_hold_what_they_were_when_the_step_returned_them(self, detect: Any) -> None:
        """A step may return the same tensor each time, filled anew."""
        kept: list[Tensor] = []

        def overwrites(loss: Tensor) -> Any:
            if len(kept) == 2:
                kept[1].data.fill_(100.0)
            kept.append(loss)
            return {"loss": loss}

        assert detect(SpikeDetection(), 1.0, 1.0, 1.0, wrap=overwrites).trained == 3


class TestASpikeThatOnlyWarns:
    def test_is_named_and_training_goes_on(self, detect: Any) -> None:
        with pytest.warns(TreadleWarning, match=r"treadle\[spike\]: the loss is 9 in epoch 0, batch 1 \(step 1\)"):
            assert detect({"on_spike": "warn"}, 1.0, 9.0, 1.0).trained == 3

    def test_does_not_count_for_those_after_it(self, detect: Any) -> None:
        """Else a second one would look small."""
        with pytest.warns(TreadleWarning) as warned:
            detect({"on_spike": "warn"}, 1.0, 90.0, 90.0)
        assert len(warned) == 2

    def test_is_one_warning_for_all_since_the_last_look(self, detect: Any) -> None:
        with pytest.warns(TreadleWarning, match="batch 1 .* And 1 more since the last check") as warned:
            detect(SpikeDetection(on_spike="warn"), 1.0, 9.0, math.nan)
        assert len(warned) == 1


class TestALossThatJumpsOnOneRank:
    @staticmethod
    def fit(detect: Any, settings: dict[str, Any]) -> Any:
        """Two steps on this rank, of four batches; what the fit said, or how many batches it trained on."""
        jumps = os.environ["RANK"] == "1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TreadleWarning)
            try:
                return detect(settings, 1.0, 9.0 if jumps else 1.0, 0.0, 0.0).trained
            except TrainingError as error:
                return error.what

    def test_stops_the_others_too_and_is_named_there(self, detect: Any) -> None:
        """Else they would wait for it for ever."""
        others, own = on_trainer_ranks(2, self.fit, detect, {})
        assert "the loss of another rank jumped" in others
        assert "the loss is 9 in epoch 0, batch 1" in own

    def test_that_only_warns_stops_nobody(self, detect: Any) -> None:
        assert on_trainer_ranks(2, self.fit, detect, {"on_spike": "warn"}) == [2, 2]


class TestASpikeDetection:
    @pytest.mark.parametrize(
        "settings",
        [
            {"mode": "less"},
            {"on_spike": "leave"},
            {"window": 0},
            {"warmup": 0},
            {"check_every": 0},
            {"rtol": 0.0},
            {"atol": -1.0},
            {"rtol": None, "finite_only": False},
        ],
        ids=str,
    )
    def test_that_makes_no_sense_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            SpikeDetection(**settings)

    def test_of_a_step_that_returns_something_else_is_an_error(self, make_bare: Any) -> None:
        class ReturnsWords(Alternating):
            def training_step(self, batch: Tensor) -> Any:
                super().training_step(batch)
                return {"generator": batch.mean()}

        module = ReturnsWords(lambda *layers: [sgd(*layers), sgd(*layers)])
        with pytest.raises(ModuleError, match="no loss in the dict that training_step returned"):
            make_bare(callbacks=SpikeDetection()).fit(module, FOUR_BATCHES)

    def test_that_never_sees_a_loss_says_so(self, make_bare: Any) -> None:
        class ReturnsNothing(Alternating):
            def training_step(self, batch: Tensor) -> Any:
                super().training_step(batch)

        module = ReturnsNothing(lambda *layers: [sgd(*layers), sgd(*layers)])
        with pytest.warns(TreadleWarning, match=r"treadle\[spike\]: SpikeDetection saw no loss"):
            make_bare(callbacks=SpikeDetection()).fit(module, FOUR_BATCHES)

    def test_of_a_run_without_a_batch_says_nothing(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=SpikeDetection(), max_epochs=0)
        trainer.fit(Losses(1.0), [torch.ones(2)])  # a warning would be an error here
        assert trainer.global_step == 0

    def test_starts_anew_with_each_fit(self, make_bare: Any) -> None:
        detection = SpikeDetection(check_every=1)
        for loss in (1.0, 9.0):  # in one run, the second would be a spike
            trainer = make_bare(callbacks=detection)
            trainer.fit(Losses(loss), [torch.ones(2)])
            assert trainer.global_step == 1
