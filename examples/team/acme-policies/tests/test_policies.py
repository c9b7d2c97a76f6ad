"""What Acme asks of every run, asked of a real run that knows nothing of it."""

import json
from pathlib import Path

import pytest
import torch
from acme_policies import TimeLimit
from torch import Tensor
from torch.utils.data import DataLoader

from treadle import Module, Trainer
from treadle.errors import ConfigError


class Line(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.layer(batch) - 2 * batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Tensor]:
    return DataLoader(torch.ones(8, 1), batch_size=1)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "record" / "runs.jsonl"
    monkeypatch.setenv("ACME_RECORD", str(path))
    return path


def trainer(tmp_path: Path, **settings: object) -> Trainer:
    usual = {"max_steps": 2, "log_every_n_steps": 1, "accelerator": "cpu", "default_root_dir": tmp_path}
    return Trainer(**{**usual, **settings})  # type: ignore[arg-type]


class TestARun:
    def test_is_on_record(self, tmp_path: Path, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trainer(tmp_path).fit(Line(), loader())
        begin, end = map(json.loads, record.read_text(encoding="utf-8").splitlines())
        assert begin["event"] == "begin"
        assert (end["event"], end["status"], end["step"]) == ("end", "success", 1)  # the last row is of step 1
        assert end["metrics"]["train_loss"] > 0
        assert "policies: acme-policies 1.0.0" in capsys.readouterr().err

    def test_is_refused_in_float16(self, tmp_path: Path, record: Path) -> None:
        with pytest.raises(ConfigError, match="does not train in 16-true"):
            trainer(tmp_path, precision="16-true").fit(Line(), loader())
        assert not record.exists()

    def test_may_have_a_time_limit_of_its_own(self, tmp_path: Path) -> None:
        trainer(tmp_path, max_time={"hours": 1}).fit(Line(), loader())

    def test_ends_when_its_day_is_over(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = trainer(tmp_path, max_steps=100_000, plugins="none", callbacks=[TimeLimit(hours=0.01 / 3600)])
        run.fit(Line(), loader())
        assert run.global_step < 100_000
        assert "the time is over" in capsys.readouterr().err
