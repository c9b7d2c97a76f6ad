"""The progress bar: for who watches, and for nobody else."""

import io
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import treadle
from treadle.callbacks import RichProgressBar
from treadle.testing import Classifier, Points

SHOW_CURSOR = "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """For tests to direct standard error to."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


class Shows(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 0.125, prog_bar=True)


def plain(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def trainer(root: Path, **settings: Any) -> treadle.Trainer:
    callbacks = [RichProgressBar(refresh_rate=1e9), *settings.pop("callbacks", [])]
    return treadle.Trainer(default_root_dir=root, logger=False, callbacks=callbacks, **{"max_epochs": 2, **settings})


class TestInATerminal:
    def test_shows_epochs_batches_and_metrics(self, terminal: Terminal, tmp_path: Path) -> None:
        with redirect_stderr(terminal):
            trainer(tmp_path).fit(Shows(), datamodule=Points())
        shown = plain(terminal)
        for text in ("sanity check", "epoch 0", "epoch 1", "validate", "5/5", "val_loss 0.125"):
            assert text in shown

    def test_shows_an_evaluation(self, terminal: Terminal, tmp_path: Path) -> None:
        with redirect_stderr(terminal):
            trainer(tmp_path).test(Shows(), datamodule=Points(), verbose=False)
        assert "test" in plain(terminal)
        assert "3/3" in plain(terminal)

    def test_shows_a_loader_without_length(self, terminal: Terminal, tmp_path: Path) -> None:
        with redirect_stderr(terminal):
            trainer(tmp_path, max_epochs=1).fit(Shows(), (batch for batch in list(Points().train_dataloader())))
        assert "5/?" in plain(terminal)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_gives_the_cursor_back_after_an_error(
        self, terminal: Terminal, tmp_path: Path, error: type[BaseException]
    ) -> None:
        class Breaks(Shows):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                raise error

        with pytest.raises(error), redirect_stderr(terminal):
            trainer(tmp_path).fit(Breaks(), datamodule=Points())
        assert terminal.getvalue().rindex(SHOW_CURSOR) > terminal.getvalue().rindex("\x1b[?25l")

    def test_works_for_one_call_after_another(self, terminal: Terminal, tmp_path: Path) -> None:
        ours = trainer(tmp_path)
        with redirect_stderr(terminal):
            ours.fit(Shows(), datamodule=Points())
            ours.test(datamodule=Points(), verbose=False)
            ours.predict(datamodule=Points())
            ours.fit(Shows(), datamodule=Points())
        assert "predict" in plain(terminal)

    def test_is_redrawn_by_time_not_by_batch(self, terminal: Terminal, tmp_path: Path) -> None:
        """A hundred batches in an instant are drawn once, and once more at the end of the epoch."""

        seldom = treadle.Trainer(
            default_root_dir=tmp_path,
            logger=False,
            callbacks=RichProgressBar(refresh_rate=1e-3),
            max_epochs=1,
            num_sanity_val_steps=0,
        )
        with redirect_stderr(terminal):
            seldom.fit(Shows(), list(Points(400).train_dataloader()))
        assert 1 <= len(set(re.findall(r"(\d+)/100", plain(terminal)))) <= 3


class TestElsewhere:
    def test_draws_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """In a file or a pipe there is the line at the start, and no control character."""
        treadle.Trainer(default_root_dir=tmp_path, max_epochs=1, logger=False).fit(Shows(), datamodule=Points())
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert shown.err.startswith(f"treadle {treadle.__version__}: Shows, 22 parameters, ")
        assert "\x1b" not in shown.err

    def test_reads_nothing_from_the_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Metrics meant for a bar that nobody sees cost no sync."""
        reads: list[str] = []

        class Logs(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                loss = super().training_step(batch, batch_idx)
                self.log("shown", loss, prog_bar=True)
                return loss

        class Notes(treadle.Callback):
            def on_train_start(self, trainer: Any, module: Any) -> None:
                tolist = torch.Tensor.tolist

                def counted(tensor: Tensor) -> Any:
                    if tensor.is_floating_point():
                        reads.append("tolist")
                    return tolist(tensor)

                monkeypatch.setattr(torch.Tensor, "tolist", counted)

            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                assert reads == []

        treadle.Trainer(
            default_root_dir=tmp_path, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=Notes()
        ).fit(Logs(), Points().train_dataloader())


class TestItsDefault:
    def test_is_one_bar(self) -> None:
        assert [type(callback) for callback in treadle.Trainer(enable_checkpointing=False).callbacks] == [
            RichProgressBar
        ]

    def test_is_replaced_by_the_users(self) -> None:
        mine = RichProgressBar(refresh_rate=1.0)
        ours = treadle.Trainer(enable_checkpointing=False, callbacks=mine)
        assert ours.callbacks == [mine]

    def test_is_none_when_turned_off(self) -> None:
        assert treadle.Trainer(enable_checkpointing=False, enable_progress_bar=False).callbacks == []

    @pytest.mark.parametrize("rate", [0, -1, "fast", None])
    def test_has_a_rate_that_makes_sense(self, rate: Any) -> None:
        with pytest.raises(treadle.errors.ConfigError, match="refresh_rate"):
            RichProgressBar(refresh_rate=rate)
