"""Saving that loses nothing: beside training, in a folder of its own, with the state before, and with its history."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks import checkpoint_writing as writing
from treadle.checkpoint import read
from treadle.checkpoint.lineage import lineage_of
from treadle.checkpoint.lock import FolderLock
from treadle.checkpoint.saving import Background, Staging
from treadle.data.fingerprint import fingerprint
from treadle.errors import CheckpointError, TreadleWarning
from treadle.testing import Classifier, NoisyPoints, Points

FOLDER = "runs/version_0/checkpoints"


def weights(module: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def fitted(trainer: treadle.Trainer, seed: int = 1, **more: Any) -> Classifier:
    treadle.seed_everything(seed)
    module = Classifier()
    trainer.fit(module, datamodule=Points(), **more)
    return module


def positions(folder: Path) -> dict[str, int]:
    return {path.name: read(path)["progress"]["batches"] for path in sorted(folder.glob("*.ckpt"))}


class TestTheStateBeforeTheNewest:
    def test_is_kept_without_another_write(self, make_trainer: Any, tmp_path: Path) -> None:
        fitted(make_trainer(max_epochs=3))
        assert positions(tmp_path / FOLDER) == {"epoch=2-step=15.ckpt": 15, "last.ckpt": 15, "previous.ckpt": 10}

    def test_is_not_if_one_wishes(self, make_trainer: Any, tmp_path: Path) -> None:
        fitted(make_trainer(max_epochs=3, callbacks=ModelCheckpoint(save_previous=False)))
        assert sorted(positions(tmp_path / FOLDER)) == ["epoch=2-step=15.ckpt", "last.ckpt"]

    @pytest.mark.parametrize("how", ["cut off", "a bit flipped", "emptied", "a bomb"])
    def test_is_gone_on_from_where_the_newest_cannot_be_read(self, make_trainer: Any, tmp_path: Path, how: str) -> None:
        """Bit for bit as if it had never stopped, and with a warning that says which file was damaged."""
        whole = fitted(make_trainer(max_epochs=3, default_root_dir=tmp_path / "whole"))
        fitted(make_trainer(max_epochs=2))
        damage(tmp_path / FOLDER / "last.ckpt", how, tmp_path)
        with pytest.warns(
            TreadleWarning, match=r"treadle\[damaged\].*last.ckpt.*goes on from the state before, previous"
        ):
            resumed = fitted(make_trainer(max_epochs=3), seed=7, ckpt_path="auto")
        assert all(map(torch.equal, weights(whole), weights(resumed)))
        rows = [(root / "runs/version_0/metrics.csv").read_bytes() for root in (tmp_path / "whole", tmp_path)]
        assert rows[0] == rows[1]
        assert not (tmp_path / "executed").exists()
        assert (tmp_path / FOLDER / "last.ckpt.damaged").exists(), "it is the user's to look at"
        assert positions(tmp_path / FOLDER)["last.ckpt"] == 15

    def test_is_not_taken_in_place_of_a_file_that_was_pointed_at(self, make_trainer: Any, tmp_path: Path) -> None:
        fitted(make_trainer(max_epochs=2))
        path = tmp_path / FOLDER / "last.ckpt"
        damage(path, "cut off", tmp_path)
        with pytest.raises(CheckpointError, match="is damaged"):
            fitted(make_trainer(max_epochs=3), ckpt_path=path)
        assert path.exists()

    def test_that_is_damaged_as_well_ends_it(self, make_trainer: Any, tmp_path: Path) -> None:
        fitted(make_trainer(max_epochs=2))
        for path in (tmp_path / FOLDER).glob("*.ckpt"):
            damage(path, "cut off", tmp_path)
        with pytest.raises(CheckpointError, match=r"last.ckpt is damaged"):
            fitted(make_trainer(max_epochs=3), ckpt_path="auto")


def damage(path: Path, how: str, folder: Path) -> None:
    """Under all of its names."""
    content = bytearray(path.read_bytes())
    match how:
        case "cut off":
            del content[len(content) // 2 :]
        case "a bit flipped":
            content[len(content) // 2] ^= 1
        case "emptied":
            content.clear()
        case _:

            class Bomb:
                def __reduce__(self) -> Any:
                    return os.mkdir, (str(folder / "executed"),)

            torch.save({"format": 1, "bomb": Bomb()}, path)
            return
    path.write_bytes(content)


class TestATroubleThatPasses:
    def test_of_the_disk_is_not_taken_for_damage(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest state may be sound: the run doesn't go back, and nothing is set aside."""
        fitted(make_trainer(max_epochs=2))

        def fails(*_: Any, **__: Any) -> Any:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(torch, "load", fails)
            with pytest.raises(CheckpointError, match=r"auto can't be looked up: Input/output error"):
                fitted(make_trainer(max_epochs=3), ckpt_path="auto")
        assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
            *["epoch=1-step=10.ckpt", "last.ckpt", "previous.ckpt"]
        ]
        trainer = make_trainer(max_epochs=3)
        fitted(trainer, ckpt_path="auto")
        assert trainer.global_step == 15

    def test_of_a_folder_that_is_gone_costs_one_save_at_most(self, make_trainer: Any, tmp_path: Path) -> None:
        class Removes(treadle.Callback):
            def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
                if trainer.current_epoch == 1:
                    shutil.rmtree(tmp_path / "mine")

        fitted(make_trainer(max_epochs=2, callbacks=[Removes(), ModelCheckpoint(dirpath=tmp_path / "mine")]))
        assert positions(tmp_path / "mine")["last.ckpt"] == 10


