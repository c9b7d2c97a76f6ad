"""Checkpoints in a store: a real S3 server on this machine."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.checkpoint import exists, link, make_folder, read, remove, write
from treadle.checkpoint.file import read_plain, write_plain
from treadle.checkpoint.remote import location
from treadle.errors import CheckpointError, ConfigError
from treadle.fabric import Fabric
from treadle.testing import Classifier, Points

SECRET = "VERYSECRETKEY"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Of a server that speaks S3."""
    command = [sys.executable, "-c", "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        port = next(int(line.rpartition(":")[2]) for line in server.stderr if "Running on http" in line)
        reader = threading.Thread(target=server.stderr.read)  # or the server would wait for one
        reader.start()
        yield "127.0.0.1", port
        server.kill()
        reader.join()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.fixture
def client(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Amazon's own, for an empty store with the bucket ``bucket`` in it; s3:// is that store."""
    import boto3
    from s3fs import S3FileSystem

    settings = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*address),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    amazon = boto3.client("s3")
    amazon.create_bucket(Bucket="bucket")
    yield amazon
    for name in names(amazon):
        amazon.delete_object(Bucket="bucket", Key=name)
    amazon.close()
    S3FileSystem.clear_instance_cache()


def names(client: Any) -> list[str]:
    return [found["Key"] for found in client.list_objects_v2(Bucket="bucket").get("Contents", [])]


class Line:
    """Lies between the server and who speaks to it, and is cut after so many bytes went to the server."""

    def __init__(self, address: tuple[str, int], cut_after: int) -> None:
        self.left, self._address, self._ends = cut_after, address, list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        while self.left > 0:
            try:
                here, _ = self._door.accept()
            except OSError:
                return
            there = socket.create_connection(self._address)
            self._ends += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=(one, other, one is here), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := one.recv(2**16):
                self.left -= len(data) if counts else 0
                if self.left <= 0:
                    break
                other.sendall(data)
        if self.left <= 0:
            self.close()
        else:
            other.close()

    def close(self) -> None:
        for end in (self._door, *self._ends):
            with suppress(OSError):  # it had been closed from the other side
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def line(client: Any, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3:// from here on goes through a line that is cut after so many bytes."""
    from s3fs import S3FileSystem

    lines: list[Line] = []

    def lay(cut_after: int) -> Line:
        lines.append(Line(address, cut_after))
        monkeypatch.setenv("AWS_ENDPOINT_URL", lines[0].url)
        S3FileSystem.clear_instance_cache()
        return lines[0]

    yield lay
    for laid in lines:
        laid.close()


class TestAFileInAStore:
    def test_is_written_read_copied_and_removed(self, client: Any) -> None:
        folder = location("s3://bucket/run")
        make_folder(folder)
        write_plain(folder / "a.ckpt", {"a": torch.arange(5)})
        link(folder / "a.ckpt", folder / "last.ckpt")
        remove(folder / "a.ckpt")
        remove(folder / "a.ckpt")
        assert not exists(folder / "a.ckpt")
        assert torch.equal(read_plain(folder / "last.ckpt")["a"], torch.arange(5))
        assert names(client) == ["run/last.ckpt"]

    def test_is_what_others_made_of_it_a_moment_ago(self, client: Any) -> None:
        """Nothing is remembered: another process may write there too."""
        path = location("s3://bucket/run/a.ckpt")
        assert not exists(path)
        client.put_object(Bucket="bucket", Key="run/a.ckpt", Body=b"PK")
        assert exists(path)
        assert [found.name for found in path.parent.glob("*.ckpt")] == ["a.ckpt"]
        client.delete_object(Bucket="bucket", Key="run/a.ckpt")
        assert not exists(path)
        assert list(path.parent.glob("*.ckpt")) == []

    def test_is_copied_by_the_store_itself(self, client: Any, line: Any) -> None:
        """Less goes over the line than the file is large."""
        write_plain(location("s3://bucket/a.ckpt"), {"a": torch.zeros(100_000)})
        counted = line(10**9)
        link(location("s3://bucket/a.ckpt"), location("s3://bucket/b.ckpt"))
        assert 0 < 10**9 - counted.left < 20_000
        assert client.head_object(Bucket="bucket", Key="b.ckpt")["ContentLength"] > 400_000

    def test_that_is_not_there_is_named_with_its_neighbours(self, client: Any) -> None:
        write_plain(location("s3://bucket/run/last.ckpt"), {})
        with pytest.raises(CheckpointError, match=r"s3://bucket/run/lats.ckpt .*\n.*Beside it: last.ckpt"):
            read(location("s3://bucket/run/lats.ckpt"))

    @pytest.mark.parametrize("damage", ["cut", "flipped", "junk"])
    def test_that_is_damaged_is_recognised(self, client: Any, damage: str) -> None:
        path = location("s3://bucket/a.ckpt")
        write_plain(path, {"a": torch.full((100,), 1.5)})
        data = client.get_object(Bucket="bucket", Key="a.ckpt")["Body"].read()
        position = data.index(torch.full((100,), 1.5).numpy().tobytes())
        flipped = data[:position] + b"\xff" + data[position + 1 :]
        client.put_object(
            Bucket="bucket", Key="a.ckpt", Body={"cut": data[:-50], "flipped": flipped, "junk": b"junk"}[damage]
        )
        said = "s3://bucket/a.ckpt is " + ("not a checkpoint" if damage == "junk" else "damaged")
        with pytest.raises(CheckpointError, match=said):
            read_plain(path)

    def test_leaves_nothing_on_this_machine(self, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        write_plain(location("s3://bucket/a.ckpt"), {})
        read_plain(location("s3://bucket/a.ckpt"))
        assert list(tmp_path.iterdir()) == []

    def test_that_this_disk_has_no_room_for_is_an_error_of_the_disk(self, client: Any) -> None:
        """It says which one, and nothing is uploaded."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                write(location("s3://bucket/a.ckpt"), {"a": torch.zeros(10**6)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert error.value.errno == errno.EFBIG
        assert names(client) == []

    def test_of_a_module_is_loaded_from_there(self, client: Any, make_trainer: Any) -> None:
        trainer = make_trainer(enable_checkpointing=False)
        model = Classifier(hidden=3)
        trainer.fit(model, datamodule=Points())
        trainer.save_checkpoint("s3://bucket/by-hand.ckpt")
        again = Classifier.load_from_checkpoint("s3://bucket/by-hand.ckpt")
        assert again.hparams["hidden"] == 3
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())

    def test_of_fabric_is_saved_and_loaded(self, client: Any) -> None:
        fabric, model = Fabric(accelerator="cpu"), torch.nn.Linear(2, 1)
        fabric.save("s3://bucket/a.ckpt", {"model": model, "step": 3})
        other = torch.nn.Linear(2, 1)
        assert fabric.load("s3://bucket/a.ckpt", {"model": other}) == {"step": 3}
        assert torch.equal(other.weight, model.weight)


class TestAServerThatGoesAway:
    @pytest.mark.parametrize("megabytes", [8, 108], ids=["one request", "in parts"])
    def test_in_the_middle_of_an_upload_leaves_the_file_from_before(
        self, client: Any, line: Any, megabytes: int
    ) -> None:
        path = location("s3://bucket/run/last.ckpt")
        write_plain(path, {"a": 1})
        line(megabytes * 10**6 * 2 // 3)
        with pytest.raises(OSError, match="the store says") as error:
            write_plain(path, {"a": torch.zeros(megabytes * 250_000)})
        assert "s3://bucket/run/last.ckpt" in str(error.value)
        assert names(client) == ["run/last.ckpt"]
        assert len(client.get_object(Bucket="bucket", Key="run/last.ckpt")["Body"].read()) < 10_000

    def test_is_not_taken_for_one_without_the_file(self, client: Any, line: Any) -> None:
        """Or "auto" would start a run anew that it could have resumed."""
        path = location("s3://bucket/last.ckpt")
        write_plain(path, {})
        line(10**9).close()
        for ask in (path.exists, path.is_file, lambda: list(path.parent.glob("*")), lambda: read(path)):
            with pytest.raises(OSError, match="Could not connect") as error:
                ask()
            assert SECRET not in str(error.value)
            assert "s3://bucket" in str(error.value)

    def test_is_found_before_the_first_batch(self, client: Any, line: Any, make_trainer: Any) -> None:
        line(10**9).close()
        trainer = make_trainer(callbacks=[ModelCheckpoint("s3://bucket/run")])
        with pytest.raises(ConfigError, match=r"s3://bucket/run can't be written.\n.*Could not connect"):
            trainer.fit(Classifier(), datamodule=Points())
        assert trainer.global_step == 0


class TestABucket:
    def test_that_is_not_there_is_found_before_the_first_batch(self, client: Any, make_trainer: Any) -> None:
        """It is not made either: its name may be mistyped."""
        trainer = make_trainer(callbacks=[ModelCheckpoint("s3://buckte/run")])
        with pytest.raises(ConfigError, match=r"s3://buckte/run can't be written.\n.*bucket does not exist"):
            trainer.fit(Classifier(), datamodule=Points())
        assert [found["Name"] for found in client.list_buckets()["Buckets"]] == ["bucket"]


PROGRAM = """
import os, signal, sys
import torch, treadle
from treadle.callbacks import ModelCheckpoint
from treadle.testing import Classifier, Points


class Kill(treadle.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
treadle.seed_everything(3)
saving = ModelCheckpoint(sys.argv[1], monitor="step", mode="max", save_top_k=2, every_n_train_steps=2)
trainer = treadle.Trainer(
    max_epochs=3, default_root_dir=sys.argv[2], enable_progress_bar=False, callbacks=[Kill(), saving]
)
trainer.fit(Classifier(), datamodule=Points(), ckpt_path="auto")
"""


def start(dirpath: str, root: Path, kill_at: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", PROGRAM, dirpath, str(root), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


class TestARunThatSavesToAStore:
    def test_goes_on_bit_for_bit_after_it_was_killed(self, client: Any, tmp_path: Path) -> None:
        """Also where its folder has the name of those that lie beside logs."""
        whole = start("s3://bucket/whole/checkpoints", tmp_path / "whole", -1)
        killed = start("s3://bucket/killed/checkpoints", tmp_path / "killed", 9)
        killed.communicate(timeout=100)
        assert killed.returncode == -signal.SIGKILL
        assert "killed/checkpoints/last.ckpt" in names(client)
        resumed = start("s3://bucket/killed/checkpoints", tmp_path / "killed", -1)
        for run in (whole, resumed):
            said, _ = run.communicate(timeout=100)
            assert run.returncode == 0, said
        one, other = (read(location(f"s3://bucket/{run}/checkpoints/last.ckpt")) for run in ("whole", "killed"))
        assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
        assert one["progress"] == other["progress"]
        rows = [(tmp_path / run / "runs/version_0/metrics.csv").read_bytes() for run in ("whole", "killed")]
        assert rows[0] == rows[1]
        kept = {name.rpartition("/")[2] for name in names(client) if name.startswith("whole/")}
        assert kept == {"epoch=2-step=14.ckpt", "epoch=2-step=15.ckpt", "last.ckpt", "previous.ckpt"}
        assert kept == {name.rpartition("/")[2] for name in names(client) if name.startswith("killed/")}

    def test_is_found_by_name(self, client: Any, make_trainer: Any) -> None:
        def trainer(**settings: Any) -> treadle.Trainer:
            made: treadle.Trainer = make_trainer(callbacks=[ModelCheckpoint("s3://bucket/run")], **settings)
            return made

        first = trainer()
        first.fit(Classifier(), datamodule=Points())
        assert first.checkpoint_callback is not None
        assert first.checkpoint_callback.last_model_path == "s3://bucket/run/last.ckpt"
        for tester in (first, trainer()):
            for name in ("best", "last", first.checkpoint_callback.best_model_path):
                tester.test(Classifier(), datamodule=Points(), ckpt_path=name)
        again = trainer(max_epochs=2)
        again.fit(Classifier(), datamodule=Points(), ckpt_path="last")
        assert (str(again.ckpt_path), again.global_step) == ("s3://bucket/run/last.ckpt", 10)
