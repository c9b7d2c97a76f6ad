"""Checkpoints of PyTorch Lightning: what comes through, what is left out, and that nothing in a file is ever executed.

The files in ``lightning_checkpoints/`` were written by the real library; see the README there.
"""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.callbacks import EarlyStopping
from treadle.checkpoint.foreign import LightningCheckpoint, refusal, written_by_lightning
from treadle.errors import CheckpointError, ConfigError, TreadleWarning
from treadle.lightning import read_checkpoint
from treadle.lightning.checkpoints import convert

FILES = Path(__file__).parent / "lightning_checkpoints"


class Net(treadle.Module):
    """As the one in ``make.py``, with another base class."""

    def __init__(
        self,
        hidden: int = 4,
        lr: float = 0.05,
        schedule: str = "onecycle",
        total: int = 12,
        path: Any = None,
        loss: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["loss"])
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x).squeeze(-1), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(x).squeeze(-1), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        if self.hparams.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        total = self.hparams.total
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class NeedsLoss(Net):
    def __init__(self, loss: Any, hidden: int = 4) -> None:
        super().__init__(hidden, loss=loss)


class Configured(Net):
    def __init__(self, conf: Any) -> None:
        super().__init__(hidden=conf.hidden)
        self.conf = conf


class Two(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.layers[part].parameters(), lr=0.1) for part in (0, 2)]


def data() -> DataLoader[Any]:
    x = torch.linspace(-1, 1, 48).reshape(16, 3)
    return DataLoader(TensorDataset(x, x.sum(1)), batch_size=4)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) and type(ours) is type(theirs)


class TestACheckpointOfPlainValues:
    @pytest.mark.parametrize(
        "name",
        ["adamw_onecycle", "inside_an_epoch", "plateau", "after_fit", "mixed_16", "two_optimizers"],
    )
    def test_comes_through_as_torch_itself_reads_it(self, name: str) -> None:
        """Weights, optimizers, schedulers, counters, callbacks: each number is the one in the file."""
        found = read_checkpoint(FILES / f"{name}.ckpt")
        theirs = torch.load(FILES / f"{name}.ckpt", weights_only=True)
        assert same(found.entries, {key: dict(part) if key == "state_dict" else part for key, part in theirs.items()})
        assert not found.left_out
        assert not found.changed

    def test_has_names_for_what_is_in_it(self) -> None:
        """I need not know the keys."""
        found = read_checkpoint(str(FILES / "adamw_onecycle.ckpt"))
        assert (found.lightning_version, found.epoch, found.global_step) == ("2.6.6", 1, 8)
        assert found.hyper_parameters == {"hidden": 4, "lr": 0.05, "schedule": "onecycle", "total": 12}
        assert found.datamodule_hyper_parameters == {"batch_size": 4}
        assert found.state_dict["layers.0.weight"].shape == (4, 3)
        assert len(found.optimizer_states) == len(found.lr_schedulers) == 1
        assert [key.split("{")[0] for key in found.callbacks] == ["EarlyStopping", "ModelCheckpoint"]

    @pytest.mark.parametrize(
        "name, next_epoch, whole",
        [
            ("adamw_onecycle", 2, True),
            ("inside_an_epoch", 2, False),
            ("after_fit", 2, True),
            ("weights", 1, True),
            ("version_1_9", 2, True),
            ("version_1_5", 2, None),
        ],
    )
    def test_tells_which_epoch_is_next(self, name: str, next_epoch: int, whole: bool | None) -> None:
        """Lightning's own number means one thing inside a run, another after it, and a third before 1.6."""
        found = read_checkpoint(FILES / f"{name}.ckpt")
        assert (found.next_epoch, found.epoch_is_whole) == (next_epoch, whole)

    def test_keeps_tensors_that_share_memory_together(self, lightning_file: Callable[..., Path]) -> None:
        """Tied weights stay tied."""
        weight = torch.arange(12.0).reshape(3, 4)
        found = read_checkpoint(lightning_file(state_dict={"a": weight, "b": weight, "column": weight[:, 1]}))
        a, b, column = found.state_dict.values()
        assert a.data_ptr() == b.data_ptr()
        assert column.untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
        assert column.tolist() == [1.0, 5.0, 9.0]

    @pytest.mark.parametrize(
        "kind", [torch.bfloat16, torch.uint16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int64]
    )
    def test_may_have_any_kind_of_number(self, kind: torch.dtype, lightning_file: Callable[..., Path]) -> None:
        """Formats that came later too; and empty tensors, and single numbers."""
        weights = {
            "some": torch.tensor([0, 1, 1]).to(kind),
            "one": torch.tensor(1).to(kind),
            "none": torch.empty(0, 3, dtype=kind),
        }
        found = read_checkpoint(lightning_file(state_dict=weights))
        for name, weight in weights.items():
            assert found.state_dict[name].dtype == kind
            assert found.state_dict[name].shape == weight.shape
            assert found.state_dict[name].tolist() == weight.tolist()


