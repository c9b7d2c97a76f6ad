"""The bundle of released templates: a git repository in one file, shipped in the wheel.

One commit and one tag per release, holding only ``copier.yml``, ``templates/`` and ``presets/``. Author and dates are fixed and the
packing is repeatable, so building it again from the same files gives the same bytes. ``make bundle`` calls this.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaffold import __version__
from scaffold.errors import SourceError
from scaffold.git import git
from scaffold.settings import SHIPPED_BUNDLE

Version = tuple[int, ...]

_JUNK_FOLDERS = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_JUNK_FILES = {".DS_Store"}
_FIXED = {
    "GIT_AUTHOR_NAME": "treadle",
    "GIT_AUTHOR_EMAIL": "treadle@localhost",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "treadle",
    "GIT_COMMITTER_EMAIL": "treadle@localhost",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00+0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def heads(bundle: Path) -> dict[str, str]:
    """Full reference name to commit, read from the bundle's header without git.

    Raises:
        SourceError: The file is missing or no git bundle.
    """
    found = {}
    try:
        with bundle.open("rb") as file:
            if not re.match(rb"# v[23] git bundle\n", file.readline()):
                raise ValueError("no bundle header")
            for line in iter(file.readline, b"\n"):
                if not line:
                    raise ValueError("the header has no end")
                if not line.startswith((b"@", b"-")):  # capabilities, prerequisites
                    commit, name = line.decode().strip().split(" ", 1)
                    found[name] = commit
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{bundle} is not a readable git bundle: {error}",
            why="it holds the released templates.",
            fix="reinstall treadle-scaffold, or in a clone of it run: make bundle",
        ) from None
    return found


def version_of(tag: str) -> Version | None:
    """``v1.2.3`` as (1, 2, 3); None for any other name."""
    match = re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)", tag)
    return tuple(int(part) for part in match.groups()) if match else None


def releases(bundle: Path) -> list[str]:
    """The release tags in the bundle, oldest first."""
    tags = (name.removeprefix("refs/tags/") for name in heads(bundle) if name.startswith("refs/tags/"))
    return sorted((tag for tag in tags if version_of(tag)), key=lambda tag: version_of(tag) or ())


def newest(bundle: Path) -> Version:
    """The number of the newest release; empty when there is none."""
    tags = releases(bundle)
    return (version_of(tags[-1]) or ()) if tags else ()


def template_files(tree: Path) -> Iterator[Path]:
    """What a release of the folder ``tree`` holds, in a fixed order, relative to it."""
    yield Path("copier.yml")
    for top in ("presets", "templates"):
        for folder, subfolders, files in os.walk(tree / top):
            subfolders[:] = sorted(name for name in subfolders if name not in _JUNK_FOLDERS)
            for name in sorted(files):
                if name not in _JUNK_FILES and not name.endswith((".pyc", ".pyo")):
                    yield (Path(folder) / name).relative_to(tree)


def release(bundle: Path, tree: Path, version: str, *, replace: bool = False) -> None:
    """Append a release of the templates in ``tree`` to ``bundle``, which is made when missing and replaced atomically.

    Args:
        version: Such as ``0.2.0``; newer than every release in the bundle.
        replace: Allow ``version`` to be the newest one, which is then built anew.

    Raises:
        SourceError: The version is malformed, too old, or there already.
    """
    tag = f"v{version}"
    kept = releases(bundle) if bundle.exists() else []
    if replace and kept and kept[-1] == tag:
        kept.pop()
    number = version_of(tag)
    if number is None or (kept and number <= (version_of(kept[-1]) or ())):
        raise SourceError(
            f"Cannot release templates {version} after {', '.join(kept) or 'nothing'}.",
            why="releases are numbered like 1.2.3, each newer than the one before, and never change once out.",
            fix="choose a newer version (or --replace the newest, while nobody has it).",
        )
    with tempfile.TemporaryDirectory(prefix="scaffold-bundle-") as name:
        repository = Path(name)
        _git(repository, "init", "-q", "--bare", ".")
        if kept:
            _git(repository, "fetch", "-q", str(bundle.resolve()), *(f"refs/tags/{t}:refs/tags/{t}" for t in kept))
        commit = _commit(repository, tree, tag, parent=kept[-1] if kept else None)
        _git(repository, "update-ref", f"refs/tags/{tag}", commit)
        _git(repository, "update-ref", "refs/heads/main", commit)
        _git(repository, "symbolic-ref", "HEAD", "refs/heads/main")
        _write(repository, bundle, [*kept, tag])


def _git(repository: Path, *arguments: str, stdin: str | None = None) -> str:
    return git(*arguments, cwd=repository, environment=_FIXED, stdin=stdin).strip()


def _commit(repository: Path, tree: Path, tag: str, *, parent: str | None) -> str:
    files = list(template_files(tree))
    blobs = _git(
        repository,
        "hash-object",
        "-w",
        "--no-filters",
        "--stdin-paths",
        stdin="".join(f"{(tree / file).resolve()}\n" for file in files),
    ).split()
    modes = ["100755" if os.access(tree / file, os.X_OK) else "100644" for file in files]
    entries = zip(modes, blobs, files, strict=True)
    index = "".join(f"{mode} {blob}\t{file.as_posix()}\n" for mode, blob, file in entries)
    _git(repository, "update-index", "--add", "--index-info", stdin=index)
    parents = ["-p", f"refs/tags/{parent}"] if parent else []
    return _git(repository, "commit-tree", _git(repository, "write-tree"), *parents, "-m", f"Templates {tag}")


def _write(repository: Path, bundle: Path, tags: list[str]) -> None:
    # Everything that could make one machine pack differently from another is pinned: threads, reuse, windows.
    packing = ("-c", "pack.threads=1", "-c", "core.compression=9")
    _git(repository, *packing, "repack", "-q", "-a", "-d", "-F", "--window=50", "--depth=50")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    fresh = bundle.with_name(f".{bundle.name}.{os.getpid()}")
    references = ["HEAD", "refs/heads/main", *(f"refs/tags/{tag}" for tag in tags)]
    try:
        _git(repository, *packing, "bundle", "create", "-q", str(fresh.resolve()), *references)
        fresh.replace(bundle)
    finally:
        fresh.unlink(missing_ok=True)


def main() -> None:
    """Build the shipped bundle from a checkout."""
    parser = argparse.ArgumentParser(prog="python -m scaffold.bundle", description="Release the templates.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="append a release to the bundle")
    build.add_argument("--version", default=__version__, help="default: the version of scaffold")
    build.add_argument("--replace", action="store_true", help="build the newest release anew")
    build.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    build.add_argument("--tree", type=Path, default=SHIPPED_BUNDLE.parents[1], help="holds copier.yml and templates/")
    options = parser.parse_args()
    try:
        release(options.bundle, options.tree, options.version, replace=options.replace)
    except SourceError as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.bundle}: {', '.join(releases(options.bundle))}, {options.bundle.stat().st_size} bytes")


if __name__ == "__main__":
    main()
