"""JSON and text of any origin: no more of it is read than such a file can have, and nesting is an error like any other."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# A manifest has some kilobytes per site.
MAX_BYTES = 1 << 28


def read_document(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        limit: the largest number of bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        msg = f"it has more than the {limit} bytes that are read of such a file"
        raise ValueError(msg)
    return content


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Return the values of a JSON document.

    Args:
        text: the document.
        finite: whether to refuse NaN and infinities, for which JSON has no numbers and Python's writer has words of its own.

    Raises:
        ValueError: it is none, or nested deeper than Python's parser goes.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite) if finite else json.loads(text)
    except RecursionError as error:
        msg = "it is nested too deep"
        raise ValueError(msg) from error


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        msg = f"{number[:20]} is no finite number"
        raise ValueError(msg)
    return value
