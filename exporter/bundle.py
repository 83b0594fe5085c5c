"""The output folder: written beside its final place and renamed when complete.

A crash or a full disk leaves the old bundle or the new one, never half of one. Only what an export wrote is ever replaced:
a folder that is no bundle, or that holds anything beside its bundle, stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from actx.custom_ops.cpu.library import LIBRARY_NAME
from actx.exporter.documents import parse_json, read_document
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.manifest import MANIFEST, Manifest
from actx.exporter.scratch import TakenError, exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTABLE = "model.onnx"
ENGINE_SUFFIX = ".engine"
KERNELS = "kernels"
PLUGINS = "plugins"
REPORT = "report.html"
REJECTED = ".rejected"
_PARTIAL, _OLD = ".partial", ".old"
# renameat2(2): paths as they are, and two names that change places. Python has no function of its own for it.
_HERE, _RENAME_EXCHANGE = -100, 2


def graph_name(target: str) -> str:
    """Return the file name of a target's own graph."""
    return f"model.{target}.onnx"


def engine_name(target: str) -> str:
    """Return the file name of a target's engine."""
    return f"model.{target}{ENGINE_SUFFIX}"


def library_name(architecture: str) -> str:
    """Return the path in a bundle of the library with the kernels for an architecture of Linux."""
    return f"{KERNELS}/linux-{architecture}/{LIBRARY_NAME}"


def check_destination(out: Path, *, force: bool) -> None:
    """Raise where a bundle cannot go to `out`, before any work is done.

    Raises:
        UsageError: something is there already, and `force` is not given or it is more than a bundle.
        ActxError: the parent folder does not exist or cannot be written to.
    """
    if _taken(out):
        if reason := _irreplaceable(out):
            raise UsageError(
                f"{out} exists and {reason}",
                remedy="Remove it yourself, or choose another place: actx only replaces bundles, as a whole.",
            )
        if not force:
            raise UsageError(f"{out} exists", remedy="Replace it with --force, or choose another place.")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ActxError(f"the folder {parent} does not exist", remedy="Create it first.")
    if not os.access(parent, os.W_OK):
        raise ActxError(f"the folder {parent} is read-only", remedy="Choose another place with -o.")


