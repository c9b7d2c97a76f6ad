"""Kinds of components, and rendering one. Ours and a team's are made alike: a folder with a ``component.yml`` and files.

``component.yml`` has ``help``, one line, and may have
  ``needs``    paths that must be in the project,
  ``classes``  true, if the files use the two classes that the project trains,
  ``next``     commands to type when it was added.
Everything else in the folder is the component. Paths, the commands and files that end in ``.jinja`` are rendered by Jinja,
in its sandbox, with ``name``, ``class_name``, ``package`` and ``import_line``; with ``classes: true`` also ``model_class``,
``data_class`` and ``classes_import``. Other files are taken as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import SandboxedEnvironment

from scaffold import confined, guard
from scaffold.errors import AnswerError, TemplateError, UnsafeTemplate
from scaffold.settings import Limits

_OURS = Path(__file__).with_name("built_in")
_DESCRIPTION = "component.yml"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What ``scaffold add`` can add."""

    name: str
    help: str
    origin: str
    """The template it comes from; empty for those of scaffold itself."""
    needs: tuple[str, ...]
    classes: bool
    next: tuple[str, ...]
    files: Mapping[str, str]
    """Contents by path, neither of them rendered."""


def built_in() -> dict[str, Kind]:
    """Those that came with this distribution."""
    return {kind.name: kind for kind in read(_OURS, origin="")}


def require_name(kind: str) -> None:
    """Raises AnswerError when ``kind`` cannot be the name of one: it stands in paths."""
    if not _NAME.fullmatch(kind):
        raise AnswerError(
            f"{kind!r} is not a kind of component.",
            why="a kind is called with a-z, 0-9, - and _, a letter first.",
            fix="scaffold add --list",
        )


def read(folder: Path, *, origin: str) -> list[Kind]:
    """The kinds in ``folder``, one in each folder there, by name.

    Raises:
        TemplateError: One of them is not as it should be.
    """
    if not folder.is_dir():
        return []
    return [_read(kind, origin) for kind in sorted(folder.iterdir()) if kind.is_dir() and not kind.is_symlink()]


def render(kind: Kind, values: Mapping[str, str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The component's files by path, the paths it needs, and the commands that come next.

    Raises:
        TemplateError: It cannot be rendered.
        UnsafeTemplate: It tried to write where no template may, or took too much.
    """
    wanted = (
        dict(kind.files),
        list(kind.needs),
        list(kind.next),
        dict(values),
        f"{kind.origin}: component {kind.name}",
    )
    files, needs, commands = confined.run(_render, *wanted) if kind.origin else _render(*wanted)
    _check(files, needs)
    return files, needs, [_plain(command) for command in commands]


def _render(
    files: dict[str, str], needs: list[str], commands: list[str], values: dict[str, str], where: str
) -> tuple[dict[str, str], list[str], list[str]]:
    jinja = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

    def text(template: str) -> str:
        return jinja.from_string(template).render(values)

    rendered: dict[str, str] = {}
    file = _DESCRIPTION
    try:
        for file, content in files.items():
            path = str(PurePosixPath(text(file.removesuffix(".jinja"))))
            if path in rendered:
                raise UnsafeTemplate(
                    f"The component writes {path} twice.", why="one would be lost.", fix="tell the template's author."
                )
            rendered[path] = text(content) if file.endswith(".jinja") else content
        file = _DESCRIPTION
        return rendered, [text(path) for path in needs], [text(command) for command in commands]
    except (UnsafeTemplate, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - an expression in a template can raise anything
        raise TemplateError(
            f"{where}: {file} cannot be rendered: {error}.",
            why="Jinja stopped there.",
            fix="tell the template's author.",
        ) from None


def _check(files: Mapping[str, str], needs: list[str]) -> None:
    limits = Limits()
    for path in (*files, *needs):
        guard.check_path(PurePosixPath(path))
    for path, content in files.items():
        parts = PurePosixPath(path).parts
        if not parts or parts[0].casefold() == ".scaffold" or parts[0].casefold().startswith(".copier-answers"):
            raise UnsafeTemplate(
                f"The component tried to write {path!r}.",
                why="scaffold keeps its own record there.",
                fix="do not use it; tell the template's author.",
            )
        if len(content) > limits.file_bytes or len(files) > limits.files:
            raise UnsafeTemplate(
                f"The component writes {len(files)} files, {path!r} with {len(content):,} characters.",
                why="that is more than any component needs.",
                fix="do not use it; tell the template's author.",
            )


def _read(folder: Path, origin: str) -> Kind:
    if not _NAME.fullmatch(folder.name):
        raise _broken(folder, origin, "its folder is to be called with a-z, 0-9, - and _, a letter first")
    said = _described(folder, origin)
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise _broken(folder, origin, f"{name} is a link")
        if path.is_file() and name != _DESCRIPTION:
            try:
                files[name] = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError) as error:
                raise _broken(folder, origin, f"{name} cannot be read: {error}") from None
    if not files:
        raise _broken(folder, origin, "it has no files")
    return Kind(
        name=folder.name,
        help=_plain(said["help"]),
        origin=origin,
        needs=tuple(said.get("needs", ())),
        classes=said.get("classes", False),
        next=tuple(said.get("next", ())),
        files=files,
    )


def _described(folder: Path, origin: str) -> dict[str, Any]:
    try:
        said = yaml.safe_load((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise _broken(folder, origin, f"{_DESCRIPTION} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(said, dict) or not isinstance(said.get("help"), str) or not said["help"].strip():
        raise _broken(folder, origin, f"{_DESCRIPTION} has no help")
    if unknown := [str(key) for key in said if key not in ("help", "needs", "classes", "next")]:
        raise _broken(folder, origin, f"{_DESCRIPTION} has {unknown[0]}, which means nothing")
    for key in ("needs", "next"):
        texts = said.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _broken(folder, origin, f"{key} in {_DESCRIPTION} is not a list of texts")
    if not isinstance(said.get("classes", False), bool):
        raise _broken(folder, origin, f"classes in {_DESCRIPTION} is neither true nor false")
    return said


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character for character in text if character.isprintable()).strip()


def _broken(folder: Path, origin: str, reason: str) -> TemplateError:
    return TemplateError(
        f"The component {folder.name}{f' of {origin}' if origin else ''} is broken: {reason}.",
        why="a component is a folder with component.yml, which has help, and text files.",
        fix=f"mend components/{folder.name} in the template, and release it.",
    )
