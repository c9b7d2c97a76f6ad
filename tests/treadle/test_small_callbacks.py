"""GradientAccumulationScheduler, Timer, LambdaCallback, the prediction writers, ModelSummary and OnExceptionCheckpoint."""

import copy
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_trainer_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks.exception_checkpoint import OnExceptionCheckpoint
from treadle.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from treadle.callbacks.lambda_callback import LambdaCallback
from treadle.callbacks.model_summary import ModelSummary, summarize
from treadle.callbacks.prediction_writer import BasePredictionWriter, PredictionWriter
from treadle.callbacks.timer import Timer
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.testing import Classifier, NoisyPoints, Points

SIX_BATCHES = DataLoader(torch.ones(12), batch_size=2)  # type: ignore[arg-type]


class Weight(treadle.Module):
    """One number; ``steps`` lists after which batch of which epoch it was stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.steps: list[tuple[int, int]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.batch_idx = batch_idx
        return self.weight * batch.mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps.append((self.current_epoch, self.batch_idx))

    def validation_step(self, batch: Tensor) -> None:
        self.log("val_loss", batch.mean())

    def test_step(self, batch: Tensor) -> None:
        self.log("test_loss", batch.mean())

    def predict_step(self, batch: Tensor) -> Tensor:
        return batch * 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class TestAccumulationByEpoch:
    def test_changes_at_the_start_of_the_given_epochs(self, make_bare: Any) -> None:
        module = Weight()
        scheduler = GradientAccumulationScheduler({1: 3, 2: 6})
        make_bare(callbacks=scheduler, max_epochs=4).fit(module, SIX_BATCHES)
        assert module.steps == [*((0, batch) for batch in range(6)), (1, 2), (1, 5), (2, 5), (3, 5)]

    def test_holds_from_the_latest_epoch_given(self) -> None:
        scheduler = GradientAccumulationScheduler({4: 2, 2: 8})
        assert [scheduler.get_accumulate_grad_batches(epoch) for epoch in range(6)] == [1, 1, 8, 8, 2, 2]

    def test_leaves_the_trainer_as_it_was(self, make_bare: Any) -> None:
        """Fitted once more, it starts from epoch 0 again."""
        trainer = make_bare(callbacks=GradientAccumulationScheduler({0: 2, 1: 3}), max_epochs=2)
        for module in (Weight(), Weight()):
            trainer.fit(module, SIX_BATCHES)
            assert module.steps == [(0, 1), (0, 3), (0, 5), (1, 2), (1, 5)]
        assert trainer.accumulate_grad_batches == 1

    @pytest.mark.parametrize("stop_after", range(1, 12))
    def test_holds_right_after_a_run_is_resumed_inside_an_epoch(self, tmp_path: Path, stop_after: int) -> None:
        def run(ckpt_path: Path | None = None, stop: int | None = None) -> Classifier:
            treadle.seed_everything(1 if ckpt_path is None else 2)
            module, path = Classifier(), tmp_path / "last.ckpt"
            callbacks = [GradientAccumulationScheduler({0: 2, 1: 4}), SaveEachBatch(path, stop)]
            trainer = treadle.Trainer(**SILENT, max_epochs=2, callbacks=callbacks)
            try:
                trainer.fit(module, DataLoader(NoisyPoints(24), 4, shuffle=True), ckpt_path=ckpt_path)
            except Stop:
                assert stop is not None
            return module

        whole = run()
        run(stop=stop_after)
        resumed = run(ckpt_path=tmp_path / "last.ckpt")
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_beside_a_trainer_that_has_its_own_is_an_error(self, make_bare: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"GradientAccumulationScheduler with Trainer\(accumulate_grad_batches=2\)"
        ):
            make_bare(callbacks=GradientAccumulationScheduler({1: 4}), accumulate_grad_batches=2).fit(
                Weight(), SIX_BATCHES
            )

    def test_is_none_of_an_evaluations_business(self, make_bare: Any) -> None:
        trainer = make_bare(callbacks=GradientAccumulationScheduler({1: 4}), accumulate_grad_batches=2)
        assert trainer.predict(Weight(), SIX_BATCHES)
        assert trainer.accumulate_grad_batches == 2

    @pytest.mark.parametrize(
        "scheduling, why",
        [
            ({}, "maps epochs"),
            ([(0, 1)], "maps epochs"),
            ({-1: 2}, "-1 is not an epoch"),
            ({"0": 2}, "'0' is not an epoch"),
            ({0.5: 2}, "0.5 is not an epoch"),
            ({0: 0}, "0 is not a number of batches"),
            ({0: True}, "True is not a number of batches"),
            ({0: 1.5}, "1.5 is not a number of batches"),
        ],
    )
    def test_that_makes_no_sense_is_an_error(self, scheduling: Any, why: str) -> None:
        with pytest.raises(ConfigError) as error:
            GradientAccumulationScheduler(scheduling)
        assert why in error.value.why


SILENT: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


class Stop(Exception):
    """Ends a run in the middle."""


class SaveEachBatch(treadle.Callback):
    """Saves at every savepoint, and stops there after so many batches."""

    def __init__(self, path: Path, stop_after: int | None) -> None:
        self.path, self.stop_after = path, stop_after

    def on_savepoint(self, trainer: treadle.Trainer, module: treadle.Module, final: bool) -> None:
        trainer.save_checkpoint(self.path)
        if trainer.progress.batches == self.stop_after:
            raise Stop


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("treadle.callbacks.timer.time.monotonic", lambda: self.now)


class Takes(Weight):
    """Each batch takes ten seconds of ``clock``."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 10
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor) -> None:
        self.clock.now += 3

    test_step = validation_step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestATimer:
    @pytest.mark.parametrize("duration", ["00:00:00:30", timedelta(seconds=30), {"seconds": 30}], ids=str)
    def test_stops_training_when_its_time_is_over(
        self, make_bare: Any, clock: Clock, duration: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer = make_bare(callbacks=Timer(duration), max_epochs=9)
        trainer.fit(Takes(clock), SIX_BATCHES)
        assert trainer.progress.batches == 3
        assert capsys.readouterr().err.count("Timer: the time is over after 0:00:30 of training.") == 1

    def test_may_look_at_the_clock_at_the_end_of_epochs_only(self, make_bare: Any, clock: Clock) -> None:
        trainer = make_bare(callbacks=Timer({"seconds": 30}, interval="epoch"), max_epochs=9)
        trainer.fit(Takes(clock), SIX_BATCHES)
        assert trainer.progress.batches == 6

    def test_says_nothing_if_it_is_told_to(
        self, make_bare: Any, clock: Clock, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_bare(callbacks=Timer({"seconds": 30}, verbose=False)).fit(Takes(clock), SIX_BATCHES)
        assert "Timer" not in capsys.readouterr().err

    def test_lets_the_shortest_run_be_that_long(self, make_bare: Any, clock: Clock) -> None:
        """min_epochs and min_steps come before it."""
        trainer = make_bare(callbacks=Timer({"seconds": 30}), max_epochs=9, min_epochs=2)
        trainer.fit(Takes(clock), SIX_BATCHES)
        assert trainer.current_epoch == 2

    def test_measures_each_stage(self, make_bare: Any, clock: Clock) -> None:
        """Sanity checks are none. Training has its validations in it."""
        timer = Timer()
        trainer = make_bare(callbacks=timer)
        assert (timer.start_time(), timer.time_elapsed("test")) == (None, 0.0)
        trainer.fit(Takes(clock), SIX_BATCHES, SIX_BATCHES)
        trainer.test(dataloaders=SIX_BATCHES, verbose=False)
        assert (timer.start_time("train"), timer.end_time("train")) == (1006.0, 1084.0)
        assert [timer.time_elapsed(stage) for stage in ("train", "validate", "test")] == [78.0, 18.0, 18.0]
        clock.now += 100
        assert timer.time_elapsed() == 78.0

    def test_does_not_take_a_sanity_check_for_a_validation(self, make_bare: Any, clock: Clock) -> None:
        timer = Timer()
        make_bare(callbacks=timer, max_steps=2).fit(Takes(clock), SIX_BATCHES, SIX_BATCHES)
        assert (timer.start_time("validate"), timer.time_elapsed("validate")) == (None, 0.0)

    def test_measures_the_latest_of_several_validations(self, make_bare: Any, clock: Clock) -> None:
        timer, ends = Timer(), []
        looks = LambdaCallback(on_validation_batch_end=lambda *_: ends.append(timer.end_time("validate")))
        settings = {"limit_val_batches": 2, "num_sanity_val_steps": 0, "val_check_interval": 3}
        make_bare(callbacks=[timer, looks], **settings).fit(Takes(clock), SIX_BATCHES, SIX_BATCHES)
        assert ends == [None] * 4, "it has not ended while it runs"
        assert timer.time_elapsed("validate") == 6.0

    def test_knows_what_is_left(self, make_bare: Any, clock: Clock) -> None:
        timer = Timer({"minutes": 2})
        assert timer.time_remaining() == 120.0
        make_bare(callbacks=timer).fit(Takes(clock), SIX_BATCHES)
        assert timer.time_remaining() == 60.0
        assert Timer().time_remaining() is None

    def test_stands_still_after_an_error(self, make_bare: Any, clock: Clock) -> None:
        class Fails(Takes):
            def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
                super().training_step(batch, batch_idx)
                raise Stop

        timer = Timer()
        with pytest.raises(Stop):
            make_bare(callbacks=timer).fit(Fails(clock), SIX_BATCHES)
        clock.now += 100
        assert timer.time_elapsed() == 10.0

    def test_goes_on_where_a_resumed_run_was_stopped(self, make_bare: Any, clock: Clock, tmp_path: Path) -> None:
        """Four batches of ten seconds, then as many as the other twenty seconds allow. The night between is free."""
        path = tmp_path / "last.ckpt"
        with pytest.raises(Stop):
            make_bare(callbacks=[Timer({"seconds": 60}), SaveEachBatch(path, 4)]).fit(Takes(clock), SIX_BATCHES)
        clock.now += 3600
        timer = Timer({"seconds": 60})
        trainer = make_bare(callbacks=timer, max_epochs=9)
        trainer.fit(Takes(clock), SIX_BATCHES, ckpt_path=path)
        assert trainer.progress.batches == 6
        assert (timer.time_elapsed(), timer.time_elapsed("test")) == (60.0, 0.0)

    def test_of_a_resumed_run_whose_time_was_over_trains_no_batch(
        self, make_bare: Any, clock: Clock, tmp_path: Path
    ) -> None:
        path = tmp_path / "last.ckpt"
        callbacks = [Timer({"seconds": 40}), SaveEachBatch(path, None)]
        make_bare(callbacks=callbacks).fit(Takes(clock), SIX_BATCHES)
        trainer = make_bare(callbacks=Timer({"seconds": 40}))
        trainer.fit(Takes(clock), SIX_BATCHES, ckpt_path=path)
        assert trainer.progress.batches == 4
        trainer = make_bare(callbacks=Timer({"seconds": 50}))  # raised
        trainer.fit(Takes(clock), SIX_BATCHES, ckpt_path=path)
        assert trainer.progress.batches == 5

    def test_that_only_measures_may_stand_beside_one_that_stops(self, make_bare: Any, clock: Clock) -> None:
        measures = Timer()
        trainer = make_bare(callbacks=[measures, Timer({"seconds": 30})])
        trainer.fit(Takes(clock), SIX_BATCHES)
        assert measures.time_elapsed() == 30.0

    def test_starts_anew_with_each_fit(self, make_bare: Any, clock: Clock) -> None:
        trainer = make_bare(callbacks=Timer({"seconds": 30}))
        for _ in range(2):
            trainer.fit(Takes(clock), SIX_BATCHES)
            assert trainer.progress.batches == 3

    @pytest.mark.parametrize("settings", [{"interval": "batch"}, {"duration": "1 hour"}, {"duration": {"hour": 1}}])
    def test_that_makes_no_sense_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            Timer(**settings)

    def test_of_an_unknown_stage_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="no stage 'valid'") as error:
            Timer().time_elapsed("valid")
        assert error.value.fix == "did you mean 'validate'?"

    def test_on_several_ranks_stops_at_a_log_point(self, make_bare: Any, clock: Clock) -> None:
        """Only there they ask each other: the third batch is over time, the fourth is the last."""

        def train() -> int:
            trainer = make_bare(callbacks=Timer({"seconds": 30}), max_epochs=9, log_every_n_steps=4)
            trainer.fit(Takes(clock), DataLoader(torch.ones(24), batch_size=2))  # type: ignore[arg-type]
            return trainer.progress.batches

        assert on_trainer_ranks(2, train) == [4, 4]

    def test_takes_real_time(self, make_bare: Any) -> None:
        class Sleeps(Weight):
            def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
                time.sleep(0.02)
                return super().training_step(batch, batch_idx)

        timer = Timer()
        make_bare(callbacks=timer, max_steps=3, max_epochs=-1).fit(Sleeps(), SIX_BATCHES)
        assert 0.06 <= timer.time_elapsed() < 5


class TestALambdaCallback:
    def test_calls_functions_in_hooks(self, make_bare: Any) -> None:
        calls: list[Any] = []
        callback = LambdaCallback(
            on_train_start=lambda trainer, module: calls.append(type(module)),
            on_train_batch_end=lambda trainer, module, outputs, batch, batch_idx: calls.append(batch_idx),
            on_validation_batch_end=lambda trainer, module, outputs, batch, batch_idx: calls.append("val"),
            setup=lambda trainer, module, stage: calls.append(stage),
            on_train_end=None,
        )
        make_bare(callbacks=callback, num_sanity_val_steps=0, limit_train_batches=2, limit_val_batches=1).fit(
            Weight(), SIX_BATCHES, SIX_BATCHES
        )
        assert calls == ["fit", Weight, 0, 1, "val"]

    def test_may_skip_the_rest_of_an_epoch(self, make_bare: Any) -> None:
        """What a function returns is what the hook returns."""
        skips = LambdaCallback(on_train_batch_start=lambda trainer, module, batch, index: -1 if index == 2 else None)
        trainer = make_bare(callbacks=skips)
        trainer.fit(Weight(), SIX_BATCHES)
        assert trainer.global_step == 2

    def test_of_a_hook_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="on_train_epochs_end=") as error:
            LambdaCallback(on_train_epochs_end=print)
        assert error.value.fix == "did you mean 'on_train_epoch_end'?"

    def test_of_something_that_is_no_function_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="on_fit_end=5"):
            LambdaCallback(on_fit_end=5)  # type: ignore[arg-type]


