"""Look into a torch.export archive before torch does, and say what in it could run code.

`torch.export.load` unpickles what an archive asks it to, evaluates its symbolic expressions and guards as Python, and resolves
the targets of its nodes to any attribute of torch. An archive is plain when all of that is data:

1. no weight or constant is marked as pickled, and no custom or opaque object, compiled library or old-style payload is held;
2. the sample inputs hold nothing but tensors and containers (what `torch.load(weights_only=True)` accepts);
3. node targets are registered torch operators or arithmetic;
4. symbolic expressions and guards are arithmetic over sizes.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A graph description larger than this is not one.
MAX_DESCRIPTION = 1 << 30
_PAYLOAD_PREFIXES = ("weight_", "tensor_")
_TARGET = re.compile(r"torch\.ops\.(?!load_library)\w+\.\w+(\.\w+)?|torch\.sym_\w+|torch\._sym_\w+|math\.\w+")
_OPERATORS = frozenset({
    "getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "lt", "le", "gt", "ge", "eq",
    "ne", "and_", "or_", "not_", "xor", "lshift", "rshift", "index",
})  # fmt: skip
_NUMBERS = frozenset({"Symbol", "Integer", "Float", "Rational"})
_FUNCTIONS = _NUMBERS | frozenset({
    "Mul", "Add", "Pow", "Max", "Min", "Mod", "Abs", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "Equality",
    "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Piecewise", "ceiling", "floor", "sqrt",
    "FloorDiv", "ModularIndexing", "CleanDiv", "CeilDiv", "Where", "PythonMod", "IntTrueDiv", "FloatTrueDiv", "ToFloat",
    "TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt", "RoundDecimal", "PowByNatural", "FloatPow", "LShift",
    "RShift", "Identity", "BitwiseFn_bitwise_and", "BitwiseFn_bitwise_or", "isnan", "len", "min", "max", "float", "int",
    "IsNonOverlappingAndDenseIndicator", "ExprCondPair",
})  # fmt: skip
_ATTRIBUTES = frozenset({"size", "inf", "isnan", "stride", "storage_offset", "shape"})
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.Compare, ast.cmpop, ast.BinOp, ast.operator, ast.UnaryOp,
    ast.unaryop, ast.BoolOp, ast.boolop, ast.Subscript, ast.keyword, ast.Attribute, ast.Tuple, ast.IfExp,
)  # fmt: skip


def dangers(path: Path) -> list[str]:
    """Return what in the archive could run code, in words; empty where everything is data.

    Args:
        path: a torch.export archive.

    Raises:
        zipfile.BadZipFile, OSError, ValueError: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        return list(dict.fromkeys([*_payloads(archive), *_descriptions(archive)]))


def _payloads(archive: zipfile.ZipFile) -> Iterator[str]:
    """1. and 2."""
    for info in archive.infolist():
        parts = info.filename.split("/")
        folder, name = parts[1:-1], parts[-1]
        if folder[:1] == ["data"] and folder[1:2] in (["weights"], ["constants"]):
            if name.endswith("_config.json"):
                if any(entry.get("use_pickle", True) for entry in _read_json(archive, info)["config"].values()):
                    yield "it stores tensors as pickles"
            elif not name.startswith(_PAYLOAD_PREFIXES):
                yield f"it holds {name!r}, an object or payload that is unpickled"
        elif folder[:2] == ["data", "sample_inputs"]:
            if not _holds_only_tensors(archive, info):
                yield "its sample inputs are pickled objects"
        elif folder[:1] == ["data"] and folder[1:2] == ["aotinductor"]:
            yield "it holds compiled code"


def _holds_only_tensors(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    import torch  # noqa: PLC0415 - needed for this file only, and slow to import

    try:
        torch.load(io.BytesIO(archive.read(info)), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever torch refuses is not plain data
        return False
    return True


def _descriptions(archive: zipfile.ZipFile) -> Iterator[str]:
    """3. and 4."""
    for info in archive.infolist():
        if info.filename.split("/")[1:2] != ["models"] or not info.filename.endswith(".json"):
            continue
        for key, value in _walk(_read_json(archive, info)):
            if key == "target" and isinstance(value, str) and not _is_plain_target(value):
                yield f"a node calls {value[:60]!r}"
            if key in {"expr_str", "guards_code"} and isinstance(value, str) and not _is_arithmetic(value):
                yield f"it evaluates the expression {value[:60]!r}"


def _read_json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > MAX_DESCRIPTION:
        msg = f"{info.filename} claims {info.file_size} bytes"
        raise ValueError(msg)
    return json.loads(archive.read(info))


def _walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every (key, leaf) of a JSON tree; the items of a list have the list's key."""
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)
        else:
            yield key, value


def _is_plain_target(target: str) -> bool:
    if target.startswith("_operator."):
        return target.removeprefix("_operator.") in _OPERATORS
    return _TARGET.fullmatch(target) is not None


def _is_arithmetic(text: str) -> bool:
    """Tell whether a Python expression only computes with sizes: no other names, calls, attributes or strings."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = {id(arg) for call in ast.walk(tree) if _calls(call, _NUMBERS) for arg in call.args}  # type: ignore[attr-defined]
    named |= {id(sub.slice) for sub in ast.walk(tree) if isinstance(sub, ast.Subscript)}
    for node in ast.walk(tree):
        if not isinstance(node, _SYNTAX):
            return False
        if isinstance(node, ast.Call) and not (_calls(node, _FUNCTIONS) or isinstance(node.func, ast.Attribute)):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in _ATTRIBUTES:
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and id(node) not in named:
            return False
    return True


def _calls(node: ast.AST, names: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
