"""A checkpoint's file: whole or not there, read without trust, and what a Module's arguments do in it."""

import os
import pickle
import signal
import subprocess
import sys
from collections import defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.checkpoint import FORMAT, read, write
from treadle.errors import CheckpointError, ConfigError, TreadleWarning
from treadle.testing import Classifier, Points


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """last.ckpt of a real run."""
    root = tmp_path_factory.mktemp("real")
    trainer = treadle.Trainer(max_epochs=1, default_root_dir=root, enable_progress_bar=False)
    trainer.fit(Classifier(), datamodule=Points())
    return root / "runs/version_0/checkpoints/last.ckpt"


def content(number: float) -> Any:
    """A small checkpoint that says which one it is."""
    return {
        "format": FORMAT,
        "treadle_version": "0",
        "epoch": 0,
        "global_step": 0,
        "progress": {},
        "state_dict": {"weight": torch.full((1000,), number)},
        "hparams_name": "M",
        "hyper_parameters": {},
    }


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from treadle.checkpoint import write
sys.path.insert(0, sys.argv[4])
from contents import content

path, where, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def deadly(original):
    def run(*arguments, **settings):
        if moment == "before":
            die()
        result = original(*arguments, **settings)
        die()
    return run

if where == "half the bytes":
    save = torch.save
    class Half:
        def __init__(self, file):
            self.file, self.left = file, 3000
        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                self.file.flush()
                die()
            return self.file.write(data)
        def __getattr__(self, name):
            return getattr(self.file, name)
    torch.save = lambda value, file: save(value, Half(file))
elif where == "fsync":
    os.fsync = deadly(os.fsync)
elif where == "replace":
    os.replace = deadly(os.replace)
    Path.replace = deadly(Path.replace)
write(path, content(2.0))
"""


class TestAProcessThatIsKilledWhileWriting:
    @pytest.mark.parametrize(
        "where, moment, survives",
        [("half the bytes", "", 1.0), ("fsync", "before", 1.0), ("replace", "before", 1.0), ("replace", "after", 2.0)],
    )
    def test_leaves_the_old_file_or_the_new_one_whole(
        self, tmp_path: Path, where: str, moment: str, survives: float
    ) -> None:
        """A real SIGKILL at each step."""
        path = tmp_path / "last.ckpt"
        write(path, content(1.0))
        lines = Path(__file__).read_text().split("def content")[1].split("\n\n\n")[0]
        (tmp_path / "contents.py").write_text(
            f"import torch\nfrom typing import Any\nfrom treadle.checkpoint import FORMAT\n\ndef content{lines}\n"
        )
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(path), where, moment, str(tmp_path)]
        assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
        assert read(path)["state_dict"]["weight"][0].item() == survives
        write(path, content(3.0))  # what is left over does not stand in the way
        assert read(path)["state_dict"]["weight"][0].item() == 3.0


# --- files that are not what they should be ---


class TestADamagedFile:
    @pytest.mark.parametrize("tenth", range(10))
    def test_that_was_cut_off_is_recognised(self, real: Path, tmp_path: Path, tenth: int) -> None:
        data = real.read_bytes()
        path = tmp_path / "cut.ckpt"
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(CheckpointError, match=r"cut.ckpt is damaged: its [\d,]+ bytes are not a whole checkpoint"):
            read(path)

    def test_with_a_flipped_byte_in_its_directory_is_recognised(self, real: Path, tmp_path: Path) -> None:
        """Or the byte didn't matter, and what is read is what was written."""
        data, path, whole = real.read_bytes(), tmp_path / "flipped.ckpt", read(real)
        refused = 0
        for position in range(data.index(b"PK\x01\x02"), len(data), 5):
            path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
            try:
                found = read(path)
            except CheckpointError:
                refused += 1
            else:
                assert same(found, whole), f"byte {position} changes what is read"
        assert refused > 10

    def test_with_a_flipped_bit_in_its_weights_is_recognised(self, real: Path, tmp_path: Path) -> None:
        """Each part has a checksum."""
        data, path = bytearray(real.read_bytes()), tmp_path / "flipped.ckpt"
        weight = torch.load(real, weights_only=True)["state_dict"]["layers.0.weight"]
        data[data.index(weight.numpy().tobytes())] ^= 0x01
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)

    @pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"not a checkpoint\n", b"PK\x03\x04" + b"\0" * 50])
    def test_that_never_was_one_is_recognised(self, tmp_path: Path, junk: bytes) -> None:
        path = tmp_path / "junk.ckpt"
        path.write_bytes(junk)
        with pytest.raises(CheckpointError):
            read(path)

    def test_names_the_ones_beside_it(self, real: Path, tmp_path: Path) -> None:
        (tmp_path / "epoch=3-step=40.ckpt").touch()
        (tmp_path / "last.ckpt").write_bytes(real.read_bytes()[:-100])
        with pytest.raises(CheckpointError) as error:
            read(tmp_path / "last.ckpt")
        assert error.value.fix == "resume from another checkpoint. Beside it: epoch=3-step=40.ckpt."