class TestHyperparametersThatAreObjects:
    def test_are_left_out_and_named(self) -> None:
        """I see what I have to pass by hand."""
        found = read_checkpoint(FILES / "objects.ckpt")
        assert found.left_out == {
            "hyper_parameters['colour']": "a __main__.Colour('red')",
            "hyper_parameters['loss']": "a __main__.Loss",
            "hyper_parameters['activation']": "the class or function torch.nn.functional.relu",
            "hyper_parameters['make']": "a functools.partial",
            "hyper_parameters['losses']": "a list in which [0] is a __main__.Loss",
            "hyper_parameters['nested']['loss']": "a __main__.Loss",
        }

    def test_come_through_where_there_is_something_plain_for_them(self) -> None:
        """Paths are text, arrays tensors, numpy's numbers Python's; torch's small types are what they are."""
        found = read_checkpoint(FILES / "objects.ckpt")
        settings = found.hyper_parameters
        assert settings["path"] == "data/points"
        assert settings["device"] == torch.device("cpu")
        assert settings["dtype"] is torch.float16
        assert settings["shape"] == torch.Size([3, 4])
        assert (settings["scale"], type(settings["scale"]), settings["count"], type(settings["count"])) == (
            0.5,
            float,
            7,
            int,
        )
        assert torch.equal(settings["table"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
        assert settings["nested"] == {"depth": 2, "widths": (4, 8)}
        assert found.changed == {
            "hyper_parameters['path']": "a pathlib.PosixPath, read as text",
            "hyper_parameters['table']": "a numpy.ndarray, read as a tensor",
        }

    def test_of_omegaconf_are_dicts_and_lists(self) -> None:
        """Without omegaconf; what refers to another setting stays as it was written, and that is said."""
        found = read_checkpoint(FILES / "omegaconf.ckpt")
        assert found.hyper_parameters["widths"] == [4, 8]
        assert found.hyper_parameters["twice"] == "${hidden}"
        assert found.changed["hyper_parameters['twice']"] == "an interpolation, read as its text"
        assert found.hparams_argument == "conf"

    @pytest.mark.parametrize(
        "array",
        [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros((0, 4)), np.array(True)],
        ids=["rows", "columns", "empty", "one"],
    )
    def test_that_are_arrays_have_their_numbers(self, array: Any, lightning_file: Callable[..., Path]) -> None:
        """In whatever order they lie."""
        table = read_checkpoint(lightning_file(hyper_parameters={"table": array})).hyper_parameters["table"]
        assert table.shape == array.shape
        assert table.tolist() == array.tolist()

    def test_may_be_containers_of_many_kinds(self, lightning_file: Callable[..., Path]) -> None:
        """Sets, bytes, named dicts: what they hold is plain."""
        from argparse import Namespace
        from collections import Counter, OrderedDict, defaultdict, deque

        given = {
            "namespace": Namespace(depth=2),
            "counter": Counter("aab"),
            "ordered": OrderedDict(a=1),
            "default": defaultdict(list, a=[1]),
            "deque": deque([1, 2]),
            "set": {1, 2},
            "frozen": frozenset({1}),
            "bytes": b"\x00\xff",
            "complex": 1j,
            (1, "two"): "a tuple as a key",
        }
        found = read_checkpoint(lightning_file(hyper_parameters=given)).hyper_parameters
        assert list(found.values()) == [
            *({"depth": 2}, {"a": 2, "b": 1}, {"a": 1}, {"a": [1]}, [1, 2], {1, 2}, {1}, b"\x00\xff", 1j),
            "a tuple as a key",
        ]

    def test_that_contain_themselves_are_left_out(self, lightning_file: Callable[..., Path]) -> None:
        """Nothing plain does."""
        ring: list[Any] = [1]
        ring.append(ring)
        found = read_checkpoint(lightning_file(hyper_parameters={"ring": ring, "width": 4}))
        assert found.hyper_parameters == {"width": 4}
        assert "contains itself" in found.left_out["hyper_parameters['ring']"]


class TestLoadingAModule:
    def test_gives_its_weights_and_hyperparameters(self) -> None:
        """The class's base is all that changed; nothing was left out, so nothing is said."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module = Net.load_from_checkpoint(FILES / "adamw_onecycle.ckpt")
        assert dict(module.hparams)["lr"] == 0.05
        weights = torch.load(FILES / "adamw_onecycle.ckpt", weights_only=True)["state_dict"]
        assert same(dict(module.state_dict()), dict(weights))

    def test_warns_of_what_was_left_out(self) -> None:
        """Once, with where it was and what."""
        with pytest.warns(
            TreadleWarning, match=r"treadle\[lightning\].*hyper_parameters\['losses'\] \(a list in which"
        ):
            module = Net.load_from_checkpoint(FILES / "objects.ckpt")
        assert module.hparams.path == "data/points"
        assert "loss" not in module.hparams

    def test_asks_for_an_argument_that_was_left_out(self) -> None:
        """It can be passed by hand, and then there is no word about it."""
        with pytest.warns(TreadleWarning, match="'loss'"), pytest.raises(CheckpointError, match=r"loss=\.\.\."):
            NeedsLoss.load_from_checkpoint(FILES / "objects.ckpt")
        with pytest.warns(TreadleWarning) as said:
            NeedsLoss.load_from_checkpoint(FILES / "objects.ckpt", loss=nn.MSELoss())
        assert "hyper_parameters['loss']" not in str(said[0].message)

    def test_of_a_single_argument_gets_it_whole(self) -> None:
        """``__init__(self, conf)``, as with omegaconf."""
        with pytest.warns(TreadleWarning, match="Changed: hyper_parameters "):
            module = Configured.load_from_checkpoint(FILES / "omegaconf.ckpt")
        assert module.conf.widths == [4, 8]

    def test_hands_the_modules_own_entries_to_its_hook(self, lightning_file: Callable[..., Path]) -> None:
        """on_load_checkpoint finds what on_save_checkpoint wrote under Lightning."""

        class Remembers(Net):
            def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                self.vocabulary = checkpoint["vocabulary"]

        path = lightning_file(state_dict=Net().state_dict(), hyper_parameters={}, vocabulary=["a", "b"])
        assert Remembers.load_from_checkpoint(path).vocabulary == ["a", "b"]


class TestAConvertedCheckpoint:
    def test_goes_on_as_the_run_that_never_stopped(
        self, tmp_path: Path, make_trainer: Callable[..., treadle.Trainer]
    ) -> None:
        """Two epochs under Lightning and one here end where three under Lightning do: AdamW's moments and the one-cycle
        schedule go on."""
        convert(FILES / "adamw_onecycle.ckpt", tmp_path / "new.ckpt")
        module, trainer = Net(), make_trainer(max_epochs=3)
        trainer.fit(module, data(), data(), ckpt_path=tmp_path / "new.ckpt")
        assert (trainer.current_epoch, trainer.global_step) == (3, 12)
        theirs = read_checkpoint(FILES / "adamw_onecycle_went_on.ckpt").state_dict
        for name, weight in module.state_dict().items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("name", ["after_fit", "inside_an_epoch", "version_1_9", "version_1_5", "plateau"])
    def test_trains_the_epochs_that_are_left(
        self, name: str, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]
    ) -> None:
        """Of any release, wherever it was saved."""
        convert(FILES / f"{name}.ckpt", tmp_path / "new.ckpt")
        steps = read_checkpoint(FILES / f"{name}.ckpt").global_step
        trainer = make_bare(max_epochs=3)
        trainer.fit(
            Net(schedule="plateau" if name == "plateau" else "onecycle"),
            data(),
            data(),
            ckpt_path=tmp_path / "new.ckpt",
        )
        assert (trainer.current_epoch, trainer.global_step) == (3, steps + 4)

    def test_says_that_the_rest_of_an_epoch_is_left_out(self, tmp_path: Path) -> None:
        """Lightning keeps no position in the data."""
        said = convert(FILES / "inside_an_epoch.ckpt", tmp_path / "new.ckpt")
        assert said[0] == "A fit goes on from it at the start of epoch 2, after step 6."
        assert "saved inside epoch 1" in said[1]

    def test_says_what_a_plateau_scheduler_has_not_seen(self, tmp_path: Path) -> None:
        """Lightning saves before it steps."""
        assert any("ReduceLROnPlateau" in line for line in convert(FILES / "plateau.ckpt", tmp_path / "new.ckpt"))

    def test_keeps_early_stoppings_patience(self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]) -> None:
        """What was waited under Lightning counts."""
        convert(FILES / "adamw_onecycle.ckpt", tmp_path / "new.ckpt")
        theirs = next(iter(read_checkpoint(FILES / "adamw_onecycle.ckpt").callbacks.values()))
        stop = EarlyStopping("val_loss", patience=5)
        make_bare(max_epochs=2, callbacks=[stop]).fit(Net(), data(), data(), ckpt_path=tmp_path / "new.ckpt")
        assert (stop.best_score, stop.wait_count) == (theirs["best_score"].item(), theirs["wait_count"])

    def test_keeps_the_scale_of_gradients(self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]) -> None:
        """Of 16-mixed."""
        convert(FILES / "mixed_16.ckpt", tmp_path / "new.ckpt")
        trainer = make_bare(max_epochs=1, precision="16-mixed")
        trainer.fit(Net(hidden=2), data(), ckpt_path=tmp_path / "new.ckpt")
        scale = trainer.fabric.precision.state_dict()["scale"]
        assert scale == read_checkpoint(FILES / "mixed_16.ckpt").precision["scale"] == 2.0**14

    def test_counts_batches_that_stepped(self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]) -> None:
        """Lightning adds up the steps of two optimizers; here a step is a step."""
        said = convert(FILES / "two_optimizers.ckpt", tmp_path / "new.ckpt")
        assert any("Lightning counted 16" in line for line in said)
        trainer = make_bare(max_epochs=3)
        trainer.fit(Two(), data(), ckpt_path=tmp_path / "new.ckpt")
        assert trainer.global_step == 12

    def test_of_weights_only_is_for_loading(self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]) -> None:
        """It says so, evaluates, and a fit refuses it."""
        said = convert(FILES / "weights.ckpt", tmp_path / "new.ckpt")
        assert "weights and hyperparameters only" in said[0]
        (metrics,) = make_bare().validate(Net(hidden=2), data(), ckpt_path=tmp_path / "new.ckpt", verbose=False)
        assert metrics["val_loss"] > 0
        with pytest.raises(CheckpointError, match="weights only"):
            make_bare(max_epochs=3).fit(Net(hidden=2), data(), ckpt_path=tmp_path / "new.ckpt")

    def test_leaves_out_what_only_a_tensor_stands_for(
        self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]
    ) -> None:
        """Among hyperparameters there are plain values only; the rest is as it was."""
        said = convert(FILES / "objects.ckpt", tmp_path / "new.ckpt")
        assert "Hyperparameters that are tensors are not kept: table. Pass them when the module is made." in said
        make_bare(max_epochs=2).fit(Net(hidden=2, path="data/points"), data(), ckpt_path=tmp_path / "new.ckpt")

    def test_takes_nobodys_place(self, tmp_path: Path) -> None:
        """A file that is there stays."""
        (tmp_path / "new.ckpt").write_text("mine")
        with pytest.raises(CheckpointError, match="is there already"):
            convert(FILES / "weights.ckpt", tmp_path / "new.ckpt")
        assert (tmp_path / "new.ckpt").read_text() == "mine"

    def test_has_a_seed_that_is_one(self, tmp_path: Path) -> None:
        """From 0 to 2**32 - 1."""
        with pytest.raises(ConfigError, match="seed=-1"):
            convert(FILES / "weights.ckpt", tmp_path / "new.ckpt", seed=-1)


class TestTheCommand:
    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "treadle.lightning", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_writes_a_file_and_says_what_is_different(self, tmp_path: Path) -> None:
        """``python -m treadle.lightning convert old.ckpt new.ckpt``"""
        done = self.run("convert", FILES / "inside_an_epoch.ckpt", tmp_path / "new.ckpt", "--seed", "3")
        assert done.returncode == 0
        assert "- A fit goes on from it at the start of epoch 2" in done.stdout
        assert "seed 3" in done.stdout
        assert (tmp_path / "new.ckpt").is_file()

    def test_fails_in_words(self, tmp_path: Path) -> None:
        """What, why, and what to do."""
        done = self.run("convert", tmp_path / "old.ckpt", tmp_path / "new.ckpt")
        assert done.returncode == 1
        assert "error: " in done.stderr
        assert "fix: " in done.stderr
        assert "Traceback" not in done.stderr


class TestAFileThatIsNone:
    @pytest.mark.parametrize(
        "content, words",
        [
            (b"", "not a zip archive"),
            (b"hello", "not a zip archive"),
            (b"\x80\x02}q\x00.", "torch.save writes those since torch 1.6"),
            (b"PK\x03\x04 and no more", "damaged"),
        ],
        ids=["empty", "text", "an old pickle", "the start of one"],
    )
    def test_is_refused_in_words(self, tmp_path: Path, content: bytes, words: str) -> None:
        """Formats of old are named."""
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / "x.ckpt")
        assert not written_by_lightning(tmp_path / "x.ckpt")

    def test_is_not_there_or_a_folder(self, tmp_path: Path) -> None:
        """A sharded checkpoint is one; Lightning has a tool for it."""
        with pytest.raises(CheckpointError, match="no such file"):
            read_checkpoint(tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match="consolidate_checkpoint"):
            read_checkpoint(tmp_path)

    def test_is_somebody_elses(self, tmp_path: Path) -> None:
        """Weights alone, or a checkpoint of ours."""
        torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match="not written by PyTorch Lightning"):
            read_checkpoint(tmp_path / "weights.pt")
        convert(FILES / "weights.ckpt", tmp_path / "ours.ckpt")
        with pytest.raises(CheckpointError, match="was written by treadle"):
            read_checkpoint(tmp_path / "ours.ckpt")
        assert not written_by_lightning(tmp_path / "ours.ckpt")

    def test_is_told_from_lightnings(self) -> None:
        """Which has its own words where a run can't go on from it."""
        assert all(written_by_lightning(path) for path in FILES.glob("*.ckpt"))
        assert "python -m treadle.lightning convert" in refusal(FILES / "weights.ckpt").fix

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_is_cut_off(self, tmp_path: Path, share: float) -> None:
        """At any place."""
        content = (FILES / "adamw_onecycle.ckpt").read_bytes()
        (tmp_path / "x.ckpt").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / "x.ckpt")


class Touch:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path, how: str) -> None:
        self.path, self.how = path, how

    def __reduce__(self) -> Any:
        match self.how:
            case "os.system":
                return os.system, (f"touch {self.path}",)
            case "eval":
                return eval, (f"__import__('pathlib').Path({str(self.path)!r}).touch()",)
            case "a method":
                return getattr, (self.path, "touch")
            case _:
                return os.mkdir, (str(self.path),)


