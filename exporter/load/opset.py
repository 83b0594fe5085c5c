"""Convert a graph to another opset, with ONNX's own converter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

MIN_OPSET, MAX_OPSET = 13, 25
# Larger weights are kept from the converter: a message holds at most 2 GiB.
_SMALL_BYTES = 1024


def convert_opset(path: Path, model: ir.Model, opset: int) -> ir.Model:
    """Return the model in another opset; its weights are shared with the one given.

    1. Ops that the other opset does not have are written out, by the body that their schema gives.
    2. What that body computes of shapes is folded: the converter does not know all of the ops it is computed with.
    3. The converter drops metadata: nodes get it back, new ones that of the node in whose place they are.

    Args:
        path: where the model came from, for errors.
        model: no local functions.
        opset: from MIN_OPSET to MAX_OPSET.

    Raises:
        UsageError: the opset is out of range.
        ActxError: an op cannot be converted.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(f"opset {opset} cannot be written", note=f"actx writes opsets {MIN_OPSET} to {MAX_OPSET}")
    before = model.opset_imports[""]
    if opset == before:
        return model
    try:
        proto = onnx.version_converter.convert_version(_write_out(_without_weights(model), opset), opset)
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ActxError(
            f"{path} cannot be converted from opset {before} to {opset}",
            note=str(error).rpartition("failed: ")[2],
            remedy="Leave --opset out, or choose one closer to the model's own.",
        ) from error
    converted = ir.from_proto(proto)
    _restore_weights(converted, model)
    _restore_metadata(converted, model)
    return converted


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """Return a copy that takes its large initializers as further inputs, and holds the others itself."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES:
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.const_value = None
            del copy.graph.initializers[name]
            copy.graph.inputs.append(value)
    return ir.to_proto(ir.external_data.load_to_model(copy))


def _write_out(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """1. and 2."""
    from onnxscript import optimizer  # noqa: PLC0415 - slow to import, and rarely needed

    newer = sorted(
        {node.op_type for node in proto.graph.node if node.domain == "" and not onnx.defs.has(node.op_type, opset, "")}
    )
    if not newer:
        return proto
    functions = [("", op_type) for op_type in newer]
    written = ir.from_proto(onnx.inliner.inline_selected_functions(proto, functions, inline_schema_functions=True))
    optimizer.fold_constants(written, onnx_shape_inference=True)
    RemoveUnusedNodesPass()(written)
    return ir.to_proto(written)


def _restore_weights(converted: ir.Model, model: ir.Model) -> None:
    inputs = converted.graph.inputs
    weights = inputs[len(model.graph.inputs) :]
    del inputs[len(model.graph.inputs) :]
    for value in weights:
        value.const_value = model.graph.initializers[str(value.name)].const_value
        converted.graph.register_initializer(value)


def _restore_metadata(converted: ir.Model, model: ir.Model) -> None:
    """3."""
    converted.metadata_props.update(model.metadata_props)
    known = {value.name: node.metadata_props for node in model.graph for value in node.outputs}
    for node in reversed(list(converted.graph)):
        heirs = [user.metadata_props for value in node.outputs for user, _ in value.uses()]
        found = [known[value.name] for value in node.outputs if value.name in known]
        node.metadata_props.update(next(iter([*found, *heirs]), {}))
