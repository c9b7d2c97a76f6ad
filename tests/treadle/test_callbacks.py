"""ModelCheckpoint, EarlyStopping, and what holds for every callback."""

import copy
import pickle
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import EarlyStopping, ModelCheckpoint
from treadle.errors import CheckpointError, ConfigError, ModuleError, TreadleWarning
from treadle.testing import Classifier, MemoryLogger, Points, Recorder

BATCHES = DataLoader(torch.ones(4), batch_size=2)  # type: ignore[arg-type]


class Scripted(treadle.Module):
    """Its validations report the given values, one after the other."""

    def __init__(self, values: Sequence[float], name: str = "val_loss") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.values, self.name, self.validations = list(values), name, 0

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.weight * batch.mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log(self.name, self.values[min(self.validations, len(self.values) - 1)])

    def on_validation_end(self) -> None:
        self.validations += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def fit(make_trainer: Callable[..., treadle.Trainer]) -> Callable[..., treadle.Trainer]:
    """A fit of as many epochs as there are values, two steps each, with the given callback."""

    def run(callback: treadle.Callback, values: Sequence[float] = (1.0,), **settings: Any) -> treadle.Trainer:
        name = settings.pop("name", "val_loss")
        val = settings.pop("val", BATCHES)
        ckpt_path = settings.pop("ckpt_path", None)
        settings = {"max_epochs": len(values), "num_sanity_val_steps": 0, "callbacks": callback, **settings}
        trainer = make_trainer(**settings)
        trainer.fit(Scripted(values, name), BATCHES, val, ckpt_path=ckpt_path)
        return trainer

    return run


def files(trainer: treadle.Trainer) -> list[str]:
    """What is kept, besides the state before the newest."""
    return sorted(path.name for path in (trainer.run_folder / "checkpoints").iterdir() if path.name != "previous.ckpt")


def saved(path: str | Path) -> Any:
    return torch.load(path, weights_only=True)


class TestWhichCheckpointsAreKept:
    def test_by_default_the_newest_and_last(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(), [1.0, 2.0, 3.0])
        assert files(trainer) == ["epoch=2-step=6.ckpt", "last.ckpt"]

    def test_the_best_by_a_metric(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(monitor="val_loss"), [3.0, 1.0, 2.0])
        assert files(trainer) == ["epoch=1-step=4.ckpt", "last.ckpt"]
        assert trainer.checkpoint_callback.best_model_score == 1.0
        assert Path(trainer.checkpoint_callback.best_model_path).name == "epoch=1-step=4.ckpt"

    def test_the_k_best(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(monitor="val_loss", save_top_k=2), [3.0, 1.0, 2.0, 4.0])
        assert files(trainer) == ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt", "last.ckpt"]
        assert sorted(trainer.checkpoint_callback.best_k_models.values()) == [1.0, 2.0]

    def test_the_best_where_more_is_better(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(monitor="val_loss", mode="max"), [1.0, 3.0, 2.0])
        assert files(trainer) == ["epoch=1-step=4.ckpt", "last.ckpt"]

    def test_of_equals_the_first(self, fit: Any) -> None:
        assert files(fit(ModelCheckpoint(monitor="val_loss"), [1.0, 1.0]))[0] == "epoch=0-step=2.ckpt"

    def test_anything_rather_than_a_nan(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(monitor="val_loss"), [float("nan"), 5.0, float("nan")])
        assert files(trainer) == ["epoch=1-step=4.ckpt", "last.ckpt"]

    def test_all(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(save_top_k=-1), [1.0, 2.0])
        assert files(trainer) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "last.ckpt"]

    def test_none_but_last(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(save_top_k=0), [1.0, 2.0])
        assert files(trainer) == ["last.ckpt"]
        assert trainer.checkpoint_callback.best_model_path == ""

    def test_none_at_all(self, fit: Any) -> None:
        assert files(fit(ModelCheckpoint(save_top_k=0, save_last=False), [1.0])) == []

    def test_without_last(self, fit: Any) -> None:
        assert files(fit(ModelCheckpoint(save_last=False), [1.0, 2.0])) == ["epoch=1-step=4.ckpt"]

    def test_by_a_metric_that_is_logged_on_steps(self, fit: Any) -> None:
        """self.log in training_step needs no on_epoch to be followed; the loss falls with each step here."""
        trainer = fit(ModelCheckpoint(monitor="train_loss", every_n_train_steps=1), [1.0, 1.0])
        assert files(trainer) == ["epoch=1-step=4.ckpt", "last.ckpt"]
        assert trainer.checkpoint_callback.best_model_score == -3.0

    def test_by_a_metric_of_the_epochs_end(self, make_trainer: Any) -> None:
        """Logged in on_train_epoch_end of the module: it is known when the epoch is saved."""

        class AtTheEnd(Scripted):
            def on_train_epoch_end(self) -> None:
                self.log("at_the_end", self.values[self.current_epoch])

        trainer = make_trainer(callbacks=ModelCheckpoint(monitor="at_the_end"), max_epochs=3)
        trainer.fit(AtTheEnd([3.0, 1.0, 2.0]), BATCHES)
        assert files(trainer) == ["epoch=1-step=4.ckpt", "last.ckpt"]

    def test_after_resuming_as_without(self, fit: Any, tmp_path: Path) -> None:
        """The best so far is state: a worse epoch after a restart displaces nothing."""

        def callback() -> ModelCheckpoint:
            return ModelCheckpoint(monitor="val_loss", every_n_train_steps=1)

        fit(callback(), [1.0], val_check_interval=1, max_steps=3, max_epochs=2)
        trainer = fit(callback(), [9.0], val_check_interval=1, max_epochs=2, ckpt_path="last")
        assert files(trainer) == ["epoch=0-step=1.ckpt", "last.ckpt"]
        assert saved(trainer.checkpoint_callback.last_model_path)["global_step"] == 4

    def test_between_validations_after_resuming(self, fit: Any) -> None:
        """The newest validation is known to a resumed run, also where its own first one is yet to come."""

        def callback() -> ModelCheckpoint:
            return ModelCheckpoint(monitor="val_loss", every_n_train_steps=1)

        fit(callback(), [1.0], max_steps=3, max_epochs=2)
        trainer = fit(callback(), [1.0], max_epochs=2, ckpt_path="last")
        assert trainer.global_step == 4


