"""The output folder: written beside its final place and renamed when complete.

A crash or a full disk leaves the old bundle or none, never half of one. A folder that is no bundle is never replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTABLE = "model.onnx"
REJECTED = ".rejected"


def native_name(target: str) -> str:
    """Return the file name of the graph of bare actx nodes."""
    return f"model.{target}.onnx"


def check_destination(out: Path, *, force: bool) -> None:
    """Raise where a bundle cannot go to `out`, before any work is done.

    Raises:
        UsageError: something is there already, and `force` is not given or it is no bundle.
        ActxError: the parent folder does not exist or cannot be written to.
    """
    if out.exists() or out.is_symlink():
        if not _is_bundle(out):
            raise UsageError(
                f"{out} exists and is no bundle", remedy="Choose another place: actx only replaces bundles."
            )
        if not force:
            raise UsageError(f"{out} exists", remedy="Replace it with --force, or choose another place.")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ActxError(f"the folder {parent} does not exist", remedy="Create it first.")
    if not os.access(parent, os.W_OK):
        raise ActxError(f"the folder {parent} is read-only", remedy="Choose another place with -o.")


def _is_bundle(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / MANIFEST).is_file()


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`; what is still there at the end is removed."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.absolute().parent))
    except OSError as error:
        raise ActxError(
            f"cannot write beside {out}", note=str(error), remedy="Choose another place with -o."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, out: Path) -> None:
    """Put a complete staging folder in the place of `out`.

    Raises:
        ActxError: it cannot be renamed; the old bundle is then where it was.
    """
    try:
        for file in folder.iterdir():
            _flush(file)
        folder.chmod(0o777 & ~_umask())
        _swap(folder, out)
    except OSError as error:
        raise ActxError(
            f"cannot write {out}", note=str(error), remedy="Check the free space and permissions."
        ) from error


def _swap(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    if not _is_bundle(out):
        raise FileExistsError(f"{out} is no bundle")
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.absolute().parent))
    out.rename(old / out.name)
    try:
        folder.rename(out)
    except OSError:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bundle(path: Path) -> tuple[Path, Manifest]:
    """Return a bundle's folder and its manifest.

    Raises:
        ActxError: it is no bundle, or its manifest is damaged or of another version.
    """
    if not _is_bundle(path):
        raise ActxError(
            f"{path} is no bundle", note=f"there is no {MANIFEST} in it", remedy="Make one with actx export."
        )
    return path, Manifest.read(path / MANIFEST)