class Collects(BasePredictionWriter):
    """Keeps what it is given to write."""

    def __init__(self, write_interval: Any = "batch") -> None:
        super().__init__(write_interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self,
        trainer: treadle.Trainer,
        module: treadle.Module,
        prediction: Any,
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction.tolist(), batch_indices, batch.tolist(), batch_idx, dataloader_idx))

    def write_on_epoch_end(
        self, trainer: treadle.Trainer, module: treadle.Module, predictions: list[Any], batch_indices: list[Any]
    ) -> None:
        self.epochs.append((predictions, batch_indices))


THREE = DataLoader(torch.arange(3.0), batch_size=2)  # type: ignore[arg-type]


class Mean(Weight):
    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # type: ignore[override]
        return batch * 2


class TestAPredictionWriter:
    def test_is_given_each_batch(self, make_bare: Any) -> None:
        writer = Collects("batch")
        make_bare(callbacks=writer).predict(Weight(), THREE, return_predictions=False)
        assert writer.batches == [([0.0, 2.0], [0, 1], [0.0, 1.0], 0, 0), ([4.0], [2], [2.0], 1, 0)]
        assert writer.epochs == []

    def test_is_given_all_of_them_at_the_end(self, make_bare: Any) -> None:
        writer = Collects("epoch")
        make_bare(callbacks=writer).predict(Weight(), THREE, return_predictions=False)
        ((predictions, indices),) = writer.epochs
        assert [prediction.tolist() for prediction in predictions] == [[0.0, 2.0], [4.0]]
        assert indices == [[[0, 1], [2]]]
        assert writer.batches == []

    def test_is_given_both(self, make_bare: Any) -> None:
        writer = Collects("batch_and_epoch")
        make_bare(callbacks=writer).predict(Weight(), THREE)
        assert (len(writer.batches), len(writer.epochs)) == (2, 1)

    def test_is_given_a_list_for_each_of_several_loaders(self, make_bare: Any) -> None:
        writer = Collects("batch_and_epoch")
        make_bare(callbacks=writer).predict(Mean(), [THREE, THREE], return_predictions=False)
        assert [(batch[3], batch[4]) for batch in writer.batches] == [(0, 0), (1, 0), (0, 1), (1, 1)]
        ((predictions, indices),) = writer.epochs
        assert [[p.tolist() for p in of_loader] for of_loader in predictions] == [[[0.0, 2.0], [4.0]]] * 2
        assert indices == [[[0, 1], [2]]] * 2

    def test_is_told_which_samples_of_a_shuffled_loader_they_are(self, make_bare: Any) -> None:
        writer = Collects("batch")
        shuffled = DataLoader(torch.arange(8.0), batch_size=3, shuffle=True)  # type: ignore[arg-type]
        make_bare(callbacks=writer).predict(Weight(), shuffled, return_predictions=False)
        for prediction, indices, _, _, _ in writer.batches:
            assert prediction == [2.0 * index for index in indices]

    def test_is_told_nothing_of_a_loader_that_has_no_indices(self, make_bare: Any) -> None:
        writer = Collects("batch")
        make_bare(callbacks=writer).predict(Weight(), [torch.ones(2)], return_predictions=False)
        assert writer.batches[0][1] is None

    def test_forgets_those_of_a_prediction_that_failed(self, make_bare: Any) -> None:
        class FailsOnce(Weight):
            failed = False

            def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # type: ignore[override]
                if batch_idx == 1 and not self.failed:
                    self.failed = True
                    raise Stop
                return batch

        writer = Collects("epoch")
        trainer, module = make_bare(callbacks=writer), FailsOnce()
        with pytest.raises(Stop):
            trainer.predict(module, THREE)
        trainer.predict(module, THREE)
        assert [indices for _, indices in writer.epochs] == [[[[0, 1], [2]]]]

    def test_by_batches_keeps_none(self, make_bare: Any) -> None:
        writer = Collects("batch")
        kept = []
        counts = LambdaCallback(on_predict_epoch_end=lambda *_: kept.append(writer._predictions))
        make_bare(callbacks=[counts, writer]).predict(Weight(), THREE, return_predictions=False)
        assert kept == [{}]

    def test_with_another_interval_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="write_interval='step'"):
            Collects("step")

    @pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
    def test_that_would_write_nothing_is_an_error(self, interval: Any) -> None:
        with pytest.raises(ConfigError, match="has no write_on_"):
            BasePredictionWriter(interval)


