"""From what a pickle says to tensors and plain values, all of them made here by hand.

What there is nothing plain for is left out, and named by where it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Protocol, final

from torch import Tensor

from treadle.checkpoint.by_hand import DTYPES, Unreadable, by_hand
from treadle.checkpoint.pickled import Entries, Global, Made, Malformed, Members, Outside, named, with_article

MOST = 10_000_000
"""Values that the whole may have, those that occur several times counted each time."""
DEEPEST = 100
MOST_BITS = 1024
"""Of an integer: printing one of millions takes minutes. Generators' states have 128."""
_LEAVES = (bool, float, str, bytes, type(None))
_PATHS = {
    f"{module}.{name}": kind
    for module in ("pathlib", "pathlib._local")
    for name, kind in (
        *((name, PurePosixPath) for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")),
        *((name, PureWindowsPath) for name in ("WindowsPath", "PureWindowsPath")),
    )
}
_DICTS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict"}
"""By these names, or as ``AttributeDict``, which Lightning's hyperparameters are: no word is lost on them."""


class Storages(Protocol):
    """The memory of a file's tensors."""

    def bytes_of(self, key: str) -> Tensor:
        """The storage ``key``: uint8, shape ``(bytes,)``; the same memory each time.

        Raises:
            Malformed: The file has no such storage, or not all of it.
        """
        ...


@final
class Rebuilding:
    """Makes plain values of descriptions, and remembers what it left out.

    Args:
        storages: Where tensors' memory comes from.
    """

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self.left_out: dict[str, str] = {}
        """Where it was, as ``hyper_parameters['loss']``, and what it was."""
        self.changed: dict[str, str] = {}
        """The same, for what came through as another type."""
        self._made: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def everything(self, described: Any) -> dict[Any, Any]:
        """All that is plain in a description of a dict.

        Raises:
            Malformed: It is no dict, is nested too deeply, unfolds to too much, or has something impossible in it.
        """
        if not isinstance(described, (Entries, Made)) or not described.entries:
            raise Malformed("it is no dict")
        if self._size(described, 0) > MOST:
            raise Malformed(f"it unfolds to more than {MOST:,} values")
        return self.entries(described, None)

    def entries(self, described: Entries | Made, at: str | None) -> dict[Any, Any]:
        """A dict of those of its entries that are plain; ``at`` None: that of the whole file."""
        found: dict[Any, Any] = {}
        for key, item in described.entries:
            try:
                name = self.key(key)
            except Unreadable as error:
                self.left_out[f"{at or 'the file'}, an entry"] = f"under a key that is {error}"
                continue
            path = str(name) if at is None else f"{at}[{name!r}]"
            try:
                found[name] = self.value(item, path)
            except Unreadable as error:
                self.left_out[path] = str(error)
        return found

    def _size(self, described: Any, depth: int) -> int:
        """How many values it has when everything is written out. Linear: what occurs twice is counted from memory."""
        identity = id(described)
        if type(described) in (int, *_LEAVES) or identity in self._open:
            return 1
        if identity not in self._sizes:
            if depth > DEEPEST:
                raise Malformed(f"it is nested more than {DEEPEST} levels deep")
            self._open.add(identity)
            size = 1
            for child in _children(described):
                size += self._size(child, depth + 1)
            self._open.remove(identity)
            self._sizes[identity] = size
        return self._sizes[identity]

    def value(self, described: Any, at: str) -> Any:
        """
        Raises:
            Malformed: Something in it is impossible.
            Unreadable: It is not plain as a whole. Entries of a dict are left out one by one.
        """
        kind = type(described)
        if kind is int:
            if described.bit_length() > MOST_BITS:
                raise Unreadable(f"an integer of {described.bit_length():,} bits")
            return described
        if kind in _LEAVES:
            return described
        identity = id(described)
        if identity in self._made:
            return self._made[identity]
        if identity in self._open:
            raise Unreadable("a container that contains itself")
        self._open.add(identity)
        try:
            made = self._new(described, at)
        finally:
            self._open.discard(identity)
        self._made[identity] = made
        return made

    def _new(self, described: Any, at: str) -> Any:
        match described:
            case list():
                return self._all(described, at, "list")
            case tuple():
                return tuple(self._all(described, at, "tuple"))
            case Members(items=items):
                return {self.key(item) for item in items}
            case Entries():
                return self.entries(described, at)
            case Global(module="torch", name=name) if name in DTYPES:
                return DTYPES[name]
            case Global():
                raise Unreadable(f"the class or function {described}")
            case Outside():
                raise Unreadable("a storage without a tensor")
            case Made():
                return self.object(described, at)
        raise Unreadable(f"a {type(described).__name__}")

    def _all(self, items: list[Any] | tuple[Any, ...], at: str, kind: str) -> list[Any]:
        found = []
        for index, item in enumerate(items):
            try:
                found.append(self.value(item, f"{at}[{index}]"))
            except Unreadable as error:
                raise Unreadable(f"a {kind} in which [{index}] is {error}") from None
        return found

    def key(self, described: Any, depth: int = 0) -> Any:
        """What can be hashed at once."""
        if type(described) is tuple and depth < 4:
            return tuple(self.key(item, depth + 1) for item in described)
        if type(described) not in (int, *_LEAVES):
            raise Unreadable(named(described) if isinstance(described, (Made, Global)) else "a container")
        if type(described) is int and described.bit_length() > 64:  # many of those can have the same hash
            raise Unreadable(f"an integer of {described.bit_length():,} bits")
        return self.value(described, "")

    def object(self, described: Made, at: str) -> Any:
        name, arguments = described.name, described.arguments
        if not isinstance(arguments, tuple):
            raise Malformed("arguments that are no tuple")
        if name in _PATHS and all(isinstance(part, str) for part in arguments):
            self.changed[at] = f"a {name}, read as text"
            return str(_PATHS[name](*arguments))
        if name.startswith("omegaconf."):
            return self._config(described, at)
        if name == "argparse.Namespace" and isinstance(described.state, Entries):
            self.changed[at] = f"an {name}, read as a dict"
            return self.entries(described.state, at)
        familiar = name in _DICTS or name.endswith(".AttributeDict")
        if name == "collections.Counter" and arguments and isinstance(arguments[0], Entries):
            return self.entries(arguments[0], at)
        if described.entries or familiar:
            if not familiar:
                self.changed[at] = f"{with_article(described.by)}, read as a dict"
            return self.entries(described, at)
        if described.items:
            self.changed[at] = f"{with_article(described.by)}, read as a list"
            return self._all(described.items, at, "list")
        if name.endswith("multiarray._reconstruct"):
            self.changed[at] = "a numpy.ndarray, read as a tensor"
        return by_hand(self, described)

    def _config(self, described: Made, at: str) -> Any:
        """omegaconf's: a node has a value, a container has nodes. What refers to other nodes stays as it was written."""
        state = dict(_texts(described.state))
        self.changed[at] = f"{with_article(described.by)}, read as what is in it"
        match state.get("_content"), state.get("_val"):
            case (Entries() | list()) as content, _:
                return self.value(content, at)
            case None | str() as content, None:
                return content
            case None, value:
                self.changed.pop(at)  # a leaf: its container is said
                if isinstance(value, str) and "${" in value:
                    self.changed[at] = "an interpolation, read as its text"
                return self.value(value, at)
        raise Unreadable(named(described))


def _children(described: Any) -> Iterable[Any]:
    match described:
        case list() | tuple():
            yield from described
        case Members(items=items):
            yield from items
        case Entries(entries=entries):
            for pair in entries:
                yield from pair
        case Outside(identity=identity):
            yield identity
        case Made():
            yield from (described.by, described.arguments, described.state, *described.items)
            for pair in described.entries:
                yield from pair


def _texts(state: Any) -> Iterable[tuple[str, Any]]:
    return [(k, v) for k, v in state.entries if isinstance(k, str)] if isinstance(state, Entries) else []
