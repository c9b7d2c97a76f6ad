"""The bundle: every released template in one committed file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaffold import bundle, catalog, settings
from scaffold.errors import SourceError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """The smallest tree that can be released."""
    files = {"copier.yml": "name: x\n", "templates/base/a.txt": "1\n", "templates/base/.gitignore": "*\n"}
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tree"


def released_files(file: Path, tag: str, scratch: Path) -> dict[str, bytes]:
    """Path to content and x-bit of what the release ``tag`` holds."""
    subprocess.run(["git", "clone", "-q", "-b", tag, str(file), str(scratch)], check=True, capture_output=True)
    return folder_files(scratch, [p.relative_to(scratch) for p in scratch.rglob("*") if p.is_file()])


def folder_files(folder: Path, files: list[Path]) -> dict[str, bytes]:
    content = {f.as_posix(): (folder / f).read_bytes() for f in files if ".git" not in f.parts}
    return content | {f"{n} (executable)": b"" for n in content if os.access(folder / n, os.X_OK)}


class TestTheShippedBundle:
    def test_holds_the_templates_of_this_checkout(self, tmp_path):
        """A change of a template is in the bundle, too."""
        newest = bundle.releases(settings.SHIPPED_BUNDLE)[-1]
        shipped = released_files(settings.SHIPPED_BUNDLE, newest, tmp_path / "released")
        here = folder_files(ROOT, list(bundle.template_files(ROOT)))
        assert shipped == here, "copier.yml or templates/ changed since the bundle was built: run make bundle"

    def test_is_small(self):
        """It grows by a few hundred bytes per release and must not swell unseen."""
        assert settings.SHIPPED_BUNDLE.stat().st_size < 100_000

    def test_has_every_built_in_template(self):
        assert set(catalog.BUILT_IN) == {folder.name for folder in (ROOT / "templates").iterdir() if folder.is_dir()}


class TestARelease:
    def test_built_again_gives_the_same_bytes(self, tree, tmp_path):
        """From nothing, replaced, and on a machine with other git settings."""
        first, again, other = tmp_path / "1", tmp_path / "2", tmp_path / "3"
        bundle.release(first, tree, "0.1.0")
        bundle.release(again, tree, "0.1.0")
        bundle.release(again, tree, "0.1.0", replace=True)
        config = tmp_path / "gitconfig"
        config.write_text("[user]\n\tname = X\n\temail = x@y.z\n[pack]\n\tcompression = 1\n[core]\n\tautocrlf = true\n")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "scaffold.bundle",
                "build",
                f"--bundle={other}",
                f"--tree={tree}",
                "--version=0.1.0",
            ],
            env={**os.environ, "GIT_CONFIG_GLOBAL": str(config), "TZ": "Asia/Tokyo", "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        assert first.read_bytes() == again.read_bytes() == other.read_bytes()

    def test_keeps_every_older_one(self, tree, tmp_path):
        """A project of any age finds the version it was made from."""
        file = tmp_path / "templates.bundle"
        bundle.release(file, tree, "0.9.0")
        old = bundle.heads(file)["refs/tags/v0.9.0"]
        (tree / "templates/base/a.txt").write_text("2\n")
        bundle.release(file, tree, "0.10.0")
        assert bundle.releases(file) == ["v0.9.0", "v0.10.0"]
        assert bundle.heads(file)["refs/tags/v0.9.0"] == old
        assert released_files(file, "v0.9.0", tmp_path / "a")["templates/base/a.txt"] == b"1\n"
        assert released_files(file, "v0.10.0", tmp_path / "b")["templates/base/a.txt"] == b"2\n"

    def test_takes_what_a_templates_own_gitignore_names(self, tree, tmp_path):
        """A .gitignore in a template is for the project, not for the release; caches are left out."""
        (tree / "templates/base/__pycache__").mkdir()
        (tree / "templates/base/__pycache__/a.pyc").touch()
        bundle.release(tmp_path / "b", tree, "0.1.0")
        files = released_files(tmp_path / "b", "v0.1.0", tmp_path / "released")
        assert set(files) == {"copier.yml", "templates/base/a.txt", "templates/base/.gitignore"}

    @pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "1", "v0.2.0", "0.2.0rc1"])
    def test_that_is_not_newer_is_refused(self, tree, tmp_path, version):
        file = tmp_path / "b"
        bundle.release(file, tree, "0.1.0")
        before = file.read_bytes()
        with pytest.raises(SourceError, match="newer than the one before"):
            bundle.release(file, tree, version)
        assert file.read_bytes() == before


class TestTheCopyThatProjectsName:
    def test_is_refreshed_when_it_differs(self, tree, monkeypatch, tmp_path):
        """A file that is damaged, or older than what is installed, is replaced; a newer one is kept."""
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        copy = settings.project_bundle()
        shipped = settings.SHIPPED_BUNDLE.read_bytes()
        catalog.refresh()
        assert copy.read_bytes() == shipped
        copy.write_bytes(b"damaged")
        catalog.refresh()
        assert copy.read_bytes() == shipped
        bundle.release(copy, tree, "99.0.0")
        newer = copy.read_bytes()
        catalog.refresh()
        assert copy.read_bytes() == newer
        assert [file.name for file in copy.parent.iterdir()] == [copy.name]
