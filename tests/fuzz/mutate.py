"""Changes to valid inputs: of bytes, of text, and of the structure of JSON, zip archives, NumPy headers and Protocol Buffers.

Every mutator takes the input and a generator of random numbers and returns another input; what it makes depends on these alone.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    Mutator = Callable[[bytes, random.Random], bytes]

LONGEST = 1 << 20
INTEGERS = (
    0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1 << 15, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 31), -(1 << 63), 1 << 63, (1 << 64) - 1,
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", " ", "a", "x" * 300, "x" * 5000, "\0", "\n", "\x1b[2J", "\u202e", "\ud7ff\ufffd", "\xe9", "..", "../outside",
    "/etc/passwd", "../outside/secret", "/dev/zero", "/dev/stdin", "C:\\", "file:///etc/passwd", "javascript:alert(1)",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; touch ran; '", "$(touch ran)", "`touch ran`",
    "; touch ran", "%s%n", "{}", "{0.__class__}",
    "__import__('os').system('touch ran')", "__class__", "-oProxyCommand=touch ran",
    "--help", "nan", "inf", "-inf", "1e999", "0x10", "9" * 5000, "-1", "true", "null", "0", "1", "2", "float32", "int64",
    "model.onnx", "weights.data", "Spline", "actx", "ai.onnx",
)  # fmt: skip
_NPY_TYPES = (
    "<f4", "<f2", ">f8", "|b1", "<i8", "|V0", "<U0", "|S0", "<U9", "|O", "<m8[s]", "<c8", "|V1000000000", "garbage", "<f4" * 9,
)  # fmt: skip


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, replace, insert, remove and repeat bytes, cut short, and write special numbers."""
    out = bytearray(data)
    for _ in range(_several(rng)):
        at = rng.randrange(len(out) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 32, 256)), len(out) - at)
        match rng.randrange(9):
            case 0 if size:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if size:
                out[at] = rng.randrange(256)
            case 2:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
            case 5 if rng.random() < 0.3:
                del out[at:]
            case 6:
                number = rng.choice(INTEGERS) & ((1 << 64) - 1)
                width = rng.choice((1, 2, 4, 8))
                out[at : at + width] = (number & ((1 << (8 * width)) - 1)).to_bytes(
                    width, rng.choice(("little", "big"))
                )
            case 7:
                out[at:at] = rng.choice(TEXTS).encode()
            case _:
                other = rng.randrange(len(out) + 1)
                out[at : at + size] = out[other : other + size]
    return bytes(out[:LONGEST])