class TestAFolderInAFilename:
    def test_is_made(self, make_trainer: Any, tmp_path: Path) -> None:
        fitted(make_trainer(callbacks=ModelCheckpoint(filename="best/{epoch}")))
        assert (tmp_path / FOLDER / "best/epoch=0.ckpt").is_file()


class TestStatesKeptForGood:
    def test_are_those_at_a_rhythm_of_their_own(self, make_trainer: Any, tmp_path: Path) -> None:
        """Apart from the best: these come and go, and those stay."""
        saver = ModelCheckpoint(monitor="val_loss", save_top_k=1, keep_every="4 steps", filename="{step}")
        fitted(make_trainer(max_epochs=3, callbacks=saver))
        kept = {int(path.stem.split("=")[1]) for path in (tmp_path / FOLDER).glob("step=*.ckpt")}
        assert {4, 8, 12} <= kept
        assert kept - {4, 8, 12} <= {5, 10, 15}
        assert len(kept) <= 4

    def test_stay_so_when_the_run_is_resumed(self, make_trainer: Any, tmp_path: Path) -> None:
        def saver() -> ModelCheckpoint:
            return ModelCheckpoint(keep_every="5 steps", filename="{step}")

        fitted(make_trainer(max_epochs=2, callbacks=saver()))
        fitted(make_trainer(max_epochs=4, callbacks=saver()), ckpt_path="auto")
        assert {path.stem for path in (tmp_path / FOLDER).glob("step=*.ckpt")} == {f"step={n}" for n in (5, 10, 15, 20)}


