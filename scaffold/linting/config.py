"""A template's copier.yml, with the line of each key: values alone can't say where a fault is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from scaffold.errors import TemplateError

_NAMES = ("copier.yml", "copier.yaml")
_MERGED = ("_exclude", "_jinja_extensions", "_secret_questions", "_skip_if_exists")

Keys = tuple[str, ...]
"""The way to a value: the keys and positions that lead to it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of the template."""

    name: str
    details: Mapping[str, Any]
    """The long form; a question written as ``name: value`` has only a default."""

    @property
    def asked(self) -> bool:
        """A user may be asked it, as far as can be told without rendering."""
        return self.details.get("when", True) is not False and self.details.get("ask", True) is not False

    @property
    def secret(self) -> bool:
        return bool(self.details.get("secret"))


@dataclass(frozen=True, kw_only=True)
class Config:
    """What copier.yml says, files that it includes read as well."""

    file: str
    data: Mapping[str, Any]
    places: Mapping[Keys, tuple[str, int]]
    """File and line of each key and item."""

    def place(self, *keys: str) -> dict[str, Any]:
        """``file`` and ``line`` of a value, or of the nearest thing around it."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        file, line = self.places[keys] if keys else (self.file, 1)
        return {"file": file, "line": line}

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        found = {}
        secret = self.strings("_secret_questions")
        for name, details in self.data.items():
            if not name.startswith("_"):
                full = dict(details) if isinstance(details, dict) else {"default": details}
                if name in secret:
                    full["secret"] = True
                found[name] = Question(name=name, details=full)
        return found

    @cached_property
    def ours(self) -> Mapping[str, Any]:
        """What it tells scaffold."""
        told = self.data.get("_scaffold")
        return told if isinstance(told, dict) else {}

    def strings(self, key: str) -> tuple[str, ...]:
        """A setting that is a list of strings; what isn't one counts as empty."""
        return as_strings(self.data.get(key))


def as_strings(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def read(root: Path) -> Config:
    """Read the copier.yml in ``root``.

    Raises:
        TemplateError: There is none, or it is no YAML that Copier would take.
    """
    path = next((root / name for name in _NAMES if (root / name).is_file()), None)
    if path is None:
        raise TemplateError(
            f"{root} is not a template: it has no copier.yml.",
            why="that file holds a template's questions and settings, and lies at the root of its repository.",
            fix="name the folder that has one, or start a template: scaffold template new PATH",
        )
    data: dict[str, Any] = {}
    places: dict[Keys, tuple[str, int]] = {}
    for document, lines in _documents(path, root):
        for key in _MERGED:
            if isinstance(document.get(key), list) and isinstance(data.get(key), list):
                document[key] = [*data[key], *document[key]]
        data.update(document)
        places.update(lines)
    return Config(file=path.name, data=data, places=places)


def _documents(path: Path, root: Path) -> Iterator[tuple[dict[str, Any], dict[Keys, tuple[str, int]]]]:
    """The mappings in a file, one after the other, and those in the files it includes."""
    file = path.relative_to(root).as_posix()
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        while loader.check_node() and (node := loader.get_node()):
            included = node.value if node.tag == "!include" else ""
            data = None if included else loader.construct_document(node)
            if included:
                for other in sorted(root.glob(str(included))):
                    if other.resolve().is_relative_to(root) and other != path:
                        yield from _documents(other, root)
            elif isinstance(data, dict):
                yield {str(key): value for key, value in data.items()}, dict(_places(node, file, (), set()))
            elif data is not None:
                raise _unreadable(file, node.start_mark.line + 1, "it is not a mapping of names to values")
    except UnicodeDecodeError as error:
        raise _unreadable(file, 1, f"it is not UTF-8 (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _unreadable(file, mark.line + 1 if mark else 1, str(error.problem or error.context)) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OSError) as error:
        raise _unreadable(file, 1, str(error).splitlines()[0] or type(error).__name__) from None


def _places(node: yaml.Node, file: str, keys: Keys, seen: set[int]) -> Iterator[tuple[Keys, tuple[str, int]]]:
    if id(node) in seen or len(keys) > 4:  # an alias, or deeper than any setting
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(number), value, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, marked, value in pairs:
        yield (*keys, name), (file, marked.start_mark.line + 1)
        yield from _places(value, file, (*keys, name), seen)


class _Loader(yaml.SafeLoader):
    """Copier's files may include others."""


_Loader.add_constructor("!include", lambda _loader, _node: [])


def _unreadable(file: str, line: int, reason: str) -> TemplateError:
    return TemplateError(
        f"{file}:{line} cannot be read: {reason}.",
        why="it is where a template's questions and settings stand, and must be YAML in UTF-8.",
        fix=f"mend line {line} of {file}, then run the same command again.",
    )
