"""URLs of stores as paths, and stores that only know how to write and rename."""

import sys
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.checkpoint import link, remove
from treadle.checkpoint.file import read_plain, write_plain
from treadle.checkpoint.remote import location
from treadle.errors import ConfigError


class TestAURL:
    def test_without_the_extra_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(ConfigError) as error:
            ModelCheckpoint("s3://bucket/run")
        assert error.value.fix.startswith('pip install "treadle[remote]"')

    def test_without_the_stores_package_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(ConfigError, match="install gcsfs"):
            location("gs://bucket/run")

    @pytest.mark.parametrize("path", ["s3:/bucket/run", Path("s3://bucket/run")], ids=["mistyped", "as a Path"])
    def test_with_one_slash_is_not_a_folder_of_that_name(self, path: Any) -> None:
        with pytest.raises(ConfigError, match="one slash too few") as error:
            location(path)
        assert '"s3://bucket/run"' in error.value.fix

    def test_of_an_unknown_store_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="Protocol not known"):
            location("s4://bucket/run")

    def test_with_a_password_is_refused_without_printing_it(self) -> None:
        with pytest.raises(ConfigError, match="sftp://host/run came with a password") as error:
            location("sftp://me:secret@host/run")
        assert "secret" not in str(error.value)

    def test_of_a_file_of_this_machine_is_its_path(self, tmp_path: Path) -> None:
        assert location(f"file://{tmp_path}/a.ckpt") == tmp_path / "a.ckpt"

    def test_is_no_place_for_logs(self) -> None:
        with pytest.raises(ConfigError, match="not on this machine") as error:
            treadle.Trainer(default_root_dir="s3://bucket/run")
        assert 'ModelCheckpoint(dirpath="s3://bucket/run")' in error.value.fix

    def test_has_the_names_that_a_path_has(self) -> None:
        """Those of files come from a checkpoint, and may be a stranger's."""
        path: Any = location("memory://run/epoch=1.ckpt")
        assert (path.name, path.stem, path.suffix, str(path.parent)) == (
            "epoch=1.ckpt",
            "epoch=1",
            ".ckpt",
            "memory://run",
        )
        assert path.parent / "epoch=1.ckpt" == path
        assert not (path.parent / "../other.ckpt").resolve().is_relative_to(path.parent)
        assert (path.parent / "x/../y.ckpt").resolve().is_relative_to(path.parent)


class Plain(MemoryFileSystem):
    """A store that can neither copy nor show an upload only when it is whole, as those behind sftp."""

    protocol = "plain"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails = False

    def cp_file(self, path1: str, path2: str, **settings: Any) -> None:
        raise NotImplementedError

    def put_file(self, lpath: str, rpath: str, **settings: Any) -> None:
        data = Path(lpath).read_bytes()
        self.pipe_file(rpath, data[: len(data) // 2] if Plain.fails else data)

    def mv(self, path1: str, path2: str, **settings: Any) -> None:
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("plain://").strip("/")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Path:
    fsspec.register_implementation("plain", Plain, clobber=True)
    Plain.store.clear()
    monkeypatch.setattr(Plain, "fails", False)
    return location("plain://run")


class TestAStoreThatShowsHalfAnUpload:
    def test_gets_it_under_another_name_first(self, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_plain(plain / "last.ckpt", {"a": 1})
        monkeypatch.setattr(Plain, "fails", True)
        with pytest.raises(OSError, match=r"it has [\d,]+ bytes of"):
            write_plain(plain / "last.ckpt", {"a": 2})
        assert read_plain(plain / "last.ckpt") == {"a": 1}
        assert list(Plain.store) == ["/run/last.ckpt"]

    def test_and_can_not_copy_gets_the_copy_from_here(self, plain: Path) -> None:
        write_plain(plain / "a.ckpt", {"a": 1})
        link(plain / "a.ckpt", plain / "last.ckpt")
        remove(plain / "a.ckpt")
        assert read_plain(plain / "last.ckpt") == {"a": 1}
        assert list(Plain.store) == ["/run/last.ckpt"]
