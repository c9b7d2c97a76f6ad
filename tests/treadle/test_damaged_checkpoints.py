"""Files that a disk, a network drive or a stranger has changed: what is read of them, and how a run goes on."""

import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.checkpoint import read
from treadle.errors import CheckpointError, TreadleWarning
from treadle.testing import Classifier, NoisyPoints, Points

CHECKPOINTS = Path("runs/version_0/checkpoints")


def fit(root: Path, ckpt_path: str | None = None, *, max_steps: int = 10) -> Classifier:
    """Two epochs of five batches, saved after each; or only so many steps of them."""
    treadle.seed_everything(7 if ckpt_path is None else 999)
    model = Classifier()
    trainer = treadle.Trainer(
        default_root_dir=root,
        max_epochs=2,
        max_steps=max_steps,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(every="1 step")],
    )
    loader = DataLoader(NoisyPoints(), 4, shuffle=True)
    trainer.fit(model, loader, Points().val_dataloader(), ckpt_path=ckpt_path)
    return model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, str]:
    """The module and the rows of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("unbroken")
    return fit(root), (root / "runs/version_0/metrics.csv").read_text()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that stands after 7 of 10 batches, and knows the state before."""
    root = tmp_path_factory.mktemp("stopped")
    fit(root, max_steps=7)
    return root


@pytest.fixture
def root(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, the links between its files among them."""
    shutil.copytree(stopped, tmp_path / "copy")
    checkpoints = tmp_path / "copy" / CHECKPOINTS
    (kept,) = checkpoints.glob("epoch=*.ckpt")
    kept.unlink()
    kept.hardlink_to(checkpoints / "last.ckpt")  # so that what happens to the one happens to the other
    return tmp_path / "copy"


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.path}'",))


def cut(tenth: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * tenth // 10])

    return change


def flip(path: Path) -> None:
    """One bit of the weights."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.load(path, weights_only=True)["state_dict"]["layers.0.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def zeroed(path: Path) -> None:
    """As a file system may leave it that lost power: the right length, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


def armed(path: Path, *, is_zip: bool) -> None:
    """The same state, and a bomb in it."""
    state = torch.load(path, weights_only=True)
    torch.save({**state, "extra": Bomb(path.with_name("executed"))}, path, _use_new_zipfile_serialization=is_zip)


def bare(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))


DAMAGE: dict[str, Callable[[Path], None]] = {
    **{f"cut off at {tenth}0 %": cut(tenth) for tenth in range(10)},
    "a flipped bit": flip,
    "zeros": zeroed,
    "a bomb in a zip": lambda path: armed(path, is_zip=True),
    "a bomb in a pickle of torch's": lambda path: armed(path, is_zip=False),
    "a bare pickle bomb": bare,
}


@pytest.mark.parametrize("how", DAMAGE)
class TestADamagedNewestState:
    def test_is_left_for_the_one_before_with_a_word(
        self, root: Path, unbroken: tuple[Classifier, str], how: str
    ) -> None:
        """The run ends as if nothing had happened; the damaged file is put aside, and nothing in it is executed."""
        checkpoints = root / CHECKPOINTS
        DAMAGE[how](checkpoints / "last.ckpt")
        damaged = (checkpoints / "last.ckpt").read_bytes()
        with pytest.warns(TreadleWarning, match=r"treadle\[damaged\].*last\.ckpt.*goes on from.*previous\.ckpt"):
            again = fit(root, "auto")
        whole, rows = unbroken
        assert (root / "runs/version_0/metrics.csv").read_text() == rows
        for one, other in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        assert (checkpoints / "last.ckpt.damaged").read_bytes() == damaged
        assert not (checkpoints / "executed").exists()

    def test_without_another_is_an_error_and_begins_nothing_anew(self, root: Path, how: str) -> None:
        """A run of weeks is not started again from its first batch without a word."""
        checkpoints = root / CHECKPOINTS
        (checkpoints / "previous.ckpt").unlink()
        DAMAGE[how](checkpoints / "last.ckpt")
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=r"last\.ckpt (is damaged|is not a|holds something other)") as error:
            fit(root, "auto")
        assert error.value.fix
        assert {path: path.read_bytes() for path in before} == before
        assert not (checkpoints / "executed").exists()
        assert not (root / "runs/version_1").exists()


class TestAPathToADamagedFile:
    def test_is_never_taken_for_another(self, root: Path) -> None:
        """Who names a file means that file."""
        path = root / CHECKPOINTS / "last.ckpt"
        cut(5)(path)
        with pytest.raises(
            CheckpointError, match=r"last\.ckpt is damaged: its [\d,]+ bytes are not a whole checkpoint"
        ):
            fit(root, str(path))


class TestAFlippedBit:
    def test_anywhere_is_recognised_or_changes_nothing(self, stopped: Path, tmp_path: Path) -> None:
        """Somewhere in each stretch of the file: refused in words, or what is read is what was written."""
        data, path = (stopped / CHECKPOINTS / "last.ckpt").read_bytes(), tmp_path / "flipped.ckpt"
        whole = read(stopped / CHECKPOINTS / "last.ckpt")
        draw, stretch = random.Random(1), max(1, len(data) // 400)
        refused, same = 0, 0
        for start in range(0, len(data) - stretch, stretch):
            flipped = bytearray(data)
            flipped[start + draw.randrange(stretch)] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    found = read(path)
                except CheckpointError:
                    refused += 1
                else:
                    assert equal(found, whole), f"a bit after byte {start} changes what is read"
                    same += 1
        assert refused > 100
        assert refused + same >= 400


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) or (one != one and other != other)
