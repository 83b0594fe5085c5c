"""Write PolyNorm as standard ops, with the fewest passes over the data.

``sum_i w_i x^i / sqrt(mean(x^(2 i)) + epsilon) + b`` is, row by row, a polynomial of x: the even powers are computed for their
means alone, and Horner's rule takes coefficients per row. For degree 3 these are 12 passes, 3 of them sums, against 18 of the
definition. Arithmetic is in float32: x^6 leaves float16 beyond 6.35.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.lift import PolyNorm
    from actx.exporter.lower.emitter import Emitter


def emit_polynorm(emit: Emitter, x: ir.Value, function: PolyNorm) -> ir.Value:
    """Insert PolyNorm of x, whose weights are numbers, and return it in the type of x."""
    narrow = emit.dtype
    emit.dtype = ir.DataType.FLOAT
    wide = x if narrow is ir.DataType.FLOAT else emit.op("Cast", x, to=emit.dtype, dtype=emit.dtype)
    y = emit_row_polynomial(emit, wide, function.weights.tolist(), function.bias, function.epsilon)
    emit.dtype = narrow
    return y if narrow is ir.DataType.FLOAT else emit.op("Cast", y, to=narrow, dtype=narrow)


def emit_row_polynomial(
    emit: Emitter, x: ir.Value, weights: Sequence[ir.Value | float], bias: ir.Value | float, epsilon: float
) -> ir.Value:
    """Insert the polynomial of x, float32.

    Args:
        emit: where.
        x: float32 [..., D].
        weights: from the highest power; numbers or values of one element.
        bias: a number or a value of one element.
        epsilon: what is added to the mean of squares.
    """
    even = [emit.op("Mul", x, x)]
    while len(even) < len(weights):
        even.append(emit.op("Mul", even[0], even[-1]))
    coefficients = [
        emit.op("Div", weight, emit.op("Sqrt", emit.op("Add", emit.row_mean(square), epsilon)))
        for weight, square in zip(weights, reversed(even), strict=True)
    ]
    for coefficient in coefficients:
        coefficient.shape = None if x.shape is None else ir.Shape([*x.shape.dims[:-1], 1])
    y = emit.op("Mul", x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = emit.op("Mul", emit.op("Add", y, coefficient), x)
    return emit.op("Add", y, bias)
