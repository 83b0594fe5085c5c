"""Tell what a model is by its content: names and suffixes lie."""

from __future__ import annotations

import zipfile
import zlib
from enum import Enum
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from pathlib import Path


class Format(Enum):
    """What a file or folder holds, in words for messages."""

    ONNX = "an ONNX model"
    ARCHIVE = "a torch.export archive"
    OLD_ARCHIVE = "a torch.export archive of an old layout"
    TORCHSCRIPT = "a TorchScript archive"
    PICKLE = "a pickled PyTorch object (torch.save)"
    SAFETENSORS = "a safetensors file"
    FOLDER = "a Hugging Face folder"
    DATA = "an .npz data file"


def detect(path: Path) -> Format:
    """Return the format of a model.

    Raises:
        ActxError: there is no such file, it cannot be read, or it is empty; or it is a folder without a configuration.
    """
    if (path / "config.json").is_file():
        return Format.FOLDER
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except IsADirectoryError as error:
        raise ActxError(
            f"{path} is a folder, not a model file",
            note="a Hugging Face folder has a config.json; a bundle is what actx made of a model, and comes behind it",
            remedy="Name the file inside it, or the original model.",
        ) from error
    except OSError as error:
        raise ActxError(f"cannot read {path}", note=str(error.strerror), remedy="Check the path.") from error
    if not head:
        raise ActxError(f"{path} is empty", remedy="Export or copy the model again.")
    if head.startswith(b"PK"):
        return _detect_zip(path)
    if head[:1] == b"\x80":
        return Format.PICKLE
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return Format.SAFETENSORS
    return Format.ONNX


def _detect_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            found = _format_of(archive.namelist())
            if found in (Format.ARCHIVE, Format.PICKLE):
                _check_records(archive, path.stat().st_size)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error) as error:
        what = f"{path} is a damaged archive"
        raise ActxError(what, note=str(error), remedy="It is probably truncated: copy or export it again.") from error
    return found


def _format_of(names: list[str]) -> Format:
    inner = {"/".join(name.split("/")[1:]) for name in names}
    if "archive_format" in inner or any(n.startswith("models/") and n.endswith(".json") for n in inner):
        return Format.ARCHIVE
    if "serialized_exported_program.json" in names:
        return Format.OLD_ARCHIVE
    if any(n.startswith("code/") for n in inner):
        return Format.TORCHSCRIPT
    if names and all(n.endswith(".npy") for n in names):
        return Format.DATA
    return Format.PICKLE


def _check_records(archive: zipfile.ZipFile, size: int) -> None:
    """Check the sums of the records, which torch does not. It stores them as they are: none is larger than the file."""
    claimed = sum(record.file_size for record in archive.infolist())
    if claimed > size:
        raise ValueError(f"its records claim {claimed} bytes, and the file has {size}")
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
