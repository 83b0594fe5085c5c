"""Recognise the product f(g) * u that a gated FFN multiplies its activation with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.rule import is_linear

if TYPE_CHECKING:
    from actx.exporter.lift.regions import Region


def find_gate(region: Region) -> tuple[ir.Value, ir.Value] | None:
    """Return (u, f(g) * u) where the region's one use is a product with a non-constant value of the same shape."""
    output = region.output
    consumers = output.consumers()
    if output.is_graph_output() or len(consumers) != 1 or consumers[0].op_type != "Mul":
        return None
    product = consumers[0]
    others = [v for v in product.inputs if v is not output]
    if len(others) != 1 or others[0] is None or ir.convenience.get_const_tensor(others[0]) is not None:
        return None
    multiplier = others[0]
    same = same_shape(output, multiplier) or same_shape(region.root, multiplier)
    return (multiplier, product.outputs[0]) if same else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values surely have one shape: by their dimensions, or by where they come from."""
    if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
        pairs = list(zip(a.shape, b.shape, strict=True))
        if all(_equal(p, q) for p, q in pairs):
            return True
        if any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in pairs):
            return False
    return _same_layer(_source(a), _source(b))


def _equal(p: int | ir.SymbolicDim, q: int | ir.SymbolicDim) -> bool:
    if isinstance(p, int) or isinstance(q, int):
        return p == q
    return p.value is not None and p.value == q.value


def _source(value: ir.Value) -> ir.Value:
    """Walk back through elementwise ops to the layer, or split, that made the value."""
    for _ in range(32):
        node = value.producer()
        if node is None or is_linear(node) or node.op_type == "Split":
            break
        data = [v for v in node.inputs if v is not None and ir.convenience.get_const_tensor(v) is None]
        if len(set(data)) != 1 or (node.domain, node.op_type) not in ELEMENTWISE:
            break
        value = data[0]
    return value


def _same_layer(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values are halves of one split, or two layers of one width over one input."""
    left, right = a.producer(), b.producer()
    if left is None or right is None or left.op_type != right.op_type:
        return False
    if left.op_type == "Split":
        return left is right and a.shape == b.shape
    if not is_linear(left) or left.inputs[0] is not right.inputs[0]:
        return False
    weights = [node.inputs[1] for node in (left, right)]
    shapes = [None if w is None else w.shape for w in weights]
    settings = [{name: attribute.value for name, attribute in node.attributes.items()} for node in (left, right)]
    return shapes[0] is not None and shapes[0] == shapes[1] and settings[0] == settings[1]
