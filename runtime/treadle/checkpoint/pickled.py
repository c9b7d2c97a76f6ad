"""What a pickle says, without doing it.

A pickle is a program: "import this, call it with that". Here it is read as a description only. What it would import is a
:class:`Global`, what it would make by calling something is a :class:`Made`; neither can be called, and nothing of either
is ever looked up. Of the opcodes, those of protocols 2 to 5 are read, which is what ``torch.save`` writes.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that protocol 2 calls by their old names."""


@final
@dataclass(frozen=True, slots=True)
class Global:
    """A class or function, by name."""

    module: str
    name: str

    def __str__(self) -> str:
        said = self.name if self.module == "builtins" else f"{self.module}.{self.name}"
        return said if said.isprintable() and len(said) <= 200 else repr(said[:200])


@final
@dataclass(eq=False, slots=True)
class Made:
    """An object: what would be called to make it, and what would be put into it."""

    by: Any
    """A :class:`Global`, or anything else that a pickle would call."""
    arguments: Any
    called: bool
    """``by(*arguments)``; else an instance of the class ``by``, made with ``__new__``."""
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of what makes it, as ``module.name``."""
        return f"{self.by.module}.{self.by.name}" if isinstance(self.by, Global) else ""


@final
@dataclass(eq=False, slots=True)
class Entries:
    """A dict: keys are not hashed here, which takes exponential time for a tuple made for that."""

    entries: list[tuple[Any, Any]] = field(default_factory=list)


@final
@dataclass(eq=False, slots=True)
class Members:
    """A set or a frozenset."""

    items: list[Any] = field(default_factory=list)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Outside:
    """What lies beside the pickle: in torch's files, a storage."""

    identity: Any


def named(described: Made | Global) -> str:
    """What it is, for people: its class, or what would be called."""
    if isinstance(described, Global):
        return f"the class or function {described}"
    match described.name, described.arguments:
        case "builtins.getattr", (Global() as owner, str() as name) if name.isidentifier():
            return f"{owner}.{name}"
        case "copyreg._reconstructor", (Global() as kind, *_):
            return with_article(kind)
    if not isinstance(described.by, Global):
        return "what calling something that was itself made would give"
    match described.arguments:
        case (str() as text,):
            given = f"({text[:60]!r})"
        case (bool() | int() as number,) if number.bit_length() <= 64:
            given = f"({number!r})"
        case _:
            given = ""
    is_object = (
        not described.called
        or described.state is not None
        or described.by.name.rpartition(".")[2].lstrip("_")[:1].isupper()
    )
    made = f"{described.by}{given}"
    return with_article(made) if is_object else f"what calling {made} would give"


def with_article(name: object) -> str:
    return f"an {name}" if str(name)[:1].lower() in "aeiou" else f"a {name}"


class Malformed(ValueError):
    """It is no whole pickle, or one of a kind that ``torch.save`` doesn't write."""


def described(data: bytes) -> Any:
    """What unpickling ``data`` would make: plain leaves, lists and tuples, and the classes of this module.

    Takes time and memory in proportion to ``len(data)``; what occurs several times is one object, which may contain
    itself.

    Raises:
        Malformed: It can't be read.
    """
    try:
        return _Reader(data).run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise Malformed(f"an instruction that doesn't fit ({type(error).__name__})") from None