class TestLast:
    def test_is_the_newest_state_also_without_improvement(self, fit: Any) -> None:
        """After four epochs that were worse than the first, resuming goes on from the fourth."""
        trainer = fit(ModelCheckpoint(monitor="val_loss"), [1.0, 2.0, 3.0, 4.0, 5.0])
        last = saved(trainer.checkpoint_callback.last_model_path)
        assert (last["epoch"], last["global_step"]) == (4, 10)
        assert files(trainer) == ["epoch=0-step=2.ckpt", "last.ckpt"]

    def test_is_the_newest_state_also_between_two_saves(self, fit: Any) -> None:
        """The end of a fit is saved, whatever the rhythm."""
        trainer = fit(ModelCheckpoint(every_n_train_steps=3), [1.0, 1.0])
        assert saved(trainer.checkpoint_callback.last_model_path)["global_step"] == 4

    def test_is_a_hard_link_to_a_file_that_is_kept(self, fit: Any) -> None:
        """It costs no second write and no second copy on the disk."""
        trainer = fit(ModelCheckpoint(), [1.0])
        folder = trainer.run_folder / "checkpoints"
        assert (folder / "last.ckpt").samefile(folder / "epoch=0-step=2.ckpt")

    def test_stays_when_the_file_it_links_to_is_deleted(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(), [1.0])
        Path(trainer.checkpoint_callback.best_model_path).unlink()
        assert saved(trainer.checkpoint_callback.last_model_path)["global_step"] == 2

    @pytest.mark.parametrize("monitor", [None, "val_loss"])
    def test_takes_one_write_for_each_save(self, fit: Any, monkeypatch: pytest.MonkeyPatch, monitor: Any) -> None:
        """Three epochs are three calls of torch.save, kept or not."""
        writes = []
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *arguments: (writes.append(1), save(*arguments)))
        fit(ModelCheckpoint(monitor=monitor), [1.0, 2.0, 3.0])
        assert len(writes) == 3

    def test_leaves_no_other_file(self, fit: Any) -> None:
        assert not [name for name in files(fit(ModelCheckpoint(save_top_k=-1), [1.0, 2.0])) if "partial" in name]


class TestTheNamesOfCheckpoints:
    @pytest.mark.parametrize(
        "template, name",
        [
            ("{epoch}-{val_loss:.2f}", "epoch=0-val_loss=0.12.ckpt"),
            ("{step:05d}", "step=00002.ckpt"),
            ("best", "best.ckpt"),
            ("{epoch}-{train_loss}", "epoch=0-train_loss=-1.0.ckpt"),
        ],
    )
    def test_hold_metrics(self, fit: Any, template: str, name: str) -> None:
        assert set(files(fit(ModelCheckpoint(filename=template), [0.125]))) == {name, "last.ckpt"}

    @pytest.mark.parametrize("filename", ["../{epoch}", "a/../../b", "/tmp/x"])
    def test_lead_nowhere_else(self, filename: str) -> None:
        with pytest.raises(ConfigError, match=r"filename="):
            ModelCheckpoint(filename=filename)

    def test_keep_a_slash_out_of_the_path(self, fit: Any) -> None:
        """A metric called val/loss makes no folder."""
        trainer = fit(ModelCheckpoint(filename="{val/loss:.1f}"), [0.5], name="val/loss")
        assert files(trainer) == ["last.ckpt", "val_loss=0.5.ckpt"]

    def test_that_would_be_equal_are_counted(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(filename="same", save_top_k=-1), [1.0, 2.0, 3.0])
        assert files(trainer) == ["last.ckpt", "same-v1.ckpt", "same-v2.ckpt", "same.ckpt"]

    def test_of_an_unknown_metric_are_an_error(self, fit: Any) -> None:
        with pytest.raises(ConfigError, match="needs 'val_los', which is not logged") as error:
            fit(ModelCheckpoint(filename="{val_los}"), [1.0])
        assert error.value.fix == "did you mean 'val_loss'?"

    def test_lie_where_the_user_says(self, fit: Any, tmp_path: Path) -> None:
        fit(ModelCheckpoint(dirpath=tmp_path / "mine"), [1.0])
        assert sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name != "previous.ckpt") == [
            "epoch=0-step=2.ckpt",
            "last.ckpt",
        ]

    def test_hold_values_without_names_if_one_wishes(self, fit: Any) -> None:
        checkpoints = ModelCheckpoint(filename="e{epoch}-{val_loss:.2f}", auto_insert_metric_name=False)
        assert files(fit(checkpoints, [0.125])) == ["e0-0.12.ckpt", "last.ckpt"]

    def test_that_would_be_equal_are_overwritten_if_one_wishes(self, fit: Any) -> None:
        trainer = fit(ModelCheckpoint(filename="same", save_top_k=-1, enable_version_counter=False), [1.0, 2.0])
        assert files(trainer) == ["last.ckpt", "same.ckpt"]
        assert saved(trainer.checkpoint_callback.best_model_path)["global_step"] == 4

    @pytest.mark.parametrize("settings", [{}, {"enable_version_counter": False, "save_top_k": 2}], ids=str)
    def test_that_never_change_are_those_of_the_best(self, fit: Any, settings: dict[str, Any]) -> None:
        """A worse epoch doesn't overwrite best.ckpt."""
        checkpoints = ModelCheckpoint(filename="best", monitor="val_loss", **settings)
        assert files(fit(checkpoints, [3.0, 1.0, 2.0])) == ["best.ckpt", "last.ckpt"]
        assert (saved(checkpoints.best_model_path)["epoch"], checkpoints.best_model_score) == (1, 1.0)

    def test_leave_that_of_the_newest_state_to_it(self, fit: Any) -> None:
        checkpoints = ModelCheckpoint(filename="last", monitor="val_loss")
        assert files(fit(checkpoints, [1.0, 2.0])) == ["last-v1.ckpt", "last.ckpt"]
        assert saved(checkpoints.best_model_path)["epoch"] == 0
        with pytest.raises(ConfigError, match=r"would overwrite last\.ckpt"):
            fit(ModelCheckpoint(filename="last", enable_version_counter=False), [1.0])

    def test_are_told_without_saving(self, tmp_path: Path) -> None:
        checkpoints = ModelCheckpoint(tmp_path, "{epoch}-{val_loss:.1f}")
        metrics = {"epoch": 3, "val_loss": torch.tensor(0.25)}
        assert checkpoints.format_checkpoint_name(metrics) == str(tmp_path / "epoch=3-val_loss=0.2.ckpt")
        assert checkpoints.format_checkpoint_name(metrics, "{epoch:02d}") == str(tmp_path / "epoch=03.ckpt")

    def test_may_be_others(self, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ModelCheckpoint, "CHECKPOINT_NAME_LAST", "newest")
        monkeypatch.setattr(ModelCheckpoint, "FILE_EXTENSION", ".pt")
        trainer = fit(ModelCheckpoint(filename="kept"), [1.0])
        assert files(trainer) == ["kept.pt", "newest.pt"]
        assert Path(trainer.checkpoint_callback.last_model_path).name == "newest.pt"

    def test_of_another_run_are_not_overwritten(self, fit: Any, tmp_path: Path) -> None:
        """Two runs that write to one folder."""
        for _ in range(2):
            fit(ModelCheckpoint(dirpath=tmp_path / "mine"), [1.0])
        found = sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name != "previous.ckpt")
        assert found == ["epoch=0-step=2-v1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"]