def same(one: Any, other: Any) -> bool:
    """Equal, tensors and all."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.path}'",))


class TestAFileOfAStranger:
    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "bare pickle"])
    def test_executes_nothing(self, tmp_path: Path, is_zip: bool) -> None:
        path, proof = tmp_path / "bomb.ckpt", tmp_path / "executed"
        torch.save({**content(1.0), "extra": Bomb(proof)}, path, _use_new_zipfile_serialization=is_zip)
        said = "holds something other than tensors and plain values" if is_zip else "is not a checkpoint"
        with pytest.raises(CheckpointError, match=said):
            read(path)
        assert not proof.exists()

    def test_executes_nothing_when_it_is_only_a_pickle(self, tmp_path: Path) -> None:
        path, proof = tmp_path / "bomb.ckpt", tmp_path / "executed"
        path.write_bytes(pickle.dumps(Bomb(proof)))
        with pytest.raises(CheckpointError):
            read(path)
        assert not proof.exists()

    @pytest.mark.parametrize("value", [{"state_dict": {}}, {"a": 1}, [1, 2], torch.ones(2), {"format": FORMAT}])
    def test_that_is_no_checkpoint_of_ours_is_refused(self, tmp_path: Path, value: Any) -> None:
        torch.save(value, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match="was not written by treadle"):
            read(tmp_path / "other.ckpt")

    def test_of_another_format_is_refused(self, tmp_path: Path) -> None:
        torch.save({**content(1.0), "format": FORMAT + 1}, tmp_path / "newer.ckpt")
        with pytest.raises(CheckpointError, match=f"has checkpoint format {FORMAT + 1}, this version reads {FORMAT}"):
            read(tmp_path / "newer.ckpt")


class TestAPathWithNothingBehindIt:
    def test_names_the_neighbours(self, real: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no such file. Beside it: epoch=0-step=5.ckpt, last.ckpt"):
            read(real.with_name("lats.ckpt"))

    def test_of_a_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is a folder of that name"):
            read(tmp_path)

    @pytest.mark.parametrize("ckpt_path", ["last", "best"])
    def test_by_name_says_that_nothing_was_trained(self, make_trainer: Any, ckpt_path: str) -> None:
        with pytest.raises(CheckpointError, match=f"there is no '{ckpt_path}' checkpoint"):
            make_trainer().fit(Classifier(), datamodule=Points(), ckpt_path=ckpt_path)

    def test_by_auto_starts_anew(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=Points(), ckpt_path="auto")
        assert trainer.global_step == 5


class TestAModelThatIsNotTheOneThatWasSaved:
    def test_with_other_weights_is_refused(self, make_trainer: Any, real: Path) -> None:
        with pytest.raises(CheckpointError, match="weights don't fit Classifier") as error:
            make_trainer().test(Classifier(hidden=8), datamodule=Points(), ckpt_path=real)
        assert "saved with hidden=4, and the module has hidden=8" in error.value.why
        assert "hidden=4" in error.value.fix

    def test_with_other_optimizers_is_refused(self, make_trainer: Any, real: Path) -> None:
        class Frozen(Classifier):
            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.layers[0].parameters())

        with pytest.raises(CheckpointError, match="optimizer state doesn't fit AdamW"):
            make_trainer().fit(Frozen(), datamodule=Points(), ckpt_path=real)

    def test_with_other_schedulers_is_refused(self, make_trainer: Any, real: Path) -> None:
        class Scheduled(Classifier):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]

        with pytest.raises(CheckpointError, match="has 0 schedulers, configure_optimizers returned 1"):
            make_trainer().fit(Scheduled(), datamodule=Points(), ckpt_path=real)


# --- writing ---


Pair = namedtuple("Pair", "a b")


class TestWhatACheckpointHolds:
    def test_is_read_by_plain_torch_without_objects(self, real: Path) -> None:
        found = torch.load(real, weights_only=True)
        assert found["format"] == FORMAT
        assert set(found["state_dict"]) == set(Classifier().state_dict())

    @pytest.mark.parametrize(
        "value", [1, 2.5, "ä", None, True, [1, (2, {"a": b"x"})], {1, 2}, torch.ones(2), torch.float16, np.float32(2.0)]
    )
    def test_comes_back(self, tmp_path: Path, value: Any) -> None:
        write(tmp_path / "a.ckpt", {**content(1.0), "value": value})
        found: Any = read(tmp_path / "a.ckpt")
        if isinstance(value, torch.Tensor):
            assert torch.equal(found["value"], value)
        else:
            assert found["value"] == value

    @pytest.mark.parametrize("value", [object(), Path(), lambda: 1, np.ones(2), Pair(1, 2), defaultdict(int)])
    def test_is_never_an_object(self, tmp_path: Path, value: Any) -> None:
        """The key is named, and nothing is written."""
        with pytest.raises(CheckpointError, match=r"a\['callbacks'\]\['Mine'\]\[0\] is a .*can't hold"):
            write(tmp_path / "a.ckpt", {**content(1.0), "callbacks": {"Mine": [value]}})
        assert list(tmp_path.iterdir()) == []

    def test_may_not_be_an_object_of_a_hook(self, make_trainer: Any) -> None:
        class Adds(Classifier):
            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                checkpoint["mine"] = Path("x")

        with pytest.raises(CheckpointError, match=r"\['mine'\] is a pathlib"):
            make_trainer().fit(Adds(), datamodule=Points())

    def test_has_what_the_modules_hooks_add(self, make_trainer: Any) -> None:
        class Adds(Classifier):
            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                checkpoint["vocabulary"] = ["a", "b"]

            def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                self.vocabulary = checkpoint["vocabulary"]

        trainer = make_trainer()
        trainer.fit(Adds(), datamodule=Points())
        assert Adds.load_from_checkpoint(trainer.checkpoint_callback.last_model_path).vocabulary == ["a", "b"]

    def test_has_what_the_data_adds(self, make_trainer: Any) -> None:
        class Counted(Points):
            seen = 0

            def state_dict(self) -> dict[str, Any]:
                return {"seen": 7}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                self.seen = state["seen"]

        make_trainer().fit(Classifier(), datamodule=Counted())
        again = Counted()
        make_trainer().test(Classifier(), datamodule=again, ckpt_path="last", verbose=False)
        assert again.seen == 7


class SmallDisk:
    """A disk of its own size, for the time of a block; needs root."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder, self.size = folder, size

    def __enter__(self) -> Path:
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "none", str(self.folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs root and the right to mount, for a disk of its own")
        return self.folder

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)


