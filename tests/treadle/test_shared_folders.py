"""Several savers, folders that runs share, and stops at awkward moments: nothing is lost, and nothing is a stranger's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks import checkpoint_writing as writing
from treadle.checkpoint import read
from treadle.checkpoint.lineage import lineage_of
from treadle.checkpoint.lock import FolderLock
from treadle.checkpoint.saving import Staging
from treadle.errors import CheckpointError, TreadleWarning
from treadle.testing import Classifier, Points

FOLDER = "runs/version_0/checkpoints"


class Stops(treadle.Callback):
    """At a batch, as if the process had been killed: a checkpoint of that moment helps nobody."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.progress.batches == self.batches:
            raise KeyboardInterrupt


def fit(make_trainer: Any, *callbacks: treadle.Callback, epochs: int = 3, **more: Any) -> treadle.Trainer:
    treadle.seed_everything(2)
    settings = {key: more.pop(key) for key in ("default_root_dir", "val_check_interval") if key in more}
    trainer = make_trainer(max_epochs=epochs, callbacks=list(callbacks), **settings)
    stops = any(isinstance(callback, Stops) for callback in callbacks)
    if stops:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Classifier(), datamodule=Points(), **more)
    else:
        trainer.fit(Classifier(), datamodule=Points(), **more)
    return trainer


def states(folder: Path) -> dict[str, int]:
    return {path.name: read(path)["progress"]["batches"] for path in sorted(folder.glob("*.ckpt"))}


class TestTheNewestState:
    def test_is_the_run_s_own_whatever_else_is_saved_elsewhere(self, make_trainer: Any, tmp_path: Path) -> None:
        """An archive of weights, and one that an older run has filled."""

        def savers() -> list[treadle.Callback]:
            return [
                ModelCheckpoint(),
                ModelCheckpoint(dirpath=tmp_path / "weights", save_weights_only=True),
                ModelCheckpoint(dirpath=tmp_path / "archive", every_n_epochs=2),
            ]

        fit(make_trainer, *savers(), epochs=4)
        fit(make_trainer, *savers(), Stops(12), epochs=3)
        trainer = fit(make_trainer, *savers(), epochs=3, ckpt_path="auto")
        assert trainer.ckpt_path == tmp_path / "runs/version_1/checkpoints/last.ckpt"
        assert trainer.global_step == 15

    def test_is_found_without_last(self, make_trainer: Any, tmp_path: Path) -> None:
        def saver() -> ModelCheckpoint:
            return ModelCheckpoint(save_last=False, every="4 steps", filename="{step}", save_top_k=-1)

        fit(make_trainer, saver(), Stops(9))
        trainer = fit(make_trainer, saver(), ckpt_path="auto")
        assert trainer.ckpt_path == tmp_path / FOLDER / "step=8.ckpt"

    def test_that_was_fallen_back_to_is_the_newest_from_then_on(self, make_trainer: Any, tmp_path: Path) -> None:
        """Killed before its next save, the run falls back no further."""

        def saver() -> ModelCheckpoint:
            return ModelCheckpoint(every="3 steps", save_previous=False, save_top_k=-1, filename="{step}")

        fit(make_trainer, saver(), Stops(8))
        last = tmp_path / FOLDER / "last.ckpt"
        last.write_bytes(last.read_bytes()[:1000])  # and step=6, its other name
        for stop in (4, 5):
            with pytest.warns(TreadleWarning, match="damaged") if stop == 4 else nullcontext():
                trainer = fit(make_trainer, saver(), Stops(stop), ckpt_path="auto")
            assert trainer.ckpt_path is not None
            assert read(last)["progress"]["batches"] == 3


class TestTheBestState:
    @pytest.mark.parametrize("interval", [1.0, 3])
    def test_is_kept_though_a_signal_broke_off_its_validation(
        self, make_trainer: Any, tmp_path: Path, interval: float
    ) -> None:
        class Signals(treadle.Callback):
            def __init__(self) -> None:
                self.validations = 0

            def on_validation_start(self, trainer: Any, module: Any) -> None:
                self.validations += not trainer.sanity_checking

            def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
                if self.validations == 1 and not trainer.sanity_checking:
                    os.kill(os.getpid(), signal.SIGTERM)

        def saver() -> ModelCheckpoint:
            return ModelCheckpoint(monitor="val_loss", mode="max", filename="{step}")  # which is the first

        whole = fit(make_trainer, saver(), default_root_dir=tmp_path / "whole", val_check_interval=interval)
        with pytest.raises(SystemExit):
            fit(make_trainer, saver(), Signals(), val_check_interval=interval)
        resumed = fit(make_trainer, saver(), val_check_interval=interval, ckpt_path="auto")
        best = [Path(t.checkpoint_callback.best_model_path).name for t in (whole, resumed)]
        assert best[0] == best[1]
        assert states(tmp_path / "whole" / FOLDER) == states(tmp_path / FOLDER)


