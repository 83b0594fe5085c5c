"""Turn a torch.export archive into an ONNX graph with torch's own exporter."""

from __future__ import annotations

import importlib
import zipfile
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError
from actx.exporter.load.archive import dangers

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

# Gelu and every newer activation is one op from here on, and all runtimes of note take it.
OPSET = 20
# What torch.export.save calls the program.
PROGRAM = "model"
# Metadata that quotes the machine the model was written on, and is no use on another.
PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "pkg.torch.export.ExportedProgram")


def read_archive(path: Path, *, trust: bool) -> ir.Model:
    """Load and convert the program.

    Raises:
        ActxError: the archive is damaged, would run code without `trust`, or torch cannot load or convert it.
    """
    if not trust:
        _refuse_code(path)
    import torch  # noqa: PLC0415 - slow to import, and not needed for ONNX files

    # Not torch.export.load: what this cannot load, that takes for an archive of the old layout, and unpickles it.
    from torch.export.pt2_archive._package import load_pt2  # noqa: PLC0415

    _register_containers(path)
    try:
        with path.open("rb") as file:  # by its handle: torch wants a path to end in .pt2
            program = load_pt2(file).exported_programs[PROGRAM]
    except Exception as error:
        what = f"torch {torch.__version__} cannot load {path}"
        raise ActxError(what, note=str(error), remedy="Save it again with torch.export.save of this torch.") from error
    try:
        converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, optimize=True)
    except Exception as error:
        what = f"torch cannot convert {path} to ONNX"
        remedy = "Rewrite what the note names, or export to ONNX yourself."
        raise ActxError(what, note=_root(error), remedy=remedy) from error
    assert converted is not None
    model: ir.Model = converted.model
    _strip(model)
    return model


def _root(error: BaseException) -> str:
    """Return the cause at the bottom: what is above it tells how to report it to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _refuse_code(path: Path) -> None:
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


def _strip(model: ir.Model) -> None:
    nodes = list(model.graph.all_nodes())
    properties = [model.metadata_props, model.graph.metadata_props]
    properties += [node.metadata_props for node in nodes]
    properties += [value.metadata_props for node in nodes for value in node.outputs]
    for table in properties:
        for key in PRIVATE_METADATA:
            table.pop(key, None)