class Large(Classifier):
    """About 200 kB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.randn(50_000))


class TestAFullDisk:
    def test_is_said_and_leaves_the_checkpoint_before_intact(self, tmp_path: Path) -> None:
        """The first checkpoint fits on the disk, the second one doesn't; then the run goes on where there is room."""

        class Fills(treadle.Callback):
            def on_train_epoch_start(self, trainer: treadle.Trainer, module: Any) -> None:
                if trainer.current_epoch == 1:
                    (tmp_path / "small" / "ballast").write_bytes(b"\0" * 600_000)

        with SmallDisk(tmp_path / "small", "1m") as disk:
            checkpoints = ModelCheckpoint(dirpath=disk)
            settings = {"default_root_dir": tmp_path, "enable_progress_bar": False, "max_epochs": 3}
            trainer = treadle.Trainer(callbacks=[checkpoints, Fills()], **settings)  # type: ignore[arg-type]
            with (
                pytest.warns(TreadleWarning, match=r"not-saved.*epoch=\d-step=1.*ckpt was not saved: No space left"),
                pytest.raises(CheckpointError, match="its last state was not saved: No space left") as error,
            ):
                trainer.fit(Large(), datamodule=Points())
            assert "save_checkpoint" in error.value.fix
            assert trainer.global_step == 15, "training went on to its end"
            assert sorted(path.name for path in disk.iterdir()) == ["ballast", "epoch=0-step=5.ckpt", "last.ckpt"]
            assert read(disk / "last.ckpt")["global_step"] == 5
            assert checkpoints.best_model_path == str(disk / "epoch=0-step=5.ckpt")
            (disk / "ballast").unlink()
            again = treadle.Trainer(callbacks=ModelCheckpoint(dirpath=disk), **settings)  # type: ignore[arg-type]
            again.fit(Large(), datamodule=Points(), ckpt_path="last")
            assert read(disk / "last.ckpt")["global_step"] == 15

    def test_at_the_first_checkpoint_leaves_none(self, tmp_path: Path) -> None:
        with SmallDisk(tmp_path / "small", "100k") as disk:
            trainer = treadle.Trainer(
                max_epochs=1,
                default_root_dir=tmp_path,
                enable_progress_bar=False,
                callbacks=ModelCheckpoint(dirpath=disk),
            )
            with (
                pytest.warns(TreadleWarning, match="not-saved"),
                pytest.raises(CheckpointError, match="its last state was not saved"),
            ):
                trainer.fit(Large(), datamodule=Points())
            assert list(disk.iterdir()) == []


