"""Look into a torch.export archive before torch loads it, and say what in it could run code.

`torch.export.load` unpickles what an archive asks it to, evaluates its symbolic expressions and guards as Python, resolves the
targets of its nodes to any attribute of torch, imports modules that its containers name, and writes the names of its values
into Python source that is run. An archive is plain when all of that is data:

1. every record is one that `torch.export.save` writes for a program of tensors, so none is a pickle or compiled code;
2. no weight or constant is marked as pickled, and none claims more elements than the file can hold;
3. the sample inputs hold nothing but tensors and containers (what `torch.load(weights_only=True)` accepts);
4. node targets are registered torch operators or arithmetic;
5. symbolic expressions and guards are arithmetic over sizes, with powers that a small number of digits can hold;
6. containers name no module to import;
7. every other text of the description is a plain name.

The records are read through torch's own reader, by the same names: another reader of zip files may see another archive in the
same bytes (torch's finds names whatever their case, and takes the place of the directory from another field).
"""

from __future__ import annotations

import ast
import io
import math
import re
from typing import TYPE_CHECKING, Any

from actx.exporter.documents import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from torch.export.pt2_archive import PT2ArchiveReader

# Stored tensors may be views that repeat their elements, such as a mask; a view of more than this is no mask.
MAX_VIEW = 1 << 28
_CONFIG = re.compile(r"data/(?:weights/[^/]+_weights|constants/[^/]+_constants)_config\.json")
_SAMPLES = re.compile(r"data/sample_inputs/[^/]+\.pt")
_DESCRIPTION = re.compile(r"models/[^/]+\.json")
_TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_OTHER = re.compile(r"archive_format|archive_version|byteorder|\.data/\w+|extra/.+")
_PAYLOAD = re.compile(r"(?:weight|tensor)_\d+")
_NAME = re.compile(r"[\w.:-]*")
_SPECS = ("in_spec", "out_spec")
_FREE_TEXT = frozenset({"as_string", "as_strings", "torch_version"})
_IMPORTS = frozenset({"__enum__", "default_factory_module"})

# aten.from_file makes and resizes files.
_TARGET = re.compile(r"torch\.ops\.(?!aten\.from_file)\w+\.\w+(\.\w+)?|torch\.sym_\w+|torch\._sym_\w+|math\.\w+")
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
# Python computes powers of integers exactly, whatever memory and time that takes.
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_LARGEST_POWER = 1 << 10
_LONGEST_EXPRESSION = 1 << 14
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.Compare, ast.cmpop, ast.BinOp, ast.operator, ast.UnaryOp,
    ast.unaryop, ast.BoolOp, ast.boolop, ast.Subscript, ast.keyword, ast.Attribute, ast.Tuple, ast.IfExp,
)  # fmt: skip


def dangers(path: Path) -> list[str]:
    """Return what in the archive could run code, in words; empty where everything is data.

    Args:
        path: a torch.export archive.

    Raises:
        Exception: the archive is damaged, as torch's reader, the JSON parser or a missing field says.
    """
    from torch.export.pt2_archive import PT2ArchiveReader  # noqa: PLC0415 - slow, and not needed for ONNX files

    size = path.stat().st_size
    with path.open("rb") as file, PT2ArchiveReader(file) as archive:
        names = archive.get_file_names()
        for name in names:
            claimed = archive.archive_file.get_record_size(name)
            if claimed > size:
                raise _too_large(name, f"{claimed} bytes", size)
        found = [danger for name in names for danger in _look_into(archive, name, size)]
    return list(dict.fromkeys(found))


def _too_large(name: str, claimed: str, size: int) -> ValueError:
    return ValueError(f"{name} claims {claimed}, and the file has {size} bytes")


def _look_into(archive: PT2ArchiveReader, name: str, size: int) -> Iterator[str]:
    if _CONFIG.fullmatch(name):
        yield from _payloads(parse_json(archive.read_bytes(name)), size)
    elif _SAMPLES.fullmatch(name):
        if not _holds_only_tensors(archive.read_bytes(name)):
            yield "its sample inputs are pickled objects"
    elif _DESCRIPTION.fullmatch(name):
        yield from _texts(parse_json(archive.read_bytes(name)))
    elif name.startswith("data/aotinductor/"):
        yield "it holds compiled code"
    elif not (_TENSOR.fullmatch(name) or _OTHER.fullmatch(name)):  # 1.
        yield f"it holds {name!r}, an object or payload that may be unpickled"


