"""JSON and text of any origin: no more of it is read than such a file can have, and nesting is an error like any other."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import ValidationError

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
        content = json.loads(text)
        number = next(not_finite(content), None) if finite else None
    except RecursionError as error:
        msg = "it is nested too deep"
        raise ValueError(msg) from error
    if number is not None:
        msg = f"{number} is no finite number"
        raise ValueError(msg)
    return content


def not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Give the places of NaN and infinities in values as JSON has them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place.lstrip(".") or "it"
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        yield from not_finite(part, f"{place}.{name}")


def first_fault(error: ValidationError) -> str:
    """Return where the first fault of a document is, and what it is."""
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"])) or "it"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}"
