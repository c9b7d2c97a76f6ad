"""What a program that was written for PyTorch Lightning relies on, beyond names and hooks: values at each moment."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.errors import ConfigError, ModuleError, TreadleWarning
from treadle.loggers import CSVLogger
from treadle.testing import Classifier, MemoryLogger, Points

BATCHES = [torch.tensor([float(n)]) for n in range(1, 5)]


class Weight(treadle.Module):
    """One weight, which moves by a tenth of each batch's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor) -> Any:
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None:
        self.log("val", batch.mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestTheOutputsOfATrainingBatch:
    @pytest.mark.parametrize("returned", ["a tensor", "a dict", "nothing"])
    def test_are_a_mapping_with_the_loss(self, make_bare: Any, returned: str) -> None:
        seen = []

        class Returns(Weight):
            def training_step(self, batch: Tensor) -> Any:
                loss = self.weight * batch.mean()
                return {"a tensor": loss, "a dict": {"loss": loss, "extra": 3}, "nothing": None}[returned]

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                seen.append({key: float(value) for key, value in outputs.items()})
                assert not any(isinstance(value, Tensor) and value.requires_grad for value in outputs.values())

        if returned == "nothing":
            with pytest.warns(TreadleWarning, match="took no optimizer step"):
                make_bare().fit(Returns(), BATCHES[:1])
        else:
            make_bare().fit(Returns(), BATCHES[:1])
        assert seen == [{"a tensor": {"loss": 0.0}, "a dict": {"loss": 0.0, "extra": 3.0}, "nothing": {}}[returned]]


class TestMetricsOfAValidation:
    def test_are_there_at_its_epochs_end(self, make_bare: Any) -> None:
        """For the module and for callbacks, in the sanity check too."""
        seen = []

        class Looks(treadle.Callback):
            def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
                seen.append((trainer.sanity_checking, trainer.callback_metrics["val"].item()))

            def on_validation_end(self, trainer: Any, module: Any) -> None:
                seen.append((trainer.sanity_checking, trainer.callback_metrics["val"].item()))

        make_bare(callbacks=Looks()).fit(Weight(), BATCHES[:1], BATCHES)
        assert seen == [(True, 1.5)] * 2 + [(False, 2.5)] * 2

    def test_can_be_used_in_a_loss(self, make_bare: Any) -> None:
        """Though they were made in inference mode."""

        class Uses(Weight):
            def training_step(self, batch: Tensor) -> Any:
                scale = self.trainer.callback_metrics.get("val", torch.tensor(1.0))
                return self.weight * batch.mean() * scale

        model = Uses()
        make_bare(val_check_interval=1, num_sanity_val_steps=0).fit(model, BATCHES[:2], BATCHES[1:2])
        assert float(model.weight.detach()) == pytest.approx(-0.1 - 0.1 * 2 * 2)

    def test_are_a_copy_that_can_not_be_written_to(self, make_bare: Any) -> None:
        class Writes(treadle.Callback):
            def on_validation_end(self, trainer: Any, module: Any) -> None:
                trainer.callback_metrics["hand"] = torch.tensor(1.0)

        with pytest.raises(ModuleError, match=r"callback_metrics\['hand'\] = "):
            make_bare(callbacks=Writes()).fit(Weight(), BATCHES, BATCHES)

    def test_of_an_earlier_call_are_gone(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(Classifier(), datamodule=Points())
        trainer.test(Classifier(), datamodule=Points(), verbose=False)
        assert list(trainer.callback_metrics) == ["test_accuracy"]


class TestAFitThatEndsInsideAnEpoch:
    def test_keeps_its_last_state(self, make_trainer: Any) -> None:
        """max_steps in a long epoch: there is a best to test."""
        trainer = make_trainer(max_steps=3)
        trainer.fit(Weight(), BATCHES)
        assert Path(trainer.checkpoint_callback.best_model_path).name == "epoch=0-step=3.ckpt"

    def test_validates_where_somebody_asked_to_stop(self, make_trainer: Any) -> None:
        class Stops(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                trainer.should_stop = trainer.global_step == 2

        seen = []

        class Looks(Weight):
            def on_validation_end(self) -> None:
                seen.append(self.trainer.global_step)

        make_trainer(callbacks=Stops(), num_sanity_val_steps=0).fit(Looks(), BATCHES, BATCHES)
        assert seen == [2]


class TestAScheduler:
    def test_of_epochs_steps_in_the_last_batch(self, make_bare: Any) -> None:
        """Before its end is told, and before the validation that closes the epoch."""
        seen = []

        class Scheduled(Weight):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)]

            def on_validation_start(self) -> None:
                seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        make_bare(max_epochs=2, num_sanity_val_steps=0).fit(Scheduled(), BATCHES, BATCHES)
        assert seen == [pytest.approx(0.01), pytest.approx(0.001)]

    @pytest.mark.parametrize("interval", [1.0, 4])
    def test_that_follows_a_metric_on_steps_sees_the_epochs_validation(self, make_bare: Any, interval: Any) -> None:
        seen = []

        class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
            def step(self, metrics: Any, epoch: Any = None) -> None:
                seen.append(round(float(metrics), 6))

        class Scheduled(Weight):
            def validation_step(self, batch: Tensor) -> None:
                self.log("val", self.weight)

            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                config = {"scheduler": Plateau(optimizer), "monitor": "val", "interval": "step", "frequency": 4}
                return {"optimizer": optimizer, "lr_scheduler": config}

        trainer = make_bare(max_epochs=2, num_sanity_val_steps=0, val_check_interval=interval)
        trainer.fit(Scheduled(), BATCHES, BATCHES)
        assert seen == [-1.0, -2.0]

    def test_that_follows_the_steps_own_metric_sees_it(self, make_bare: Any) -> None:
        seen = []

        class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
            def step(self, metrics: Any, epoch: Any = None) -> None:
                seen.append(float(metrics))

        class Scheduled(Weight):
            def training_step(self, batch: Tensor) -> Any:
                self.log("mean", batch.mean())
                return super().training_step(batch)

            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                return [optimizer], [{"scheduler": Plateau(optimizer), "monitor": "mean", "interval": "step"}]

        make_bare().fit(Scheduled(), BATCHES)
        assert seen == [1.0, 2.0, 3.0, 4.0]


class TestManualOptimizationsHooks:
    def test_are_given_torchs_own_optimizers(self, make_bare: Any) -> None:
        """Which of two it is can be asked by identity."""
        seen = []

        class Two(Weight):
            automatic_optimization = False

            def training_step(self, batch: Tensor) -> None:
                for optimizer in self.optimizers():
                    optimizer.step(self.weight * batch.mean())

            def on_before_optimizer_step(self, optimizer: Any) -> None:
                seen.append([optimizer is own for own in self.optimizers(False)])

            def configure_optimizers(self) -> Any:
                return [super().configure_optimizers(), super(Two, self).configure_optimizers()]

        make_bare().fit(Two(), BATCHES[:1])
        assert seen == [[True, False], [False, True]]


class TestHyperparametersInOneArgument:
    @pytest.mark.parametrize("made", [dict, lambda **kw: argparse.Namespace(**kw)], ids=["dict", "Namespace"])
    def test_are_loaded_as_that_argument(self, make_trainer: Any, made: Any) -> None:
        class Takes(Weight):
            def __init__(self, config: Any) -> None:
                super().__init__()
                self.save_hyperparameters(config)

        trainer = make_trainer()
        trainer.fit(Takes(made(depth=4)), BATCHES)
        loaded = Takes.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
        assert loaded.hparams == {"depth": 4}
        assert loaded.hparams.depth == 4


class TestResumingIntoAnotherRun:
    def test_leaves_the_first_one_alone(self, make_trainer: Any, tmp_path: Path) -> None:
        """A logger of another name is another run: the checkpoint and the rows it came from stay."""
        first = make_trainer(logger=CSVLogger(tmp_path, name="first"))
        first.fit(Classifier(), datamodule=Points())
        path, rows = Path(first.checkpoint_callback.best_model_path), first.loggers[0].path.read_text()
        second = make_trainer(logger=CSVLogger(tmp_path, name="second"), max_epochs=3)
        second.fit(Classifier(), datamodule=Points(), ckpt_path=path)
        assert second.log_dir == tmp_path / "second" / "version_0"
        assert path.exists()
        assert first.loggers[0].path.read_text() == rows

    def test_a_file_that_was_named_stays_when_its_own_run_goes_on(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=Points())
        path = trainer.checkpoint_callback.best_model_path
        make_trainer(max_epochs=3).fit(Classifier(), datamodule=Points(), ckpt_path=path)
        assert Path(path).exists()


class TestRunsWithNames:
    def test_are_found_by_their_own(self, tmp_path: Path, make_trainer: Any) -> None:
        """ckpt_path="auto" of one fold neither continues another fold's run nor misses its own."""
        for version in (0, "fold_1"):
            trainer = make_trainer(logger=CSVLogger(tmp_path, version=version))
            trainer.fit(Classifier(), datamodule=Points(), ckpt_path="auto")
            assert trainer.progress.batches == 5
            again = make_trainer(logger=CSVLogger(tmp_path, version=version), max_epochs=2)
            again.fit(Classifier(), datamodule=Points(), ckpt_path="auto")
            assert again.log_dir == trainer.log_dir
            assert again.current_epoch == 2

    def test_are_not_mixed_with_new_ones(self, tmp_path: Path, make_trainer: Any) -> None:
        make_trainer(logger=CSVLogger(tmp_path, version="mine")).fit(Classifier(), datamodule=Points())
        with pytest.raises(ConfigError, match=r"metrics\.csv is there already"):
            make_trainer(logger=CSVLogger(tmp_path, version="mine")).fit(Classifier(), datamodule=Points())


class TestNamesOfReductions:
    @pytest.mark.parametrize("function, expected", [(torch.max, 4.0), (torch.min, 1.0), (sum, 10.0), (torch.mean, 2.5)])
    def test_may_be_the_functions(self, make_bare: Any, function: Any, expected: float) -> None:
        class Logs(Weight):
            def training_step(self, batch: Tensor) -> Any:
                self.log("x", batch.mean(), reduce_fx=function, on_step=False, on_epoch=True)
                return super().training_step(batch)

        logger = MemoryLogger()
        make_bare(logger=logger).fit(Logs(), BATCHES)
        assert logger.rows[-1]["x"] == expected

    def test_one_that_there_is_not_is_an_error(self, make_bare: Any) -> None:
        class Logs(Weight):
            def training_step(self, batch: Tensor) -> Any:
                self.log("x", batch.mean(), reduce_fx=torch.median)  # type: ignore[arg-type]

        with pytest.raises(ConfigError, match="reduce_fx="):
            make_bare().fit(Logs(), BATCHES)


class TestCheckpointsByCounters:
    def test_keep_the_newest(self, make_trainer: Any) -> None:
        """monitor="step" with mode="max"."""
        saving = ModelCheckpoint(monitor="step", mode="max", every_n_train_steps=1, save_top_k=2, filename="{step}")
        make_trainer(callbacks=saving).fit(Weight(), BATCHES)
        assert sorted(Path(path).name for path in saving.best_k_models) == ["step=3.ckpt", "step=4.ckpt"]


class TestAModuleWithoutATrainer:
    def test_can_be_tested_by_itself(self) -> None:
        model = Weight()
        assert (model.current_epoch, model.global_step, model.logger) == (0, 0, None)


class TestAnEvaluationAfterAFit:
    def test_leaves_the_fits_counters_alone(self, make_trainer: Any) -> None:
        trainer = make_trainer(max_epochs=3, callbacks=ModelCheckpoint(monitor="val", save_top_k=1))
        trainer.fit(Weight(), BATCHES, BATCHES)
        trainer.validate(dataloaders=BATCHES, verbose=False)  # of the best, which is the first
        assert (trainer.current_epoch, trainer.global_step) == (3, 12)


class TestSharedMetricsOfLoaders:
    def test_are_in_the_result_of_those_that_log_them(self, make_bare: Any) -> None:
        class Logs(Weight):
            def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
                self.log(f"of_{dataloader_idx}", batch.mean(), add_dataloader_idx=False)

        loaders = [DataLoader(torch.ones(1)), DataLoader(torch.ones(1) * 2)]  # type: ignore[arg-type]
        assert make_bare().validate(Logs(), loaders, verbose=False) == [{"of_0": 1.0}, {"of_1": 2.0}]
