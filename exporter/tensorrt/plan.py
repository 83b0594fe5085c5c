"""The header of a serialized engine, as far as it can be told without a GPU.

Both libraries begin a file with four letters; TensorRT-RTX's are ``vtrt``. What follows them was read off the files that
TensorRT-RTX 1.7 writes, little endian: the size of the whole file in bytes (uint64 at 16), and the library's version (4 uint8
at 24). NVIDIA does not document it, so nothing is refused because of it but what cannot be an engine at all: a file of other
letters, or one shorter than it says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from pathlib import Path

RTX_MAGIC = b"vtrt"
TENSORRT_MAGIC = b"ftrt"
_HEADER = struct.Struct("<4s12xQ4B")


@dataclass(frozen=True)
class Plan:
    """What the header says.

    Attributes:
        magic: the first four bytes.
        size: bytes of the whole file; None where the header does not say.
        version: of the library that wrote it; None where the header does not say.
    """

    magic: bytes
    size: int | None
    version: str | None


def read_plan(engine: Path) -> Plan:
    """Read the header of an engine.

    Raises:
        ActxError: the file cannot be read, is no engine, or is shorter than its header says.
    """
    try:
        with engine.open("rb") as file:
            head = file.read(_HEADER.size)
        there = engine.stat().st_size
    except OSError as error:
        raise ActxError(f"cannot read '{engine}'", note=str(error.strerror), remedy="Build it again.") from error
    if len(head) < _HEADER.size or head[:4] not in {RTX_MAGIC, TENSORRT_MAGIC}:
        note = f"{there} bytes that begin with {head[:4]!r}"
        raise ActxError(f"'{engine}' is no TensorRT engine", note=note, remedy="Build it with actx build.")
    if head[:4] == TENSORRT_MAGIC:
        return Plan(TENSORRT_MAGIC, None, None)
    magic, size, *numbers = _HEADER.unpack(head)
    if there < size:
        note = f"{there} bytes of {size}"
        raise ActxError(f"the engine '{engine}' is truncated", note=note, remedy="Copy or build it again.")
    return Plan(magic, size, ".".join(map(str, numbers)))