class TestAFolderOfPredictions:
    def test_has_a_file_for_each_batch(self, make_bare: Any, tmp_path: Path) -> None:
        make_bare(callbacks=PredictionWriter(tmp_path / "out")).predict(Weight(), THREE, return_predictions=False)
        files = sorted((tmp_path / "out").iterdir())
        assert [path.name for path in files] == ["batch-000000.pt", "batch-000001.pt"]
        found = [torch.load(path, weights_only=True) for path in files]
        assert [(item["prediction"].tolist(), item["batch_indices"]) for item in found] == [
            ([0.0, 2.0], [0, 1]),
            ([4.0], [2]),
        ]

    def test_of_several_loaders_says_which(self, make_bare: Any, tmp_path: Path) -> None:
        make_bare(callbacks=PredictionWriter(tmp_path)).predict(Mean(), [THREE, THREE])
        found = sorted(path.name for path in tmp_path.glob("*.pt"))
        assert found == [f"loader-{loader}-batch-00000{batch}.pt" for loader in (0, 1) for batch in (0, 1)]

    def test_holds_what_was_predicted_and_nothing_around_it(self, make_bare: Any, tmp_path: Path) -> None:
        """A slice of a large tensor is as small in its file."""

        class PredictsSlices(Weight):
            def predict_step(self, batch: Tensor) -> Tensor:
                return torch.zeros(1000, 100)[:2, 0]

        make_bare(callbacks=PredictionWriter(tmp_path)).predict(PredictsSlices(), THREE)
        assert max(path.stat().st_size for path in tmp_path.glob("*.pt")) < 10_000

    def test_says_which_rank_of_several_wrote(self, make_bare: Any, tmp_path: Path) -> None:
        def predict() -> None:
            make_bare(callbacks=PredictionWriter(tmp_path)).predict(Weight(), THREE)

        on_trainer_ranks(2, predict)
        assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
            f"rank-{rank}-batch-000000.pt" for rank in (0, 1)
        ]

    def test_with_predictions_of_another_run_is_an_error(self, make_bare: Any, tmp_path: Path) -> None:
        make_bare(callbacks=PredictionWriter(tmp_path)).predict(Weight(), THREE)
        with pytest.raises(ConfigError, match=r"holds predictions already: batch-000000\.pt and others"):
            make_bare(callbacks=PredictionWriter(tmp_path)).predict(Weight(), THREE)

    def test_that_cannot_be_made_is_an_error(self, make_bare: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="can't be written"):
            make_bare(callbacks=PredictionWriter(tmp_path / "file")).predict(Weight(), THREE)

    def test_holds_no_objects(self, make_bare: Any, tmp_path: Path) -> None:
        class PredictsObjects(Weight):
            def predict_step(self, batch: Tensor) -> Any:
                return {"when": timedelta(seconds=1)}

        with pytest.raises(CheckpointError, match="timedelta"):
            make_bare(callbacks=PredictionWriter(tmp_path)).predict(PredictsObjects(), THREE)
        assert list(tmp_path.iterdir()) == []


