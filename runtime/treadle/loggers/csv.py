"""Rows of metrics in ``metrics.csv``, hyperparameters in ``hparams.json``."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Literal, final

from treadle.errors import CheckpointError, ConfigError, warn


@final
class CSVLogger:
    """One run is one folder: ``save_dir/name/version_N``, made with its first row.

    Rows are appended; the file is written anew only when a column is added. A resumed run drops the rows that were
    written after its checkpoint, so the file ends up as that of a run that never stopped. While the disk is full, rows
    wait in memory, and training goes on.

    Args:
        save_dir: Where runs of all names lie.
        name: A folder in it.
        version: The run's own folder: a number N for ``version_N``, or a name. Default: the first free number.
    """

    def __init__(
        self, save_dir: str | os.PathLike[str] = ".", name: str = "runs", version: int | str | None = None
    ) -> None:
        self.save_dir, self.name = Path(save_dir), name
        self._version = version
        self._folder: Path | None = None
        self._columns: list[str] = []
        self._rows = 0
        self._waiting: list[dict[str, Any]] = []
        """Rows that could not be written yet."""
        self._file: IO[bytes] | None = None
        self._started = False

    @property
    def version(self) -> int | str | None:
        """As it was given."""
        return self._version

    @property
    def log_dir(self) -> Path:
        if self._folder is None:
            version = _next_version(self.save_dir / self.name) if self._version is None else self._version
            self._folder = self.save_dir / self.name / (f"version_{version}" if isinstance(version, int) else version)
        return self._folder

    @property
    def path(self) -> Path:
        return self.log_dir / "metrics.csv"

    def start_run(self) -> None:
        """Take the next free folder, unless this is the first run or the folder was given by ``version``.

        Raises:
            ConfigError: The folder that was given has another run's rows.
        """
        if self._version is not None and not self._rows and not self._started and self.path.exists():
            raise ConfigError(
                f"{self.path} is there already.",
                why="a run that continues nothing has a folder of its own; its rows would mix with those of another.",
                fix='ckpt_path="auto" to continue that run, another version, or remove the folder.',
            )
        if self._started and self._version is None:
            self._close()
            self._folder, self._columns, self._rows = None, [], 0
            self._waiting.clear()
        self._started = True

    def resume_in(self, folder: Path) -> None:
        self._close()
        self._folder, self._started = folder, True

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._waiting.append({"step": step, **metrics})
        try:
            self._write_waiting()
        except OSError as error:
            if len(self._waiting) == 1:
                warn("not-logged", f"{self.path} can't be written: {error.strerror or error}. Rows wait in memory.")

    def _write_waiting(self) -> None:
        """For whoever watches the file; a checkpoint waits for the disk as well."""
        while self._waiting:
            row = self._waiting[0]
            if new := [name for name in row if name not in self._columns]:
                self._write_anew([*self._columns, *new])
            self._append(_line([row.get(name, "") for name in self._columns]))
            del self._waiting[0]
            self._rows += 1

    def _append(self, line: bytes) -> None:
        """All of it or nothing."""
        file = self._opened()
        whole = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(whole)
            raise

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_with_text_keys(dict(params)), indent=2, default=repr)
        (self.log_dir / "hparams.json").write_text(text + "\n", encoding="utf-8")

    def save(self) -> None:
        """
        Raises:
            OSError: Rows could not be written.
        """
        self._write_waiting()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finalize(self, status: Literal["success", "failed"]) -> None:
        try:
            self._write_waiting()
        except OSError as error:
            warn("not-logged", f"{self.path} lacks its last {len(self._waiting)} rows: {error.strerror or error}.")
            self._waiting.clear()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._closes.detach()
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.log_dir.name, "rows": self._rows, "columns": list(self._columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue ``metrics.csv`` after the rows it had when ``state`` was saved; drop those that came later.

        Without ``resume_in``, the folder is the one of that name among the runs here.

        Raises:
            CheckpointError: The file has fewer rows than that: it is not the one that belongs to the checkpoint.
        """
        named = str(state["version"])
        if self._folder is None and self._version is None and re.fullmatch(r"\w[\w.=-]*", named):  # no way out of here
            self._folder = self.save_dir / self.name / named
        for half in self.log_dir.glob(".metrics.csv.*.partial"):  # of a process that was killed while it wrote
            half.unlink(missing_ok=True)
        rows = self._read()[: state["rows"]]
        if len(rows) < state["rows"]:
            raise CheckpointError(
                f"{self.path} has {len(rows)} rows where the checkpoint knows {state['rows']}.",
                why="resuming continues the run's own files, and rows are missing from this one.",
                fix="restore the file, or resume from a copy of the checkpoint in another folder to start a new run.",
            )
        self._rows = len(rows)
        self._columns = state["columns"]
        if self._columns:
            self._write_anew(self._columns, rows)
        else:  # rows that a killed run wrote after its checkpoint
            self.path.unlink(missing_ok=True)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
            # In a loop of somebody's own, who says when a run is over?
            self._closes = weakref.finalize(self, self._file.close)
        return self._file

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        # A killed process may leave half a row; it came after the last checkpoint, or it would have been flushed.
        text = self.path.read_text(encoding="utf-8")
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))

    def _write_anew(self, columns: list[str], rows: list[dict[str, str]] | None = None) -> None:
        rows = self._read() if rows is None else rows
        self._close()
        self.log_dir.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".metrics.csv.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(_line(columns))
                file.writelines(_line([row.get(name) or "" for name in columns]) for row in rows)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._columns = columns


def _line(values: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _with_text_keys(value: Any) -> Any:
    """JSON has no other keys."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def _next_version(folder: Path) -> int:
    taken = [int(match[1]) for path in folder.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))]
    return max(taken, default=-1) + 1
