"""What an interrupted pass over data had accumulated, in one file that is replaced as a whole."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.scratch import TakenError, exclusive

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.data import Arrays

_BROKEN = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Checkpoint:
    """Where a pass is kept. A file has one pass: another one takes its place.

    Attributes:
        file: an .npz file; its folder exists.
        model: a digest of the model, whose pass it is.
        seconds: how often it is written.
    """

    file: Path
    model: str
    seconds: float = 30.0

    def load(self, key: str) -> Arrays | None:
        """Return what was saved under the key; None where nothing was, or the file is damaged."""
        try:
            with self.file.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return dict(archive) if str(archive["key"]) == key else None
        except _BROKEN:
            return None

    def check(self) -> None:
        """Check that there is nothing else at its place.

        Raises:
            UsageError: there is a file that is no checkpoint.
        """
        try:
            with self.file.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                ours = "key" in archive.files
        except FileNotFoundError:
            return
        except _BROKEN:
            ours = False
        if not ours:
            what = f"{self.file} is there, and no checkpoint of a calibration"
            raise UsageError(what, remedy="Give another --log, which it lies beside, or move the file.")

    def save(self, key: str, arrays: Arrays) -> None:
        """Write the arrays; a crash leaves the file as it was before.

        Raises:
            ActxError: the file cannot be written.
        """
        part = self.file.with_name(f"{self.file.name}.part")
        try:
            # Where another process writes, its pass takes the place.
            with contextlib.suppress(TakenError), exclusive(part) as (file, _):
                np.savez_compressed(file, allow_pickle=False, key=np.array(key), **arrays)
                file.flush()
                part.replace(self.file)
        except OSError as error:
            raise ActxError(
                f"cannot write to {self.file}", note=str(error), remedy="Check the free space and permissions."
            ) from error
