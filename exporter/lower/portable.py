"""Lower a spline to standard ops: the fewest passes over the data that ONNX Runtime's CPU kernels need.

One pass over 1.5 M floats takes 0.2 to 0.4 ms there, whatever the op, so the cost of a form is its number of ops:

1. one op where the spline is one: Relu, LeakyRelu, PRelu, HardSwish;
2. continuous pieces of degree 1: a chain of leaky ReLUs, two ops a knot (a sum of hinges takes three, and half the speed);
3. linear tails and an even polynomial between them, ``Relu(x) + R(Min(|x|, T))``: Horner's rule once for both sides;
4. linear tails and one polynomial between them: Horner's rule on the clipped input;
5. anything else, jumps included: every piece by Horner's rule, selected by Where.

Tails of slope 0 are left out, so that infinities follow the asymptotes and nothing becomes inf - inf. NaN gives NaN: it
fails every comparison, so the selection begins with a piece that depends on x. Where s(0) = 0 the result is 0: the
constant that 2 and 4 add makes up for what their own rounding leaves there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.polynomial import polynomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops import Spline
    from actx.exporter.lower.emitter import Emitter

# Relative to the size of the function at a knot: float32 coefficients meet there only up to their rounding.
CONTINUITY = 8 * 2.0**-24
HARD_SWISH_OPSET = 14
# The smallest inner slope of the chain, as a share of the range of slopes: keeps its ratios moderate.
MIN_SLOPE_SHARE = 0.25


class _Table:
    """A spline in float64, leading channel dimension first: knots (C, n-1), pieces (C, n, d+1), origins (C, n)."""

    def __init__(self, spline: Spline) -> None:
        self.per_channel = spline.axis is not None
        lead = (slice(None),) if self.per_channel else (None,)
        self.knots = spline.knots.astype(np.float64)[lead]
        self.pieces = spline.coefficients.astype(np.float64)[lead]
        self.origins = spline.origins.astype(np.float64)[lead]
        self.segments = spline.segments

    def plain(self, column: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (C,) for a per-channel table, else the one number."""
        return column if self.per_channel else column[0]

    def at_knots(self, side: int) -> NDArray[np.float64]:
        """Return the values (C, n-1) of the pieces to the left (0) or to the right (1) of every knot."""
        pieces = slice(side, self.segments - 1 + side)
        t = self.knots - self.origins[:, pieces]
        powers = t[..., None] ** np.arange(self.pieces.shape[2])
        return np.asarray((self.pieces[:, pieces] * powers).sum(axis=-1))

    def at_zero(self) -> NDArray[np.float64]:
        """Return s(0), (C,)."""
        piece = (self.knots <= 0).sum(axis=1)
        rows = np.arange(len(piece))
        powers = (-self.origins[rows, piece])[:, None] ** np.arange(self.pieces.shape[2])
        return np.asarray((self.pieces[rows, piece] * powers).sum(axis=-1))

    def is_continuous(self) -> bool:
        left, right = self.at_knots(0), self.at_knots(1)
        scale = 1 + np.abs(self.knots) + np.abs(left)
        return bool((np.abs(left - right) <= CONTINUITY * scale).all())

    def has_linear_tails(self) -> bool:
        return not self.pieces[:, [0, -1], 2:].any()

    def slopes(self) -> NDArray[np.float64]:
        """Return (C, n) for a table of degree 1."""
        return self.pieces[:, :, 1] if self.pieces.shape[2] > 1 else np.zeros(self.pieces.shape[:2])

    def tail(self, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return offset and slope (C,) of the linear tail."""
        piece = self.pieces[:, side]
        slope = piece[:, 1] if piece.shape[1] > 1 else np.zeros(len(piece))
        return piece[:, 0] - slope * self.origins[:, side], slope


def emit_spline(emit: Emitter, x: ir.Value, spline: Spline) -> ir.Value:
    """Insert s(x) and return it."""
    table = _Table(spline)
    single = _single_op(emit, x, table)
    return single if single is not None else _in_float32(emit, x, table)


def _in_float32(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value:
    """Widen half precision: sums of pieces lose too much in it, and runtimes on CPUs widen every op anyway."""
    narrow = emit.dtype
    if narrow in {ir.DataType.FLOAT, ir.DataType.DOUBLE}:
        return _composed(emit, x, table)
    emit.dtype = ir.DataType.FLOAT
    wide = emit.op("Cast", x, to=emit.dtype, dtype=emit.dtype)
    return emit.op("Cast", _composed(emit, wide, table), to=narrow, dtype=narrow)


def _composed(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value:
    for attempt in (_leaky_chain, _even_polynomial, _clipped_polynomial):
        result = attempt(emit, x, table)
        if result is not None:
            return result
    return _selected_pieces(emit, x, table)


def _single_op(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value | None:
    """1."""
    if table.segments == 2 and table.has_linear_tails() and not table.knots.any():
        (left_offset, left), (right_offset, right) = table.tail(0), table.tail(1)
        if left_offset.any() or right_offset.any() or (right != 1).any():
            return None
        if not left.any():
            return emit.op("Relu", x)
        return emit.op("PRelu", x, left) if table.per_channel else emit.op("LeakyRelu", x, alpha=float(left[0]))
    slope = _hardswish_slope(table)
    return None if slope is None else _hardswish(emit, x, slope)


def _hardswish_slope(table: _Table) -> float | None:
    """Return c where the spline is hs(c x) / c: 0, x/2 + c x^2 / 6 between -3/c and 3/c, x."""
    if table.per_channel or table.segments != 3 or table.pieces.shape[2] != 3 or table.origins.any():
        return None
    c = 6 * float(table.pieces[0, 1, 2])
    if not c > 0:
        return None
    expected = np.array([[0, 0, 0], [0, 0.5, c / 6], [0, 1, 0]])
    near = np.allclose(table.pieces[0], expected, rtol=1e-6, atol=0) and np.allclose(
        table.knots[0] * c, (-3, 3), rtol=1e-6
    )
    return c if near else None


def _hardswish(emit: Emitter, x: ir.Value, slope: float) -> ir.Value:
    plain = np.isclose(slope, 1, rtol=1e-6)
    scaled = x if plain else emit.op("Mul", x, slope)
    if emit.opset >= HARD_SWISH_OPSET:
        result = emit.op("HardSwish", scaled)
    else:
        result = emit.op("Mul", scaled, emit.op("HardSigmoid", scaled, alpha=1 / 6, beta=0.5))
    return result if plain else emit.op("Mul", result, 1 / slope)


def _leaky_chain(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value | None:
    """2. The inner part plus lambda t is monotone, so that it is a composition of maps with one knot each.

    With slopes b_i = a_i + lambda > 0, ``y = b_last t``, then from the last knot to the first
    ``y = LeakyRelu(y - y(knot), b_i / b_(i+1))``: slope 1 to the right of the knot, the ratio to its left.
    """
    if table.pieces.shape[2] != 2 or table.segments < 2 or not table.is_continuous():
        return None
    first, last = table.knots[:, 0], table.knots[:, -1]
    if table.segments == 2:
        return _with_tails(emit, x, None, table)
    t = _clip(emit, x, table, first, last)
    slopes = table.slopes()[:, 1:-1]
    spread = slopes.max(axis=1) - slopes.min(axis=1)
    lift = (
        np.maximum(0, MIN_SLOPE_SHARE * spread - slopes.min(axis=1)) if slopes.shape[1] > 1 else np.zeros(len(slopes))
    )
    lifted = slopes + lift[:, None]
    y = t if (lifted[:, -1] == 1).all() else emit.op("Mul", t, table.plain(lifted[:, -1]))
    at_knots = lifted[:, -1:] * table.knots
    for knot in range(slopes.shape[1] - 1, 0, -1):
        ratio = lifted[:, knot - 1] / lifted[:, knot]
        y = emit.op("Sub", y, table.plain(at_knots[:, knot]))
        y = emit.op("PRelu", y, ratio) if table.per_channel else emit.op("LeakyRelu", y, alpha=float(ratio[0]))
        at_knots = at_knots - at_knots[:, knot : knot + 1]
        at_knots = np.where(at_knots < 0, ratio[:, None] * at_knots, at_knots)
    if lift.any():
        y = emit.op("Sub", y, emit.op("Mul", t, table.plain(lift)))
    return _with_tails(emit, x, y, table)


def _clip(emit: Emitter, x: ir.Value, table: _Table, low: NDArray[np.float64], high: NDArray[np.float64]) -> ir.Value:
    """Clip takes scalar bounds only."""
    if table.per_channel:
        return emit.op("Min", emit.op("Max", x, low), high)
    return emit.op("Clip", x, low[0], high[0])


def _with_tails(emit: Emitter, x: ir.Value, inner: ir.Value | None, table: _Table) -> ir.Value:
    """Add the tails ``a_0 Min(x, k_1)`` and ``a_m Max(x, k_m)``, and the constant that makes s right at one place.

    That place is zero where s(0) = 0, else the first knot.
    """
    terms = [] if inner is None else [inner]
    for op_type, knot, slope in (("Min", 0, table.tail(0)[1]), ("Max", -1, table.tail(-1)[1])):
        if slope.any():
            bounded = emit.op(op_type, x, table.plain(table.knots[:, knot]))
            terms.append(bounded if (slope == 1).all() else emit.op("Mul", bounded, table.plain(slope)))
    if not terms:  # constant on both sides
        terms = [emit.op("Mul", x, 0.0)]
    total = terms[0]
    for term in terms[1:]:
        total = emit.op("Add", total, term)
    at_zero = table.at_zero()
    places = np.where(at_zero == 0, 0.0, table.knots[:, 0])
    values = np.where(at_zero == 0, 0.0, table.at_knots(0)[:, 0])
    offset = values - emit.evaluate(x, places)
    return emit.op("Add", total, table.plain(offset)) if offset.any() else total


def _even_polynomial(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value | None:
    """3. Knots -T, 0, T, tails a_0 x + b and a_3 x + b, and pieces alike but for a multiple of x and the sign of odd powers."""
    if table.segments != 4 or table.per_channel or not table.has_linear_tails() or table.origins.any():
        return None
    knots, pieces = table.knots[0], table.pieces[0]
    signs = (-1.0) ** np.arange(pieces.shape[1])
    mirrored = pieces[1] * signs
    slopes = np.zeros_like(mirrored)
    slopes[1] = pieces[0, 1] + pieces[3, 1]
    even = knots[1] == 0 and knots[0] == -knots[2] and pieces[0, 0] == pieces[3, 0]
    if not even or not np.allclose(pieces[2] - mirrored, slopes, rtol=0, atol=CONTINUITY) or not table.is_continuous():
        return None
    remainder = pieces[2].copy()
    remainder[1] -= pieces[3, 1]
    y = _horner(emit, emit.op("Min", emit.op("Abs", x), knots[2]), remainder)
    for op_type, slope in (("Max", pieces[3, 1]), ("Min", pieces[0, 1])):
        if slope:
            bounded = emit.op("Relu", x) if op_type == "Max" else emit.op("Min", x, 0.0)
            y = emit.op("Add", y, bounded if slope == 1 else emit.op("Mul", bounded, slope))
    return y


def _clipped_polynomial(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value | None:
    """4."""
    if table.segments != 3 or table.per_channel or not table.has_linear_tails() or not table.is_continuous():
        return None
    knots = table.knots[0]
    t = emit.op("Clip", x, knots[0], knots[1])
    origin = table.origins[0, 1]
    inner = _horner(emit, emit.op("Sub", t, origin) if origin else t, table.pieces[0, 1])
    return _with_tails(emit, x, inner, table)


def _selected_pieces(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value:
    """5."""
    varying = np.flatnonzero(table.pieces[:, :, 1:].any(axis=(0, 2)))
    first = int(varying[0]) if len(varying) else 0
    result = _piece(emit, x, table, first)
    others = [("GreaterOrEqual", i - 1, i) for i in range(first + 1, table.segments)]
    others += [("Less", i, i) for i in reversed(range(first))]
    for op_type, knot, i in others:
        beyond = emit.op(op_type, x, table.plain(table.knots[:, knot]), dtype=ir.DataType.BOOL)
        result = emit.op("Where", beyond, _piece(emit, x, table, i), result, dtype=x.dtype)
    if not len(varying):
        result = emit.op("Where", emit.op("IsNaN", x, dtype=ir.DataType.BOOL), x, result, dtype=x.dtype)
    return result


def _piece(emit: Emitter, x: ir.Value, table: _Table, i: int) -> ir.Value:
    origin = table.plain(table.origins[:, i])
    t = emit.op("Sub", x, origin) if np.any(origin) else x
    pieces = table.pieces[:, i]
    return _horner(emit, t, pieces if table.per_channel else pieces[0])


def _horner(emit: Emitter, t: ir.Value, coefficients: NDArray[np.float64]) -> ir.Value:
    """Insert sum_j c_j t^j, without its zero leading coefficients; c is (d+1,) or (C, d+1)."""
    if coefficients.ndim == 1:
        coefficients = np.asarray(polynomial.polytrim(coefficients))
    *lower, lead = np.moveaxis(coefficients, -1, 0)
    if not lower:
        return emit.constant(lead)
    y = t if np.all(lead == 1) else emit.op("Mul", t, lead)
    for power, c in enumerate(reversed(lower)):
        if np.any(c):
            y = emit.op("Add", y, c)
        if power < len(lower) - 1:
            y = emit.op("Mul", y, t)
    return y
