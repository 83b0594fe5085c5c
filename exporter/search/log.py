"""What was measured, one line of JSON each, so that an interrupted or repeated search measures nothing twice.

1. A line is ``{"key", "kind", "about", "value"}``: what it is found by, and for people what it is. It is on the disk before
   `Log.put` returns.
2. The last line may have been cut short by a crash: it is not read, and removed before the next is appended. Lines with
   other fields, of another version, are not read and stay.
3. Several processes may append to one file. What another appends after the log was opened is not seen.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from typing import IO, TYPE_CHECKING, Any, TypeVar

from actx.exporter.documents import parse_json, read_document
from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

_BEGINS = b'{"key":'
_FIELDS = ("key", "kind", "about", "value")


class Log:
    """Values by key.

    Args:
        path: the file, made by the first `put`; None keeps the values in memory alone.

    Raises:
        UsageError: the file holds something else.
        ActxError: it cannot be read, or its folder does not exist.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        if path is None:
            return
        if not path.absolute().parent.is_dir():
            raise ActxError(f"the folder {path.absolute().parent} does not exist", remedy="Create it first.")
        try:
            content = read_document(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ActxError(f"cannot read {path}", note=str(error), remedy="Give another file.") from error
        if not content.startswith(_BEGINS) and not _BEGINS.startswith(content):  # a crash may have left less
            what = f"{path} is no log of a search"
            raise UsageError(what, note="there is something else in it", remedy="Give another file.")
        lines = content.split(b"\n")[:-1]
        self._values = dict(entry for line in lines if (entry := _entry(line)) is not None)

    def get(self, key: str, read: Callable[[Any], T]) -> T | None:
        """Return the value that was put last.

        Args:
            key: what it is found by.
            read: makes it of the JSON value.

        Returns:
            None where there is none, or one that cannot be read: the file is the user's, who may have changed it.
        """
        if key not in self._values:
            return None
        try:
            return read(self._values[key])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None

    def put(self, key: str, kind: str, about: Mapping[str, Any], value: Any) -> None:
        """Keep a value.

        Args:
            key: what it is found by (see `measurement_key`).
            kind: of measurement, for people.
            about: JSON values that say what was measured, for people.
            value: a JSON value without NaN and infinities, and not None.

        Raises:
            ActxError: the file cannot be written.
        """
        line = json.dumps(dict(zip(_FIELDS, (key, kind, about, value), strict=True)), allow_nan=False)
        if self._path is not None:
            try:
                _append(self._path, line.encode() + b"\n")
            except OSError as error:
                raise ActxError(
                    f"cannot write to {self._path}", note=str(error), remedy="Check the free space and permissions."
                ) from error
        self._values[key] = value


def measurement_key(kind: str, *parts: Any) -> str:
    """Return a digest of JSON values that together say what is measured: equal for equal ones."""
    text = json.dumps([kind, *parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(line: bytes) -> tuple[str, Any] | None:
    """2."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or tuple(found) != _FIELDS or not isinstance(found["key"], str):
        return None
    return found["key"], found["value"]


def _append(path: Path, line: bytes) -> None:
    """1, 2, 3."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # no other process is in the middle of a line
        file.truncate(_whole(file))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _whole(file: IO[bytes]) -> int:
    """Return the length of a file up to the end of its last whole line."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            return file.read().rfind(b"\n") + 1
    return size
