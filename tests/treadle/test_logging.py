"""What self.log does with a number: when it is written, under which name, and reduced how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import treadle
from treadle.errors import ConfigError, DataError, ModuleError
from treadle.metrics import scope_of
from treadle.testing import MemoryLogger


class Logs(treadle.Module):
    """Calls ``self.log`` with the given arguments in the hook of the given name; the value may depend on the batch."""

    def __init__(self, hook: str, value: Any = 1.0, name: str = "x", **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.value = value if callable(value) else lambda batch: value
        self.arguments = (name, settings)
        if hook not in ("training_step", "validation_step", "test_step", "predict_step"):
            setattr(self, hook, lambda *_: self.note(None))
        self.hook = hook

    def note(self, batch: Any) -> None:
        name, settings = self.arguments
        self.log(name, self.value(batch), **settings)

    def _step(self, name: str, batch: Any) -> Any:
        if self.hook == name:
            self.note(batch)
        return batch

    def training_step(self, batch: Any) -> Tensor:
        self._step("training_step", batch)
        return self.weight * 1.0

    def validation_step(self, batch: Any) -> None:
        self._step("validation_step", batch)

    def test_step(self, batch: Any) -> None:
        self._step("test_step", batch)

    def predict_step(self, batch: Any) -> Any:
        return self._step("predict_step", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


NUMBERS = [torch.tensor([float(n)]) for n in range(1, 7)]


@pytest.fixture
def logged(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., list[dict[str, float]]]:
    """The rows of a fit on six batches 1.0 to 6.0 (validated on the same) with a module that logs as given."""

    def rows(hook: str, value: Any = 1.0, loader: Any = NUMBERS, **arguments: Any) -> list[dict[str, float]]:
        trainer_settings = {"log_every_n_steps": 2, **arguments.pop("trainer", {})}
        logger = MemoryLogger()
        make_bare(logger=logger, **trainer_settings).fit(Logs(hook, value, **arguments), loader, loader)
        return logger.rows

    return rows


class TestByDefault:
    def test_training_logs_steps(self, logged: Any) -> None:
        """The value at each second step; the row's step is that of the batch, counted from 0."""
        assert logged("training_step", lambda batch: batch) == [
            {"step": 1, "epoch": 0, "x": 2.0},
            {"step": 3, "epoch": 0, "x": 4.0},
            {"step": 5, "epoch": 0, "x": 6.0},
        ]

    def test_validation_logs_the_mean_over_its_batches(self, logged: Any) -> None:
        """At the step of the batch that was trained on last."""
        assert logged("validation_step", lambda batch: batch) == [{"step": 5, "epoch": 0, "x": 3.5}]

    @pytest.mark.parametrize(
        "hook", ["on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_before_optimizer_step"]
    )
    def test_hooks_of_a_training_batch_log_steps(self, logged: Any, hook: str) -> None:
        assert [row["step"] for row in logged(hook)] == [1, 3, 5]

    @pytest.mark.parametrize(
        "hook",
        [
            *["on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start"],
            *["on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end"],
            "on_validation_epoch_end",
        ],
    )
    def test_other_hooks_log_one_row_an_epoch(self, logged: Any, hook: str) -> None:
        assert logged(hook) == [{"step": 5, "epoch": 0, "x": 1.0}]

    @pytest.mark.parametrize("hook", ["test_step", "on_test_start", "on_test_batch_end", "on_test_epoch_end"])
    def test_hooks_of_a_test_log_one_result(self, make_bare: Any, hook: str) -> None:
        assert make_bare().test(Logs(hook), NUMBERS, verbose=False) == [{"x": 1.0}]

    def test_a_callback_logs_as_its_hook(self, make_bare: Any) -> None:
        class Speed(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                module.log("speed", 7.0)

        logger = MemoryLogger()
        make_bare(logger=logger, callbacks=Speed(), log_every_n_steps=5).fit(Logs("test_step"), NUMBERS)
        assert logger.rows == [{"step": 4, "epoch": 0, "speed": 7.0}]


class TestForbiddenPlaces:
    """Where there is no row to write to, a number that is logged would vanish."""

    @pytest.mark.parametrize(
        "hook",
        [
            *["prepare_data", "setup", "configure_optimizers", "train_dataloader", "on_fit_start", "on_train_end"],
            *["on_fit_end", "on_validation_end", "teardown"],
        ],
    )
    def test_of_a_fit_are_an_error(self, make_bare: Any, hook: str) -> None:
        with pytest.raises(ModuleError, match="where nothing can be logged"):
            make_bare().fit(Logs(hook), None if hook == "train_dataloader" else NUMBERS, NUMBERS)

    def test_when_saving_is_one(self, make_trainer: Any) -> None:
        with pytest.raises(ModuleError, match="where nothing can be logged"):
            make_trainer(logger=False).fit(Logs("on_save_checkpoint"), NUMBERS)

    def test_on_test_end_is_one(self, make_bare: Any) -> None:
        with pytest.raises(ModuleError, match="where nothing can be logged"):
            make_bare().test(Logs("on_test_end"), NUMBERS)

    @pytest.mark.parametrize("hook", ["predict_step", "on_predict_start", "on_predict_batch_end", "on_predict_end"])
    def test_prediction_is_one(self, make_bare: Any, hook: str) -> None:
        with pytest.raises(ModuleError, match="where nothing can be logged"):
            make_bare().predict(Logs(hook), NUMBERS)

    def test_a_savepoint_is_one(self, make_bare: Any) -> None:
        class LogsTooLate(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                module.log("x", 1.0)

        with pytest.raises(ModuleError, match="where nothing can be logged"):
            make_bare(callbacks=LogsTooLate()).fit(Logs("test_step"), NUMBERS)

    def test_outside_of_a_run_it_only_warns(self) -> None:
        """A module works alone, its steps too."""
        with pytest.warns(treadle.errors.TreadleWarning, match=r"treadle\[log\].*not written anywhere"):
            Logs("training_step").training_step(NUMBERS[0])


class TestNames:
    def test_of_both_step_and_epoch_end_in_which_it_is(self, logged: Any) -> None:
        assert logged("training_step", lambda batch: batch, on_step=True, on_epoch=True) == [
            {"step": 1, "epoch": 0, "x_step": 2.0},
            {"step": 3, "epoch": 0, "x_step": 4.0},
            {"step": 5, "epoch": 0, "x_step": 6.0},
            {"step": 5, "epoch": 0, "x_epoch": 3.5},
        ]

    def test_of_both_are_known_to_callbacks_plainly_too(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Logs("training_step", lambda batch: batch, on_step=True, on_epoch=True), NUMBERS)
        found = {name: value.item() for name, value in trainer.callback_metrics.items()}
        assert found == {"x_step": 6.0, "x_epoch": 3.5, "x": 3.5}

    def test_of_both_are_the_steps_until_the_epoch_is_over(self, make_bare: Any) -> None:
        """Plainly: the value at hand inside the epoch, the mean when it ends."""
        seen = []

        class Looks(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                seen.append(trainer.callback_metrics["x"].item())

            def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
                seen.append(trainer.callback_metrics["x"].item())

        model = Logs("training_step", lambda batch: batch, on_step=True, on_epoch=True)
        make_bare(callbacks=Looks(), max_epochs=2).fit(model, NUMBERS[:2])
        assert seen == [1.0, 2.0, 1.5] * 2

    def test_of_training_and_validation_are_apart(self, make_bare: Any) -> None:
        """The same name in both: each has its own rows."""

        class Both(Logs):
            def training_step(self, batch: Any) -> Tensor:
                self.log("x", 10.0)
                return super().training_step(batch)

        logger = MemoryLogger()
        make_bare(logger=logger, log_every_n_steps=6).fit(Both("validation_step", 20.0), NUMBERS, NUMBERS)
        assert [row["x"] for row in logger.rows] == [10.0, 20.0]

    def test_called_step_set_the_x_axis(self, logged: Any) -> None:
        rows = logged("on_train_epoch_end", 77.0, name="step")
        assert rows == [{"step": 77.0, "epoch": 0}]

    def test_of_a_dict_are_its_keys(self, make_bare: Any) -> None:
        class Many(Logs):
            def training_step(self, batch: Any) -> Tensor:
                self.log_dict({"a": 1.0, "b": batch}, on_step=False, on_epoch=True)
                return super().training_step(batch)

        logger = MemoryLogger()
        make_bare(logger=logger).fit(Many("none"), NUMBERS)
        assert logger.rows == [{"step": 5, "epoch": 0, "a": 1.0, "b": 3.5}]


class TestTheInterval:
    def test_counts_steps_over_epochs(self, logged: Any) -> None:
        rows = logged("training_step", trainer={"log_every_n_steps": 4, "max_epochs": 2})
        assert [(row["step"], row["epoch"]) for row in rows] == [(3, 0), (7, 1), (11, 1)]

    def test_counts_optimizer_steps(self, logged: Any) -> None:
        rows = logged("training_step", trainer={"log_every_n_steps": 1, "accumulate_grad_batches": 2})
        assert [row["step"] for row in rows] == [0, 1, 2]

    def test_writes_nothing_that_was_not_logged_since(self, make_bare: Any) -> None:
        """A metric of every fifth batch has rows where it was logged, not its old value in between."""

        class Rare(Logs):
            def training_step(self, batch: Any) -> Tensor:
                if batch.item() == 5.0:
                    self.log("rare", batch)
                return super().training_step(batch)

        logger = MemoryLogger()
        make_bare(logger=logger, log_every_n_steps=1).fit(Rare("none"), NUMBERS)
        assert logger.rows == [{"step": 4, "epoch": 0, "rare": 5.0}]

    def test_does_not_thin_out_epochs(self, logged: Any) -> None:
        assert len(logged("on_train_epoch_end", trainer={"log_every_n_steps": 1000})) == 1

    def test_keeps_what_is_not_for_loggers_from_them(self, logged: Any) -> None:
        assert logged("training_step", logger=False) == logged("validation_step", logger=False) == []


# --- means ---


class Samples(Dataset[Any]):
    """Ten samples with values 0 to 9, as a dict with a key that misleads: its tensor has three elements."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"a first one": torch.zeros(3), "value": torch.tensor(float(index))}


def odd(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch whose first tensor says 3 however many samples it has."""
    return {"a first one": torch.zeros(3), "value": torch.stack([sample["value"] for sample in samples])}


def mean_of(batch: Any) -> Tensor:
    return batch["value"].mean()


class TestMeans:
    @pytest.mark.parametrize("collate", [None, odd], ids=["a dict", "a first tensor that misleads"])
    @pytest.mark.parametrize("hook", ["training_step", "validation_step"])
    def test_are_weighted_by_the_size_of_each_batch(self, logged: Any, hook: str, collate: Any) -> None:
        """Ten samples in batches of 4, 4 and 2: the mean over the samples, 4.5, not the one over the batches, 5.17."""
        loader = DataLoader(Samples(), 4, collate_fn=collate)
        assert logged(hook, mean_of, loader, on_step=False, on_epoch=True)[-1]["x"] == 4.5

    def test_know_the_size_where_the_batch_is_not_a_tensor_at_all(self, logged: Any) -> None:
        """The loader's sampler says it: 4, 4, 2."""
        loader = DataLoader(range(10), 4, collate_fn=lambda samples: tuple(map(float, samples)))  # type: ignore[arg-type]
        assert logged("validation_step", lambda batch: sum(batch) / len(batch), loader)[-1]["x"] == 4.5

    def test_with_worker_processes(self, logged: Any) -> None:
        loader = DataLoader(Samples(), 4, num_workers=1, collate_fn=odd)
        assert logged("validation_step", mean_of, loader)[-1]["x"] == 4.5

    def test_of_a_plain_iterable_go_by_the_tensors(self, logged: Any) -> None:
        batches = [{"value": torch.arange(4.0)}, {"value": torch.arange(4.0, 6.0)}]
        assert logged("validation_step", mean_of, batches)[-1]["x"] == 2.5

    def test_of_an_iterable_whose_tensors_disagree_are_an_error(self, logged: Any) -> None:
        """Guessing would be wrong without a word; the message says what to type."""
        batches = [odd([{"value": torch.tensor(1.0)}])]
        with pytest.raises(DataError, match=r"leading sizes \[1, 3\](.|\n)*batch_size=") as error:
            logged("validation_step", mean_of, batches)
        assert error.value.fix.startswith("self.log(")

    def test_of_a_short_last_batch_of_an_iterable_data_set_are_not_guessed(self, logged: Any) -> None:
        """The loader's batch_size is 4 and so is another leading size: the last batch of 2 must not count as 4."""
        loader = DataLoader(Stream10(), batch_size=4, collate_fn=misleading)
        with pytest.raises(DataError, match="size of a batch is not known"):
            logged("validation_step", mean_of, loader)

    def test_take_the_size_they_are_told(self, logged: Any) -> None:
        batches = [odd([{"value": torch.tensor(float(value))}] * size) for value, size in ((1, 4), (2, 1))]

        class Told(Logs):
            def validation_step(self, batch: Any) -> None:
                self.log("x", mean_of(batch), batch_size=len(batch["value"]))

        logger = MemoryLogger()
        treadle.Trainer(
            max_epochs=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0
        ).fit(Told("none"), NUMBERS, batches)
        assert logger.rows[-1]["x"] == pytest.approx(6 / 5)

    def test_do_not_ask_for_a_size_they_do_not_need(self, logged: Any) -> None:
        """Steps, sums and extremes are not weighted."""
        batches = [odd([{"value": torch.tensor(1.0)}])] * 2
        assert logged("training_step", mean_of, batches)[-1]["x"] == 1.0
        assert logged("validation_step", mean_of, batches, reduce_fx="sum")[-1]["x"] == 2.0

    def test_start_anew_in_each_epoch(self, make_bare: Any) -> None:
        logger = MemoryLogger()
        model = Logs("training_step", on_step=False, on_epoch=True)
        model.value = lambda batch: batch * (model.current_epoch + 1)
        make_bare(logger=logger, max_epochs=2).fit(model, NUMBERS)
        assert [row["x"] for row in logger.rows] == [3.5, 7.0]


class Stream10(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Samples()[index] for index in range(10)])


def misleading(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {**odd(samples), "a first one": torch.zeros(4)}


class TestReductions:
    @pytest.mark.parametrize("how, result", [("mean", 3.5), ("sum", 21.0), ("min", 1.0), ("max", 6.0)])
    @pytest.mark.parametrize("kind", [float, torch.tensor, lambda value: torch.tensor(value).int()])
    def test_over_an_epoch(self, logged: Any, how: str, result: float, kind: Any) -> None:
        rows = logged("training_step", lambda b: kind(b.item()), reduce_fx=how, on_step=False, on_epoch=True)
        assert rows == [{"step": 5, "epoch": 0, "x": result}]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_count_exactly_in_any_format(self, logged: Any, dtype: torch.dtype) -> None:
        """Added up in bfloat16, ones never get beyond 256."""
        ones = [torch.ones(1, dtype=dtype)] * 3000
        settings = {"on_step": False, "on_epoch": True, "trainer": {"limit_val_batches": 0}}
        assert logged("training_step", lambda batch: batch, ones, reduce_fx="sum", **settings)[-1]["x"] == 3000
        assert logged("training_step", lambda batch: batch, ones, **settings)[-1]["x"] == 1.0

    def test_keep_the_digits_of_small_values(self, make_bare: Any) -> None:
        """A million in float32 swallows 0.01; the sum keeps it."""
        values = [torch.tensor([1e6]), *[torch.tensor([0.01])] * 1000]
        (result,) = make_bare().test(Logs("test_step", lambda b: b, reduce_fx="sum"), values, verbose=False)
        assert result["x"] == pytest.approx(1e6 + 10, abs=1e-3)

    def test_are_of_the_values_as_they_were(self, make_bare: Any) -> None:
        """A tensor that the user changes in place later was logged with what it held then."""
        counter = torch.zeros((), dtype=torch.float64)
        model = Logs("test_step", lambda batch: counter.add_(1), reduce_fx="sum")
        assert make_bare().test(model, NUMBERS, verbose=False) == [{"x": 21.0}]

    def test_carry_a_nan(self, logged: Any) -> None:
        """A mean over something that is not a number is none."""
        rows = logged("validation_step", lambda b: b if b.item() != 3 else b * float("nan"))
        assert np.isnan(rows[-1]["x"])


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [
            *[2, 2.0, True + 1, np.float32(2), np.float64(2), np.int64(2)],
            *[torch.tensor(2), torch.tensor([[2.0]]), torch.tensor(2.0, dtype=torch.bfloat16)],
            torch.tensor(2.0, requires_grad=True),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("hook", ["training_step", "validation_step"])
    def test_of_many_kinds_are_numbers(self, logged: Any, hook: str, value: Any) -> None:
        assert logged(hook, value)[-1]["x"] == 2.0

    @pytest.mark.parametrize("value", [torch.ones(3), torch.ones(0), "high", None, [1.0], {"a": 1.0}, np.ones(2)])
    def test_that_are_no_number_are_an_error(self, logged: Any, value: Any) -> None:
        with pytest.raises(ModuleError, match=r"self.log\('x'\) was given a"):
            logged("training_step", lambda batch: value)

    def test_hold_no_graph(self, make_bare: Any) -> None:
        """Logging a loss doesn't keep its activations in memory."""
        trainer = make_bare()
        trainer.fit(Logs("training_step", torch.tensor(1.0, requires_grad=True) * 2, on_epoch=True), NUMBERS)
        assert not any(value.requires_grad for value in trainer.callback_metrics.values())

    def test_are_written_as_they_were(self, logged: Any) -> None:
        """A counter that is changed in place after it was logged, before the row is written."""

        class Counter(Logs):
            def training_step(self, batch: Any) -> Tensor:
                self.log("seen", self.seen)
                self.seen += 1
                return self.weight * 1.0

        model, logger = Counter("none"), MemoryLogger()
        model.register_buffer("seen", torch.zeros(()))
        treadle.Trainer(
            max_epochs=1, logger=logger, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=3
        ).fit(model, NUMBERS)
        assert [row["seen"] for row in logger.rows] == [2.0, 5.0]


class TestOneNameTwice:
    def test_in_one_hook_with_other_settings_is_an_error(self, make_bare: Any) -> None:
        class Twice(Logs):
            def training_step(self, batch: Any) -> Tensor:
                self.log("x", 1.0)
                self.log("x", 2.0, prog_bar=True)
                return super().training_step(batch)

        with pytest.raises(ConfigError, match="twice in one hook with different settings"):
            make_bare().fit(Twice("none"), NUMBERS)

    def test_in_one_hook_with_the_same_settings_is_reduced(self, make_bare: Any) -> None:
        class Twice(Logs):
            def test_step(self, batch: Any) -> None:
                self.log("x", 1.0)
                self.log("x", 2.0)

        assert make_bare().test(Twice("none"), NUMBERS, verbose=False) == [{"x": 1.5}]


class TestSettingsThatMakeNoSense:
    @pytest.mark.parametrize(
        "hook, settings, message",
        [
            ("training_step", {"reduce_fx": "median"}, "reduce_fx='median'"),
            ("on_train_epoch_end", {"on_step": True}, "on_step=True"),
            ("training_step", {"on_step": False, "on_epoch": False}, "on_step=False, on_epoch=False"),
        ],
    )
    def test_are_an_error(self, logged: Any, hook: str, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            logged(hook, **settings)


# --- who sees it ---


class TestCallbackMetrics:
    def test_are_tensors_by_name(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Logs("validation_step", lambda batch: batch), NUMBERS, NUMBERS)
        assert list(trainer.callback_metrics) == ["x"]
        assert isinstance(trainer.callback_metrics["x"], Tensor)
        assert trainer.callback_metrics["x"].item() == 3.5

    def test_have_steps_at_once(self, make_bare: Any) -> None:
        """on_train_batch_end sees what training_step logged, whatever log_every_n_steps says."""
        seen = []

        class Reads(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                seen.append(trainer.callback_metrics["x"].item())

        make_bare(callbacks=Reads()).fit(Logs("training_step", lambda batch: batch), NUMBERS)
        assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    def test_keep_the_last_step_after_the_fit(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Logs("training_step", lambda batch: batch), NUMBERS)
        assert trainer.callback_metrics["x"].item() == 6.0

    def test_have_what_is_not_for_loggers(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Logs("validation_step", logger=False), NUMBERS, NUMBERS)
        assert trainer.callback_metrics["x"].item() == 1.0


class TestLoggedMetrics:
    def test_are_what_was_written_last(self, make_bare: Any) -> None:
        trainer = make_bare(logger=MemoryLogger(), log_every_n_steps=4)
        trainer.fit(Logs("training_step", lambda batch: batch), NUMBERS)
        assert trainer.logged_metrics == {"x": 4.0}


class TestTheProgressBar:
    def bar(self, make_bare: Any, hook: str, when: str, **settings: Any) -> dict[str, float]:
        seen: list[dict[str, float]] = []
        reads = treadle.Callback()
        setattr(reads, when, lambda trainer, *_: seen.append(trainer.progress_bar_metrics))
        make_bare(callbacks=reads, max_epochs=2).fit(Logs(hook, lambda batch: batch, **settings), NUMBERS, NUMBERS)
        return seen[-1]

    def test_shows_what_was_meant_for_it(self, make_bare: Any) -> None:
        assert self.bar(make_bare, "training_step", "on_train_batch_end", prog_bar=True) == {"x": 6.0}

    def test_shows_nothing_else(self, make_bare: Any) -> None:
        assert self.bar(make_bare, "training_step", "on_train_batch_end") == {}

    def test_goes_on_showing_the_last_validation(self, make_bare: Any) -> None:
        """While the next epoch trains, its users look at the result of the one before."""
        assert self.bar(make_bare, "validation_step", "on_train_batch_start", prog_bar=True) == {"x": 3.5}


class TestResults:
    def test_of_a_test_are_a_dict_of_floats(self, make_bare: Any, capsys: Any) -> None:
        results = make_bare().test(Logs("test_step", lambda batch: batch, name="accuracy"), NUMBERS)
        assert results == [{"accuracy": 3.5}]
        assert type(results[0]["accuracy"]) is float
        assert "accuracy  3.5" in capsys.readouterr().out

    def test_are_not_printed_when_not_wanted(self, make_bare: Any, capsys: Any) -> None:
        make_bare().validate(Logs("validation_step"), NUMBERS, verbose=False)
        assert capsys.readouterr().out == ""

    def test_are_written_to_loggers_too(self, make_bare: Any) -> None:
        logger = MemoryLogger()
        make_bare(logger=logger).test(Logs("test_step"), NUMBERS, verbose=False)
        assert logger.rows == [{"step": 0, "epoch": 0, "x": 1.0}]

    def test_have_both_names_where_both_were_asked_for(self, make_bare: Any) -> None:
        logger = MemoryLogger()
        model = Logs("test_step", lambda batch: batch, on_step=True, on_epoch=True)
        (results,) = make_bare(logger=logger).test(model, NUMBERS[:2], verbose=False)
        assert results == {"x_epoch": 1.5}
        assert [(row["step"], row.get("x_step"), row.get("x_epoch")) for row in logger.rows] == [
            *[(0, 1.0, None), (1, 2.0, None)],
            (0, None, 1.5),
        ]


# --- cost ---


class TestReadingFromTheDevice:
    def test_happens_at_log_points_only(self, make_bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between them nothing asks a tensor for its number: on an accelerator each such question stops the queue."""
        asked: list[str] = []
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy"):
            method = getattr(Tensor, name)

            def counted(self: Tensor, *arguments: Any, name: str = name, method: Any = method) -> Any:
                asked.append(name)
                return method(self, *arguments)

            monkeypatch.setattr(Tensor, name, counted)
        before = {}

        class Notes(treadle.Callback):
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                asked.clear()

            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                before[batch_idx] = len(asked)

        model = Logs("training_step", lambda batch: batch, prog_bar=True, on_step=True, on_epoch=True)
        make_bare(logger=MemoryLogger(), callbacks=Notes(), log_every_n_steps=4).fit(model, NUMBERS)
        assert [before[index] for index in range(6)] == [0, 0, 0, 0, 1, 1]


class TestScopes:
    def test_know_every_hook(self) -> None:
        """Each hook either has a default or is forbidden; a new one has to be thought about here."""
        allowed = {name for name in treadle.callbacks.base.HOOKS if scope_of(name) is not None}
        steps = {name for name in allowed if scope_of(name).on_step}  # type: ignore[union-attr]
        assert steps == {
            *["on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"],
            *["on_after_backward", "on_before_optimizer_step"],
        }
        assert set(treadle.callbacks.base.HOOKS) - allowed == {
            *["setup", "teardown", "on_fit_start", "on_fit_end", "on_train_end", "on_validation_end", "on_test_end"],
            *["on_sanity_check_start", "on_sanity_check_end", "on_savepoint", "on_exception"],
            "on_validation_interrupted",
            *["on_save_checkpoint", "on_load_checkpoint", "on_predict_start", "on_predict_end"],
            *["on_predict_epoch_start", "on_predict_epoch_end", "on_predict_batch_start", "on_predict_batch_end"],
        }


def test_the_folder_stays_empty_without_loggers(make_bare: Any, tmp_path: Path) -> None:
    make_bare().fit(Logs("training_step"), NUMBERS)
    assert list(tmp_path.iterdir()) == []