def _payloads(config: Any, size: int) -> Iterator[str]:
    """2."""
    for name, entry in config["config"].items():
        if entry.get("use_pickle", True):
            yield "it stores tensors as pickles"
        elif not _PAYLOAD.fullmatch(entry["path_name"]):
            yield f"it takes {name!r} from {entry['path_name']!r}, an object that is unpickled"
        else:
            elements = math.prod(length["as_int"] for length in entry["tensor_meta"]["sizes"])
            if elements > max(size, MAX_VIEW):
                raise _too_large(name, f"{elements} elements", size)


def _holds_only_tensors(content: bytes) -> bool:
    """3."""
    import torch  # noqa: PLC0415 - slow, and not needed for ONNX files

    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever torch refuses is not plain data
        return False
    return True


def _texts(description: Any) -> Iterator[str]:
    """4. to 7."""
    for key, text in _walk(description):
        if not isinstance(text, str):
            continue
        if key in {"target", "as_operator"}:
            if not _is_plain_target(text):
                yield f"a node calls {text[:60]!r}"
        elif key in {"expr_str", "guards_code"}:
            if not _is_arithmetic(text):
                yield f"it evaluates the expression {text[:60]!r}"
        elif key in _SPECS:
            if _imports(text):
                yield "its containers name modules to import"
        elif key not in _FREE_TEXT and not _NAME.fullmatch(text):
            yield f"it has {text[:60]!r} for a name"


def _walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every (key, leaf) of a JSON tree but the notes on its nodes; the items of a list have the list's key."""
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            notes = key == "metadata" and all(isinstance(text, str) for text in value.values())
            stack.extend({} if notes else value.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)
        else:
            yield key, value


def _imports(text: str) -> bool:
    """6. A specification is JSON, and its contexts may be JSON in turn."""
    try:
        tree = parse_json(text)
    except ValueError:
        return False  # torch cannot read it either
    return any(
        key in _IMPORTS or (key == "context" and isinstance(leaf, str) and _imports(leaf)) for key, leaf in _walk(tree)
    )


def _is_plain_target(target: str) -> bool:
    """4. Namespaces and operators are found as attributes, so others must not pass for them: only those are taken."""
    if target.startswith("_operator."):
        return target.removeprefix("_operator.") in _OPERATORS
    if _TARGET.fullmatch(target) is None:
        return False
    return not target.startswith("torch.ops.") or _is_operator(target.split(".")[2:])


def _is_operator(names: list[str]) -> bool:
    import torch  # noqa: PLC0415 - slow, and not needed for ONNX files
    from torch._ops import HigherOrderOperator, OpOverload  # noqa: PLC0415

    found: Any = torch.ops
    for name in names:
        found = getattr(found, name, None)
    # What is not registered torch cannot call either, and says so.
    return found is None or isinstance(found, (OpOverload, HigherOrderOperator))


def _is_arithmetic(text: str) -> bool:
    """5. Tell whether a Python expression only computes with sizes: no other names, calls, attributes or strings."""
    try:
        tree = ast.parse(text, mode="eval")
        small = len(text) <= _LONGEST_EXPRESSION and _power(tree.body) <= _LARGEST_POWER
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = {id(arg) for call in ast.walk(tree) if _calls(call, _NUMBERS) for arg in call.args}  # type: ignore[attr-defined]
    named |= {id(sub.slice) for sub in ast.walk(tree) if isinstance(sub, ast.Subscript)}
    return small and all(_is_plain(node, named) for node in ast.walk(tree))


def _is_plain(node: ast.AST, named: Collection[int]) -> bool:
    """5. Tell whether a node of an expression is arithmetic; those of the ids `named` may be names in quotes."""
    if isinstance(node, ast.Call):
        return _calls(node, _FUNCTIONS) or isinstance(node.func, ast.Attribute)
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Constant):
        number = isinstance(node.value, (int, float, type(None)))
        return number or (id(node) in named and _NAME.fullmatch(str(node.value)) is not None)
    return isinstance(node, _SYNTAX)


def _power(node: ast.AST) -> float:
    """Return how often a number in an expression is at most multiplied with itself; infinite where that is not known."""
    inner = max((_power(child) for child in ast.iter_child_nodes(node)), default=1.0)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return inner * _largest(node.right)
    if _calls(node, _POWERS):
        return inner * max((_largest(argument) for argument in node.args[1:]), default=math.inf)  # type: ignore[attr-defined]
    return inner


def _largest(exponent: ast.AST) -> float:
    """Return the largest number in an exponent, 1 at least; infinite where it is anything but a number."""
    if isinstance(exponent, ast.UnaryOp):
        return _largest(exponent.operand)
    if _calls(exponent, _NUMBERS):
        return max(map(_largest, exponent.args), default=math.inf)  # type: ignore[attr-defined]
    if isinstance(exponent, ast.Constant) and isinstance(exponent.value, (int, float)):
        return max(1.0, abs(float(exponent.value)))
    return math.inf


def _calls(node: ast.AST, names: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