HEAD = b"\x80\x02}(X\x19\x00\x00\x00pytorch-lightning_versionX\x05\x00\x00\x002.6.6X\x05\x00\x00\x00epochK\x01X\x0b\x00\x00\x00global_stepK\x01"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(path: Path, entries: bytes, *, parts: dict[str, bytes] | None = None, compression: int = ZIP_STORED) -> Path:
    """A file whose pickle is a dict of what Lightning needs, and ``entries``: keys and values as opcodes."""
    with ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", HEAD + entries + b"u.")
        for name, content in (parts or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


def storage(key: str, count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor as torch.save describes one."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(pickle.dumps(value, 2)[2:-1] for value in values) + b"t"

    identity = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + numbers((count,))[1:-1] + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + identity
        + numbers((offset,))[1:-1]
        + numbers(shape)
        + numbers(stride)
        + b"\x89}tR"
    )


EMPTY = text("state_dict") + b"}"


class TestAFileThatMeansHarm:
    @pytest.mark.parametrize("how", ["os.system", "eval", "a method", "os.mkdir"])
    @pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "callbacks", "a key"])
    def test_does_nothing(self, tmp_path: Path, lightning_file: Callable[..., Path], how: str, where: str) -> None:
        """An ordinary load would make a file; there is none afterwards, and the rest of the checkpoint is read."""
        touch = Touch(tmp_path / "made", how)
        path = lightning_file(**({where: {"x": touch, "y": 1}} if where != "a key" else {"extra": {touch: 1}}))
        found = read_checkpoint(path)
        assert not (tmp_path / "made").exists()
        assert len(found.left_out) == 1
        assert written_by_lightning(path)
        torch.load(path, weights_only=False)  # the file does mean harm
        assert how == "a method" or (tmp_path / "made").exists()

    def test_is_named_as_what_it_would_have_called(self, tmp_path: Path, lightning_file: Callable[..., Path]) -> None:
        """A reader sees what they were sent."""
        found = read_checkpoint(lightning_file(hyper_parameters={"x": Touch(tmp_path / "made", "os.system")}))
        assert found.left_out["hyper_parameters['x']"].startswith("what calling posix.system('touch ")

    @pytest.mark.parametrize(
        "opcodes",
        [
            b"cposix\nsystem\n(" + text("touch MADE") + b"tR",
            b"cposix\nsystem\n" + text("touch MADE") + b"\x85R",
            b"(cposix\nsystem\n" + text("touch MADE") + b"o",
            text("posix") + text("system") + b"\x93" + text("touch MADE") + b"\x85R",
            b"cbuiltins\nobject\n)\x81}" + text("__setstate__") + b"cposix\nsystem\nsb" + b"0N",
            b"ccollections\nOrderedDict\n)R" + b"(cposix\nsystem\n" + text("touch MADE") + b"\x85R" + b"K\x01u",
            b"cbuiltins\neval\n" + text("__import__('os').system('touch MADE')") + b"\x85R",
            b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("__call__") + b"\x86R" + text("os") + b"\x85R",
            b"ctorch._utils\n_rebuild_parameter\ncposix\nsystem\n" + text("touch MADE") + b"\x85R\x89}\x87R",
            b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n"
            + text("touch MADE")
            + b"\x85NtR",
            b"cnumpy.core.multiarray\nscalar\n(cposix\nsystem\n" + text("touch MADE") + b"\x85RNtR",
            b"cfunctools\npartial\ncposix\nsystem\n\x85R(cposix\nsystem\n" + text("touch MADE") + b"\x85}NtbN0",
            b"ctreadle.lightning.checkpoints\nos.system\n" + text("touch MADE") + b"\x85R",
        ],
        ids=[
            "reduce",
            "reduce with a tuple",
            "obj",
            "stack global",
            "build",
            "setitems",
            "eval",
            "getattr",
            "parameter",
            "tensor of a type",
            "numpy",
            "partial",
            "dotted",
        ],
    )
    def test_has_many_ways_and_none_works(
        self, tmp_path: Path, opcodes: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every instruction of a pickle that can call something."""
        monkeypatch.chdir(tmp_path)
        before = set(sys.modules)
        path = raw(tmp_path / "x.ckpt", EMPTY + text("x") + opcodes)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            found = None
        assert not (tmp_path / "MADE").exists()
        assert not {name for name in set(sys.modules) - before if not name.startswith(("torch", "encodings"))}
        assert found is None or all(isinstance(words, str) for words in found.left_out.values())

    def test_imports_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A module of that name beside it would run when imported."""
        (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        found = read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + b"ctrap\nTrap\n)\x81"))
        assert found.left_out == {"x": "a trap.Trap"}
        assert "trap" not in sys.modules

    @pytest.mark.parametrize(
        "entries, words",
        [
            (EMPTY + text("x") + b"i" + b"posix\nsystem\n", "which torch.save doesn't write"),
            (EMPTY + b"0" * 40, "doesn't fit"),
            (EMPTY + text("x") + b"R", "doesn't fit|more than it has|no tuple"),
            (EMPTY + text("x"), "a key without a value"),
            (EMPTY + text("x") + b"}b", "a state for something that has none|doesn't fit|more than it has|no tuple"),
            (EMPTY + text("x") + b"h\x63", "doesn't fit"),
            (EMPTY + text("x") + b"X\xff\xff\xff\xff", "ends in the middle"),
            (EMPTY + text("x") + b"\x8d" + b"\xff" * 8, "ends in the middle"),
            (EMPTY + text("x") + b"c" + b"a" * 9000, "a name without an end"),
            (text("state_dict") + b"cposix\nsystem\n" + text("x") + b"\x85R", "what calling posix.system"),
            (EMPTY + text("optimizer_states") + b"]K\x01a", "no list of dicts"),
            (EMPTY + text("epoch") + b"X\x01\x00\x00\x00a", "no number"),
        ],
    )
    def test_is_refused_where_it_makes_no_sense(self, tmp_path: Path, entries: bytes, words: str) -> None:
        """Too little on the stack, too much promised, instructions of no checkpoint: in words."""
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(raw(tmp_path / "x.ckpt", entries))

    @pytest.mark.parametrize(
        "bomb",
        [
            b"]K\x01a" + b"".join(b"q%c0](h%ch%ce" % (level, level, level) for level in range(1, 60)),
            b"K\x01\x85" + b"".join(b"2\x86" for _ in range(60)),
            b"}" + b"".join(b"q%c0}(K\x00h%cK\x01h%cu" % (level, level, level) for level in range(1, 60)),
        ],
        ids=["lists", "tuples", "dicts"],
    )
    def test_does_not_grow_without_bound(self, tmp_path: Path, bomb: bytes) -> None:
        """A kilobyte that unfolds to 2**60 values."""
        with pytest.raises(CheckpointError, match="unfolds to more than"):
            read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + bomb))

    def test_has_no_key_that_takes_for_ever(self, tmp_path: Path) -> None:
        """The hash of a tuple of tuples of the same ones."""
        bomb = b"K\x01\x85" + b"2\x86" * 20
        found = read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + b"}(" + bomb + b"K\x01u"))
        assert found.entries["x"] == {}

    def test_is_not_nested_without_bound(self, tmp_path: Path) -> None:
        """Python's own stack is not what holds it."""
        with pytest.raises(CheckpointError, match="nested more than"):
            read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + b"]" * 50_000 + b"a" * 49_999))

    def test_numbers_are_of_a_size(self, tmp_path: Path) -> None:
        """Printing an integer of millions of digits takes minutes."""
        huge = b"\x8b" + struct.pack("<I", 100_000) + b"\x7f" * 100_000
        found = read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + huge))
        assert found.left_out["x"] == "an integer of 799,999 bits"

    def test_a_memo_of_four_billion_takes_no_memory(self, tmp_path: Path) -> None:
        """The index says so; Python's unpickler would believe it."""
        path = raw(tmp_path / "x.ckpt", EMPTY + text("x") + b"K\x01r\xff\xff\xff\xff")
        tracemalloc.start()
        try:
            assert read_checkpoint(path).entries["x"] == 1
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "tensor, words",
        [
            (storage("0", 2**40, (2**40,), (1,)), "a storage that says it has 4,398,046,511,104 bytes, and has 16"),
            (storage("0", 4, (2**40,), (0,)), "a tensor of 1,099,511,627,776 elements, of which 4 are stored"),
            (storage("0", 4, (5,), (1,)), "reaches over the end"),
            (storage("0", 4, (2,), (1,), offset=3), "reaches over the end"),
            (storage("0", 4, (2, 2), (4, 1)), "reaches over the end"),
            (storage("0", 4, (-1,), (1,)), "a shape that is none"),
            (storage("0", 4, (2,), (-1,)), "a shape that is none"),
            (storage("0", 4, (2,), (1, 1)), "2 strides|with 2"),
            (storage("0", 4, (0, 2**61, 2**61), (1, 1, 1)), "more elements than there can be"),
            (storage("0", 4, (1,) * 100, (1,) * 100), "100 axes"),
            (storage("1", 4, (4,), (1,)), "'data/1' is not in it"),
            (storage("../0", 4, (4,), (1,)), "is not in it"),
        ],
    )
    def test_has_no_memory_that_it_only_claims(self, tmp_path: Path, tensor: bytes, words: str) -> None:
        """Terabytes, the other end of the memory, strides backwards."""
        path = raw(
            tmp_path / "x.ckpt", text("state_dict") + b"}(" + text("w") + tensor + b"u", parts={"data/0": b"\0" * 16}
        )
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(path)

    def test_may_expand_a_little(self, tmp_path: Path) -> None:
        """As torch.save does with an expanded tensor."""
        tensor = storage("0", 4, (1000, 4), (0, 1))
        path = raw(
            tmp_path / "x.ckpt", text("state_dict") + b"}(" + text("w") + tensor + b"u", parts={"data/0": b"\0" * 16}
        )
        assert read_checkpoint(path).state_dict["w"].shape == (1000, 4)

    def test_is_not_compressed(self, tmp_path: Path) -> None:
        """torch.save never does that, and a zip bomb always."""
        entries = text("state_dict") + b"}(" + text("w") + storage("0", 2**24, (2**24,), (1,)) + b"u"
        path = raw(tmp_path / "x.ckpt", entries, parts={"data/0": b"\0" * 2**26}, compression=ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match="larger than the file"):
            read_checkpoint(path)

    def test_prints_no_control_characters(self, tmp_path: Path) -> None:
        """A name that would clear the terminal."""
        found = read_checkpoint(raw(tmp_path / "x.ckpt", EMPTY + text("x") + b"c\x1b[2Jevil\nName\n)\x81"))
        assert "\x1b" not in found.left_out["x"]


