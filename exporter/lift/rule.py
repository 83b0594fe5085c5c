"""The rule that makes a region a site.

1. Its function is not affine, its type is one that the op `Spline` takes and its output has the shape of its input.
2. Its input comes from a linear op or a normalisation, through bias, residual sums and changes of layout.
3. Its output reaches a linear op or a graph output, and not only through a reduction of itself: what a pooling gives may
   only be laid out and scaled on its way; a softmax, or a division by its own sum, ends the way.

A product of two vectors by MatMul or Einsum (contraction over one element, as in rotary position tables) is no linear op.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actx.exporter.lift.regions import Region

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "FusedConv"})
CONTRACTIONS = frozenset({
    "MatMul", "Gemm", "Einsum", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm", "MatMulNBits",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
})  # fmt: skip
NORMALISATIONS = frozenset({
    "LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization", "InstanceNormalization",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "LpNormalization",
})  # fmt: skip
LAYOUT = frozenset({
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout", "Split", "Slice", "Gather",
    "Concat", "Expand", "Pad", "DepthToSpace", "SpaceToDepth", "QuantizeLinear", "DequantizeLinear", "ScatterND",
})  # fmt: skip
POOLINGS = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
    "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LpPool",
})  # fmt: skip
# A way of the output never goes through these.
ENDS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "TopK", "ArgMax", "ArgMin", "CumSum", "NonZero", "Shape", "Size"})
AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# How far back the rule looks; a model has a handful of steps between a layer and its activation.
MAX_WALK = 64


def objection(region: Region, affine: bool) -> str | None:
    """Return why the region is no site, in words, or None where it is one."""
    dtype = region.output.dtype or region.root.dtype
    checks = (
        (affine, "affine: nothing to rewrite"),
        (dtype not in TYPES, f"its type is {dtype or 'unknown'}, not float32, float16 or bfloat16"),
        (not _same_shape(region), "its output has another shape than its input"),
        (not comes_from_layer(region.root), "its input does not come from a linear op or a normalisation"),
        (
            not reaches_layer(region.output),
            "its output reaches no linear op or graph output but through a reduction of itself",
        ),
    )
    return next((reason for failed, reason in checks if failed), None)


def _same_shape(region: Region) -> bool:
    """Tell whether the shapes are the same as far as they are known: parameters may have widened the output."""
    before, after = region.root.shape, region.output.shape
    if before is None or after is None:
        return True
    sizes = zip(before, after, strict=False)
    return len(before) == len(after) and all(p == q for p, q in sizes if isinstance(p, int) and isinstance(q, int))


def is_linear(node: ir.Node) -> bool:
    """Tell whether the node mixes features: a convolution, or a contraction over more than one element."""
    if node.op_type in CONVOLUTIONS:
        return True
    return node.op_type in CONTRACTIONS and not _is_outer_product(node)


def _is_outer_product(node: ir.Node) -> bool:
    if node.op_type == "Einsum":
        terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        return bool(result) and set(terms.replace(",", "")) <= set(result)
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if node.op_type != "MatMul" or shape is None or len(shape) == 0:
        return False
    return shape[-1] == 1


def comes_from_layer(value: ir.Value) -> bool:
    """2. Walk back from the region's input to a linear op or a normalisation."""
    queue, seen = deque([value]), {value}
    while queue and len(seen) <= MAX_WALK:
        node = queue.popleft().producer()
        if node is None:
            continue
        if is_linear(node) or node.op_type in NORMALISATIONS or _is_decomposed_norm(node):
            return True
        for source in _sources(node):
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return False


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs to walk back to: the data of a layout op, the operands of a sum, the one operand of a scaling."""
    present = [v for v in node.inputs if v is not None]
    if node.op_type in LAYOUT or node.op_type in POOLINGS:
        yield from present if node.op_type == "Concat" else present[:1]
    elif node.op_type in AFFINE:
        data = [v for v in present if ir.convenience.get_const_tensor(v) is None]
        if node.op_type in {"Add", "Sub"} or len(data) == 1:
            yield from data


def _is_decomposed_norm(node: ir.Node) -> bool:
    """Tell whether the node scales by a root of a mean of squares: x / sqrt(..) or x * (1 / sqrt(..))."""
    if node.op_type not in {"Mul", "Div"}:
        return False
    return any(v is not None and _is_root_of_mean(v) for v in node.inputs)


def _is_root_of_mean(value: ir.Value) -> bool:
    rooted = False
    for _ in range(8):
        node = value.producer()
        if node is None or not node.inputs:
            return False
        if node.op_type in POOLINGS:
            return rooted or node.op_type == "ReduceL2"
        rooted = rooted or node.op_type in {"Sqrt", "Pow"}
        if node.op_type not in {
            "Sqrt",
            "Pow",
            "Reciprocal",
            "Div",
            "Add",
            "Cast",
            "Max",
            "Clip",
            "Unsqueeze",
            "Expand",
        }:
            return False
        data = [v for v in node.inputs if v is not None and ir.convenience.get_const_tensor(v) is None]
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
            if node.op_type in ENDS or (not reduced and any(v in reductions for v in node.inputs)):
                continue
            if reduced and not _keeps(node, current):
                continue
            for output in node.outputs:
                step = (output, reduced or node.op_type in POOLINGS)
                if step not in seen:
                    seen.add(step)
                    queue.append(step)
    return False


def _keeps(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether the node only lays out, normalises or scales by constants."""
    if node.op_type in LAYOUT or node.op_type in POOLINGS or node.op_type in NORMALISATIONS:
        return node.inputs[0] is value or node.op_type == "Concat"
    others = [v for v in node.inputs if v is not None and v is not value]
    return node.op_type in AFFINE and all(ir.convenience.get_const_tensor(v) is not None for v in others)


def _own_sums(value: ir.Value) -> set[ir.Value]:
    """Return the sums and maxima of the value itself, by which a softmax divides (a norm takes a root of them first)."""
    sums: set[ir.Value] = set()
    queue = [output for node in value.consumers() if node.op_type in POOLINGS for output in node.outputs]
    while queue:
        current = queue.pop()
        if current in sums or len(sums) > MAX_WALK:
            continue
        sums.add(current)
        for node in current.consumers():
            if node.op_type in {"Add", "Max", "Clip", "Reciprocal", "Expand", "Cast", "Unsqueeze", "Reshape", "Where"}:
                queue.extend(node.outputs)
    return sums
