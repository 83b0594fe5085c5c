"""Write the ops of domain `actx` that a source holds as standard ops, for the portable graph.

Each op has one function below; arithmetic is in float32, whatever the element type, and rounded once at the end. What the
portable graph does not promise is what an infinity of X gives where tables are mixed, and an attention without keys, which ONNX
Runtime refuses to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.custom_ops.ops import DOMAIN, OPS
from actx.custom_ops.ops.gated_lut import GatedLutOp
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.ops.lut import CODE_COUNT, LutOp
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.qattention import EXPONENTIAL, LEAST_EXPONENT, LOG2_E, QAttentionOp
from actx.custom_ops.ops.qlinear import OCTET, PANEL, QLinearOp, QLinearToFloatOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp
from actx.exporter.errors import ActxError
from actx.exporter.lift.regions import attributes_of
from actx.exporter.lower.emitter import AXES_ARE_AN_INPUT, Constants, Emitter, substitute
from actx.exporter.lower.polynorm import emit_row_polynomial
from actx.exporter.lower.portable import emit_spline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actx.custom_ops import Spline

Inputs: TypeAlias = "list[ir.Value | None]"


def decompose(
    model: ir.Model, constants: Constants | None = None, *, fused: bool = False
) -> dict[str, tuple[str, ...]]:
    """Replace every actx node of the graph, in place; the values that the nodes gave keep their names.

    Args:
        model: types and shapes inferred; new nodes have the metadata of those in whose place they are.
        constants: those that were put into the graph before.
        fused: as in `Emitter`.

    Returns:
        For each of these values the types of the ops that compute it now.

    Raises:
        ActxError: a node cannot be written as standard ops.
    """
    graph = model.graph
    constants = Constants(graph) if constants is None else constants
    found = {}
    for node in [node for node in graph if node.domain == DOMAIN]:
        emit = Emitter(graph, constants, node, str(node.name), ir.DataType.FLOAT, fused=fused)
        try:
            new = _write(emit, node)
        except ValueError as error:
            raise ActxError(
                f"node {node.name} cannot be written as standard ops",
                note=str(error),
                remedy="Give the model's inputs a known rank and the sizes that the node needs.",
            ) from error
        name = str(node.outputs[0].name)
        substitute(node.outputs[0], new)
        graph.remove(node, safe=True)
        written = [producer for value in emit.values if (producer := value.producer()) is not None]
        for producer in written:
            producer.metadata_props.clear()
            producer.metadata_props.update(node.metadata_props)
        found[name] = tuple(dict.fromkeys(producer.op_type for producer in written))
    graph.opset_imports.pop(DOMAIN, None)
    return found


def _write(emit: Emitter, node: ir.Node) -> ir.Value:
    """Insert the node's mathematics, with floats widened before and rounded after."""
    op = OPS[node.op_type].from_attributes(attributes_of(node))
    inputs: Inputs = [*node.inputs, *[None] * (len(op.INPUTS) - len(node.inputs))]
    x = inputs[0]
    assert x is not None
    wide = [None if value is None else _widened(emit, value) for value in inputs]
    new = _WRITERS[type(op)](emit, op, wide)
    dtype = node.outputs[0].dtype or x.dtype
    if new.dtype == dtype or dtype is None:
        return new
    return emit.op("Cast", new, to=int(dtype), dtype=dtype)


def _widened(emit: Emitter, value: ir.Value) -> ir.Value:
    if value.dtype is None:
        msg = f"the type of {value.name} is not known"
        raise ValueError(msg)
    if value.dtype is ir.DataType.FLOAT or not value.dtype.is_floating_point():
        return value
    return emit.op("Cast", value, to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)


# --- parts ---


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        msg = f"the rank of {value.name} is not known"
        raise ValueError(msg)
    return len(value.shape)


def _from_end(value: ir.Value, axis: int) -> int:
    """Count the axis from the end."""
    return axis if axis < 0 else axis - _rank(value)


