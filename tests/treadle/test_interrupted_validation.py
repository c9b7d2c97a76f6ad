"""A signal inside a validation: the run ends after the batch at hand, and the resumed one does the validation anew."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle
from treadle.callbacks import EarlyStopping, EMAWeightAveraging
from treadle.checkpoint import read
from treadle.testing import Classifier, Points

SETTINGS = {
    "after the epoch": {},
    "inside it": {"val_check_interval": 2},
    "at its last batch": {"val_check_interval": 5},
    "after its last step": {"val_check_interval": "5 steps"},
}


class Noisy(Classifier):
    """Validates with noise of its own, writes rows of single batches, and follows a plateau."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, points, classes = batch
        loss = torch.nn.functional.cross_entropy(self(points + 0.1 * torch.randn_like(points)), classes)
        self.log("val_loss", loss, on_step=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss_epoch"}}


class Stops(treadle.Callback):
    """Sends the signal in the second batch of the n-th validation."""

    def __init__(self, validation: int, number: int = signal.SIGTERM) -> None:
        self.left, self.number = validation, number
        self.batches: list[int] = []

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self.left -= 1

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.left == 0 and not trainer.sanity_checking:
            self.batches.append(batch_idx)
            if batch_idx == 1:
                os.kill(os.getpid(), self.number)


class Unsized(Points):
    """Its loader doesn't say how long it is."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()

        class Lists:
            def __iter__(self) -> Any:
                return iter(loader.batch_sampler)

        return torch.utils.data.DataLoader(loader.dataset, batch_sampler=Lists())  # type: ignore[arg-type]


def fit(
    folder: Path, stops: Stops | None, settings: dict[str, Any], data: treadle.DataModule | None = None, **more: Any
) -> treadle.Module:
    treadle.seed_everything(3)
    trainer = treadle.Trainer(
        max_epochs=3,
        default_root_dir=folder,
        enable_progress_bar=False,
        callbacks=[
            EMAWeightAveraging(decay=0.5),
            EarlyStopping("val_loss_epoch", patience=9),
            *([stops] if stops else []),
        ],
        **settings,
    )
    module = Noisy()
    trainer.fit(module, datamodule=data or Points(), **more)
    return module


class TestASignalInsideAValidation:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
    @pytest.mark.parametrize("validation", [1, 2, 3])
    def test_leaves_no_trace_in_the_resumed_run(
        self, tmp_path: Path, settings: dict[str, Any], validation: int
    ) -> None:
        """Weights, averages, learning rates and rows are bit for bit those of the run that never stopped."""
        whole = fit(tmp_path / "whole", None, settings)
        stops = Stops(validation)
        with pytest.raises(SystemExit) as ended:
            fit(tmp_path / "stopped", stops, settings)
        assert ended.value.code == 128 + signal.SIGTERM
        assert stops.batches == [0, 1], "it went no further"
        resumed = fit(tmp_path / "stopped", None, settings, ckpt_path="auto")
        assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
        one, other = (tmp_path / name / "runs/version_0" for name in ("whole", "stopped"))
        assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
        states = [read(folder / "checkpoints/last.ckpt") for folder in (one, other)]
        assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]
        assert states[0]["progress"] == states[1]["progress"]

    @pytest.mark.parametrize("validation", [1, 2])
    def test_after_the_step_on_what_was_left_of_a_window(self, tmp_path: Path, validation: int) -> None:
        """A loader without a length: that its epoch is over is known only then."""
        settings = {"accumulate_grad_batches": 2, "val_check_interval": "3 steps"}
        whole = fit(tmp_path / "whole", None, settings, data=Unsized())
        with pytest.raises(SystemExit):
            fit(tmp_path / "stopped", Stops(validation), settings, data=Unsized())
        resumed = fit(tmp_path / "stopped", None, settings, data=Unsized(), ckpt_path="auto")
        assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
        one, other = (tmp_path / name / "runs/version_0/metrics.csv" for name in ("whole", "stopped"))
        assert one.read_bytes() == other.read_bytes()

    def test_twice_in_the_same_one_is_as_once(self, tmp_path: Path) -> None:
        whole = fit(tmp_path / "whole", None, {})
        for _ in range(2):
            with pytest.raises(SystemExit):
                fit(tmp_path / "stopped", Stops(1), {}, ckpt_path="auto")
        resumed = fit(tmp_path / "stopped", None, {}, ckpt_path="auto")
        assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))

    def test_is_told_to_callbacks(self, tmp_path: Path) -> None:
        """In place of the end, of which they would think that all batches were seen."""

        class Told(Stops):
            told: list[str]

            def on_validation_interrupted(self, trainer: Any, module: Any) -> None:
                self.told.append("interrupted")

            def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
                if not trainer.sanity_checking:
                    self.told.append("end")

        stops = Told(1)
        stops.told = []
        with pytest.raises(SystemExit):
            fit(tmp_path, stops, {})
        assert stops.told == ["interrupted"]

    def test_from_the_keyboard_is_a_keyboard_interrupt_once_it_is_saved(self, tmp_path: Path, capfd: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, Stops(1, signal.SIGINT), {})
        assert "Ctrl-C again ends now" in capfd.readouterr().err
        state = read(tmp_path / "runs/version_0/checkpoints/last.ckpt")
        assert state["progress"]["validating"]
        assert state["progress"]["batches"] == 5
