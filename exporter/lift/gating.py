"""Recognise the product f(g) * u that a gated FFN multiplies its activation with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actx.exporter.lift.dims import equal_dim, equal_dims
from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.ops import MUL, SLICE, SPLIT, op_of, tensor_of
from actx.exporter.lift.rule import broadcasts_to, is_linear

if TYPE_CHECKING:
    import onnx_ir as ir

    from actx.exporter.lift.regions import Region


def find_gate(region: Region) -> tuple[ir.Value, ir.Value] | None:
    """Return (u, f(g) * u) where the region's one use is a product with a non-constant value of the same shape."""
    output = region.output
    consumers = output.consumers()
    if output.is_graph_output() or len(consumers) != 1 or op_of(consumers[0]) != MUL:
        return None
    product = consumers[0]
    if product.graph is not region.nodes[-1].graph:  # in a branch or the body of a loop
        return None
    others = [v for v in product.inputs if v is not output]
    if len(others) != 1 or others[0] is None or tensor_of(others[0]) is not None:
        return None
    multiplier = others[0]
    same = same_shape(output, multiplier) or same_shape(region.root, multiplier)
    return (multiplier, product.outputs[0]) if same else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values surely have one shape: by their dimensions, or by where they come from."""
    if a.shape is not None and b.shape is not None:
        sizes = zip(a.shape, b.shape, strict=False)
        if len(a.shape) != len(b.shape) or any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in sizes):
            return False
    return equal_dims(a, b) or _same_layer(_source(a), _source(b))


def _source(value: ir.Value) -> ir.Value:
    """Walk back through elementwise ops that keep the shape to the layer, or split, that made the value."""
    for _ in range(32):
        node = value.producer()
        if node is None or is_linear(node) or op_of(node) not in ELEMENTWISE:
            break
        tensors = {v: tensor_of(v) for v in node.inputs if v is not None}
        data = [v for v, tensor in tensors.items() if tensor is None]
        constants = [tensor.shape.numpy() for tensor in tensors.values() if tensor is not None]
        if len(data) != 1 or not all(broadcasts_to(shape, data[0].shape) for shape in constants):
            break
        value = data[0]
    return value


def _same_layer(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values are equal parts of one split, or results of two layers of one kind and size."""
    left, right = a.producer(), b.producer()
    if left is None or right is None or op_of(left) != op_of(right):
        return False
    if op_of(left) == SPLIT:
        return left is right and _same_part(left, a, b)
    if op_of(left) == SLICE:
        return left.inputs[0] is right.inputs[0] and _same_length(a, b)
    settings = [{name: attribute.value for name, attribute in node.attributes.items()} for node in (left, right)]
    return is_linear(left) and settings[0] == settings[1] and _same_operands(left, right)


def _same_part(split: ir.Node, a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two parts of a split have one size along its axis; in the other dimensions they agree."""
    sizes = tensor_of(split.inputs[1]) if len(split.inputs) > 1 else None
    if sizes is not None:
        return bool(sizes.numpy()[a.index()] == sizes.numpy()[b.index()])
    axis = split.attributes.get_int("axis", 0)
    return a.shape is not None and b.shape is not None and equal_dim(a.shape[axis], b.shape[axis])


def _same_length(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two slices of one value surely have one size along their one axis; in the others they agree."""
    axes = []
    for value in (a, b):
        node = value.producer()
        tensor = None if node is None or len(node.inputs) < 4 else tensor_of(node.inputs[3])
        if tensor is None or tensor.size != 1 or value.shape is None:
            return False
        axes.append(int(tensor.numpy().reshape(-1)[0]) % len(value.shape))
    assert a.shape is not None
    assert b.shape is not None
    return axes[0] == axes[1] and equal_dim(a.shape[axes[0]], b.shape[axes[1]])


def _same_operands(left: ir.Node, right: ir.Node) -> bool:
    """Tell whether the operands of two layers, except for a bias that one lacks, are the same or surely of one shape."""
    pairs = [(p, q) for p, q in zip(left.inputs, right.inputs, strict=False) if p is not None and q is not None]
    return all(p is q or equal_dims(p, q) for p, q in pairs)