class TestARunThatIsAskedToEndInASavepoint:
    @pytest.mark.parametrize("behind", [False, True])
    def test_is_saved_where_it_ends(self, make_trainer: Any, tmp_path: Path, behind: bool) -> None:
        class Asks(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.epoch == 2:
                    trainer.should_stop = True

        trainer = fit(make_trainer, Asks(), ModelCheckpoint(every="1000 steps", save_async=behind), epochs=9)
        assert trainer.global_step == 10
        assert states(tmp_path / FOLDER)["last.ckpt"] == 10


class TestSeveralSavers:
    def test_write_what_they_can_where_one_of_them_cannot(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = writing.write

        def fails_there(path: Path, content: Any) -> None:
            if "broken" in path.parts:
                raise OSError(5, "Input/output error")
            write(path, content)

        monkeypatch.setattr(writing, "write", fails_there)
        savers = [
            ModelCheckpoint(dirpath=tmp_path / "broken", save_weights_only=True),
            ModelCheckpoint(dirpath=tmp_path / "whole"),
        ]
        with pytest.warns(TreadleWarning, match=r"not-saved.*broken"):
            fit(make_trainer, *savers, epochs=2)
        assert states(tmp_path / "whole")["last.ckpt"] == 10
        assert states(tmp_path / "broken") == {}


class TestAFolderThatRunsShare:
    def test_keeps_the_files_of_the_others(self, make_trainer: Any, tmp_path: Path) -> None:
        """Also when the second is killed and resumed, and comes to the names of the first again."""

        def saver() -> ModelCheckpoint:
            return ModelCheckpoint(dirpath=tmp_path / "shared", save_top_k=-1)

        fit(make_trainer, saver(), epochs=4)
        theirs = {path: path.read_bytes() for path in (tmp_path / "shared").glob("epoch*.ckpt")}
        fit(make_trainer, saver(), Stops(12), epochs=4)
        fit(make_trainer, saver(), epochs=4, ckpt_path="auto")
        assert {path: path.read_bytes() for path in theirs} == theirs
        assert len(list((tmp_path / "shared").glob("epoch*-v1.ckpt"))) == 4

    def test_keeps_what_a_branch_started_from(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fit(make_trainer, ModelCheckpoint(dirpath=tmp_path / "shared", save_top_k=-1))
        before = set((tmp_path / "shared").glob("epoch*.ckpt"))
        branch = ModelCheckpoint(dirpath=tmp_path / "shared")
        fit(make_trainer, branch, epochs=5, ckpt_path="shared/epoch=0-step=5.ckpt")
        assert before <= set((tmp_path / "shared").glob("epoch*.ckpt"))

    def test_may_be_spelled_in_two_ways(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fit(make_trainer, ModelCheckpoint(dirpath="mine"), epochs=1)
        trainer = fit(make_trainer, ModelCheckpoint(dirpath=tmp_path / "mine"), epochs=2, ckpt_path="mine/last.ckpt")
        assert trainer.global_step == 10
        assert len(states(tmp_path / "mine")) == 3, "what was kept is still known by its folder's other name"


class TestTheLock:
    def test_is_held_in_a_repository_that_does_not_ignore_its_runs(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Lineage reads files that git doesn't know; opening and closing the lock's would end it."""
        for arguments in (
            ["init", "-q"],
            ["-c", "user.name=n", "-c", "user.email=e@x.org", "commit", "-q", "--allow-empty", "-m", "1"],
        ):
            subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
        monkeypatch.chdir(tmp_path)
        fit(make_trainer, ModelCheckpoint(), epochs=1)
        taken = []
        program = "import sys; from pathlib import Path; from treadle.checkpoint.lock import FolderLock as L; L.PATIENCE = 0; L(Path(sys.argv[1])).acquire()"

        class Tries(treadle.Callback):
            def on_train_end(self, trainer: Any, module: Any) -> None:
                other = subprocess.run([sys.executable, "-c", program, FOLDER], capture_output=True, text=True)
                taken.append("being written by another run" in other.stderr)

        lineage_of.cache_clear()
        fit(make_trainer, ModelCheckpoint(), Tries(), epochs=2, ckpt_path="auto")
        assert taken == [True]

    def test_of_a_folder_that_is_gone_hides_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        lock = FolderLock(tmp_path / "folder")
        lock.acquire()
        (tmp_path / "folder/.lock").unlink()
        (tmp_path / "folder").rmdir()
        (tmp_path / "folder").write_text("")
        lock.release()
        with pytest.raises(CheckpointError, match=r"\.lock can't be written"):
            FolderLock(tmp_path / "folder").acquire()


class TestAStagedCopy:
    @pytest.mark.parametrize(
        "state",
        [
            {1: torch.ones(2), "1": torch.zeros(2)},
            {"a/b": torch.ones(2), "a": {"b": torch.zeros(2)}},
            {"z": (z := torch.tensor([1 + 2j])), "conjugate": z.conj(), "imaginary": z.conj().imag},
            {"sparse": torch.eye(3).to_sparse(), "wide": torch.ones(1).expand(5), "none": torch.empty(0, 3)},
        ],
    )
    def test_is_what_was_copied_the_first_time_and_the_second(self, state: Any) -> None:
        staging = Staging()
        for _ in range(2):
            copies = dict(_leaves(staging.copy(state)))
            for at, tensor in _leaves(state):
                assert torch.equal(copies[at].to_dense().resolve_conj(), tensor.to_dense().resolve_conj()), at


def _leaves(state: Any, at: tuple[Any, ...] = ()) -> Any:
    for key, value in state.items():
        yield from _leaves(value, (*at, key)) if isinstance(value, dict) else [((*at, key), value)]
