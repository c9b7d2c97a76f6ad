"""Random histories: versions of a template, and what a user made of the first of them.

Both sides do the same kinds of things: edit, insert, delete and append lines, replace, rename, move, add and delete files and
folders, change line ends, the last newline and the executable bit, write binary and empty files, in names with spaces and
umlauts. They draw on few places and few common lines, so that they meet often.

Used by the tests of ``scaffold update`` and by ``benchmarks/update_losses.py``. All chance comes from one ``random.Random``,
which hypothesis can replay and shrink.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

PLAIN, EXECUTABLE, LINK = "100644", "100755", "120000"
File = tuple[str, bytes]
"""Mode and content."""
Tree = dict[str, File]

ANSWERS = ".copier-answers.yml"
_PLACES = ("README.md", "src/net/model.py", "src/net/data.py", "docs/über uns.md", "a b/c d.txt", "run.sh", "logo.bin")
_NEW_PLACES = ("notes.txt", "src/net/extra.py", "docs/new page.md", "src/other/größe.py")
_FOLDERS = ("src", "src/net", "docs", "a b", "lib", "src/core")
_COMMON = ("", "}", "    return", "# ---")
_NOUNS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True, kw_only=True)
class History:
    """What happened, on both sides."""

    versions: tuple[Tree, ...]
    """Of the template, oldest first; two at least."""

    project: Tree
    """The last commit of a project made from the first version."""

    told: tuple[str, ...]
    """Each step, for people to read."""


@dataclass
class _Side:
    """Somebody who changes a tree: the template's author, or the user."""

    name: str
    random: Random
    tree: Tree
    told: list[str] = field(default_factory=list)
    written: int = 0

    def line(self) -> str:
        if self.random.randrange(5) == 0:
            return self.random.choice(_COMMON)
        self.written += 1
        return f"{self.name} wrote {_NOUNS[self.written % len(_NOUNS)]} {self.written}"

    def path(self) -> str | None:
        paths = sorted(self.tree)
        return self.random.choice(paths) if paths else None

    def text(self) -> bytes:
        return "".join(f"{self.line()}\n" for _ in range(self.random.randrange(1, 6))).encode()

    def tell(self, what: str) -> None:
        self.told.append(f"{self.name}: {what}")


def history(random: Random, *, most_versions: int = 5) -> History:
    """One to ``most_versions`` releases of a template after the first, and a project of the first."""
    first = _first(random)
    author = _Side("template", random, dict(first))
    versions = [first]
    for number in range(random.randint(1, most_versions)):
        author.tell(f"version {number + 2}")
        for _ in range(random.randint(0, 3)):
            _STEPS[random.randrange(len(_STEPS))](author)
        versions.append(dict(author.tree))
    user = _Side("user", random, dict(first))
    for _ in range(random.randint(0, 4)):
        _STEPS[random.randrange(len(_STEPS))](user)
    return History(versions=tuple(versions), project=user.tree, told=(*author.told, *user.told))


