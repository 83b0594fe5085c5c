"""Messages between actx and its runner on a device, written and read by the same code on both ends.

A message is a JSON object and bytes behind it: first 4 bytes for the length of the one and 8 for that of the other, in network
byte order. Arrays are described in the object, and their bytes follow one another in C order. Nothing of it is executed.

It needs Python 3.8 and numpy alone: it is sent to devices.
"""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import IO

    from numpy.typing import NDArray

    Buffer = bytes | bytearray | memoryview

# The runner's first bytes: what a login script prints comes before them.
GREETING = b"\0actx-runner-1\0"
CHUNK = 1 << 20
_LENGTHS = struct.Struct(">IQ")
_LONGEST_OBJECT = 1 << 26
_DTYPE = re.compile(r"[<>=|][fiub][0-9]{1,2}")


class MalformedError(Exception):
    """What was received is no message."""


def write(
    stream: IO[bytes], message: Mapping[str, Any], payload: Iterable[Buffer] = (), size: int | None = None
) -> None:
    """Write a message.

    Args:
        stream: to write to.
        message: JSON values.
        payload: the bytes behind it, in parts.
        size: their number; None to count them, where the parts are a sequence.
    """
    parts = payload if size is not None else list(payload)
    text = json.dumps(message).encode()
    length = size if size is not None else sum(map(len, parts))
    stream.write(_LENGTHS.pack(len(text), length) + text)
    stream.writelines(parts)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Read the object of a message; so many bytes follow it.

    Raises:
        EOFError: there is no further message.
        MalformedError: it is none.
    """
    length, size = _LENGTHS.unpack(take(stream, _LENGTHS.size))
    if length > _LONGEST_OBJECT:
        msg = f"an object of {length} bytes"
        raise MalformedError(msg)
    try:
        message = json.loads(bytes(take(stream, length)))
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from error
    if not isinstance(message, dict):
        msg = "no object"
        raise MalformedError(msg)
    return message, size


def parts(stream: IO[bytes], size: int) -> Iterable[bytes]:
    """Read so many bytes, in parts, so that no more memory is taken than there are bytes.

    Raises:
        EOFError: there are fewer.
    """
    while size:
        part = stream.read(min(size, CHUNK))
        if not part:
            raise EOFError
        size -= len(part)
        yield part


def take(stream: IO[bytes], size: int) -> bytearray:
    """Read so many bytes.

    Raises:
        EOFError: there are fewer.
    """
    taken = bytearray()
    for part in parts(stream, size):
        taken += part
    return taken


def describe(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[list[Any]], list[Buffer]]:
    """Return the description of arrays and their bytes."""
    import numpy as np  # noqa: PLC0415 - a device may lack it, and is then told so

    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in dense.items()]
    return described, [array.reshape(-1).view(np.uint8).data for array in dense.values()]


def arrays(described: Sequence[Sequence[Any]], payload: Buffer) -> dict[str, NDArray[Any]]:
    """Return the arrays of a description and their bytes.

    Raises:
        MalformedError: the bytes are not those described.
    """
    import numpy as np  # noqa: PLC0415

    found, place = {}, 0
    try:
        for name, dtype, shape in described:
            if not _DTYPE.fullmatch(dtype) or any(not isinstance(dim, int) or dim < 0 for dim in shape):
                msg = f"an array of {dtype} {shape}"
                raise MalformedError(msg)
            kind, count = np.dtype(dtype), 1
            for dim in shape:
                count *= dim
            found[name] = np.frombuffer(payload, kind, count, place).reshape(shape)
            place += count * kind.itemsize
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedError(str(error)) from error
    if place != len(payload):
        msg = "bytes that belong to no array"
        raise MalformedError(msg)
    return found
