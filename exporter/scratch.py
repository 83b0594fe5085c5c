"""Temporary folders and locks. What a killed process leaves behind is in nobody's way, and the next run removes it.

1. A temporary folder is locked for as long as it is used, as systemd-tmpfiles expects it too. The system lifts the locks of a
   process that ends, however it ends.
2. Whoever makes one removes those of the same user beside it that nobody holds.
3. Where a file system has no locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX, _SUFFIX = "actx-", ".scratch"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}\{_SUFFIX}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class TakenError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder among the temporary files; it is removed at the end.

    Raises:
        ActxError: it cannot be made.
    """
    try:
        parent = Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        folder, descriptor = _make(parent)
    except OSError as error:
        what, remedy = "cannot make a temporary folder", "Make room there, or set TMPDIR to another folder."
        raise ActxError(what, note=str(error), remedy=remedy) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Give a new file that one process at a time has; it is removed at the end, unless it was given another name.

    Yields:
        the file, empty and open for writing, and whether it is locked: not where the file system has no locks.

    Raises:
        TakenError: another process has it.
        OSError: it cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b") as file:  # noqa: PTH123 - of a descriptor
            locked = _lock(descriptor)
            if not _is_at(descriptor, path):
                continue  # the other process was done with it in between
            file.truncate()
            try:
                yield file, locked
            finally:
                if _is_at(descriptor, path):
                    path.unlink()
            return


def _make(parent: Path) -> tuple[Path, int]:
    """1."""
    while True:  # another process may take a folder that is not locked yet for an abandoned one
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
        if (held := _hold(folder)) is not None:
            return folder, held[0]


def _remove_abandoned(parent: Path) -> None:
    """2, 3."""
    with os.scandir(parent) as entries:
        found = [Path(entry) for entry in entries if _NAME.fullmatch(entry.name) and _is_own(entry)]
    for folder in found:
        with contextlib.suppress(OSError):  # it is something else, or another file system is mounted there
            if (held := _hold(folder)) is not None:
                descriptor, locked = held
                if locked:
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _hold(folder: Path) -> tuple[int, bool] | None:
    """Open and lock a folder; None where another process has it, or had it and it is gone.

    Returns:
        the open folder, and whether it is locked.
    """
    try:
        descriptor = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return None
    with contextlib.suppress(TakenError):
        locked = _lock(descriptor)
        if _is_at(descriptor, folder):
            return descriptor, locked
    os.close(descriptor)
    return None


def _is_own(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; return False where the file system cannot.

    Raises:
        TakenError: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TakenError from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file or folder is still what a path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
