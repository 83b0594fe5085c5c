"""Convert a graph to another opset, with ONNX's own converter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load.prepare import written_alike

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MIN_OPSET, MAX_OPSET = 13, 25
# Larger weights are kept from the converter: a message holds at most 2 GiB.
_SMALL_BYTES = 1024
# Attributes that change nothing but what becomes of tensors without elements.
_FOR_EMPTY = frozenset({"allowzero"})
_LAYER_NORM_SINCE, _AXES_ARE_AN_INPUT = 17, 18
# Domain of the nodes that the converter leaves alone.
_KEPT = "actx.kept"


def convert_opset(path: Path, model: ir.Model, opset: int) -> ir.Model:
    """Return the model in another opset; its weights are shared with the one given.

    1. Ops that the other opset does not have are written out, by the body that their schema gives; LayerNormalization as
       exporters write it, which runtimes know, and which subtracts the mean before it squares.
    2. What that body computes of shapes is folded: the converter does not know all of the ops it is computed with. For the
       same reason Split gets its sizes as an input where only their number is given, and attributes at defaults that the
       other opset does not know are left out.
    3. Nodes that both opsets write alike are kept from the converter, which lacks adapters for many of them. It does not
       look into the bodies of If, Loop and Scan: there all nodes must be such.
    4. The converter drops metadata: nodes get it back, new ones that of the node in whose place they are.

    Args:
        path: where the model came from, for errors.
        model: no local functions.
        opset: from MIN_OPSET to MAX_OPSET.

    Raises:
        UsageError: the opset is out of range.
        ActxError: an op cannot be converted.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(
            f"opset {opset} cannot be written",
            note=f"actx writes opsets {MIN_OPSET} to {MAX_OPSET}",
            remedy="Choose one of these, or leave --opset out.",
        )
    before = model.opset_imports[""]
    if opset == before:
        return model
    try:
        proto = _convert(_write_out(_without_weights(model, opset), before, opset), before, opset)
        onnx.checker.check_model(proto, full_check=True)
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


def _without_weights(model: ir.Model, opset: int) -> onnx.ModelProto:
    """Return a copy that takes its large initializers as further inputs, and holds the others itself."""
    copy = model.clone()
    _state_split_sizes(copy.graph)
    if opset < _LAYER_NORM_SINCE:
        _write_out_layer_norms(copy)
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES:
            value.type = ir.TensorType(value.const_value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.const_value = None
            del copy.graph.initializers[name]
            copy.graph.inputs.append(value)
    return ir.to_proto(ir.external_data.load_to_model(copy))


def _state_split_sizes(graph: ir.Graph) -> None:
    """2. Their number became an attribute at opset 18."""
    for node in graph:
        if node.op_type != "Split" or len(node.inputs) > 1:
            continue
        axis = node.attributes.get_int("axis", 0)
        sizes = [None if value.shape is None else value.shape[axis] for value in node.outputs]
        if all(isinstance(size, int) for size in sizes):
            name = f"{node.outputs[0].name}_sizes"
            tensor = ir.tensor(np.array(sizes, np.int64), name=name)
            value = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(sizes)]), const_value=tensor
            )
            graph.register_initializer(value)
            node.resize_inputs(2)
            node.replace_input_with(1, value)
            node.attributes.pop("num_outputs", None)


def _write_out_layer_norms(model: ir.Model) -> None:
    """1."""
    for node in list(model.graph):
        x = node.inputs[0] if node.inputs else None
        if node.op_identifier() != ("", "LayerNormalization", "") or x is None or x.dtype is None or x.shape is None:
            continue
        tape = ir.tape.Tape()
        result = _layer_norm(tape, node, x, model.opset_imports[""])
        old = node.outputs[0]
        result.name, result.type, result.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], list(tape.nodes), [old], [result])
        for value in tape.initializers:
            model.graph.register_initializer(value)