def _size(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    if not isinstance(size, int):
        msg = f"the size of {value.name} along axis {axis} is not known"
        raise ValueError(msg)
    return size


def _spline(emit: Emitter, x: ir.Value, spline: Spline) -> ir.Value:
    part = emit.part(None if spline.axis is None else _from_end(x, spline.axis))
    result = emit_spline(part, x, spline)  # which evaluates what it has emitted
    emit.values += part.values
    return result


def _times(emit: Emitter, first: ir.Value, u: ir.Value | None) -> ir.Value:
    return first if u is None else emit.op("Mul", first, u)


def _sum(emit: Emitter, terms: list[ir.Value]) -> ir.Value:
    total, *others = terms
    for term in others:
        total = emit.op("Add", total, term)
    return total


def _entry(emit: Emitter, table: ir.Value, x: ir.Value, per_channel: ir.Value | None = None) -> ir.Value:
    """Take from the table the entry of each code of x, or that of its channel's part of the table."""
    place = emit.op("Cast", x, to=int(ir.DataType.INT32), dtype=ir.DataType.INT32)
    if x.dtype is ir.DataType.INT8:
        offset = emit.constants.get(np.array(CODE_COUNT // 2, np.int32), ir.DataType.INT32)
        place = emit.op("Add", place, offset)
    if per_channel is not None:
        place = emit.op("Add", place, per_channel)
    entry = emit.op("Gather", table, place, axis=0)
    entry.shape = x.shape
    return entry


# --- the ops ---


def _write_spline(emit: Emitter, op: SplineOp, inputs: Inputs) -> ir.Value:
    x, u = inputs
    assert x is not None
    return _times(emit, _spline(emit, x, op.spline), u)


def _write_gated_spline(emit: Emitter, op: GatedSplineOp, inputs: Inputs) -> ir.Value:
    (x,) = inputs
    assert x is not None
    axis = _from_end(x, op.axis)
    if op.layout == "split":
        width = _size(x, axis) // 2
        halves = [emit.slice(x, axis, 0, width), emit.slice(x, axis, width)]
    else:
        halves = [emit.slice(x, axis, start, step=2) for start in (0, 1)]
    gate, other = halves[op.gate], halves[1 - op.gate]
    return emit.op("Mul", _spline(emit, gate, op.spline), other if op.other is None else _spline(emit, other, op.other))


def _write_spline_mix(emit: Emitter, op: SplineMixOp, inputs: Inputs) -> ir.Value:
    x, g, u = inputs
    assert x is not None
    assert g is not None
    terms = [emit.op("Mul", _spline(emit, x, entry), emit.slice(g, -1, i, i + 1)) for i, entry in enumerate(op.entries)]
    return _times(emit, _sum(emit, terms), u)


def _write_polynorm(emit: Emitter, op: PolyNormOp, inputs: Inputs) -> ir.Value:
    x, w, b, u = inputs
    assert x is not None
    assert w is not None
    assert b is not None
    weights = [emit.slice(w, 0, i, i + 1) for i in range(_size(w, 0))]
    return _times(emit, emit_row_polynomial(emit, x, weights, b, op.epsilon), u)


def _write_lut(emit: Emitter, op: LutOp, inputs: Inputs) -> ir.Value:
    (x,) = inputs
    assert x is not None
    dtype = x.dtype if op.to is None else ir.DataType(op.to)
    assert dtype is not None
    table = emit.constants.get(np.array(op.table, dtype.numpy()), dtype)
    if op.axis is None:
        return _entry(emit, table, x)
    starts = np.arange(op.channels, dtype=np.int32) * CODE_COUNT
    column = starts.reshape(-1, *[1] * (-_from_end(x, op.axis) - 1))
    return _entry(emit, table, x, emit.constants.get(column, ir.DataType.INT32))


def _write_gated_lut(emit: Emitter, op: GatedLutOp, inputs: Inputs) -> ir.Value:
    x, u = inputs
    assert x is not None
    assert u is not None
    dtype = x.dtype if op.to is None else ir.DataType(op.to)
    assert dtype is not None
    limits = np.iinfo(dtype.numpy())
    gate = _entry(emit, emit.constants.get(np.array(op.table, np.float32), ir.DataType.FLOAT), x)
    wide = emit.op("Cast", u, to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
    product = emit.op("Round", emit.op("Mul", gate, emit.op("Sub", wide, float(op.u_zero_point))))
    codes = emit.op("Clip", emit.op("Add", product, float(op.y_zero_point)), float(limits.min), float(limits.max))
    return emit.op("Cast", codes, to=int(dtype), dtype=dtype)


def _write_qlinear(emit: Emitter, op: QLinearOp | QLinearToFloatOp, inputs: Inputs) -> ir.Value:
    """Multiply in float64, where all sums are exact: those of MatMulInteger are not on every CPU (VPMADDUBSW saturates)."""
    x, w, b, s = inputs
    assert x is not None
    assert w is not None
    assert b is not None
    inner, outer = _size(x, -1), _size(b, 0)

    def shaped(value: ir.Value, dims: list[int]) -> ir.Value:
        value.shape = ir.Shape(dims)
        return value

    dims, perm = [-(-outer // PANEL), -(-inner // OCTET), 2, PANEL, OCTET // 2], [1, 2, 4, 0, 3]
    blocks = shaped(emit.op("Reshape", w, emit.integers(*dims)), dims)
    ordered = shaped(emit.op("Transpose", blocks, perm=perm), [dims[i] for i in perm])
    dims = [dims[1] * OCTET, dims[0] * PANEL]
    whole = shaped(emit.op("Reshape", ordered, emit.integers(*dims)), dims)
    matrix = emit.slice(emit.slice(whole, 0, 0, inner), 1, 0, outer)
    factors = [emit.op("Cast", v, to=int(ir.DataType.DOUBLE), dtype=ir.DataType.DOUBLE) for v in (x, matrix)]
    product = emit.op("MatMul", *factors)
    product.shape = None if x.shape is None else ir.Shape([*x.shape.dims[:-1], outer])
    sums = emit.op("Cast", product, to=int(ir.DataType.INT32), dtype=ir.DataType.INT32)
    numbers = emit.op("Cast", emit.op("Add", sums, b), to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
    scaled = emit.op("Mul", numbers, s)
    if isinstance(op, QLinearToFloatOp):
        return scaled
    codes = emit.op("Clip", emit.op("Add", emit.op("Round", scaled), float(op.zero_point)), 0.0, 255.0)
    found = emit.op("Cast", codes, to=int(ir.DataType.UINT8), dtype=ir.DataType.UINT8)
    if op.table is None:
        return found
    return _entry(emit, emit.constants.get(np.array(op.table, np.uint8), ir.DataType.UINT8), found)


def _write_qattention(emit: Emitter, op: QAttentionOp, inputs: Inputs) -> ir.Value:
    """Multiply in float64, where all sums are exact and a product and a sum are rounded once."""
    q, k, v, mask = inputs
    assert q is not None
    assert k is not None
    assert v is not None

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return emit.op("Cast", value, to=int(dtype), dtype=dtype)

    def fused(a: ir.Value, b: ir.Value | float, c: ir.Value | float) -> ir.Value:
        factor, added = (
            cast(x, ir.DataType.DOUBLE)
            if isinstance(x, ir.Value)
            else emit.constants.get(np.array(x, np.float64), ir.DataType.DOUBLE)
            for x in (b, c)
        )
        product = emit.op("Mul", cast(a, ir.DataType.DOUBLE), factor)
        return cast(emit.op("Add", product, added), ir.DataType.FLOAT)

    def moved(op_type: str, value: ir.Value, dims: list[Any] | None, *given: ir.Value, **attributes: Any) -> ir.Value:
        found = emit.op(op_type, value, *given, **attributes)
        found.shape = None if dims is None else ir.Shape(dims)
        return found

    def by_heads(codes: ir.Value, zero_point: int, perm: list[int]) -> ir.Value:
        dims = None if codes.shape is None else [*codes.shape.dims[:2], op.heads, _part(codes.shape[2], op.heads)]
        size = -1 if dims is None or not isinstance(dims[-1], int) else dims[-1]
        split = moved("Reshape", codes, dims, emit.integers(0, 0, op.heads, size))
        turned = moved("Transpose", split, None if dims is None else [dims[i] for i in perm], perm=perm)
        return cast(emit.op("Sub", cast(turned, ir.DataType.FLOAT), float(zero_point)), ir.DataType.DOUBLE)

    def product(a: ir.Value, b: ir.Value) -> ir.Value:
        found = moved("MatMul", a, None if a.shape is None or b.shape is None else [*a.shape.dims[:3], b.shape[3]], b)
        return cast(found, ir.DataType.FLOAT)

    def row(op_type: str, value: ir.Value) -> ir.Value:
        dims = None if value.shape is None else [*value.shape.dims[:3], 1]
        if op_type == "ReduceMax" and emit.opset < AXES_ARE_AN_INPUT:
            return moved(op_type, value, dims, axes=[-1], keepdims=1)
        return moved(op_type, value, dims, emit.integers(-1), keepdims=1)

    queries, keys = by_heads(q, op.q_zero_point, [0, 2, 1, 3]), by_heads(k, op.k_zero_point, [0, 2, 3, 1])
    log2_e, largest = np.float32(LOG2_E), float(np.finfo(np.float32).max)
    added = 0.0 if mask is None else emit.op("Mul", mask, float(log2_e))
    scores = fused(product(queries, keys), float(np.float32(op.scale) * log2_e), added)
    number = emit.op(
        "Where", emit.op("IsNaN", scores, dtype=ir.DataType.BOOL), -largest, scores, dtype=ir.DataType.FLOAT
    )
    number.shape = scores.shape
    scores = emit.op("Clip", number, -largest, largest)
    exponent = emit.op("Max", emit.op("Sub", scores, row("ReduceMax", scores)), LEAST_EXPONENT)
    whole = emit.op("Round", exponent)
    part, value = emit.op("Sub", exponent, whole), None
    for coefficient in EXPONENTIAL[-2::-1]:
        value = fused(part, EXPONENTIAL[-1], coefficient) if value is None else fused(value, part, coefficient)
    assert value is not None
    power = emit.op("Pow", 2.0, whole, dtype=ir.DataType.FLOAT)
    power.shape = whole.shape
    weights = cast(emit.op("Round", emit.op("Mul", value, power)), ir.DataType.DOUBLE)
    factor = emit.op(
        "Div", op.output_scale, cast(row("ReduceSum", weights), ir.DataType.FLOAT), dtype=ir.DataType.FLOAT
    )
    factor.shape = None if weights.shape is None else ir.Shape([*weights.shape.dims[:3], 1])
    means = emit.op("Mul", product(weights, by_heads(v, op.v_zero_point, [0, 2, 1, 3])), factor)
    zero = float(op.y_zero_point)
    rounded = emit.op("Add", emit.op("Round", emit.op("Clip", means, -zero, 255 - zero)), zero)
    codes = cast(rounded, ir.DataType.UINT8)
    dims = None if codes.shape is None else [codes.shape[i] for i in (0, 2, 1, 3)]
    back = moved("Transpose", codes, dims, perm=[0, 2, 1, 3])
    width = None if v.shape is None else v.shape[2]
    ends = None if dims is None else [*dims[:2], width]
    return moved("Reshape", back, ends, emit.integers(0, 0, width if isinstance(width, int) else -1))


def _part(width: Any, heads: int) -> Any:
    return width // heads if isinstance(width, int) else ir.SymbolicDim(None)


_WRITERS: Mapping[type[Any], Callable[[Emitter, Any, Inputs], ir.Value]] = {
    SplineOp: _write_spline,
    GatedSplineOp: _write_gated_spline,
    SplineMixOp: _write_spline_mix,
    PolyNormOp: _write_polynorm,
    LutOp: _write_lut,
    GatedLutOp: _write_gated_lut,
    QAttentionOp: _write_qattention,
    QLinearOp: _write_qlinear,
    QLinearToFloatOp: _write_qlinear,
}
