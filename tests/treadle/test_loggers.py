"""CSVLogger's files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.errors import CheckpointError
from treadle.loggers import CSVLogger, Logger
from treadle.testing import Classifier, MemoryLogger, Points


def lines(logger: CSVLogger) -> list[str]:
    return logger.path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[CSVLogger]:
    logger = CSVLogger(tmp_path)
    yield logger
    logger.finalize("success")


class TestRows:
    def test_are_appended(self, logger: CSVLogger) -> None:
        logger.log_metrics({"loss": 0.5}, 1)
        logger.log_metrics({"loss": 0.25}, 2)
        logger.save()
        assert lines(logger) == ["step,loss", "1,0.5", "2,0.25"]

    def test_of_another_metric_add_a_column(self, logger: CSVLogger) -> None:
        """Rows from before have nothing in it; rows after without a metric have nothing there."""
        logger.log_metrics({"loss": 0.5}, 1)
        logger.log_metrics({"accuracy": 0.75}, 2)
        logger.log_metrics({"loss": 0.25, "accuracy": 1.0}, 3)
        logger.finalize("success")
        assert lines(logger) == ["step,loss,accuracy", "1,0.5,", "2,,0.75", "3,0.25,1.0"]

    def test_keep_every_digit(self, logger: CSVLogger) -> None:
        value = 0.1 + 0.2
        logger.log_metrics({"loss": value}, 1)
        logger.log_metrics({"other": float("nan")}, 2)
        logger.save()
        rows = list(csv.DictReader(lines(logger)))
        assert float(rows[0]["loss"]) == value
        assert rows[1]["other"] == "nan"

    @pytest.mark.parametrize(
        "name", ["Genauigkeit für Äpfel", "损失", 'with, a comma and "quotes"', "a\nb", "val/loss"]
    )
    def test_may_have_any_name(self, logger: CSVLogger, name: str) -> None:
        logger.log_metrics({name: 0.5}, 1)
        logger.log_metrics({"another": 1.0}, 2)
        logger.save()
        with logger.path.open(encoding="utf-8", newline="") as file:
            assert next(csv.DictReader(file)) == {"step": "1", name: "0.5", "another": ""}

    def test_are_on_disk_after_save(self, logger: CSVLogger) -> None:
        logger.log_metrics({"loss": 0.5}, 1)
        logger.save()
        assert lines(logger)[-1] == "1,0.5"

    def test_that_are_logged_after_the_end_are_appended(self, logger: CSVLogger) -> None:
        """A test after a fit writes to the same file."""
        logger.log_metrics({"loss": 0.5}, 1)
        logger.finalize("success")
        logger.log_metrics({"loss": 0.25}, 2)
        logger.finalize("success")
        assert lines(logger) == ["step,loss", "1,0.5", "2,0.25"]


class TestFolders:
    def test_are_numbered(self, tmp_path: Path) -> None:
        for version in range(3):
            logger = CSVLogger(tmp_path)
            logger.log_metrics({"loss": 1.0}, 0)
            logger.finalize("success")
            assert logger.log_dir == tmp_path / "runs" / f"version_{version}"

    def test_are_numbered_after_the_highest(self, tmp_path: Path) -> None:
        """A run that was deleted doesn't give its number away; names of other things don't count."""
        for name in ("version_9", "version_10", "version_x", "version_2 copy"):
            (tmp_path / "runs" / name).mkdir(parents=True)
        assert CSVLogger(tmp_path).log_dir.name == "version_11"

    @pytest.mark.parametrize("version, name", [(7, "version_7"), ("größer", "größer")])
    def test_may_be_named(self, tmp_path: Path, version: Any, name: str) -> None:
        logger = CSVLogger(tmp_path, "mine", version)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        assert logger.path == tmp_path / "mine" / name / "metrics.csv"

    def test_are_made_with_the_first_row(self, tmp_path: Path) -> None:
        """Making a logger, and asking where it would write, leaves no empty folder."""
        assert CSVLogger(tmp_path).log_dir
        assert list(tmp_path.iterdir()) == []


class TestAResumedRun:
    def test_drops_rows_that_came_after_its_checkpoint(self, logger: CSVLogger) -> None:
        logger.log_metrics({"loss": 0.5}, 1)
        state = logger.state_dict()
        logger.log_metrics({"loss": 0.25, "later": 1.0}, 2)
        logger.finalize("failed")
        again = self.resumed(logger, state)
        again.log_metrics({"loss": 0.125}, 2)
        again.finalize("success")
        assert lines(again) == ["step,loss", "1,0.5", "2,0.125"]

    def test_drops_half_a_row(self, logger: CSVLogger) -> None:
        """A killed process stops anywhere."""
        logger.log_metrics({"loss": 0.5}, 1)
        logger.finalize("failed")
        state = logger.state_dict()
        with logger.path.open("a", encoding="utf-8") as file:
            file.write("2,0.2")
        again = self.resumed(logger, state)
        again.log_metrics({"loss": 0.25}, 2)
        again.finalize("success")
        assert lines(again) == ["step,loss", "1,0.5", "2,0.25"]

    def test_from_before_the_first_row_starts_the_file_anew(self, logger: CSVLogger) -> None:
        state = logger.state_dict()
        logger.log_metrics({"loss": 0.5}, 1)
        logger.finalize("failed")
        again = self.resumed(logger, state)
        assert not again.path.exists()
        again.log_metrics({"other": 1.0}, 1)
        again.finalize("success")
        assert lines(again) == ["step,other", "1,1.0"]

    def test_with_rows_missing_is_an_error(self, logger: CSVLogger) -> None:
        """Somebody cut the file: going on would hide it."""
        logger.log_metrics({"loss": 0.5}, 1)
        logger.log_metrics({"loss": 0.5}, 2)
        logger.finalize("failed")
        state = logger.state_dict()
        logger.path.write_text("step,loss\n1,0.5\n")
        with pytest.raises(CheckpointError, match="has 1 rows where the checkpoint knows 2"):
            self.resumed(logger, state)

    @pytest.mark.parametrize("version", ["..", "../other", "/etc", "", "a/b"])
    def test_stays_among_its_runs_whatever_a_checkpoint_says(self, tmp_path: Path, version: str) -> None:
        """A checkpoint may be a stranger's; rows of another folder are none of its business."""
        mine = tmp_path / "metrics.csv"
        mine.write_text("step,loss\n1,0.5\n")
        logger = CSVLogger(tmp_path)
        logger.load_state_dict({"version": version, "rows": 0, "columns": []})
        assert logger.log_dir == tmp_path / "runs/version_0"
        assert mine.exists()

    @staticmethod
    def resumed(logger: CSVLogger, state: dict[str, Any]) -> CSVLogger:
        again = CSVLogger(logger.save_dir)
        again.resume_in(logger.log_dir)
        again.load_state_dict(state)
        return again


class TestLoggers:
    def test_may_be_several(self, make_bare: Any, tmp_path: Path) -> None:
        """The first that has a folder gives the run its own; all get the same rows."""
        memory, files = MemoryLogger(), CSVLogger(tmp_path, "mine")
        trainer = make_bare(logger=[memory, files], log_every_n_steps=1)
        trainer.fit(Classifier(), datamodule=Points())
        assert trainer.run_folder == files.log_dir
        assert trainer.logger is memory
        assert len(lines(files)) == len(memory.rows) + 1
        assert memory.params["hidden"] == 4

    def test_are_anything_with_the_methods(self) -> None:
        assert isinstance(MemoryLogger(), Logger)
        assert isinstance(CSVLogger(), Logger)
