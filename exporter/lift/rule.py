"""The rule that makes a region a site.

1. Its function is not affine, its type is one that the op `Spline` takes and its output surely has the shape of its input.
2. Its input comes from a linear op or a normalisation, through bias, residual sums, factors that many of its elements share,
   and changes of layout.
3. Its output reaches a linear op or a graph output, and not only through a reduction of itself: what a pooling gives may
   only be laid out and scaled on its way; a softmax, or a division by its own sum, ends the way.

A product of two vectors by MatMul or Einsum (contraction over one element, as in rotary position tables) is no linear op.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.lift.ops import (
    AFFINE,
    CONCAT,
    DIV,
    LAYERS,
    LAYOUT,
    MUL,
    NORMALISATIONS,
    POOLINGS,
    ROWWISE,
    SELECTION,
    SUMS,
    op_of,
    standard,
    tensor_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actx.exporter.lift.regions import Region

# A way of the output never goes through these.
ENDS = ROWWISE | standard("Shape", "Size")
# Both walks go on through these along their data.
MOVES = LAYOUT | SELECTION | POOLINGS
# But for those that only norms are made of, going back.
_NORMS = standard("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
# What may stand between a mean of squares and its root, and between the sum of a softmax and its division.
_OF_ROOT = standard("Sqrt", "Pow", "Reciprocal", "Div", "Add", "Cast", "Max", "Clip", "Unsqueeze", "Expand")
_OF_SUM = standard("Add", "Max", "Clip", "Reciprocal", "Expand", "Cast", "Unsqueeze", "Reshape", "Where")
TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# How far back the rule looks; a model has a handful of steps between a layer and its activation.
MAX_WALK = 64


def objection(region: Region, affine: bool) -> str | None:
    """Return why the region is no site, in words, or None where it is one."""
    dtype = region.output.dtype or region.root.dtype
    checks = (
        (affine, "affine: nothing to rewrite"),
        (dtype not in TYPES, f"its type is {dtype or 'unknown'}, not float32, float16 or bfloat16"),
        (not broadcasts_to(region.constants, region.root.shape), "its constants may give its output another shape"),
        (not comes_from_layer(region.root), "its input does not come from a linear op or a normalisation"),
        (
            not reaches_layer(region.output),
            "its output reaches no linear op or graph output but through a reduction of itself",
        ),
    )
    return next((reason for failed, reason in checks if failed), None)


def broadcasts_to(constants: Sequence[int], shape: ir.Shape | None) -> bool:
    """Tell whether an elementwise op of a value of this shape and constants of that one surely keeps the value's shape."""
    if shape is None:
        return not constants
    sizes = zip(reversed(constants), reversed(shape.dims), strict=False)
    return len(constants) <= len(shape) and all(size in {1, known} for size, known in sizes)


def is_linear(node: ir.Node) -> bool:
    """Tell whether the node mixes features: a convolution, or a contraction over more than one element."""
    return op_of(node) in LAYERS and not _is_outer_product(node)


def _is_outer_product(node: ir.Node) -> bool:
    if op_of(node) == ("", "Einsum"):
        terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        return bool(result) and set(terms.replace(",", "")) <= set(result)
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if op_of(node) != ("", "MatMul") or shape is None or len(shape) == 0:
        return False
    return shape[-1] == 1


def comes_from_layer(value: ir.Value) -> bool:
    """2. Walk back from the region's input to a linear op or a normalisation."""
    queue, seen = deque([value]), {value}
    while queue and len(seen) <= MAX_WALK:
        node = queue.popleft().producer()
        if node is None:
            continue
        if is_linear(node) or op_of(node) in NORMALISATIONS or _is_decomposed_norm(node):
            return True
        for source in _sources(node):
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return False


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs to walk back to: the data of a layout op, the operands of a sum, what a product scales."""
    present = [v for v in node.inputs if v is not None]
    op = op_of(node)
    if op in MOVES - _NORMS:
        yield from present if op == CONCAT else present[:1]
    elif op in AFFINE:
        data = [v for v in present if tensor_of(v) is None]
        if op in SUMS or len(data) == 1:
            yield from data
        elif op == MUL:
            yield from (value for value, factor in (data, data[::-1]) if _only_scales(factor, value))


def _only_scales(factor: ir.Value, value: ir.Value) -> bool:
    """Tell whether many elements of the value surely share each factor, as those of a channel do in meta-ACON."""
    if factor.shape is None or value.shape is None or len(factor.shape) > len(value.shape):
        return False
    pairs = list(zip(reversed(factor.shape.dims), reversed(value.shape.dims), strict=False))
    return any(p == 1 != q for p, q in pairs) and not any(q == 1 != p for p, q in pairs)


def _is_decomposed_norm(node: ir.Node) -> bool:
    """Tell whether the node scales by a root of a mean of squares: x / sqrt(..) or x * (1 / sqrt(..))."""
    return op_of(node) in {MUL, DIV} and any(v is not None and _is_root_of_mean(v) for v in node.inputs)


def _is_root_of_mean(value: ir.Value) -> bool:
    rooted = False
    for _ in range(8):
        node = value.producer()
        if node is None or not node.inputs:
            return False
        op = op_of(node)
        if op in POOLINGS:
            return rooted or op == ("", "ReduceL2")
        rooted = rooted or op in {("", "Sqrt"), ("", "Pow")}
        if op not in _OF_ROOT:
            return False
        data = [v for v in node.inputs if v is not None and tensor_of(v) is None]
        if not data:
            return False
        value = data[0]
    return False


def reaches_layer(value: ir.Value) -> bool:
    """3. Walk on from the region's output to a linear op or a graph output."""
    reductions = _own_sums(value)
    queue = deque([(value, False)])
    seen = {(value, False)}
    while queue:
        current, reduced = queue.popleft()
        if current.is_graph_output():
            return True
        for node in current.consumers():
            if is_linear(node):
                return True
            if op_of(node) in ENDS or (not reduced and any(v in reductions for v in node.inputs)):
                continue
            if reduced and not _keeps(node, current):
                continue
            for output in node.outputs:
                step = (output, reduced or op_of(node) in POOLINGS)
                if step not in seen:
                    seen.add(step)
                    queue.append(step)
    return False


def _keeps(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether the node only lays out, normalises or scales by constants."""
    op = op_of(node)
    if op in MOVES or op in NORMALISATIONS:
        return node.inputs[0] is value or op == CONCAT
    others = [v for v in node.inputs if v is not None and v is not value]
    return op in AFFINE and all(tensor_of(v) is not None for v in others)


def _own_sums(value: ir.Value) -> set[ir.Value]:
    """Return the sums and maxima of the value itself, by which a softmax divides (a norm takes a root of them first)."""
    sums: set[ir.Value] = set()
    queue = [output for node in value.consumers() if op_of(node) in POOLINGS for output in node.outputs]
    while queue:
        current = queue.pop()
        if current in sums or len(sums) > MAX_WALK:
            continue
        sums.add(current)
        for node in current.consumers():
            if op_of(node) in _OF_SUM:
                queue.extend(node.outputs)
    return sums