class TestSavingByHand:
    def test_is_resumed(self, make_trainer: Any, tmp_path: Path) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=Points())
        trainer.save_checkpoint(tmp_path / "mine.ckpt")
        again = make_trainer(max_epochs=2)
        again.fit(Classifier(), datamodule=Points(), ckpt_path=tmp_path / "mine.ckpt")
        assert again.global_step == 10

    def test_before_anything_ran_is_an_error(self, make_trainer: Any, tmp_path: Path) -> None:
        with pytest.raises(treadle.errors.ModuleError, match="there is nothing to save"):
            make_trainer().save_checkpoint(tmp_path / "mine.ckpt")


# --- hyperparameters ---


@dataclass
class Settings:
    hidden: int = 3
    rate: float = 0.5


class Bare(treadle.Module):
    def __init__(self, hidden: int, rate: float = 0.1, *, layers: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.full((hidden,), rate))


class Sub(Bare):
    def __init__(self, extra: str, hidden: int = 5) -> None:
        super().__init__(hidden, rate=0.2)
        self.extra = extra


class AnyArguments(treadle.Module):
    def __init__(self, hidden: int = 1, **others: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.others = others


class Chosen(treadle.Module):
    """Saves what its test says."""

    def __init__(self, hidden: int = 1, rate: float = 0.1, *values: Any, ignore: Any = ()) -> None:
        super().__init__()
        self.save_hyperparameters(*values, ignore=ignore)


class TestHyperparameters:
    def test_are_the_arguments_of_init(self) -> None:
        """Given or by default, keyword-only ones too."""
        assert Bare(4).hparams == {"hidden": 4, "rate": 0.1, "layers": (1, 2)}

    def test_are_attributes_too(self) -> None:
        module = Bare(4)
        assert module.hparams.hidden == 4
        with pytest.raises(
            AttributeError, match=r"no hyperparameter 'hiden'; there are \['hidden', 'layers', 'rate'\]"
        ):
            _ = module.hparams.hiden

    def test_of_a_subclass_are_its_own_and_those_it_passes_on(self) -> None:
        assert Sub("x").hparams == {"hidden": 5, "rate": 0.2, "layers": (1, 2), "extra": "x"}

    def test_may_come_in_by_any_name(self) -> None:
        assert AnyArguments(2, depth=3).hparams == {"hidden": 2, "depth": 3}

    @pytest.mark.parametrize(
        "values, ignore, kept",
        [
            (("hidden",), (), {"hidden": 1}),
            (("hidden", "rate"), (), {"hidden": 1, "rate": 0.1}),
            (({"a": 1, "b": 2},), (), {"a": 1, "b": 2}),
            ((Settings(),), (), {"hidden": 3, "rate": 0.5}),
            ((), "ignore", {"hidden": 1, "rate": 0.1}),
            ((), ["ignore", "rate"], {"hidden": 1}),
            (({"a": 1, "b": 2},), ["b"], {"a": 1}),
        ],
        ids=str,
    )
    def test_may_be_chosen(self, values: Any, ignore: Any, kept: dict[str, Any]) -> None:
        assert Chosen(1, 0.1, *values, ignore=ignore).hparams == kept

    def test_of_an_unknown_name_are_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"save_hyperparameters\('hiden'\): no such argument"):
            Chosen(1, 0.1, "hiden")

    def test_that_have_no_names_are_an_error(self) -> None:
        with pytest.raises(ConfigError, match="not a mapping or dataclass"):
            Chosen(1, 0.1, 5)

    def test_are_written_to_the_run(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        trainer.fit(Classifier(), datamodule=Points())
        text = (trainer.run_folder / "hparams.json").read_text()
        assert '"hidden": 4' in text
        assert '"batch_size": 4' in text


class WithObjects(Classifier):
    def __init__(self, hidden: int = 4, loss: Any = None, where: Any = None, table: Any = None) -> None:
        super().__init__(hidden)
        self.loss = loss


class TestHyperparametersThatAreObjects:
    @pytest.mark.parametrize(
        "value",
        [nn.MSELoss(), Path("x"), Pair(1, 2), defaultdict(int), [object()], {Pair(1, 2): 1}],
        ids=["module", "path", "named tuple", "defaultdict", "object in a list", "named tuple as key"],
    )
    def test_are_left_out_of_checkpoints_and_named(self, make_trainer: Any, value: Any) -> None:
        """The run goes on; loading needs them again."""
        trainer = make_trainer()
        with pytest.warns(TreadleWarning, match=r"treadle\[hparams\].*WithObjects.*not saved: loss"):
            trainer.fit(WithObjects(loss=value), datamodule=Points())
        saved = read(Path(trainer.checkpoint_callback.last_model_path))
        assert saved["hyper_parameters"] == {"hidden": 4, "learning_rate": 0.05, "where": None, "table": None}

    def test_are_given_when_loading(self, make_trainer: Any) -> None:
        trainer = make_trainer()
        with pytest.warns(TreadleWarning):
            trainer.fit(WithObjects(loss=nn.MSELoss(), hidden=3), datamodule=Points())
        loaded = WithObjects.load_from_checkpoint(trainer.checkpoint_callback.last_model_path, loss=nn.L1Loss())
        assert isinstance(loaded.loss, nn.L1Loss)
        assert loaded.hparams.hidden == 3


class TestLoadFromCheckpoint:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "a.ckpt"
        module = Bare(4, rate=0.3)
        write(
            path,
            {
                **content(1.0),
                "state_dict": module.state_dict(),
                "hyper_parameters": {"hidden": 4, "rate": 0.3, "layers": (1, 2)},
            },
        )
        return path

    def test_makes_the_module_again(self, path: Path) -> None:
        loaded = Bare.load_from_checkpoint(path)
        assert loaded.weight.tolist() == pytest.approx([0.3] * 4)
        assert loaded.hparams == {"hidden": 4, "rate": 0.3, "layers": (1, 2)}

    def test_takes_other_values(self, path: Path) -> None:
        assert Bare.load_from_checkpoint(path, rate=0.9).hparams.rate == 0.9

    def test_leaves_out_what_init_does_not_take(self, path: Path) -> None:
        class Fewer(treadle.Module):
            def __init__(self, hidden: int) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(hidden))

        assert Fewer.load_from_checkpoint(str(path)).weight.shape == (4,)

    def test_names_an_argument_that_is_nowhere(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match="lacks extra, which Sub needs") as error:
            Sub.load_from_checkpoint(path)
        assert error.value.fix == "Sub.load_from_checkpoint(path, extra=...)"

    def test_refuses_weights_that_do_not_fit(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match="weights don't fit Bare"):
            Bare.load_from_checkpoint(path, hidden=5)

    def test_may_leave_some_out(self, path: Path) -> None:
        class More(Bare):
            def __init__(self, hidden: int) -> None:
                super().__init__(hidden)
                self.head = nn.Linear(1, 1)

        assert More.load_from_checkpoint(path, strict=False).weight.tolist() == pytest.approx([0.3] * 4)