def steps_saved(fit: Any, make_bare: Any = None, epochs: int = 3, **rhythm: Any) -> list[int]:
    trainer = fit(ModelCheckpoint(save_top_k=-1, save_last=False, **rhythm), [1.0] * epochs)
    folder = trainer.run_folder / "checkpoints"
    return sorted(saved(path)["global_step"] for path in folder.iterdir() if path.name != "previous.ckpt")


class TestTheRhythmOfSaving:
    def test_is_each_epoch_by_default(self, fit: Any) -> None:
        assert steps_saved(fit) == [2, 4, 6]

    @pytest.mark.parametrize("rhythm", [{"every_n_train_steps": 4}, {"every": "4 steps"}])
    def test_may_be_steps(self, fit: Any, rhythm: dict[str, Any]) -> None:
        assert steps_saved(fit, **rhythm) == [4]

    @pytest.mark.parametrize("rhythm", [{"every_n_epochs": 2}, {"every": "2 epochs"}])
    def test_may_be_epochs(self, fit: Any, rhythm: dict[str, Any]) -> None:
        assert steps_saved(fit, **rhythm) == [4]

    @pytest.mark.parametrize(
        "rhythm, steps",
        [
            ({"every_n_train_steps": 0}, [2, 4, 6]),
            ({"every_n_epochs": 0}, []),
            ({"every_n_train_steps": 0, "every_n_epochs": 2}, [4]),
            ({"every_n_train_steps": 5, "every_n_epochs": 0}, [5]),
            ({"every_n_train_steps": 0, "every_n_epochs": 0}, []),
        ],
        ids=str,
    )
    def test_of_0_is_off(self, fit: Any, rhythm: dict[str, int], steps: list[int]) -> None:
        assert steps_saved(fit, **rhythm) == steps

    def test_of_0_epochs_writes_last_all_the_same(self, fit: Any) -> None:
        assert files(fit(ModelCheckpoint(every_n_epochs=0), [1.0, 2.0])) == ["last.ckpt"]

    @pytest.mark.parametrize("interval, steps", [(timedelta(hours=1), []), (timedelta(microseconds=1), None)])
    def test_may_be_time(self, fit: Any, interval: timedelta, steps: Any) -> None:
        """Nothing within the first hour; after each batch and epoch, if that took longer than a microsecond."""
        found = steps_saved(fit, train_time_interval=interval)
        assert found == (steps if steps is not None else [1, 2, 2, 3, 4, 4, 5, 6, 6])

    def test_waits_for_the_validation_inside_an_epoch(self, fit: Any) -> None:
        """Default rhythm: after each validation, with its result; the epoch's end is a state of its own."""
        trainer = fit(
            ModelCheckpoint(monitor="val_loss", save_top_k=-1), [1.0, 2.0], val_check_interval=1, max_epochs=1
        )
        assert set(trainer.checkpoint_callback.best_k_models.values()) == {1.0, 2.0}

    @pytest.mark.parametrize(
        "rhythm, steps",
        [
            ({}, [1, 2, 2, 3, 4, 4]),
            ({"save_on_train_epoch_end": True}, [2, 4]),
            ({"save_on_train_epoch_end": False}, [1, 2, 3, 4]),
            ({"save_on_train_epoch_end": True, "every_n_epochs": 2}, [4]),
            ({"save_on_train_epoch_end": False, "every_n_epochs": 2}, [3, 4]),
            ({"save_on_train_epoch_end": False, "every_n_train_steps": 3}, [3]),
        ],
        ids=str,
    )
    def test_is_the_end_of_epochs_or_of_validations(
        self, make_trainer: Any, rhythm: dict[str, Any], steps: list[int]
    ) -> None:
        """Two epochs of two steps, a validation after each step."""
        checkpoints = ModelCheckpoint(filename="{step}", save_top_k=-1, save_last=False, **rhythm)
        trainer = make_trainer(callbacks=checkpoints, max_epochs=2, val_check_interval=1)
        trainer.fit(Scripted([1.0]), BATCHES, BATCHES)
        assert sorted(saved(path)["global_step"] for path in checkpoints.best_k_models) == steps

    def test_goes_on_after_resuming(self, fit: Any) -> None:
        """A validation that was saved before the restart is not saved again at the epoch's end."""

        class Stops(treadle.Callback):
            def on_train_epoch_end(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
                raise KeyboardInterrupt

        def checkpoints() -> ModelCheckpoint:
            return ModelCheckpoint(filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)

        with pytest.raises(KeyboardInterrupt):
            fit([Stops(), checkpoints()], [1.0], val_check_interval=1)
        trainer = fit([checkpoints()], [1.0], val_check_interval=1, ckpt_path="last")
        assert files(trainer) == ["last.ckpt", "step=1.ckpt", "step=2.ckpt"]

    def test_does_not_count_steps_that_did_not_happen(self, make_trainer: Any) -> None:
        """Batches that are skipped before the first step save nothing."""

        class Skips(Scripted):
            def training_step(self, batch: Tensor) -> Any:
                return None

        trainer = make_trainer(callbacks=ModelCheckpoint(every_n_train_steps=2, save_last=False))
        with pytest.warns(TreadleWarning, match=r"treadle\[no-step\]: epoch 0 took no optimizer step"):
            trainer.fit(Skips([1.0]), BATCHES)
        assert files(trainer) == []

    @pytest.mark.parametrize(
        "settings",
        [
            {"every_n_train_steps": 1, "every_n_epochs": 1},
            {"every": "1 epoch", "train_time_interval": timedelta(hours=1)},
            {"every_n_train_steps": -1},
            {"every_n_epochs": -1},
            {"every_n_train_steps": 2, "save_on_train_epoch_end": True},
            {"every": "1 min", "save_on_train_epoch_end": True},
            {"train_time_interval": 60},
            {"every": "now and then"},
            {"every": 5},
        ],
        ids=str,
    )
    def test_that_makes_no_sense_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            ModelCheckpoint(**settings)


class TestACheckpointOfWeightsOnly:
    def test_is_loaded_but_not_resumed(self, fit: Any, tmp_path: Path) -> None:
        fit(ModelCheckpoint(save_weights_only=True), [1.0])
        with pytest.raises(CheckpointError, match="holds weights only") as error:
            fit(ModelCheckpoint(), [1.0, 1.0], ckpt_path="last")
        assert "load_from_checkpoint" in error.value.fix

    def test_is_evaluated(self, make_trainer: Any) -> None:
        trainer, data = make_trainer(callbacks=ModelCheckpoint(save_weights_only=True)), Points()
        model = Classifier()
        trainer.fit(model, datamodule=data)
        (now,) = trainer.test(model, datamodule=data, verbose=False)
        assert trainer.test(Classifier(), datamodule=data, ckpt_path="best", verbose=False) == [now]
        loaded = Classifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


class TestAMetricToMonitor:
    def test_that_is_not_logged_is_an_error_with_the_nearest_name(self, fit: Any) -> None:
        with pytest.raises(ConfigError, match="'val_los', which is not logged") as error:
            fit(ModelCheckpoint(monitor="val_los"), [1.0])
        assert error.value.fix == "did you mean 'val_loss'?"
        assert "val_loss" in error.value.why

    def test_is_waited_for_until_the_first_validation(self, fit: Any) -> None:
        """Saving each step, with validation at the epoch's end: last is saved until then."""
        trainer = fit(ModelCheckpoint(monitor="val_loss", every_n_train_steps=1), [1.0], max_epochs=2)
        assert saved(trainer.checkpoint_callback.last_model_path)["global_step"] == 4

    def test_of_an_epoch_without_validation_keeps_nothing_twice(self, fit: Any) -> None:
        """The score belongs to another state by then."""
        trainer = fit(ModelCheckpoint(monitor="val_loss", save_top_k=-1), [1.0] * 4, check_val_every_n_epoch=2)
        assert files(trainer) == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt", "last.ckpt"]


class TestModelCheckpointsSettings:
    @pytest.mark.parametrize(
        "settings", [{"mode": "lower"}, {"save_top_k": -2}, {"save_top_k": 3}, {"save_last": "copy"}], ids=str
    )
    def test_that_make_no_sense_are_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            ModelCheckpoint(**settings)

    def test_may_be_changed_when_a_run_is_resumed(self, fit: Any) -> None:
        """How many to keep: what was the best then still is, and stays."""
        fit(ModelCheckpoint(monitor="val_loss", save_top_k=2), [2.0, 1.0, 3.0])
        again = ModelCheckpoint(monitor="val_loss", save_top_k=1)
        trainer = fit(again, [1.5], max_epochs=4, ckpt_path="last")
        assert list(again.best_k_models.values()) == [1.0]
        assert files(trainer) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "last.ckpt"]