class TestSavingBesideTraining:
    def test_gives_the_same_files(self, make_trainer: Any, tmp_path: Path) -> None:
        for name, behind in (("sync", False), ("async", True)):
            saver = ModelCheckpoint(every="3 steps", save_async=behind)
            fitted(make_trainer(max_epochs=2, callbacks=saver, default_root_dir=tmp_path / name))
        sync, behind = (
            {path.name: read(path) for path in (tmp_path / name / FOLDER).glob("*.ckpt")} for name in ("sync", "async")
        )
        assert sync.keys() == behind.keys()
        for name, state in sync.items():
            assert all(
                torch.equal(behind[name]["state_dict"][key], value) for key, value in state["state_dict"].items()
            )
            assert behind[name]["progress"] == state["progress"]

    def test_holds_the_state_of_the_moment_it_was_asked_for(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Training goes on, and changes the weights, while the disk is slow."""
        trained_on, seen = threading.Event(), []
        write = writing.write

        def slow(path: Path, content: Any) -> None:
            assert threading.current_thread() is not threading.main_thread()
            assert trained_on.wait(60)
            write(path, content)

        class Watches(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                seen.append([value.clone() for value in module.state_dict().values()])
                if trainer.global_step == 3:
                    trained_on.set()

        monkeypatch.setattr(writing, "write", slow)
        saver = ModelCheckpoint(every="2 steps", save_async=True, save_top_k=-1, filename="{step}")
        fitted(make_trainer(callbacks=[Watches(), saver]))
        state = read(tmp_path / FOLDER / "step=2.ckpt")["state_dict"]
        assert all(map(torch.equal, state.values(), seen[1]))
        assert not all(map(torch.equal, seen[1], seen[2]))

    def test_that_fails_is_said_at_the_next_batch_and_training_goes_on(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, calls = writing.write, []

        def fails_once(path: Path, content: Any) -> None:
            calls.append(path)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            write(path, content)

        monkeypatch.setattr(writing, "write", fails_once)
        saver = ModelCheckpoint(every="2 steps", save_async=True, save_top_k=1, filename="{step}")
        trainer = make_trainer(max_epochs=2, callbacks=saver)
        with pytest.warns(TreadleWarning, match=r"treadle\[not-saved\].*step=4.ckpt was not saved: Input/output error"):
            fitted(trainer)
        assert trainer.global_step == 10
        assert positions(tmp_path / FOLDER)["last.ckpt"] == 10
        assert not list((tmp_path / FOLDER).glob("step=4*"))

    def test_that_fails_at_the_end_ends_the_fit(self, make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody would look for a state that was never written."""

        def fails(path: Path, content: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writing, "write", fails)
        trainer = make_trainer(callbacks=ModelCheckpoint(save_async=True))
        with (
            pytest.warns(TreadleWarning, match="not-saved"),
            pytest.raises(CheckpointError, match="its last state was not saved: No space left"),
        ):
            fitted(trainer)

    def test_that_fails_is_tried_again_where_the_run_ends(
        self, make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The state of the last batch was on its way to the disk; a signal in the validation behind it ends the run."""
        write, failed = writing.write, []

        def fails_once(path: Path, content: Any) -> None:
            if not failed:
                failed.append(path)
                raise OSError(5, "Input/output error")
            write(path, content)

        class Ends(treadle.Callback):
            def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
                if not trainer.sanity_checking:
                    os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(writing, "write", fails_once)
        trainer = make_trainer(callbacks=[Ends(), ModelCheckpoint(every="5 steps", save_async=True)])
        with pytest.warns(TreadleWarning, match="not-saved"), pytest.raises(SystemExit):
            fitted(trainer)
        assert positions(tmp_path / FOLDER)["last.ckpt"] == 5

    def test_names_what_a_file_cannot_hold_at_once(self, make_trainer: Any) -> None:
        class Foreign(treadle.Callback):
            def state_dict(self) -> dict[str, Any]:
                return {"path": Path("here")}

        trainer = make_trainer(callbacks=[Foreign(), ModelCheckpoint(every="1 steps", save_async=True)])
        with pytest.raises(CheckpointError, match=r"callbacks.*\['path'\] is a pathlib"):
            fitted(trainer)
        assert trainer.global_step == 1

    def test_takes_memory_for_one_copy_only(self) -> None:
        """However often: the same memory is used again, and what is one tensor stays one."""
        staging, tensor = Staging(), torch.randn(100)
        first = staging.copy({"a": tensor, "tied": tensor, "n": [1, (tensor * 2,)]})
        assert first["a"] is first["tied"]
        before = first["a"].data_ptr(), first["n"][1][0].data_ptr()
        second = staging.copy({"a": tensor + 1, "tied": tensor, "n": [2, (tensor * 3,)]})
        assert (second["a"].data_ptr(), second["n"][1][0].data_ptr()) == before
        assert torch.equal(second["a"], tensor + 1)
        assert second["n"][0] == 2

    def test_raises_what_went_wrong_where_it_is_waited_for(self) -> None:
        background = Background()
        background.start(lambda: [][1])  # type: ignore[index]
        with pytest.raises(IndexError):
            background.wait()
        background.wait()  # once


HOLDER = """
import os, sys, time
from pathlib import Path
from treadle.checkpoint.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:  # as a loader's worker is
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


class TestTwoRunsInOneFolder:
    def test_in_two_processes_are_refused_until_the_first_is_dead(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed, it leaves its file behind, and a forked worker alive: neither keeps the next run out."""
        monkeypatch.setattr(FolderLock, "PATIENCE", 0.2)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=rf"another run: another process \(process {process.pid} on"):
                FolderLock(tmp_path).acquire()
            process.kill()
            process.wait()
            assert (tmp_path / ".lock").exists()
            monkeypatch.setattr(FolderLock, "PATIENCE", 10.0)
            lock = FolderLock(tmp_path)
            lock.acquire()
            lock.release()
            assert not (tmp_path / ".lock").exists()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()  # type: ignore[union-attr]

    def test_in_one_process_are_refused(self, make_trainer: Any, tmp_path: Path) -> None:
        """A second fit that resumes the run which is going on."""

        class Nested(treadle.Callback):
            def on_train_end(self, trainer: Any, module: Any) -> None:
                with pytest.raises(CheckpointError, match="being written by another run: this process"):
                    fitted(make_trainer(max_epochs=2), ckpt_path=tmp_path / FOLDER / "last.ckpt")
                rows.append((tmp_path / "runs/version_0/metrics.csv").read_bytes())

        rows: list[bytes] = []
        fitted(make_trainer(callbacks=Nested()))
        assert rows == [(tmp_path / "runs/version_0/metrics.csv").read_bytes()]

    def test_one_after_the_other_are_fine(self, make_trainer: Any, tmp_path: Path) -> None:
        for _ in range(2):
            fitted(make_trainer(callbacks=ModelCheckpoint(dirpath=tmp_path / "mine")))
        assert not (tmp_path / "mine/.lock").exists()


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(
        ["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "train.py").write_text("rate = 1\n")
    (folder / "uv.lock").write_text("locked\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    lineage_of.cache_clear()
    return folder


class TestLineage:
    def test_is_in_every_checkpoint(self, make_trainer: Any, repository: Path, tmp_path: Path) -> None:
        fitted(make_trainer(default_root_dir=tmp_path))
        lineage = read(tmp_path / FOLDER / "last.ckpt")["lineage"]
        assert lineage["git_commit"] == git(repository, "rev-parse", "HEAD")
        assert lineage["git_branch"] == "trunk"
        assert "uncommitted" not in lineage
        assert lineage["lock_file"].startswith("uv.lock ")
        assert lineage["versions"]["torch"] == torch.__version__
        assert lineage["data"]["train"].startswith("20 samples")
        assert not list(tmp_path.rglob("*.diff"))

    def test_has_changes_that_were_not_committed(self, make_trainer: Any, repository: Path, tmp_path: Path) -> None:
        """As a diff beside the run, which makes the code again; new files are named, and are part of the hash."""
        (repository / "train.py").write_text("rate = 2\n")
        (repository / "new.py").write_text("one\n")
        fitted(make_trainer(default_root_dir=tmp_path))
        diff = tmp_path / "runs/version_0/uncommitted.diff"
        assert "# not in git: 'new.py'" in diff.read_text()
        first = read(tmp_path / FOLDER / "last.ckpt")["lineage"]["uncommitted"]
        (repository / "train.py").write_text("rate = 1\n")
        git(repository, "apply", str(diff))
        assert (repository / "train.py").read_text() == "rate = 2\n"
        (repository / "new.py").write_text("another\n")
        lineage_of.cache_clear()
        assert lineage_of(repository)[0]["uncommitted"] != first

    def test_does_without_git(self, tmp_path: Path) -> None:
        lineage, diff = lineage_of(tmp_path)
        assert "git_commit" not in lineage
        assert diff == ""
        assert lineage["command"] == sys.argv


class Named(Dataset[torch.Tensor]):
    def __init__(self, word: str) -> None:
        self.word = word

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        raise AssertionError("a fingerprint reads no sample")

    def fingerprint(self) -> str:
        return self.word


class TestDataThatChanged:
    def test_under_a_resumed_run_are_refused(self, make_trainer: Any) -> None:
        def fit(size: int, **more: Any) -> None:
            loader = DataLoader(NoisyPoints(size), batch_size=4)
            make_trainer(max_epochs=2 if more else 1, limit_val_batches=0).fit(Classifier(), loader, **more)

        fit(20)
        with pytest.raises(CheckpointError, match=r"the training data changed.*20 samples then, 24 samples now"):
            fit(24, ckpt_path="last")
        fit(20, ckpt_path="last")

    def test_or_a_batch_size_that_changed_inside_an_epoch(self, make_trainer: Any) -> None:
        """Positions count batches; between two epochs any will do."""

        def fit(batch: int, steps: int, **more: Any) -> None:
            loader = DataLoader(NoisyPoints(24), batch_size=batch)
            make_trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0).fit(Classifier(), loader, **more)

        fit(4, 3)
        with pytest.raises(CheckpointError, match=r"a step takes 2 samples, and took 4"):
            fit(2, 9, ckpt_path="last")
        fit(4, 6, ckpt_path="last")
        fit(2, 9, ckpt_path="last")

    def test_show_in_their_fingerprint(self) -> None:
        tensors = torch.arange(40.0).reshape(20, 2)
        one, other = TensorDataset(tensors), TensorDataset(tensors.index_fill(0, torch.tensor([3]), -1.0))
        assert fingerprint(DataLoader(one)) == fingerprint(DataLoader(TensorDataset(tensors.clone())))
        assert fingerprint(DataLoader(one)) != fingerprint(DataLoader(other))
        assert fingerprint(DataLoader(Subset(one, [1, 2]))) != fingerprint(DataLoader(Subset(one, [2, 1])))
        assert fingerprint(DataLoader(ConcatDataset([one, other]))) != fingerprint(
            DataLoader(ConcatDataset([one, one]))
        )
        assert fingerprint({"a": DataLoader(one)}) != fingerprint({"a": DataLoader(other)})

    def test_may_say_themselves_which_they_are(self) -> None:
        assert fingerprint(DataLoader(Named("v2 of march"))) == "v2 of march"

    def test_without_a_length_have_none(self) -> None:
        assert fingerprint(iter([1])) is None