def _taken(out: Path) -> bool:
    """Tell whether something is there that a bundle would replace; an empty folder is nothing, unless one stands in it."""
    try:
        if stat.S_ISDIR(out.lstat().st_mode) and not out.samefile("."):
            return any(out.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ActxError(f"cannot write {out}", note=str(error), remedy="Choose another place with -o.") from error
    return True


def rejected_place(out: Path) -> Path:
    """Return where a bundle goes that misses a requirement."""
    return beside(out, REJECTED)


def beside(out: Path, suffix: str) -> Path:
    """Return the path beside a bundle's that has its name with a suffix."""
    named = out if out.name not in {"", ".."} else out.resolve()
    return named.with_name(named.name + suffix)


def is_bundle(path: Path) -> bool:
    """Tell whether a folder, or what a link leads to, holds a manifest."""
    return (path / MANIFEST).is_file()


def _irreplaceable(path: Path) -> str:
    """Say why a path must not be replaced; empty where all that is there was written by an export.

    The manifest may be of another version, so only its list of files is read.
    """
    if path.is_symlink() or not is_bundle(path):
        return "is no bundle"
    if path.samefile("."):
        return "is the current folder"  # whoever stands in it would be left in a removed one
    try:
        files = set(parse_json(read_document(path / MANIFEST))["files"])
        folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is not that of a bundle"
    known = files | folders | {MANIFEST, REPORT}
    others = sorted(name for entry in path.rglob("*") if (name := _name(entry, path)) not in known)
    return f"holds {others[0]!r}, which no export wrote" if others else ""


def _name(file: Path, folder: Path) -> str:
    """Return a file's name as the manifest has it."""
    return file.relative_to(folder).as_posix()


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by its path there.

    Raises:
        OSError: one cannot be read.
    """
    return {_name(file, folder): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `out`, to one process at a time; what is still there at the end is removed.

    Raises:
        ActxError: another process has one, or it cannot be made.
    """
    parent = out.absolute().parent
    with contextlib.ExitStack() as stack:
        try:
            _, alone = stack.enter_context(exclusive(parent / f".{out.name}.lock"))
            if alone:
                _remove_partial(parent, out.name)
            folder = stack.enter_context(_hidden(out, _PARTIAL))
        except TakenError as error:
            what, note = f"another process is writing {out}", "two would replace each other's bundle"
            raise ActxError(what, note=note, remedy="Wait for it, or choose another place with -o.") from error
        except OSError as error:
            raise ActxError(
                f"cannot write beside {out}", note=str(error), remedy="Choose another place with -o."
            ) from error
        try:
            yield folder
        except ActxError as error:
            error.what = error.what.replace(str(folder), str(out))
            raise


@contextlib.contextmanager
def _hidden(out: Path, suffix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=suffix, dir=out.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_partial(parent: Path, name: str) -> None:
    """Remove what killed processes left: who holds the lock is the only one that writes there."""
    ours = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}{re.escape(_PARTIAL)}")
    for entry in parent.iterdir():
        if ours.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def subfolder(folder: Path) -> Path:
    """Make an empty folder in a staging folder."""
    return Path(tempfile.mkdtemp(dir=folder))


def commit(folder: Path, out: Path, *, force: bool) -> None:
    """Put a complete staging folder in the place of `out`.

    Raises:
        UsageError: something else was put there since `check_destination`.
        ActxError: it cannot be renamed; the old bundle is then where it was.
    """
    check_destination(out, force=force)
    try:
        for file in folder.rglob("*"):
            _flush(file)
        folder.chmod(0o777 & ~_umask())
        _swap(folder, out)
    except OSError as error:
        raise ActxError(
            f"cannot write {out}", note=str(error), remedy="Check the free space and permissions."
        ) from error


def _swap(folder: Path, out: Path) -> None:
    """Put the folder in the place of `out`, in one step where the file system can; the old bundle is then in the folder."""
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        with _hidden(out, _OLD) as aside:
            old = aside / out.name
            out.rename(old)
            try:
                folder.rename(out)
            finally:  # also where the user interrupts between the two
                if not out.exists():
                    old.rename(out)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot.

    Raises:
        OSError: it can, and fails.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _flush(path: Path) -> None:
    """Have a file, or the list of a folder's files, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def digest(file: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def verify(folder: Path, manifest: Manifest) -> None:
    """Check that every file of a bundle is what the export wrote. A library that a device does not need may be missing.

    Raises:
        ActxError: one is missing, cannot be read or has changed.
    """
    for name, expected in manifest.files.items():
        if name.startswith(f"{KERNELS}/") and not os.path.lexists(folder / name):
            continue
        try:
            if not (folder / name).is_file():  # a pipe or a device may give bytes without end
                raise FileNotFoundError(errno.ENOENT, "there is no such file")
            found = digest(folder / name)
        except OSError as error:
            raise ActxError(
                f"cannot read {folder / name}", note=str(error.strerror), remedy="Copy or export the bundle again."
            ) from error
        if found != expected:
            raise ActxError(
                f"{folder / name} is not the file that the export wrote",
                note=f"its sha256 begins with {found[:12]}, {MANIFEST} says {expected[:12]}",
                remedy="Copy or export the bundle again.",
            )


def read_bundle(path: Path) -> tuple[Path, Manifest]:
    """Return a bundle's folder and its manifest.

    Raises:
        ActxError: it is no bundle, or its manifest is damaged or of another version.
    """
    if not is_bundle(path):
        raise ActxError(
            f"{path} is no bundle", note=f"there is no {MANIFEST} in it", remedy="Make one with actx export."
        )
    return path, Manifest.read(path / MANIFEST)
