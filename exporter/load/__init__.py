"""Read a trained model from whatever it is stored in into one ONNX graph, types and shapes inferred."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load.formats import Format, detect
from actx.exporter.load.inputs import apply_specs, input_specs, name_batch
from actx.exporter.load.onnx_file import data_files, read_onnx
from actx.exporter.load.prepare import prepare
from actx.exporter.load.quiet import quiet
from actx.exporter.load.torch_archive import read_archive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.data import InputSpec

__all__ = ["LoadedModel", "load"]

MIN_OPSET, MAX_OPSET = 13, 25
# Before MIN_IR initializers had to be inputs too. MAX_IR is of the ONNX release that has MAX_OPSET: newer tools write a
# newer one unasked, which runtimes refuse.
MIN_IR, MAX_IR = 4, 13

_EXPORT = "torch.export.save(torch.export.export(module, args), 'model.pt2')"
_REFUSED = {
    Format.OLD_ARCHIVE: "Load it with the torch that wrote it and save it again with torch.export.save of torch 2.8 or newer.",
    Format.TORCHSCRIPT: f"Export the original module: {_EXPORT}.",
    Format.PICKLE: f"Load it in your own code and export it: {_EXPORT}.",
    Format.SAFETENSORS: f"Load it into its module and export that: {_EXPORT}.",
    Format.DATA: "Give the model first and the data with --data.",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model as the pipeline takes it.

    Attributes:
        model: one ONNX graph: local functions inlined, value names unique, types and shapes inferred.
        inputs: name, type and dimensions of every input.
        source: the file it came from.
        format: what that file is, in words.
        sha256: of the file's bytes, followed by those of its external data files in the order of their paths.
        opset: of the default domain.
    """

    model: ir.Model
    inputs: tuple[InputSpec, ...]
    source: Path
    format: str
    sha256: str

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.opset_imports[""]


def load(path: Path, *, inputs: Sequence[InputSpec] = (), trust: bool = False) -> LoadedModel:
    """Read a model.

    Args:
        path: an ONNX model (external data beside it) or a torch.export archive, whatever it is called.
        inputs: types and dimensions that the user states: names for dynamic axes, sizes for static ones.
        trust: whether an archive may run the code it carries.

    Raises:
        ActxError: the file is missing, damaged, of a format that holds no graph, or would run code without `trust`.
        UsageError: a stated input does not fit the model.
    """
    found = detect(path)
    if found in _REFUSED:
        raise ActxError(
            f"{path} is {found.value}", note="actx reads ONNX models and torch.export archives", remedy=_REFUSED[found]
        )
    with quiet():
        model = read_archive(path, trust=trust) if found is Format.ARCHIVE else read_onnx(path)
        _check_opset(path, model)
        model.ir_version = min(max(model.ir_version, MIN_IR), MAX_IR)
        name_batch(model)
        apply_specs(model, inputs)
        prepare(model)
    return LoadedModel(model, input_specs(model), path, found.value, _digest(path, *data_files(model)))


def _check_opset(path: Path, model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(
            f"{path} has opset {opset}",
            note=f"actx reads opsets {MIN_OPSET} to {MAX_OPSET}",
            remedy="Convert it with onnx.version_converter.convert_version.",
        )


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