class TestWhatModelCheckpointTells:
    def test_is_the_worst_that_is_kept_and_the_newest_score(self, fit: Any) -> None:
        checkpoints = ModelCheckpoint(monitor="val_loss", save_top_k=2)
        fit(checkpoints, [3.0, 1.0, 2.0, 4.0])
        assert Path(checkpoints.kth_best_model_path).name == "epoch=2-step=6.ckpt"
        assert checkpoints.current_score == 4.0
        assert ModelCheckpoint().kth_best_model_path == ""

    def test_is_written_as_yaml(self, fit: Any, tmp_path: Path) -> None:
        checkpoints = ModelCheckpoint(tmp_path / "a: b", monitor="val_loss", save_top_k=-1)
        fit(checkpoints, [0.5, float("nan"), float("-inf")])
        checkpoints.to_yaml()
        checkpoints.to_yaml(tmp_path / "best.yaml")
        text = (tmp_path / "best.yaml").read_text()
        assert text == (tmp_path / "a: b/best_k_models.yaml").read_text()
        assert [line.rsplit(": ", 1)[1] for line in text.splitlines()] == ["0.5", ".nan", "-.inf"]
        assert text.startswith(f'"{tmp_path}/a: b/epoch=0-step=2.ckpt": ')

    def test_is_what_it_saves_when_asked_to(self, fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
        checkpoints = ModelCheckpoint(verbose=True)
        fit(checkpoints, [1.0])
        said = capsys.readouterr().out
        assert f"epoch 0, step 2: saved {checkpoints.best_model_path}." in said
        assert f"epoch 0, step 2: saved {checkpoints.last_model_path}." in said


class Breaks(Scripted):
    """Its third training step fails."""

    def training_step(self, batch: Tensor) -> Tensor:
        if self.global_step == 2:
            raise RuntimeError("the third step")
        return super().training_step(batch)


class TestAnExceptionThatEndsTheFit:
    def broken(self, make_trainer: Any, checkpoints: ModelCheckpoint, **settings: Any) -> treadle.Trainer:
        trainer: treadle.Trainer = make_trainer(callbacks=checkpoints, max_epochs=2, **settings)
        with pytest.raises(RuntimeError, match="the third step"):
            trainer.fit(Breaks([1.0]), BATCHES)
        return trainer

    def test_is_saved_if_one_wishes(self, make_trainer: Any) -> None:
        """Beside last.ckpt, which is the newest whole state."""
        trainer = self.broken(make_trainer, ModelCheckpoint(save_on_exception=True))
        assert files(trainer) == ["epoch=0-step=2.ckpt", "exception.ckpt", "last.ckpt"]
        folder = trainer.run_folder / "checkpoints"
        assert saved(folder / "exception.ckpt")["progress"]["epoch"] == 1
        again = make_trainer(max_epochs=2)
        again.fit(Scripted([1.0]), BATCHES, ckpt_path=folder / "exception.ckpt")
        assert again.global_step == 3  # of four: the batch that failed is not repeated

    def test_is_saved_if_nothing_is_said(self, make_trainer: Any) -> None:
        assert "exception.ckpt" in files(self.broken(make_trainer, ModelCheckpoint()))

    def test_is_not_saved_if_one_wishes(self, make_trainer: Any) -> None:
        assert "exception.ckpt" not in files(self.broken(make_trainer, ModelCheckpoint(save_on_exception=False)))

    def test_is_not_saved_before_training(self, make_trainer: Any) -> None:
        class NoOptimizer(Scripted):
            def configure_optimizers(self) -> Any:
                raise RuntimeError("the third step")

        trainer = make_trainer(callbacks=ModelCheckpoint(save_on_exception=True))
        with pytest.raises(RuntimeError, match="the third step"):
            trainer.fit(NoOptimizer([1.0]), BATCHES)
        assert not list(trainer.default_root_dir.rglob("*.ckpt"))

    def test_is_not_hidden_when_saving_fails_too(self, make_trainer: Any, capsys: pytest.CaptureFixture[str]) -> None:
        class Unsavable(treadle.Callback):
            def on_save_checkpoint(self, trainer: treadle.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
                if trainer.current_epoch == 1 and trainer.progress.batch == 0 and module.global_step == 2:
                    checkpoint["object"] = object()

        checkpoints = ModelCheckpoint(save_on_exception=True, every_n_train_steps=2)
        self.broken(make_trainer, [Unsavable(), checkpoints])  # type: ignore[arg-type]
        assert "exception.ckpt was not saved. CheckpointError" in capsys.readouterr().err


class TestSeveralModelCheckpoints:
    def test_each_keep_their_own(self, fit: Any) -> None:
        """The best by one metric, the newest, and last.ckpt by one of them."""
        best = ModelCheckpoint(monitor="val_loss", filename="best-{epoch}", save_last=False)
        newest = ModelCheckpoint(filename="newest-{epoch}")
        trainer = fit([best, newest], [3.0, 1.0, 2.0])
        assert files(trainer) == ["best-epoch=1.ckpt", "last.ckpt", "newest-epoch=2.ckpt"]
        assert saved(newest.last_model_path)["epoch"] == 2

    def test_may_differ_in_any_setting(self, fit: Any) -> None:
        trainer = fit([ModelCheckpoint(save_top_k=0), ModelCheckpoint(save_top_k=-1, save_last=False)], [1.0, 2.0])
        assert files(trainer) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "last.ckpt"]

    def test_that_are_the_same_are_an_error(self, fit: Any) -> None:
        with pytest.raises(ConfigError, match="two callbacks have the state key"):
            fit([ModelCheckpoint(), ModelCheckpoint()], [1.0])

    def test_with_equal_names_overwrite_nothing(self, fit: Any) -> None:
        """Both keep the second epoch of three, the first one only that."""
        one, two = ModelCheckpoint(monitor="val_loss"), ModelCheckpoint(monitor="val_loss", save_top_k=2)
        trainer = fit([one, two], [2.0, 1.0, 3.0])
        assert files(trainer) == [
            "epoch=0-step=2-v1.ckpt",
            "epoch=1-step=4-v1.ckpt",
            "epoch=1-step=4.ckpt",
            "last.ckpt",
        ]
        with pytest.raises(ConfigError, match="would overwrite epoch=0-step=2"):
            fit([ModelCheckpoint(), ModelCheckpoint(save_top_k=-1, enable_version_counter=False)], [1.0])

    def test_write_a_state_once(self, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three files are one write and two links; weights only are another."""
        writes = []
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda *arguments: (writes.append(1), save(*arguments)))
        checkpoints = [ModelCheckpoint(), ModelCheckpoint(save_top_k=-1), ModelCheckpoint(save_weights_only=True)]
        trainer = fit(checkpoints, [1.0])
        assert len(writes) == 2
        assert len(files(trainer)) == 4

    def test_leave_last_to_the_one_that_saves_everything(self, fit: Any) -> None:
        """Otherwise the run could not be resumed."""
        weights = ModelCheckpoint(filename="weights", save_weights_only=True)
        trainer = fit([ModelCheckpoint(save_top_k=0), weights], [1.0])
        assert files(trainer) == ["last.ckpt", "weights.ckpt"]
        assert "rng" in saved(trainer.checkpoint_callback.last_model_path)

    def test_may_have_folders_of_their_own(self, fit: Any, tmp_path: Path) -> None:
        trainer = fit([ModelCheckpoint(), ModelCheckpoint(tmp_path / "mine", save_weights_only=True)], [1.0])
        found = sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name != "previous.ckpt")
        assert files(trainer) == found == ["epoch=0-step=2.ckpt", "last.ckpt"]
        assert "rng" not in saved(tmp_path / "mine/last.ckpt")

    def test_remove_nothing_for_a_file_that_a_killed_process_did_not_write(
        self, fit: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed between two files of one state, resumed from the first: the second one's best is still there."""

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        def callbacks() -> list[ModelCheckpoint]:
            return [ModelCheckpoint(filename=f"{name}-{{epoch}}", save_last=False) for name in "ab"]

        first = fit(callbacks(), [1.0])
        folder = first.run_folder / "checkpoints"
        with monkeypatch.context() as patched:
            patched.setattr("treadle.callbacks.checkpoint_writing.link", killed)
            with pytest.raises(KeyboardInterrupt):
                fit(callbacks(), [1.0, 1.0], ckpt_path=folder / "a-epoch=0.ckpt")
        assert files(first) == ["a-epoch=0.ckpt", "a-epoch=1.ckpt", "b-epoch=0.ckpt"]
        fit(callbacks(), [1.0, 1.0], ckpt_path=folder / "a-epoch=1.ckpt")
        assert files(first) == ["a-epoch=1.ckpt", "b-epoch=0.ckpt"]

    def test_all_know_after_resuming_what_they_keep(self, make_trainer: Any) -> None:
        """Stopped after any save, resumed from last.ckpt: files, names and scores as in the run that was not stopped."""

        class ByEpoch(Scripted):
            def validation_step(self, batch: Tensor) -> None:
                self.log(self.name, self.values[self.current_epoch])

        class Stops(treadle.Callback):
            def __init__(self, after: int) -> None:
                self.after = after

            def on_train_batch_start(self, trainer: treadle.Trainer, *_: Any) -> None:  # type: ignore[override]
                if trainer.progress.batches == self.after:
                    raise KeyboardInterrupt

        def callbacks() -> list[ModelCheckpoint]:
            return [
                ModelCheckpoint(monitor="val_loss", save_top_k=2),
                ModelCheckpoint(monitor="val_loss", mode="max", save_last=False),
                ModelCheckpoint(every_n_train_steps=3, filename="step", save_top_k=-1, save_last=False),
            ]

        def run(root: Path, after: int = -1, **settings: Any) -> tuple[list[str], list[list[float | None]]]:
            saving = callbacks()
            trainer = make_trainer(
                default_root_dir=root, callbacks=[Stops(after), *saving], max_epochs=4, num_sanity_val_steps=0
            )
            try:
                trainer.fit(ByEpoch([3.0, 1.0, 4.0, 2.0]), BATCHES, BATCHES, **settings)
            except KeyboardInterrupt:
                assert after > 0
            return files(trainer), [list(callback.best_k_models.values()) for callback in saving]

        root = make_trainer().default_root_dir
        whole = run(root / "whole")
        for after in (2, 3, 4, 6, 7):
            run(root / f"{after}", after)
            found = run(root / f"{after}", ckpt_path="last")
            assert found == whole, f"stopped after {after}"


# --- EarlyStopping ---


class TestEarlyStopping:
    @pytest.mark.parametrize(
        "values, settings, epochs",
        [
            ([3.0, 2.0, 1.0, 0.0], {"patience": 1}, 4),
            ([1.0, 2.0, 2.0, 0.0], {"patience": 2}, 3),
            ([1.0, 2.0, 0.5, 2.0, 2.0], {"patience": 2}, 5),
            ([1.0, 1.0, 0.0], {"patience": 1}, 2),
            ([1.0, 0.95, 0.9, 0.0], {"patience": 1, "min_delta": 0.2}, 2),
            ([1.0, 0.7, 0.4, 0.1], {"patience": 1, "min_delta": 0.2}, 4),
            ([1.0, 2.0, 3.0, 2.0, 9.0], {"patience": 1, "mode": "max"}, 4),
            ([1.0, float("nan"), 0.5], {"patience": 3}, 2),
            ([1.0, float("inf"), 0.5], {"patience": 3}, 2),
            ([1.0, float("nan"), 0.5], {"patience": 3, "check_finite": False}, 3),
            ([float("nan"), 0.5, 1.0, 2.0], {"patience": 2, "check_finite": False}, 4),
            ([3.0, 2.0, 1.0, 0.5, 0.1], {"stopping_threshold": 1.0}, 4),
            ([1.0, 2.0, 3.0], {"stopping_threshold": 1.5, "mode": "max"}, 2),
            ([1.0, 2.0, 6.0, 1.0], {"divergence_threshold": 5.0}, 3),
            ([9.0, 5.0, 4.0], {"divergence_threshold": 5.0, "mode": "max"}, 3),
            ([5.0, 5.0, 1.0], {"divergence_threshold": 5.0, "stopping_threshold": 1.0}, 3),
        ],
        ids=str,
    )
    def test_stops_when_it_no_longer_improves(
        self, fit: Any, values: list[float], settings: dict[str, Any], epochs: int
    ) -> None:
        stopping = EarlyStopping("val_loss", **settings)
        assert fit(stopping, values).current_epoch == epochs
        if epochs < len(values):
            assert stopping.stopping_reason is not None

    def test_says_why(self, fit: Any) -> None:
        stopping = EarlyStopping("val_loss", patience=1)
        fit(stopping, [1.0, 2.0, 3.0])
        assert stopping.stopping_reason == "val_loss did not improve on 1 in 1 checks"
        assert stopping.stopped_epoch == 1
        nan = EarlyStopping("val_loss")
        fit(nan, [float("nan"), 2.0])
        assert nan.stopping_reason == "val_loss = nan is not finite"
        good = EarlyStopping("val_loss", stopping_threshold=1.5)
        fit(good, [2.0, 1.0, 0.5])
        assert good.stopping_reason == "val_loss = 1 is past its stopping threshold of 1.5"
        bad = EarlyStopping("val_loss", divergence_threshold=3.0)
        fit(bad, [2.0, 4.0, 0.5])
        assert bad.stopping_reason == "val_loss = 4 is past its divergence threshold of 3"

    @pytest.mark.parametrize("rank_zero_only", [True, False])
    def test_tells_improvements_and_the_end_when_asked_to(
        self, fit: Any, capsys: pytest.CaptureFixture[str], rank_zero_only: bool
    ) -> None:
        fit(EarlyStopping("val_loss", patience=1, verbose=True, log_rank_zero_only=rank_zero_only), [2.0, 1.0, 1.5])
        said = [line for line in capsys.readouterr().out.splitlines() if line]
        assert said == [
            "EarlyStopping: val_loss improved to 2.",
            "EarlyStopping: val_loss improved to 1.",
            "EarlyStopping: val_loss did not improve on 1 in 1 checks.",
        ]

    def test_does_not_count_the_sanity_check(self, fit: Any) -> None:
        assert fit(EarlyStopping("val_loss", patience=1), [2.0, 2.0, 1.0], num_sanity_val_steps=2).current_epoch == 3

    def test_waits_for_min_epochs(self, fit: Any) -> None:
        assert fit(EarlyStopping("val_loss", patience=1), [1.0] * 6, min_epochs=4).current_epoch == 4

    def test_follows_training_where_nothing_is_validated(self, make_bare: Any) -> None:
        class Rises(Scripted):
            def training_step(self, batch: Tensor) -> Tensor:
                self.log("train_loss", float(self.current_epoch), on_step=False, on_epoch=True)
                return self.weight * 1.0

        trainer = make_bare(callbacks=EarlyStopping("train_loss", patience=2), max_epochs=9)
        trainer.fit(Rises([]), BATCHES)
        assert trainer.current_epoch == 3

    def test_sees_what_the_module_logs_at_the_epochs_end(self, make_bare: Any) -> None:
        class AtTheEnd(Scripted):
            def on_train_epoch_end(self) -> None:
                self.log("at_the_end", 1.0)

        trainer = make_bare(callbacks=EarlyStopping("at_the_end", patience=1), max_epochs=9)
        trainer.fit(AtTheEnd([]), BATCHES)
        assert trainer.current_epoch == 2

    def test_at_each_validation_inside_an_epoch(self, fit: Any) -> None:
        stopping = EarlyStopping("val_loss", patience=1)
        assert fit(stopping, [1.0, 2.0, 3.0], val_check_interval=1).global_step == 2

    def test_without_its_metric_is_an_error_with_the_nearest_name(self, fit: Any) -> None:
        with pytest.raises(ConfigError, match="'val_los', which is not logged") as error:
            fit(EarlyStopping("val_los"), [1.0])
        assert error.value.fix == "did you mean 'val_loss'?"

    def test_that_is_not_strict_ignores_a_missing_metric(self, fit: Any) -> None:
        assert fit(EarlyStopping("val_los", strict=False), [1.0, 1.0]).current_epoch == 2

    @pytest.mark.parametrize(
        "settings",
        [
            {"mode": "lower"},
            {"patience": 0},
            {"min_delta": -1.0},
            {"stopping_threshold": 2.0, "divergence_threshold": 1.0},
            {"stopping_threshold": 1.0, "divergence_threshold": 2.0, "mode": "max"},
        ],
        ids=str,
    )
    def test_with_settings_that_make_no_sense_is_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            EarlyStopping("val_loss", **settings)

    def test_goes_on_counting_after_resuming(self, fit: Any) -> None:
        """Two checks without improvement before, one after: that is a patience of three used up."""
        fit([EarlyStopping("val_loss"), ModelCheckpoint()], [1.0, 2.0, 2.0])
        again = fit([EarlyStopping("val_loss"), ModelCheckpoint()], [2.0], max_epochs=9, ckpt_path="last")
        assert again.current_epoch == 4

    def test_of_a_second_fit_starts_anew(self, make_trainer: Any) -> None:
        trainer = make_trainer(callbacks=EarlyStopping("val_loss", patience=1), max_epochs=3, num_sanity_val_steps=0)
        for _ in range(2):
            trainer.fit(Scripted([1.0, 1.0, 0.5]), BATCHES, BATCHES)
            assert trainer.current_epoch == 2

    @pytest.mark.parametrize(
        "values, settings, changed",
        [
            ([2.0, 1.0], {"stopping_threshold": 1.5}, {"stopping_threshold": 0.5}),
            ([2.0, 4.0], {"divergence_threshold": 3.0}, {"divergence_threshold": 5.0}),
            ([2.0, float("inf")], {}, {"check_finite": False}),
            ([1.0, 2.0], {"patience": 1}, {"patience": 2}),
        ],
        ids=["good enough", "hopeless", "infinite", "patience"],
    )
    def test_stays_stopped_when_resumed_unless_its_settings_allow_more(
        self, fit: Any, values: list[float], settings: dict[str, Any], changed: dict[str, Any]
    ) -> None:
        assert fit([EarlyStopping("val_loss", **settings), ModelCheckpoint()], [*values, 1.0]).current_epoch == 2
        stays = EarlyStopping("val_loss", **settings)
        assert fit([stays, ModelCheckpoint()], [0.9], max_epochs=3, ckpt_path="last").current_epoch == 2
        assert "when the run was saved" in str(stays.stopping_reason)
        goes_on = EarlyStopping("val_loss", **{**settings, **changed})
        assert fit([goes_on, ModelCheckpoint()], [0.9], max_epochs=3, ckpt_path="last").current_epoch == 3

    def test_asked_for_before_min_epochs_is_remembered(self, fit: Any) -> None:
        """The metric improves again before min_epochs: the run stops then all the same, resumed in between or not."""
        values = [1.0, 2.0, 0.5, 0.4, 0.3, 0.2]
        whole = fit([EarlyStopping("val_loss", patience=1)], values, min_epochs=4)
        assert whole.current_epoch == 4
        callbacks = [EarlyStopping("val_loss", patience=1), ModelCheckpoint()]
        fit(callbacks, values[:3], max_epochs=3, min_epochs=3)
        again = [EarlyStopping("val_loss", patience=1), ModelCheckpoint()]
        assert fit(again, values[3:], max_epochs=6, min_epochs=4, ckpt_path="last").current_epoch == 4


# --- callbacks at large ---


class TestACallback:
    def test_with_a_misspelled_hook_is_an_error(self, make_bare: Any) -> None:
        class Misspelled(treadle.Callback):
            def on_train_bach_end(self, *_: Any) -> None: ...

        with pytest.raises(ModuleError, match="on_train_bach_end is not a hook") as error:
            make_bare(callbacks=Misspelled()).fit(Scripted([1.0]), BATCHES)
        assert "'on_train_batch_end'" in error.value.fix

    def test_overriding_nothing_costs_nothing(self, make_bare: Any) -> None:
        """Hooks are resolved once, at the start; one that is empty has no listener at all."""
        trainer = make_bare(callbacks=[treadle.Callback(), Recorder("on_train_start")])
        trainer.fit(Scripted([1.0]), BATCHES)
        hooks = trainer._run.hooks
        assert {name for name, listeners in hooks.items() if listeners} == {"on_train_start", "on_validation_end"}

    def test_added_after_the_start_is_not_called(self, make_bare: Any) -> None:
        late = Recorder("on_train_batch_end")

        class Adds(treadle.Callback):
            def on_train_start(self, trainer: treadle.Trainer, module: Any) -> None:
                trainer.callbacks.append(late)

        make_bare(callbacks=Adds()).fit(Scripted([1.0]), BATCHES)
        assert late.calls == []

    def test_keeps_its_state_over_a_restart(self, make_trainer: Any) -> None:
        class Counts(treadle.Callback):
            batches = 0

            def on_train_batch_end(self, *_: Any) -> None:
                self.batches += 1

            def state_dict(self) -> dict[str, Any]:
                return {"batches": self.batches}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                self.batches = state["batches"]

        make_trainer(callbacks=Counts()).fit(Scripted([1.0]), BATCHES)
        again = Counts()
        make_trainer(callbacks=again, max_epochs=2).fit(Scripted([1.0]), BATCHES, ckpt_path="last")
        assert again.batches == 4

    def test_with_the_state_key_of_another_is_an_error(self, make_trainer: Any) -> None:
        """Only one of the two states could be saved."""
        callbacks = [EarlyStopping("val_loss", patience=2), EarlyStopping("val_loss", patience=4)]
        with pytest.raises(ConfigError, match=r"two callbacks have the state key 'EarlyStopping\[val_loss,min\]'"):
            make_trainer(callbacks=callbacks).fit(Scripted([1.0]), BATCHES)

    def test_without_state_may_be_there_twice(self, make_bare: Any) -> None:
        one, two = Recorder("on_train_start"), Recorder("on_train_start")
        make_bare(callbacks=[one, two]).fit(Scripted([1.0]), BATCHES)
        assert one.calls == two.calls == ["on_train_start"]

    def test_may_put_something_into_checkpoints(self, make_trainer: Any) -> None:
        class Adds(treadle.Callback):
            def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
                checkpoint["mine"] = {"note": torch.ones(2)}

            def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
                self.found = checkpoint["mine"]["note"]

        make_trainer(callbacks=Adds()).fit(Scripted([1.0]), BATCHES)
        again = Adds()
        make_trainer(callbacks=again).fit(Scripted([1.0]), BATCHES, ckpt_path="last")
        assert again.found.tolist() == [1.0, 1.0]

    def test_saving_itself_comes_after_all_others(self, make_trainer: Any) -> None:
        """Checkpoints hold what other callbacks did at the same savepoint."""
        trainer = make_trainer(callbacks=[ModelCheckpoint(), Recorder()])
        assert [type(callback).__name__ for callback in trainer.callbacks] == ["Recorder", "ModelCheckpoint"]


class TestTheModulesHooks:
    def test_nearly_spelled_right_are_an_error(self, make_bare: Any) -> None:
        class Misspelled(Scripted):
            def on_train_epochs_end(self) -> None: ...

        with pytest.raises(ModuleError, match="on_train_epochs_end is not a hook"):
            make_bare().fit(Misspelled([1.0]), BATCHES)

    def test_that_are_its_own_are_not_the_loops_business(self, make_bare: Any) -> None:
        """A module may have ``on_`` methods that resemble no hook: it trains, and nobody calls them."""

        class Own(Scripted):
            called = False

            def on_a_whim(self) -> None:
                self.called = True

        model, trainer = Own([1.0]), make_bare()
        trainer.fit(model, BATCHES)
        assert trainer.global_step == len(BATCHES)
        assert not model.called


class TestAModuleAfterItsRun:
    def test_is_copied_and_pickled_without_it(self, make_trainer: Any) -> None:
        """A copy of the model doesn't drag the trainer, its loggers and the data along."""
        model = Classifier()
        trainer = make_trainer(logger=MemoryLogger())
        trainer.fit(model, datamodule=Points())
        assert model.trainer is trainer
        assert len(pickle.dumps(model)) < 20_000
        with pytest.raises(ModuleError, match="has no trainer"):
            _ = copy.deepcopy(model).trainer

    def test_may_be_copied_inside_it(self, make_trainer: Any) -> None:
        """As averaging weights does, with files open and loaders at work."""

        class Averages(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                self.copy = copy.deepcopy(module)

        callback = Averages()
        make_trainer(callbacks=callback, log_every_n_steps=1).fit(Classifier(), datamodule=Points())
        assert isinstance(callback.copy, Classifier)
