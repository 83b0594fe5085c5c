"""Read the program of a torch.export archive."""

from __future__ import annotations

import importlib
import zipfile
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError
from actx.exporter.load.archive import dangers

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

# What torch.export.save calls the program.
PROGRAM = "model"


def read_archive(path: Path, *, trust: bool) -> ExportedProgram:
    """Load the program.

    Raises:
        ActxError: the archive is damaged, would run code without `trust`, or torch cannot load it.
    """
    if not trust:
        refuse_code(path)
    import torch  # noqa: PLC0415 - slow to import, and not needed for ONNX files

    importlib.import_module("actx.custom_ops.torch_ops")  # so that the program may call them

    # Not torch.export.load: what this cannot load, that takes for an archive of the old layout, and unpickles it.
    from torch.export.pt2_archive._package import load_pt2  # noqa: PLC0415

    _register_containers(path)
    try:
        with path.open("rb") as file:  # by its handle: torch wants a path to end in .pt2
            return load_pt2(file).exported_programs[PROGRAM]
    except Exception as error:
        what = f"torch {torch.__version__} cannot load {path}"
        raise ActxError(what, note=str(error), remedy="Save it again with torch.export.save of this torch.") from error


def refuse_code(path: Path) -> None:
    """Raise where loading the archive could run code, or it is damaged.

    Raises:
        ActxError: it is so.
    """
    try:
        found = dangers(path)
    except Exception as error:
        what = f"{path} is a damaged torch.export archive"
        raise ActxError(what, note=str(error), remedy="Copy or export it again.") from error
    if found:
        raise ActxError(
            f"{path} would run code when loaded, and was not",
            note="; ".join(found[:3]),
            remedy="If you made it or trust who did, add --trust.",
        )


def _register_containers(path: Path) -> None:
    """Make the output classes of transformers known to torch where the program returns one."""
    with zipfile.ZipFile(path) as archive:
        descriptions = [n for n in archive.namelist() if n.split("/")[1:2] == ["models"] and n.endswith(".json")]
        if not any(b"transformers.modeling_outputs." in archive.read(name) for name in descriptions):
            return
    try:
        importlib.import_module("transformers.modeling_outputs")
    except ImportError as error:
        what = f"{path} returns an output class of transformers, which is not installed"
        raise ActxError(what, note=str(error), remedy="Install it: pip install 'actx[hf]'.") from error