@final
class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks under each mark."""
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.take(1)) != pickle.STOP:
            if (does := _INSTRUCTIONS.get(code)) is None:
                raise Malformed(f"the instruction {code!r}, which torch.save doesn't write")
            does(self)
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) != count:
            raise Malformed("it ends in the middle")
        self.position += count
        return taken

    def skip(self, count: int) -> None:
        self.take(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.position) if b"\n" in self.data[self.position : self.position + 4096] else -1
        if end < 0:
            raise Malformed("a name without an end")
        return self.take(end + 1 - self.position)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def drop(self) -> None:
        self.since_mark()

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Malformed("it takes more than it has")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def make(self, by: Any, arguments: Any, *, called: bool) -> None:
        if called and by == Global("copyreg", "__newobj__") and isinstance(arguments, tuple) and arguments:
            by, arguments, called = arguments[0], arguments[1:], False
        self.push(Made(by, arguments, called))

    def make_with_keywords(self) -> None:
        by, arguments, keywords = self.last(3)
        self.push(Made(by, (arguments, keywords), False))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target if isinstance(target, list) else target.items).extend(values)

    def set(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise Malformed("a key without a value")
        self.stack[-1].entries.extend(zip(values[::2], values[1::2], strict=True))

    def build(self) -> None:
        target, state = self.last(2)
        if not isinstance(target, Made):
            raise Malformed("a state for something that has none")
        target.state = state if target.state is None else (target.state, state)
        self.push(target)

    def stack_global(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name that is no text")
        self.push(Global(_PYTHON_2.get(module, module), name))

    def name_global(self) -> None:
        module, name = self.line(), self.line()
        self.push(Global(_PYTHON_2.get(module, module), name))

    def object_of_mark(self) -> None:
        by, *arguments = self.since_mark()
        self.push(Made(by, tuple(arguments), False))

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]


def _text(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.take(reader.number(form)).decode("utf-8", "surrogatepass"))


def _bytes(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.take(reader.number(form)))


def _integer(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(int.from_bytes(reader.take(reader.number(form)), "little", signed=True))


def _number(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.number(form))


def _value(value: Any) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(value)


_INSTRUCTIONS: dict[bytes, Callable[[_Reader], None]] = {
    pickle.PROTO: lambda reader: reader.skip(1),
    pickle.FRAME: lambda reader: reader.skip(8),
    # leaves
    pickle.NONE: _value(None),
    pickle.NEWTRUE: _value(True),
    pickle.NEWFALSE: _value(False),
    pickle.BININT: _number("<i"),
    pickle.BININT1: _number("<B"),
    pickle.BININT2: _number("<H"),
    pickle.LONG1: _integer("<B"),
    pickle.LONG4: _integer("<I"),
    pickle.BINFLOAT: _number(">d"),
    pickle.SHORT_BINUNICODE: _text("<B"),
    pickle.BINUNICODE: _text("<I"),
    pickle.BINUNICODE8: _text("<Q"),
    pickle.SHORT_BINBYTES: _bytes("<B"),
    pickle.BINBYTES: _bytes("<I"),
    pickle.BINBYTES8: _bytes("<Q"),
    pickle.BYTEARRAY8: _bytes("<Q"),
    # containers
    pickle.MARK: _Reader.mark,
    pickle.EMPTY_TUPLE: _value(()),
    pickle.TUPLE1: lambda reader: reader.push(tuple(reader.last(1))),
    pickle.TUPLE2: lambda reader: reader.push(tuple(reader.last(2))),
    pickle.TUPLE3: lambda reader: reader.push(tuple(reader.last(3))),
    pickle.TUPLE: lambda reader: reader.push(tuple(reader.since_mark())),
    pickle.EMPTY_LIST: lambda reader: reader.push([]),
    pickle.APPEND: lambda reader: reader.append(reader.last(1)),
    pickle.APPENDS: lambda reader: reader.append(reader.since_mark()),
    pickle.EMPTY_DICT: lambda reader: reader.push(Entries()),
    pickle.SETITEM: lambda reader: reader.set(reader.last(2)),
    pickle.SETITEMS: lambda reader: reader.set(reader.since_mark()),
    pickle.EMPTY_SET: lambda reader: reader.push(Members()),
    pickle.ADDITEMS: lambda reader: reader.append(reader.since_mark()),
    pickle.FROZENSET: lambda reader: reader.push(Members(reader.since_mark())),
    # what an ordinary unpickler would import, call and fill
    pickle.GLOBAL: _Reader.name_global,
    pickle.STACK_GLOBAL: _Reader.stack_global,
    pickle.REDUCE: lambda reader: reader.make(*reader.last(2), called=True),
    pickle.NEWOBJ: lambda reader: reader.make(*reader.last(2), called=False),
    pickle.NEWOBJ_EX: _Reader.make_with_keywords,
    pickle.OBJ: _Reader.object_of_mark,
    pickle.BUILD: _Reader.build,
    pickle.BINPERSID: lambda reader: reader.push(Outside(reader.stack.pop())),
    # the stack and the memo
    pickle.POP: _Reader.pop,
    pickle.POP_MARK: _Reader.drop,
    pickle.DUP: lambda reader: reader.push(reader.stack[-1]),
    pickle.MEMOIZE: lambda reader: reader.remember(len(reader.memo)),
    pickle.BINPUT: lambda reader: reader.remember(reader.number("<B")),
    pickle.LONG_BINPUT: lambda reader: reader.remember(reader.number("<I")),
    pickle.BINGET: lambda reader: reader.push(reader.memo[reader.number("<B")]),
    pickle.LONG_BINGET: lambda reader: reader.push(reader.memo[reader.number("<I")]),
}