FUZZ = settings(
    deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONTENT = {path.stem: path.read_bytes() for path in sorted(FILES.glob("*.ckpt"))}


def read_or_refused(path: Path) -> LightningCheckpoint | None:
    """Only words come out otherwise."""
    with suppress(CheckpointError):
        return read_checkpoint(path)
    return None


class TestAnyFile:
    @settings(FUZZ, max_examples=300)
    @given(data=st.data())
    def test_is_read_or_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        """Bytes changed anywhere: a CheckpointError at most."""
        content = bytearray(CONTENT[data.draw(st.sampled_from(sorted(CONTENT)))])
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "x.ckpt").write_bytes(content)
        read_or_refused(tmp_path / "x.ckpt")
        written_by_lightning(tmp_path / "x.ckpt")

    @settings(FUZZ, max_examples=600)
    @given(data=st.data())
    def test_with_another_pickle_is_read_or_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        """The same for the instructions, in a zip archive whose checksums are right."""
        source = FILES / f"{data.draw(st.sampled_from(sorted(CONTENT)))}.ckpt"
        with ZipFile(source) as archive:
            parts = {part.filename: archive.read(part) for part in archive.infolist()}
        name = next(name for name in parts if name.endswith("data.pkl"))
        content = bytearray(parts[name])
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(content) - 1))
            match data.draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
                case "change":
                    content[at] = data.draw(st.integers(0, 255))
                case "cut":
                    del content[at : at + data.draw(st.integers(1, 8))]
                case "insert":
                    content[at:at] = data.draw(st.sampled_from(OPCODES))
                case _:
                    content[at:at] = content[at : at + data.draw(st.integers(1, 64))]
            content = content or bytearray(b".")
        with ZipFile(tmp_path / "x.ckpt", "w") as archive:
            for part, value in {**parts, name: bytes(content)}.items():
                archive.writestr(part, value)
        if (found := read_or_refused(tmp_path / "x.ckpt")) is not None:
            found.omissions()
            (tmp_path / "new.ckpt").unlink(missing_ok=True)
            with suppress(CheckpointError):
                convert(tmp_path / "x.ckpt", tmp_path / "new.ckpt")


OPCODES = [
    value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1
]


@pytest.fixture
def lightning_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file as Lightning does, with ``entries`` in place of its own."""

    def write(**entries: Any) -> Path:
        whole = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 1, "state_dict": {}, **entries}
        torch.save(whole, tmp_path / "lightning.ckpt")
        return tmp_path / "lightning.ckpt"

    return write