def _first(random: Random) -> Tree:
    tree: Tree = {}
    for place in random.sample(_PLACES, random.randint(2, len(_PLACES))):
        lines = [f"{place} says {noun}" for noun in _NOUNS[: random.randint(4, len(_NOUNS))]]
        lines.insert(len(lines) // 2, "}")
        mode = EXECUTABLE if place.endswith(".sh") else PLAIN
        binary = place.endswith(".bin")
        tree[place] = (mode, bytes(range(64)) * 4 if binary else "".join(f"{line}\n" for line in lines).encode())
    return tree


def _lines_of(side: _Side) -> tuple[str, list[bytes]] | None:
    """A text file that has lines."""
    path = side.path()
    if path is None or b"\0" in side.tree[path][1] or not side.tree[path][1]:
        return None
    return path, side.tree[path][1].splitlines(keepends=True)


def _put(side: _Side, path: str, lines: list[bytes]) -> None:
    side.tree[path] = (side.tree[path][0], b"".join(lines))


def _edit_line(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        at = side.random.randrange(len(lines))
        end = b"\r\n" if lines[at].endswith(b"\r\n") else b"\n"
        lines[at] = side.line().encode() + end
        _put(side, path, lines)
        side.tell(f"edits line {at + 1} of {path}")


def _insert_lines(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        at = side.random.randrange(len(lines))  # the last line may have no newline
        lines[at:at] = side.text().splitlines(keepends=True)
        _put(side, path, lines)
        side.tell(f"inserts lines before line {at + 1} of {path}")


def _append(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        _put(side, path, [*lines, side.text()])
        side.tell(f"appends to {path}")


def _delete_lines(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        at = side.random.randrange(len(lines))
        del lines[at : at + 2]
        _put(side, path, lines)
        side.tell(f"deletes lines {at + 1} and {at + 2} of {path}")


def _change_line_ends(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        text = b"".join(lines)
        unix = text.replace(b"\r\n", b"\n")
        _put(side, path, [unix if b"\r\n" in text else unix.replace(b"\n", b"\r\n")])
        side.tell(f"changes the line ends of {path}")


def _change_last_newline(side: _Side) -> None:
    if found := _lines_of(side):
        path, lines = found
        text = b"".join(lines)
        _put(side, path, [text.rstrip(b"\r\n") if text.endswith(b"\n") else text + b"\n"])
        side.tell(f"changes the last newline of {path}")


def _replace(side: _Side) -> None:
    if path := side.path():
        binary = path.endswith(".bin")
        content = b"\0" + side.text() * 3 if binary else side.random.choice([side.text(), b""])
        side.tree[path] = (side.tree[path][0], content)
        side.tell(f"replaces all of {path}")


def _change_mode(side: _Side) -> None:
    if path := side.path():
        mode, content = side.tree[path]
        side.tree[path] = (PLAIN if mode == EXECUTABLE else EXECUTABLE, content)
        side.tell(f"changes the mode of {path}")


def _delete(side: _Side) -> None:
    if path := side.path():
        del side.tree[path]
        side.tell(f"deletes {path}")


def _add(side: _Side) -> None:
    path = side.random.choice(_NEW_PLACES)
    if _is_free(side.tree, path):
        side.tree[path] = (PLAIN, side.text())
        side.tell(f"adds {path}")


def _rename(side: _Side) -> None:
    path = side.path()
    if path is None:
        return
    folder, name = side.random.choice(_FOLDERS), side.random.choice(
        (path.rpartition("/")[2], f"{side.name} {path[-4:]}")
    )
    new = f"{folder}/{name}".replace("/.", "/")
    if _is_free(side.tree, new):
        side.tree[new] = side.tree.pop(path)
        side.tell(f"renames {path} to {new}")


def _move_folder(side: _Side) -> None:
    old, new = side.random.choice(_FOLDERS), side.random.choice(_FOLDERS)
    moved = {path: new + path.removeprefix(old) for path in side.tree if path.startswith(f"{old}/")}
    if new.startswith(old) or not all(_is_free(side.tree, path) for path in moved.values()):
        return
    for path, place in moved.items():
        side.tree[place] = side.tree.pop(path)
    if moved:
        side.tell(f"moves folder {old} to {new}")


def _is_free(tree: Mapping[str, File], path: str) -> bool:
    return not any(each == path or each.startswith(f"{path}/") or path.startswith(f"{each}/") for each in tree)


_STEPS: tuple[Callable[[_Side], None], ...] = (
    _edit_line, _edit_line, _edit_line, _insert_lines, _insert_lines, _append, _append, _delete_lines, _rename, _rename,
    _delete, _add, _add, _replace, _change_line_ends, _change_last_newline, _change_mode, _move_folder,
)  # fmt: skip


# ---- What is lost -----------------------------------------------------------------------------------------------------


def lines(files: Mapping[str, File]) -> Counter[bytes]:
    """All lines of all files; a file that is no text counts as one."""
    counted: Counter[bytes] = Counter()
    for _, content in files.values():
        counted.update([content] if b"\0" in content else content.split(b"\n"))
    del counted[b""]  # an empty line is nobody's work
    return counted


def lost(old: Mapping[str, File], project: Mapping[str, File], *results: Mapping[str, File]) -> Counter[bytes]:
    """Lines that the user wrote, of which ``results`` together have fewer than the user added.

    Args:
        old: The template's rendering that the project was made from.
        project: What the user had committed.
        results: Files after the update, and the sides that the index holds of conflicts.
    """
    kept: Counter[bytes] = Counter()
    for each in results:
        kept |= lines(each)
    return (lines(project) - lines(old)) - kept


# ---- Trees in real repositories ---------------------------------------------------------------------------------------


def write(folder: Path, tree: Mapping[str, File]) -> None:
    """As files. What is in the folder and not in the tree goes, except for ``.git``."""
    for place in sorted(folder.rglob("*"), reverse=True):
        if place.relative_to(folder).parts[0] != ".git":
            place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    for path, (mode, content) in tree.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if mode == LINK:
            place.symlink_to(os.fsdecode(content))
        else:
            place.write_bytes(content)
            place.chmod(0o755 if mode == EXECUTABLE else 0o644)


def files(folder: Path) -> Tree:
    """What :func:`write` wrote, and what has become of it."""
    tree: Tree = {}
    for place, folders, names in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")
        for name in [*names, *(each for each in folders if (Path(place) / each).is_symlink())]:
            path = Path(place) / name
            if path.is_symlink():
                found = (LINK, os.fsencode(path.readlink()))
            else:
                found = (EXECUTABLE if path.stat().st_mode & 0o100 else PLAIN, path.read_bytes())
            tree[path.relative_to(folder).as_posix()] = found
    return tree


def import_trees(repository: Path, trees: Mapping[str, Mapping[str, File]]) -> dict[str, str]:
    """Each as a commit on a branch of its name, in one call of git; the hashes of their trees."""
    stream = [_commit_command(name, tree, 0) for name, tree in trees.items()]
    _git("fast-import", "--quiet", "--force", cwd=repository, stdin=b"".join(stream))
    listed = _git("rev-parse", *(f"refs/heads/{name}^{{tree}}" for name in trees), cwd=repository).decode().split()
    return dict(zip(trees, listed, strict=True))


def export_tree(repository: Path, tree: str) -> Tree:
    """The files of a tree."""
    entries = {}
    for entry in _git("ls-tree", "-r", "-z", tree, cwd=repository).decode().split("\0"):
        details, _, path = entry.partition("\t")
        if path:
            mode, _, name = details.split(" ")
            entries[path] = (mode, name)
    return export_blobs(repository, entries)


def export_blobs(repository: Path, entries: Mapping[str, tuple[str, str]]) -> Tree:
    """Files by their mode and object."""
    told = _git(
        "cat-file", "--batch", cwd=repository, stdin="".join(f"{name}\n" for _, name in entries.values()).encode()
    )
    tree: Tree = {}
    at = 0
    for path, (mode, _) in entries.items():
        end = told.index(b"\n", at)
        size = int(told[at:end].split(b" ")[2])
        tree[path] = (mode, told[end + 1 : end + 1 + size])
        at = end + size + 2
    return tree


def staged(repository: Path) -> Tree:
    """The sides of all conflicts in the index."""
    entries = {}
    for entry in _git("ls-files", "-u", "-z", cwd=repository).decode().split("\0"):
        details, _, path = entry.partition("\t")
        if path:
            mode, name, stage = details.split(" ")
            entries[f"{path}:{stage}"] = (mode, name)
    return export_blobs(repository, entries)


# ---- Real templates and projects --------------------------------------------------------------------------------------

_QUESTION = "{name}:\n  type: str\n  default: {default}\n"
_SETTINGS = "config.ini"
_ANSWERS_TEMPLATE = (
    b"# Changes here will be overwritten by Copier; NEVER EDIT MANUALLY\n{{ _copier_answers | to_nice_yaml -}}\n"
)


def make_template(folder: Path, history: History) -> None:
    """A repository with a tag for each version. Each version has one question more, and a file that tells all answers."""
    _git("init", "-q", str(folder), cwd=folder.parent)
    stream = []
    for number, tree in enumerate(history.versions, start=1):
        names = _questions(number)
        config = "".join(_QUESTION.format(name=name, default=f"default {name}") for name in names)
        rendered = "".join(f"{name} = {{{{ {name} }}}}\n" for name in names)
        whole = {
            **tree,
            "copier.yml": (PLAIN, config.encode()),
            "{{ _copier_conf.answers_file }}.jinja": (PLAIN, _ANSWERS_TEMPLATE),
            f"{_SETTINGS}.jinja": (PLAIN, rendered.encode()),
        }
        stream.append(
            _commit_command("main", whole, number) + f"reset refs/tags/v{number}.0.0\nfrom refs/heads/main\n\n".encode()
        )
    _git("fast-import", "--quiet", cwd=folder, stdin=b"".join(stream))
    _git("symbolic-ref", "HEAD", "refs/heads/main", cwd=folder)
    _git("reset", "-q", "--hard", cwd=folder)


def old_rendering(history: History, template: Path, answer: str = "default name1") -> Tree:
    """What Copier makes of the first version."""
    answers = f"_commit: v1.0.0\n_src_path: {template}\nname1: {answer}\n"
    first_line = _ANSWERS_TEMPLATE.partition(b"\n")[0] + b"\n"
    return {
        **history.versions[0],
        _SETTINGS: (PLAIN, f"name1 = {answer}\n".encode()),
        ANSWERS: (PLAIN, first_line + answers.encode()),
    }


def make_project(folder: Path, history: History, template: Path, answer: str = "default name1") -> Tree:
    """A repository whose last commit is the history's project.

    Args:
        answer: What the user wrote into the answers file; the other files were made with the default.
    """
    made = {**old_rendering(history, template), ANSWERS: old_rendering(history, template, answer)[ANSWERS]}
    tree = {**history.project, **{name: made[name] for name in (_SETTINGS, ANSWERS)}}
    _git("init", "-q", str(folder), cwd=folder.parent)
    _git("fast-import", "--quiet", cwd=folder, stdin=_commit_command("main", tree, 1))
    _git("symbolic-ref", "HEAD", "refs/heads/main", cwd=folder)
    _git("reset", "-q", "--hard", cwd=folder)
    return tree


def commit_all(folder: Path) -> str:
    """What a user does after an update; the hash of the new tree."""
    _git("add", "-A", cwd=folder)
    _git(
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.com",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "Update",
        cwd=folder,
    )
    return _git("rev-parse", "HEAD^{tree}", cwd=folder).decode().strip()


def status(folder: Path) -> str:
    """What git says of the work tree."""
    return _git("status", "--porcelain", "-uall", cwd=folder).decode()


def state(folder: Path) -> tuple[Tree, bytes, bytes]:
    """Everything that must be the same where nothing is to change: files, index and references."""
    index = _git("ls-files", "-s", "-z", cwd=folder)
    return files(folder), index, _git("for-each-ref", cwd=folder) + _git("rev-parse", "HEAD", cwd=folder)


def _questions(number: int) -> list[str]:
    return [f"name{each}" for each in range(1, number + 1)]


def _commit_command(branch: str, tree: Mapping[str, File], second: int) -> bytes:
    parts = [f"commit refs/heads/{branch}\ncommitter A <a@example.com> {second} +0000\ndata 0\ndeleteall\n".encode()]
    for path, (mode, content) in tree.items():
        parts.append(f"M {mode} inline {path}\ndata {len(content)}\n".encode() + content + b"\n")
    return b"".join(parts)


def _git(*arguments: str, cwd: Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(["git", *arguments], cwd=cwd, input=stdin, check=True, capture_output=True).stdout
