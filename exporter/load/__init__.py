"""Read a trained model from whatever it is stored in into one ONNX graph, types and shapes inferred."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actx.exporter.collection import no_garbage_collection
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load.formats import Format, detect
from actx.exporter.load.hugging_face import default_inputs, read_folder, weight_files
from actx.exporter.load.inputs import apply_specs, input_specs, name_batch
from actx.exporter.load.mapped import MappedWeights, map_weights
from actx.exporter.load.onnx_file import data_files, read_onnx
from actx.exporter.load.opset import MAX_OPSET, MIN_OPSET, convert_opset
from actx.exporter.load.prepare import prepare
from actx.exporter.load.program import to_onnx, trace
from actx.exporter.load.quiet import quiet
from actx.exporter.load.torch_archive import read_archive
from actx.exporter.load.weights import read_pickle, read_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from actx.exporter.data import InputSpec

__all__ = ["LoadedModel", "load"]

# Before MIN_IR initializers had to be inputs too. MAX_IR is of the ONNX release that has MAX_OPSET: newer tools write a
# newer one unasked, which runtimes refuse.
MIN_IR, MAX_IR = 4, 13

_EXPORT = "torch.export.save(torch.export.export(module, args), 'model.pt2')"
_REFUSED = {
    Format.OLD_ARCHIVE: "Load it with the torch that wrote it and save it again with torch.export.save of torch 2.8 or newer.",
    Format.TORCHSCRIPT: f"Export the original module: {_EXPORT}.",
    Format.DATA: "Give the model first and the data with --data.",
}
_WEIGHTS = (Format.PICKLE, Format.SAFETENSORS)
SOURCES = "ONNX models, torch.export archives, modules and weights of torch.save, safetensors and Hugging Face folders"


@dataclass(frozen=True)
class LoadedModel:
    """A model as the pipeline takes it.

    Attributes:
        model: one ONNX graph: local functions inlined, value names unique, types and shapes inferred.
        inputs: name, type and dimensions of every input.
        source: the file or folder it came from.
        format: what that is, in words.
        sha256: of the file's bytes, followed by those of its external data files in the order of their paths; of a folder,
            of its configuration and weights in the order of their names.
        program: what the graph was converted from; None where the source was a graph. They share their weights.
        weights: what the weights of a module that was traced here are mapped from.
        opset: of the default domain.
    """

    model: ir.Model
    inputs: tuple[InputSpec, ...]
    source: Path
    format: str
    sha256: str
    program: ExportedProgram | None = field(default=None, compare=False, repr=False)
    weights: MappedWeights = field(default=MappedWeights(), compare=False, repr=False)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.opset_imports[""]


def load(
    path: Path,
    *,
    inputs: Sequence[InputSpec] = (),
    trust: bool = False,
    factory: str | None = None,
    opset: int | None = None,
) -> LoadedModel:
    """Read a model.

    Args:
        path: an ONNX model (external data beside it), a torch.export archive, a module or state dict of torch.save, a
            safetensors file, whatever it is called; or a Hugging Face folder.
        inputs: types and dimensions that the user states: names for dynamic axes, sizes for static ones. A module that is
            traced here needs all of its inputs stated, but for Hugging Face folders.
        trust: whether an archive or pickle may run the code it carries.
        factory: ``pkg.mod:callable`` without arguments, which makes the module for weights.
        opset: what to convert the graph to; None leaves it as it is.

    Raises:
        ActxError: the file is missing, damaged, of a format that holds no graph, would run code without `trust`, or cannot
            be traced or converted.
        UsageError: a stated input does not fit the model; weights without a factory, or a factory without weights.
    """
    found = detect(path)
    if found in _REFUSED:
        raise ActxError(f"{path} is {found.value}", note=f"actx reads {SOURCES}", remedy=_REFUSED[found])
    if factory is not None and found not in _WEIGHTS:
        raise UsageError(
            f"{path} is {found.value}, which needs no --model",
            note=f"--model {factory} would not be used",
            remedy="Leave --model out.",
        )
    with quiet(), no_garbage_collection(), _readable(path):
        model, inputs, program, weights = _read(path, found, inputs, trust, factory)
        _check_opset(path, model)
        model.ir_version = min(max(model.ir_version, MIN_IR), MAX_IR)
        name_batch(model)
        apply_specs(model, inputs)
        prepare(model)
        files = weight_files(path) if found is Format.FOLDER else [path, *data_files(model)]
        if opset is not None:
            model = convert_opset(path, model, opset)
            prepare(model)
    return LoadedModel(model, input_specs(model), path, found.value, _digest(*files), program, weights)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of what no check foresaw, and a library below did not take, that the model cannot be read."""
    try:
        yield
    except ActxError:
        raise
    except Exception as error:
        raise ActxError(
            f"{path} is not a model that actx can read",
            note=f"{type(error).__name__}: {error}",
            remedy="Check it with onnx.checker.check_model, or export it again.",
        ) from error


def _read(
    path: Path, found: Format, inputs: Sequence[InputSpec], trust: bool, factory: str | None
) -> tuple[ir.Model, Sequence[InputSpec], ExportedProgram | None, MappedWeights]:
    """Return the graph, the inputs stated for it, by the user or by the configuration of a folder, its program and weights."""
    if found is Format.ONNX:
        return read_onnx(path), inputs, None, MappedWeights()
    if found is Format.ARCHIVE:
        program = read_archive(path, trust=trust)
        return to_onnx(path, program), inputs, program, MappedWeights()
    if found is Format.FOLDER:
        module = read_folder(path)
        inputs = inputs or default_inputs(path, module)
    elif found is Format.SAFETENSORS:
        module = read_safetensors(path, factory=factory)
    else:
        module = read_pickle(path, factory=factory, trust=trust)
    weights = map_weights(module)
    program = trace(path, module, inputs)
    return to_onnx(path, program, [spec.name for spec in inputs]), inputs, program, weights


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