class Network(treadle.Module):
    """Layers of all kinds: nested, frozen, shared, unused, and a parameter of its own."""

    def __init__(self, example: Any = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.decoder = nn.Linear(8, 2).requires_grad_(False)
        self.tied = nn.Linear(8, 2)
        self.tied.weight = self.decoder.weight
        self.unused = nn.Linear(1, 1)
        self.scale = nn.Parameter(torch.ones(3))
        self.example_input_array = example
        self.runs, self.ran_in = 0, (True, True)

    def forward(self, points: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        self.runs += 1
        self.ran_in = (self.encoder.training, torch.is_grad_enabled())
        hidden = self.encoder(points) * factor
        hidden = hidden + 0 * torch.rand_like(hidden)
        return self.decoder(hidden), self.tied(hidden)


def lines(module: nn.Module, max_depth: int = 1) -> list[list[str]]:
    """The words of each line of the table."""
    return [line.split() for line in str(summarize(module, max_depth)).splitlines()]


class TestASummary:
    def test_lists_layers_and_totals(self) -> None:
        text = str(summarize(Network()))
        assert text == "\n".join(
            [
                "name       type        parameters  mode",
                "----------------------------------------",
                "encoder    Sequential          56  train",
                "decoder    Linear              18  train",
                "tied       Linear              18  train",
                "unused     Linear               2  train",
                "(its own)                       3  train",
                "",
                "63 trainable, 18 frozen, 81 parameters in total, 0.000 MB",
                "7 modules in train mode, 0 in eval mode",
            ]
        )

    def test_counts_a_shared_parameter_once(self) -> None:
        summary = summarize(Network())
        assert sum(layer.parameters for layer in summary.layers) == 97
        assert summary.total == 81

    def test_counts_bytes_as_they_are_stored(self) -> None:
        assert summarize(nn.Linear(1000, 1000, bias=False)).size_mb == 4.0
        assert summarize(nn.Linear(1000, 1000, bias=False).bfloat16()).size_mb == 2.0

    def test_says_what_is_in_eval_mode(self) -> None:
        module = Network()
        module.encoder.eval()
        summary = summarize(module)
        assert [layer.training for layer in summary.layers] == [False, True, True, True, True]
        assert (summary.training_modules, summary.eval_modules) == (3, 4)

    @pytest.mark.parametrize("depth, listed", [(0, 0), (1, 5), (2, 8), (-1, 8)])
    def test_goes_as_deep_as_it_is_told(self, depth: int, listed: int) -> None:
        assert len(summarize(Network(), depth).layers) == listed

    def test_shows_what_goes_in_and_comes_out(self) -> None:
        table = lines(Network(example=torch.ones(5, 4)))
        assert table[0] == ["name", "type", "parameters", "mode", "in", "size", "out", "size"]
        assert table[2][4:] == ["[5,", "4]", "[5,", "8]"]
        assert table[3][4:] == ["[5,", "8]", "[5,", "2]"]
        assert table[5][4:] == ["?", "?"], "a layer that was not run"

    @pytest.mark.parametrize(
        "example", [(torch.ones(5, 4), 2.0), {"points": torch.ones(5, 4), "factor": 2.0}], ids=["tuple", "dict"]
    )
    def test_takes_an_example_of_several_arguments(self, example: Any) -> None:
        assert summarize(Network(example)).layers[0].out_size == [5, 8]

    def test_takes_an_example_in_another_format(self) -> None:
        assert summarize(Network(torch.ones(5, 4)).bfloat16()).layers[0].out_size == [5, 8]

    def test_shows_outputs_with_several_parts(self) -> None:
        module = nn.Sequential(nn.LSTM(4, 2, batch_first=True))
        module.example_input_array = torch.ones(1, 3, 4)  # type: ignore[assignment]
        assert summarize(module).layers[0].out_size == [[1, 3, 2], [[1, 1, 2], [1, 1, 2]]]

    def test_shows_a_layer_that_runs_twice_as_it_ran_first(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2)
                self.example_input_array = torch.ones(4, 2)

            def forward(self, points: Tensor) -> Any:
                return self.layer(self.layer(points)[:1])

        assert summarize(Twice()).layers[0].in_size == [4, 2]

    def test_leaves_no_trace_in_the_module(self) -> None:
        """Run on its example, it has its modes, buffers, gradients and hooks as before, and no number was drawn."""
        module = Network(example=torch.randn(5, 4))
        module.tied.eval()
        module.scale.grad = torch.ones(3)
        before = copy.deepcopy(module.state_dict())
        modes = [submodule.training for submodule in module.modules()]
        generator = torch.get_rng_state()
        summarize(module, max_depth=-1)
        assert (module.runs, module.ran_in) == (1, (False, False)), "in eval mode, without gradients"
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
        assert [submodule.training for submodule in module.modules()] == modes
        assert torch.equal(torch.get_rng_state(), generator)
        assert [name for name, p in module.named_parameters() if p.grad is not None] == ["scale"]
        assert not any(submodule._forward_hooks for submodule in module.modules())

    def test_leaves_buffers_alone_that_change_in_eval_mode_too(self) -> None:
        class Counts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2)
                self.register_buffer("calls", torch.zeros(()))
                self.example_input_array = torch.ones(1, 2)

            def forward(self, points: Tensor) -> Any:
                self.calls.add_(1)  # type: ignore[operator, union-attr]
                return self.layer(points)

        module = Counts()
        summarize(module)
        assert module.calls == 0

    def test_of_a_module_that_fails_on_its_example_is_an_error_without_a_trace(self) -> None:
        module = Network(example=torch.ones(5, 3))
        with pytest.raises(ModuleError, match="Network fails on its example_input_array: RuntimeError") as error:
            summarize(module)
        assert isinstance(error.value.__cause__, RuntimeError)
        assert module.training
        assert not any(submodule._forward_hooks for submodule in module.modules())

    def test_does_not_run_layers_that_wait_for_their_shape(self) -> None:
        """Running them would give it to them."""
        module = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
        module.example_input_array = torch.ones(1, 2)  # type: ignore[assignment]
        summary = summarize(module)
        assert (summary.total, summary.uncounted, summary.layers[0].in_size) == (6, 2, None)
        assert str(summary).endswith("not counted: 2 parameters that take their shape from the first batch")

    def test_of_nothing_is_short(self) -> None:
        assert str(summarize(nn.Identity())).splitlines() == [
            "0 trainable, 0 frozen, 0 parameters in total, 0.000 MB",
            "0 modules in train mode, 0 in eval mode",
        ]

    @pytest.mark.parametrize("depth", [-2, 1.0, True, "all"])
    def test_of_a_depth_that_is_none_is_an_error(self, depth: Any) -> None:
        with pytest.raises(ConfigError, match="max_depth="):
            summarize(Network(), depth)
        with pytest.raises(ConfigError, match="max_depth="):
            ModelSummary(depth)


class TestTheModelSummary:
    def test_is_printed_once_when_a_fit_starts(self, make_bare: Any, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = make_bare(callbacks=ModelSummary(), max_epochs=2)
        trainer.fit(Classifier(), datamodule=Points())
        printed = capsys.readouterr()
        assert printed.err.count("parameters in total") == 1
        assert "layers  Sequential          22  train" in printed.err
        assert printed.out == ""
        trainer.test(datamodule=Points(), verbose=False)
        assert "parameters in total" not in capsys.readouterr().err

    def test_changes_nothing_in_the_run(self, make_bare: Any) -> None:
        def weights(*callbacks: treadle.Callback) -> list[Tensor]:
            treadle.seed_everything(3)
            module = Classifier()
            module.example_input_array = torch.ones(2, 2)
            make_bare(callbacks=list(callbacks)).fit(module, datamodule=Points())
            return list(module.parameters())

        for one, other in zip(weights(), weights(ModelSummary()), strict=True):
            assert torch.equal(one, other)


class FailsAt(Classifier):
    """Raises ``error`` in the given batch of training."""

    batch = 0
    error: BaseException = Stop()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == self.batch:
            raise self.error
        return super().training_step(batch, batch_idx)


def failing(batch: int, message: str = "") -> FailsAt:
    module = FailsAt()
    module.batch, module.error = batch, Stop(message)
    return module


class TestWhenTrainingFails:
    def test_the_run_is_saved_and_the_exception_goes_on(
        self, make_bare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        callback = OnExceptionCheckpoint(tmp_path / "rescued")
        with pytest.raises(Stop, match="mine"):
            make_bare(callbacks=callback).fit(failing(2, "mine"), datamodule=Points())
        assert callback.ckpt_path == str(tmp_path / "rescued" / "on_exception.ckpt")
        assert torch.load(callback.ckpt_path, weights_only=True)["global_step"] == 2
        assert f"saved {callback.ckpt_path}" in capsys.readouterr().err

    def test_it_can_be_resumed(self, make_bare: Any, tmp_path: Path) -> None:
        callback = OnExceptionCheckpoint(tmp_path)
        with pytest.raises(Stop):
            make_bare(callbacks=callback).fit(failing(2), datamodule=Points())
        trainer = make_bare(callbacks=OnExceptionCheckpoint(tmp_path), max_epochs=2)
        trainer.fit(Classifier(), datamodule=Points(), ckpt_path=callback.ckpt_path)
        assert trainer.current_epoch == 2

    def test_by_the_keyboard_too(self, make_bare: Any, tmp_path: Path) -> None:
        module = failing(2)
        module.error = KeyboardInterrupt()
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            make_bare(callbacks=OnExceptionCheckpoint(tmp_path)).fit(module, datamodule=Points())
        assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["global_step"] == 2

    def test_in_a_validation_of_the_fit_too(self, make_bare: Any, tmp_path: Path) -> None:
        class FailsToValidate(Classifier):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                raise Stop

        with pytest.raises(Stop):
            make_bare(callbacks=OnExceptionCheckpoint(tmp_path), num_sanity_val_steps=0).fit(
                FailsToValidate(), datamodule=Points()
            )
        assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["global_step"] == 5

    def test_a_name_of_ones_own(self, make_bare: Any, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            make_bare(callbacks=OnExceptionCheckpoint(tmp_path, filename="oh")).fit(failing(1), datamodule=Points())
        assert [path.name for path in tmp_path.glob("*.ckpt")] == ["oh.ckpt"]

    def test_a_failure_to_save_does_not_hide_it(
        self, make_bare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(Stop, match="the first"):
            make_bare(callbacks=OnExceptionCheckpoint(tmp_path / "file")).fit(
                failing(1, "the first"), datamodule=Points()
            )
        assert "on_exception.ckpt was not saved. CheckpointError: " in capsys.readouterr().err

    def test_before_the_first_batch_an_earlier_file_stays(self, make_bare: Any, tmp_path: Path) -> None:
        """A run that fails to start has nothing to save, and the file of the one before may be needed."""

        class FailsToStart(Classifier):
            def configure_optimizers(self) -> Any:
                raise Stop

        (tmp_path / "on_exception.ckpt").write_text("precious")
        with pytest.raises(Stop):
            make_bare(callbacks=OnExceptionCheckpoint(tmp_path)).fit(FailsToStart(), datamodule=Points())
        assert (tmp_path / "on_exception.ckpt").read_text() == "precious"

    def test_an_evaluation_saves_nothing(self, make_bare: Any, tmp_path: Path) -> None:
        class FailsToTest(Classifier):
            def test_step(self, batch: Any, batch_idx: int) -> None:
                raise Stop

        trainer = make_bare(callbacks=OnExceptionCheckpoint(tmp_path))
        trainer.fit(FailsToTest(), datamodule=Points())
        with pytest.raises(Stop):
            trainer.test(datamodule=Points())
        assert list(tmp_path.glob("*.ckpt")) == []

    def test_nothing_is_saved_without_an_exception(self, make_trainer: Any, tmp_path: Path) -> None:
        trainer = make_trainer(callbacks=[OnExceptionCheckpoint(tmp_path), ModelCheckpoint()])
        trainer.fit(Classifier(), datamodule=Points())
        assert list(tmp_path.glob("*.ckpt")) == []

    def test_an_empty_name_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="filename=''"):
            OnExceptionCheckpoint(tmp_path, filename="")
