"""A layer that gives the queries, keys and values of an attention together becomes a layer of each.

Only what comes from a layer of its own is multiplied by `actx::QAttention` (see `attention`). Two spellings are known:

1. A Split of the last axis, as GPT-2 has it.
2. A Reshape of the last axis to [3, heads, size], a Transpose, and a Gather or Slice of each third, as vision transformers of
   timm have it. It is written as the first: a Split of the last axis, and a Reshape and a Transpose of each part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.lift.ops import SLICE, SPLIT, op_of, tensor_of
from actx.exporter.linear import CONV, MATMUL, Layer, Refusal, constant_of, layer_before
from actx.exporter.lower.emitter import Constants, Emitter, substitute
from actx.exporter.quantize.origin import MOVES, TRANSPOSE

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

_RESHAPE, _GATHER, _SQUEEZE = ("", "Reshape"), ("", "Gather"), ("", "Squeeze")
_FACTORS = 2  # of a product
_PARTED = 3  # axes that the last one becomes: of the parts, of the heads, and within a head


def unpack(model: ir.Model, exclude: Collection[str] = ()) -> None:
    """Replace what there is, in place; values need types and shapes.

    Args:
        model: the graph.
        exclude: names of layers that stay as they are.
    """
    constants = Constants(model.graph)
    for node in [node for node in model.graph if op_of(node) == _RESHAPE]:
        _split_before(model.graph, node, constants)
    RemoveUnusedNodesPass()(model)  # which would still read what is packed
    for node in [node for node in model.graph if op_of(node) == SPLIT]:
        _unpack(model.graph, node, exclude)
    RemoveUnusedNodesPass()(model)


def _split_before(graph: ir.Graph, reshape: ir.Node, constants: Constants) -> None:
    """2."""
    packed, shape, (split,) = reshape.inputs[0], reshape.inputs[1], reshape.outputs
    turning = _only_reader(split)
    if packed is None or shape is None or packed.shape is None or split.shape is None or turning is None:
        return
    axis = len(packed.shape) - 1
    sizes = [size for size in split.shape[axis:] if isinstance(size, int)]
    split_alone = packed.shape[-1] == np.prod(sizes) and list(packed.shape[:-1]) == list(split.shape[:axis])
    if op_of(turning) != TRANSPOSE or len(split.shape) - axis != len(sizes) or len(sizes) != _PARTED or not split_alone:
        return
    order = list(turning.attributes.get_ints("perm", default=range(len(split.shape))[::-1]))
    place, (count, *of_heads) = order.index(axis), sizes
    turned = turning.outputs[0]
    parts = {value: _part(reader, place, count) for reader in turned.consumers() for value in _given(reader)}
    if turned.is_graph_output() or None in parts.values():
        return
    emit = Emitter(graph, constants, reshape, f"{reshape.name}/parts", ir.DataType.FLOAT, marked=False)
    rest = [i for i in range(len(split.shape)) if i != axis]
    shape = emit.op("Gather", shape, emit.integers(*rest), axis=0)
    thirds = _split(graph, reshape, packed, emit.integers(*[int(np.prod(of_heads))] * count))
    for value, part in parts.items():
        assert part is not None
        heads = emit.op("Reshape", thirds[part], shape)
        heads.shape = ir.Shape([split.shape[i] for i in rest])
        substitute(value, emit.op("Transpose", heads, perm=[old - (old > axis) for old in order if old != axis]))


def _only_reader(value: ir.Value) -> ir.Node | None:
    return next(iter(value.consumers())) if len(value.uses()) == 1 and not value.is_graph_output() else None


def _given(reader: ir.Node) -> list[ir.Value]:
    """Return what a Gather gives, or the Squeeze behind a Slice."""
    squeeze = _only_reader(reader.outputs[0]) if op_of(reader) == SLICE else None
    return list(reader.outputs if squeeze is None or op_of(squeeze) != _SQUEEZE else squeeze.outputs)


def _part(reader: ir.Node, axis: int, count: int) -> int | None:
    """Return which part of an axis a Gather takes, or a Slice with the Squeeze behind it; None for anything else."""
    squeeze = _given(reader)[0].producer()
    constants = [
        tensor_of(value) for value in (*reader.inputs[1:], *(squeeze.inputs[1:] if squeeze is not None else ()))
    ]
    numbers = [constant.numpy().tolist() for constant in constants if constant is not None]
    if op_of(reader) == _GATHER and reader.attributes.get_int("axis", default=0) == axis:
        return numbers[0] % count if numbers and isinstance(numbers[0], int) else None
    first = numbers[0][0] if op_of(reader) == SLICE and numbers else -1
    taken = [[first], [first + 1], [axis]], [[first], [first + 1], [axis], [1]]
    return first if 0 <= first < count and numbers in [[*slicing, [axis]] for slicing in taken] else None


def _split(graph: ir.Graph, before: ir.Node, packed: ir.Value, sizes: ir.Value) -> list[ir.Value]:
    assert packed.shape is not None
    widths = constant_of(sizes).numpy().tolist()
    node = ir.node("Split", [packed, sizes], {"axis": -1}, num_outputs=len(widths), name=f"{before.name}/parts")
    for i, (value, width) in enumerate(zip(node.outputs, widths, strict=True)):
        value.name, value.type = f"{node.name}/{i}", packed.type
        value.shape = ir.Shape([*packed.shape[:-1], width])
    graph.insert_before(before, node)
    return list(node.outputs)


def _unpack(graph: ir.Graph, split: ir.Node, exclude: Collection[str]) -> None:
    """1. Where two of the parts at least are multiplied by each other, through what moves them alone."""
    packed, parts = split.inputs[0], list(split.outputs)
    if packed is None or packed.shape is None or _only_reader(packed) is None:
        return
    if split.attributes.get_int("axis", default=0) not in {-1, len(packed.shape) - 1}:
        return
    widths = [part.shape[-1] for part in parts if part.shape is not None]
    ends = np.cumsum([width for width in widths if isinstance(width, int)], dtype=np.intp)
    if sum(map(_is_multiplied, parts)) < _FACTORS or len(ends) < len(parts):
        return
    try:
        layer = layer_before(packed, "the packed value")
    except Refusal:
        return
    name = str(layer.node.name)
    if op_of(layer.node) == CONV or not layer.pointwise or name in exclude:
        return
    for i, (part, columns) in enumerate(zip(parts, np.split(np.arange(ends[-1]), ends[:-1]), strict=True)):
        substitute(part, _layer(graph, layer, columns, f"{name}/{i}"))


def _is_multiplied(value: ir.Value) -> bool:
    reader = _only_reader(value)
    while reader is not None and op_of(reader) in MOVES:
        reader = _only_reader(reader.outputs[0])
    return reader is not None and op_of(reader) == MATMUL and all(tensor_of(factor) is None for factor in reader.inputs)


def _layer(graph: ir.Graph, layer: Layer, columns: NDArray[np.intp], name: str) -> ir.Value:
    """Insert the layer of some columns of another, and return what it gives."""

    def stored(array: NDArray[np.generic], what: str, dtype: ir.DataType) -> ir.Value:
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=f"{name}/{what}")
        value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(dtype), shape=tensor.shape)
        graph.register_initializer(value)
        return value

    weight = constant_of(layer.weight)
    given = [layer.input, stored(weight.numpy().take(columns, layer.weight_axis), "weight", weight.dtype)]
    bias = []
    if layer.bias is not None:
        numbers = constant_of(layer.bias)
        bias = [stored(numbers.numpy().reshape(-1)[columns], "bias", numbers.dtype)]
    added = op_of(layer.node) == MATMUL and bias
    node = ir.node(
        layer.node.op_type,
        [*given, *([] if added else bias)],
        {attribute.name: attribute.value for attribute in layer.node.attributes.values()},
        name=name,
    )
    nodes = [node, ir.node("Add", [node.outputs[0], *bias], name=f"{name}/bias")] if added else [node]
    assert layer.output.shape is not None
    for each in nodes:
        each.outputs[0].name, each.outputs[0].type = f"{each.name}/output", layer.output.type
        each.outputs[0].shape = ir.Shape([*layer.output.shape[:-1], len(columns)])
        graph.insert_before(layer.adder, each)
    return nodes[-1].outputs[0]