def _layer_norm(tape: ir.tape.Tape, node: ir.Node, x: ir.Value, opset: int) -> ir.Value:
    """Compute in float32 and scale in the type of x, as the standard says."""
    assert x.shape is not None
    rank, name = len(x.shape), node.outputs[0].name
    axes = list(range(node.attributes.get_int("axis", -1) % rank, rank))
    single = x.dtype is ir.DataType.FLOAT

    def constant(array: NDArray[Any], what: str) -> ir.Value:
        return tape.initializer(ir.tensor(array, name=f"{name}_{what}"))

    stated: dict[str, Any] = {"keepdims": 1} if opset >= _AXES_ARE_AN_INPUT else {"keepdims": 1, "axes": axes}
    along = [constant(np.array(axes, np.int64), "axes")] if opset >= _AXES_ARE_AN_INPUT else []

    def mean(value: ir.Value) -> ir.Value:
        return tape.op("ReduceMean", [value, *along], stated)

    wide = x if single else tape.op("Cast", [x], {"to": ir.DataType.FLOAT})
    deviation = tape.op("Sub", [wide, mean(wide)])
    variance = mean(tape.op("Pow", [deviation, constant(np.array(2, np.float32), "two")]))
    epsilon = constant(np.array(node.attributes.get_float("epsilon", 1e-5), np.float32), "epsilon")
    result = tape.op("Div", [deviation, tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])])
    result = result if single else tape.op("Cast", [result], {"to": x.dtype})
    result = tape.op("Mul", [result, node.inputs[1]])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return result if bias is None else tape.op("Add", [result, bias])


def _write_out(proto: onnx.ModelProto, before: int, opset: int) -> onnx.ModelProto:
    """1. and 2."""
    from onnxscript import optimizer  # noqa: PLC0415 - slow to import, and rarely needed

    newer = sorted(
        {node.op_type for node in proto.graph.node if node.domain == "" and not onnx.defs.has(node.op_type, opset, "")}
    )
    if not newer:
        return proto
    for node in proto.graph.node:
        if node.domain == "" and node.op_type in newer:
            _state_defaults(node, before)
    functions = [("", op_type) for op_type in newer]
    written = ir.from_proto(onnx.inliner.inline_selected_functions(proto, functions, inline_schema_functions=True))
    optimizer.fold_constants(written, onnx_shape_inference=True)
    RemoveUnusedNodesPass()(written)
    return ir.to_proto(written)


def _state_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Write down the defaults of its attributes, which the inliner does not know."""
    stated = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in stated and attribute.default_value.type:
            node.attribute.append(attribute.default_value)


def _convert(proto: onnx.ModelProto, before: int, opset: int) -> onnx.ModelProto:
    """3."""
    for node in proto.graph.node:
        _leave_out_defaults(node, before, opset)
        for inner in _body_nodes(node):
            if inner.domain == "" and not _is_alike(inner, before, opset):
                raise ValueError(
                    f"{inner.op_type} in a body of {node.op_type} {node.name} is not written alike in both"
                )
        if node.domain == "" and _is_alike(node, before, opset):
            node.domain = _KEPT
    proto.opset_import.append(onnx.helper.make_opsetid(_KEPT, 1))
    converted = onnx.version_converter.convert_version(proto, opset)
    for node in converted.graph.node:
        node.domain = "" if node.domain == _KEPT else node.domain
    imports = [entry for entry in converted.opset_import if entry.domain != _KEPT]
    del converted.opset_import[:]
    converted.opset_import.extend(imports)
    return converted


def _leave_out_defaults(node: onnx.NodeProto, before: int, opset: int) -> None:
    """2."""
    if node.domain != "" or not onnx.defs.has(node.op_type, opset, ""):
        return
    old, new = (onnx.defs.get_schema(node.op_type, number, "").attributes for number in (before, opset))
    stated = [
        a
        for a in node.attribute
        if a.name in new or a.name not in old or (a.name not in _FOR_EMPTY and a != old[a.name].default_value)
    ]
    del node.attribute[:]
    node.attribute.extend(stated)


def _is_alike(node: onnx.NodeProto, before: int, opset: int) -> bool:
    return written_alike(node.op_type, {attribute.name for attribute in node.attribute}, before, opset)


def _body_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from _body_nodes(inner)


def _restore_weights(converted: ir.Model, model: ir.Model) -> None:
    inputs = converted.graph.inputs
    weights = inputs[len(model.graph.inputs) :]
    del inputs[len(model.graph.inputs) :]
    for value in weights:
        value.const_value = model.graph.initializers[str(value.name)].const_value
        converted.graph.register_initializer(value)


def _restore_metadata(converted: ir.Model, model: ir.Model) -> None:
    """4."""
    converted.metadata_props.update(model.metadata_props)
    known = {value.name: node.metadata_props for node in model.graph for value in node.outputs}
    for node in reversed(list(converted.graph)):
        heirs = [user.metadata_props for value in node.outputs for user, _ in value.uses()]
        found = [known[value.name] for value in node.outputs if value.name in known]
        node.metadata_props.update(next(iter([*found, *heirs]), {}))
