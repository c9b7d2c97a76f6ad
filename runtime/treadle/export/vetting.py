"""What may be in a ``.pt2`` file, before torch's loader sees it.

That loader (``torch/export/pt2_archive/_package.py`` and ``torch/_export/serde/serialize.py``, as of 2.13) would

- unpickle weights and constants marked so, custom objects, and sample inputs, the last first as plain tensors and, where
  that fails, with objects;
- hand text of symbolic sizes to sympy, which evaluates it as Python;
- turn guards, names of nodes and names of arguments into Python source, and run it;
- import modules that the structure of the inputs names;
- look up operators by attributes from ``torch`` and ``math`` on;
- load compiled libraries.

So of each of these only what is known to be plain is let through; a record, a key or a string of unknown kind is refused.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Protocol

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/treadle\.json"
    r"|data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json))"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!from_file\b|save\b|open\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|associative_scan|flex_attention"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt|sum)"
    r"|_operator\.(add|sub|mul|neg|pos|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|lshift|rshift|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|"
)
_PLAIN = re.compile(r"[\w.+\-]*")
"""Names of nodes, weights, arguments and devices; versions."""
_TEXT = re.compile(r"([\w .,:;+\-*/%=<>!|&()\[\]]*)(on node '\w+')?")
"""Arguments of operators: a mode of padding, an equation, the message of an assertion. Without what ends a string."""
_SYMBOL = re.compile(r"(s|u|z|zf|zuf|i)\d+")
_NODES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_EXPRESSION = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|"
    r"StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|Piecewise|ExprCondPair|floor|"
    r"ceiling|Abs|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|"
    r"RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|"
    r"TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_NUMBER = re.compile(r"oo|int_oo|nan|true|false")


class Refused(Exception):
    """Something is in the file that a program doesn't need."""


class Archive(Protocol):
    """torch's reader of zip archives."""

    def get_all_records(self) -> list[str]: ...
    def get_record(self, name: str) -> bytes: ...
    def get_record_size(self, name: str) -> int: ...


def vet(archive: Archive) -> None:
    """
    Raises:
        Refused: The archive holds more than a program of plain tensors and torch's own operators.
        ValueError: It is not such an archive.
    """
    records = archive.get_all_records()
    if strange := [name for name in records if not _RECORDS.fullmatch(name)]:
        raise Refused(f"it has a record {strange[0]!r}.")
    if archive.get_record_size("data/sample_inputs/model.pt"):
        raise Refused("it has sample inputs, which are pickled.")
    for kind in ("weights", "constants"):
        _vet_payload(kind, _json(archive, f"data/{kind}/model_{kind}_config.json"))
    program = _json(archive, "models/model.json")
    if program.get("guards_code"):
        raise Refused("it has guards, which are Python code.")
    _walk(program, "")


def _json(archive: Archive, record: str) -> dict[str, Any]:
    found = json.loads(archive.get_record(record))
    if not isinstance(found, dict):
        raise ValueError(f"{record} is no object")
    return found


def _vet_payload(kind: str, config: dict[str, Any]) -> None:
    stored = re.compile(r"weight_\d+" if kind == "weights" else r"tensor_\d+")
    payloads = config.get("config")
    if not isinstance(payloads, dict):
        raise ValueError(f"the list of {kind} is no object")
    for name, payload in payloads.items():
        if not isinstance(payload, dict):
            raise ValueError(f"{name} is no object")
        if payload.get("use_pickle") is not False or not stored.fullmatch(str(payload.get("path_name"))):
            raise Refused(f"{name!r} is no plain tensor.")
        _walk(payload, "")


def _walk(value: Any, key: str) -> None:
    """Each string in ``value`` is what it may be under ``key``; an unknown key has plain names only."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _PLAIN.fullmatch(name) or (name in ("as_custom_obj", "as_operator", "custom_obj") and item):
                raise Refused(f"it has {name!r}.")
            if name in ("metadata", "guards_code") and item:
                raise Refused(f"it has {name}, which torch evaluates.")
            _walk(item, name)
    elif isinstance(value, list):
        for item in value:
            _walk(item, key)
    elif isinstance(value, str):
        _vet_text(value, key)


def _vet_text(text: str, key: str) -> None:
    match key:
        case "target":
            fits = _OPERATOR.fullmatch(text) is not None
        case "expr_str":
            fits = _is_size(text)
        case "in_spec" | "out_spec":
            fits = not text or _is_structure(text)
        case "as_string" | "as_strings":
            fits = _TEXT.fullmatch(text) is not None
        case _:
            fits = _PLAIN.fullmatch(text) is not None
    if not fits:
        raise Refused(f"{text[:80]!r} is not something that a program needs as {key!r}.")


def _is_size(text: str) -> bool:
    """Whether it is arithmetic of symbols."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, MemoryError):
        return False
    called = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), keywords=keywords) if _FUNCTION.fullmatch(name):
                called.add(id(node.func))
                if any(keyword.arg is None for keyword in keywords):
                    return False
            case ast.Name(id=name):
                if id(node) not in called and not _SYMBOL.fullmatch(name) and not _NUMBER.fullmatch(name):
                    return False
            case ast.Constant(value=str() as name):
                if not _SYMBOL.fullmatch(name):
                    return False
            case ast.Constant(value=bool() | int() | float()):
                pass
            case ast.operator() | ast.unaryop() | ast.boolop() | ast.cmpop() | ast.expr_context() | ast.keyword():
                pass
            case _ if isinstance(node, _EXPRESSION):
                pass
            case _:
                return False
    return True


def _is_structure(text: str) -> bool:
    """Whether it is tuples, lists and dicts in one another, the latter with plain keys."""
    protocol, found = json.loads(text)
    waiting = [found]
    while waiting:
        node = waiting.pop()
        if node["type"] not in _NODES:
            return False
        context = json.loads(node["context"]) if node["context"] is not None else None
        keys = context if isinstance(context, list) else [] if context is None else [context]
        if not all(isinstance(name, (str, int)) and _PLAIN.fullmatch(str(name)) for name in keys):
            return False  # those of arguments become source code
        waiting += node["children_spec"]
    return bool(protocol == 1)