def of_text(*words: str) -> Mutator:
    """Return what puts words, punctuation and special texts in, and changes bytes now and then."""
    pieces = (*words, *":,.x[]()=<>+-*/@%#\"'\\ \n\t0123456789abz_", *TEXTS)

    def mutate(data: bytes, rng: random.Random) -> bytes:
        text = data.decode(errors="replace")
        for _ in range(_several(rng)):
            at = rng.randrange(len(text) + 1)
            end = min(len(text), at + rng.choice((0, 0, 1, 3, 10)))
            count = rng.choice((1, 1, 1, 2, 5, 3000)) if rng.random() < 0.2 else 1
            text = text[:at] + rng.choice(pieces) * count + text[end:]
        changed = text[:LONGEST].encode(errors="replace")
        return of_bytes(changed, rng) if rng.random() < 0.1 else changed

    return mutate


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, add and repeat values of a JSON document, nest it deeper than any parser goes, or change its bytes."""
    if rng.random() < 0.1:
        return of_bytes(data, rng)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, rng)
    for _ in range(_several(rng)):
        tree = _changed(tree, rng)
    text = json.dumps(tree)
    if rng.random() < 0.03:
        depth = rng.choice((50, 500, 5000, 100_000))
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        text = text.replace(rng.choice(("null", "1", '"', "[")), opening * depth + "1" + closing * depth, 1)
    return text[: 4 * LONGEST].encode(errors="replace")


def _changed(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one change at a random place."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        copy = dict(tree)
        match rng.randrange(12):
            case 0:
                del copy[key]
            case 1:
                copy[rng.choice(TEXTS)] = copy[key]
            case 2:
                copy[key] = copy[rng.choice(list(copy))]
            case _:
                copy[key] = _changed(copy[key], rng)
        return copy
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        match rng.randrange(10):
            case 0:
                return tree[:at] + tree[at + 1 :]
            case 1:
                return tree[:at] + [tree[at]] * rng.choice((2, 3, 50)) + tree[at:]
            case _:
                return [*tree[:at], _changed(tree[at], rng), *tree[at + 1 :]]
    return _value_like(tree, rng)


def _value_like(value: Any, rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if isinstance(value, str) and kind < 5:
        return of_text()(value.encode(), rng).decode(errors="replace") if kind < 2 else rng.choice(TEXTS)
    if isinstance(value, (int, float)) and kind < 5:
        return rng.choice((*INTEGERS, *FLOATS, value + 1, 10**400))
    return rng.choice(
        (None, True, False, [], {}, [[]], {"a": 1}, rng.choice(TEXTS), rng.choice(INTEGERS), rng.choice(FLOATS))
    )


def of_zip(members: Mutator, method: int = zipfile.ZIP_STORED) -> Mutator:
    """Return what changes members of a zip archive, their names and their order, or the bytes of the archive.

    Args:
        members: changes the content of one.
        method: how they are stored.
    """

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.25:
            return of_bytes(data, rng)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found = [(info.filename, archive.read(info)) for info in archive.infolist()]
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError):
            return of_bytes(data, rng)
        for _ in range(_several(rng)):
            _change_members(found, members, rng)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice((method, method, zipfile.ZIP_DEFLATED))) as archive:
            for name, content in found:
                archive.writestr(name or "x", content)
        return out.getvalue()

    return mutate


def _change_members(found: list[tuple[str, bytes]], members: Mutator, rng: random.Random) -> None:
    if not found:
        return
    at = rng.randrange(len(found))
    name, content = found[at]
    match rng.randrange(12):
        case 0:
            del found[at]
        case 1:
            found.append((name, content))
        case 2:
            folder, _, last = name.rpartition("/")
            found[at] = (f"{folder}/{rng.choice(('', '../', 'extra/', last.upper()))}{last}", content)
        case 3:
            found[at] = (rng.choice([other for other, _ in found]), content)
        case _:
            found[at] = (name, members(content, rng))


def of_record(data: bytes, rng: random.Random) -> bytes:
    """Change what a member of an archive is taken for: JSON, an array of NumPy, else bytes."""
    if data[:1] in {b"{", b"["}:
        return of_json(data, rng)
    return of_npy(data, rng) if data.startswith(b"\x93NUMPY") else of_bytes(data, rng)


def of_npy(data: bytes, rng: random.Random) -> bytes:
    """Change the description of an array in its header, or its bytes."""
    if rng.random() < 0.2 or not data.startswith(b"\x93NUMPY") or len(data) < 12:
        return of_bytes(data, rng)
    size = struct.unpack_from("<H", data, 8)[0]
    dims = rng.choices((*INTEGERS, "x", "1.5", "()", "9" * 5000), k=rng.randrange(5))
    shape = rng.choice((f"({', '.join(map(str, dims))},)", "(2, 3)", "[2, 3]", "-1", "(" * 300))
    kind = rng.choice((*map(repr, _NPY_TYPES), "[('a', '<f4'), ('b', 'O')]", "[('a', '<f4', (1073741824,))]"))
    header = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('False', 'True', '1'))}, 'shape': {shape}, }}"
    if rng.random() < 0.3:
        header = of_text()(header.encode(), rng).decode(errors="replace")
    encoded = header.encode("latin1", "replace")[:60000] + b" \n"
    return data[:8] + struct.pack("<H", len(encoded)) + encoded + data[10 + size :]


def of_onnx(data: bytes, rng: random.Random) -> bytes:
    """Change fields of an ONNX model by their types: sizes, names, types, nested graphs, functions, external data; or bytes."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 - the parser has no exception of its own
        return of_bytes(data, rng)
    if rng.random() < 0.1:
        return of_bytes(data, rng)
    for _ in range(_several(rng)):
        messages = _messages(model)
        _change_message(rng.choice(messages), messages, rng)
    try:
        return model.SerializeToString()[:LONGEST]
    except Exception:  # noqa: BLE001 - such as 2 GiB of nested graphs
        return data


def _messages(root: Message) -> list[Message]:
    found, stack = [], [root]
    while stack and len(found) < 2000:
        message = stack.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(value if field.is_repeated else [value])
    return found


def _change_message(message: Message, others: Sequence[Message], rng: random.Random) -> None:
    field = rng.choice(list(message.DESCRIPTOR.fields))
    same = [other for other in others if other.DESCRIPTOR is field.message_type and other.ByteSize() < 4096]
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, same, rng)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if same:
            copy = type(same[0])()
            copy.CopyFrom(rng.choice(same))  # of itself too: a graph in its own node
            getattr(message, field.name).CopyFrom(copy)
    else:
        setattr(message, field.name, _scalar(field, others, rng))


def _change_list(values: Any, field: Any, same: Sequence[Message], rng: random.Random) -> None:
    at = rng.randrange(len(values)) if len(values) else 0
    choice = rng.randrange(6)
    if choice == 0 and len(values):
        del values[at]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if choice == 1 and len(values) > 1:
            values[at].CopyFrom(values[rng.randrange(len(values))])
        elif same:
            copy = type(same[0])()
            copy.CopyFrom(rng.choice(same))
            values.append(copy)
        elif choice == 2:
            values.add()
    elif choice == 1 and len(values):
        values[at] = _scalar(field, (), rng)
    else:
        values.extend([_scalar(field, (), rng)] * rng.choice((1, 1, 1, 2, 300)))


def _scalar(field: Any, others: Sequence[Message], rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_STRING:
            given = [(field.name, value) for other in others for field, value in other.ListFields()]
            names = [text for name, text in given if name in {"name", "op_type", "domain"} and isinstance(text, str)]
            text = rng.choice(names) if names and rng.random() < 0.6 else rng.choice(TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([value.number for value in field.enum_type.values])
    bits = 31 if field.cpp_type in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32} else 63
    low = 0 if field.cpp_type in {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64} else -(1 << bits)
    return rng.choice([*range(30), *(i for i in INTEGERS if low <= i < 1 << bits)])


def _several(rng: random.Random) -> int:
    return rng.choice((1, 1, 1, 2, 2, 3, 5, 8))
