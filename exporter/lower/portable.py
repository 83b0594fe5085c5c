"""Lower a spline to standard ops: the fewest passes over the data that ONNX Runtime's CPU kernels need.

One pass over 1.5 M floats takes 0.2 to 0.4 ms there, whatever the op, so the cost of a form is its number of ops:

1. one op where the spline is one, and the opset has it for the type: Relu, LeakyRelu, PRelu, HardSwish;
2. continuous pieces of degree 1: a chain of leaky ReLUs, two ops a knot (a sum of hinges takes three, and half the speed);
3. linear tails and one polynomial between them: Horner's rule on the clipped input;
4. anything else, jumps included: every piece by Horner's rule, selected by Where;
5. a spline that is alike on both sides but for a multiple of x, such as one of gelu or silu, is
   ``a_m Relu(x) + a_0 Min(x, 0) + R(|x|)``: 2 to 4 for R take half the ops. At a jump to the left of zero it is the other
   piece that counts, one point each.

Where the runtime compiles a chain of elementwise ops into one loop over the data (`Emitter.fused`), arithmetic and registers
are what a form costs, and no longer its passes:

6. the knots of 2 are ``Max(r y + b, y)`` or ``Min``: a multiply-add and a comparison, less than half of a leaky ReLU;
7. continuous pieces between linear tails are a sum, of each piece's growth over the input clipped to it.

Both depend on what was computed before in every step, and the sum's last op before an addition is an addition: OpenVINO's
compiler evaluates a chain from the first operand of each op and takes the addend of a multiply-add for its last, so terms
that only depend on x would all wait in registers, and a graph that needs more of them than there are is refused. The pieces
of 4 do wait: from some 16 of them on (8 where a vector has 8 floats) a table with jumps cannot be compiled there.

Tails of slope 0 are left out, so that infinities follow the asymptotes and nothing becomes inf - inf. NaN gives NaN: it
fails every comparison, so the selection begins with a piece that depends on x. Where s(0) = 0 the result is 0: the
constant that 2, 3, 6 and 7 add makes up for what their own rounding leaves there (a runtime that contracts products and
sums rounds otherwise, and leaves one rounding).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.polynomial import Polynomial, polynomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops import Spline
    from actx.exporter.lower.emitter import Emitter

# Relative to the size of the function at a knot: float32 coefficients meet there only up to their rounding.
CONTINUITY = 8 * 2.0**-24
# Horner's rule loses as many roundings of the sum of its magnitudes; a sum this much larger is worth another op.
CANCELLATION = 64.0
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
        self.floor = -np.inf

    def bounds(self, i: int) -> tuple[float, float]:
        """Return the ends of piece i of a table that is not per channel."""
        ends = [self.floor, *self.knots[0].tolist(), np.inf]
        return ends[i], ends[i + 1]

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

    def right_half(self) -> _Table | None:
        """Return R of ``s(x) = a_m Max(x, 0) + a_0 Min(x, 0) + R(|x|)`` for a table that is alike on both sides, else None."""
        (_, left), (_, right) = self.tail(0), self.tail(-1)
        lines = np.stack([self.origins, np.ones_like(self.origins)], axis=-1)
        straight = np.zeros_like(self.pieces)
        width = min(2, straight.shape[2])
        straight[:, :, :width] = lines[:, :, :width]
        signs = (-1.0) ** np.arange(self.pieces.shape[2])
        mirrored = self.pieces[:, ::-1] * signs
        odd = self.pieces - mirrored - (left + right)[:, None, None] * straight
        scale = 1 + np.abs(self.pieces).max()
        alike = (
            self.segments > 2
            and self.has_linear_tails()
            and np.array_equal(self.knots, -self.knots[:, ::-1])
            and np.array_equal(self.origins, -self.origins[:, ::-1])
            and bool((np.abs(odd[:, self.segments // 2 :]) <= CONTINUITY * scale).all())
        )
        if not alike:
            return None
        half = copy.copy(self)
        first = self.segments // 2
        half.knots = self.knots[:, first:]
        half.pieces = (self.pieces - right[:, None, None] * straight)[:, first:]
        half.origins = self.origins[:, first:]
        half.segments = half.pieces.shape[1]
        half.floor = 0.0
        return half

    def tail_slopes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the slopes (C,) of both tails."""
        return self.tail(0)[1], self.tail(-1)[1]

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
    single = _single_op(emit, wide, table)
    return emit.op("Cast", _composed(emit, wide, table) if single is None else single, to=narrow, dtype=narrow)


def _composed(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value:
    """Insert 2 to 7: what lies between the tails, as a function of x or of |x|, plus the tails."""
    if table.segments == 1:
        return _selected_pieces(emit, x, table)
    half = table.right_half()
    part, variable = (table, x) if half is None else (half, emit.op("Abs", x))
    inside = slice(1 if half is None else 0, part.segments - 1)
    tails = _Tails(table, (table.knots[:, 0], table.knots[:, -1]) if half is None else _AT_ZERO)
    if table.is_continuous() and table.has_linear_tails() and part.segments > 1:
        pieces = part.pieces[:, inside]
        if pieces.shape[1] == 0:
            return tails.add(emit, x, None)
        if pieces.shape[2] <= 2:
            return tails.add(emit, x, _leaky_chain(emit, _clip(emit, variable, part, inside), part, inside))
        if pieces.shape[1] == 1:
            return tails.add(emit, x, _piece(emit, _clip(emit, variable, part, inside), part, inside.start))
        if emit.fused and not part.per_channel:
            return tails.add(emit, x, _growth(emit, variable, part, inside))
    selected = _selected_pieces(emit, variable, part)
    return selected if half is None else tails.add(emit, x, selected)


def _single_op(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value | None:
    """1."""
    if table.segments == 2 and table.has_linear_tails() and not table.knots.any():
        (left_offset, left), (right_offset, right) = table.tail(0), table.tail(1)
        if left_offset.any() or right_offset.any() or (right != 1).any():
            return None
        if not left.any():
            return emit.op("Relu", x) if emit.takes("Relu") else None
        if not emit.takes("PRelu") or not emit.takes("LeakyRelu"):
            return None
        return _prelu(emit, x, left) if table.per_channel else emit.op("LeakyRelu", x, alpha=float(left[0]))
    slope = _hardswish_slope(table)
    return None if slope is None or not emit.takes("HardSigmoid") else _hardswish(emit, x, slope)


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
    if emit.takes("HardSwish"):
        result = emit.op("HardSwish", scaled)
    else:
        result = emit.op("Mul", scaled, emit.op("HardSigmoid", scaled, alpha=1 / 6, beta=0.5))
    return result if plain else emit.op("Mul", result, 1 / slope)


def _leaky_chain(emit: Emitter, t: ir.Value, table: _Table, inside: slice) -> ir.Value:
    """2. The inner part plus lambda t is monotone, so that it is a composition of maps with one knot each.

    With slopes b_i = a_i + lambda > 0, ``y = b_last t``, then from the last knot to the first
    ``y = LeakyRelu(y - y(knot), b_i / b_(i+1))``: slope 1 to the right of the knot, the ratio to its left. The result is
    right up to a constant. 6. Without moving the knot to zero, that is the larger or the smaller of y and a line through it.
    """
    slopes, knots = table.slopes()[:, inside], table.knots[:, inside.start : inside.stop - 1]
    least, spread = slopes.min(axis=1), slopes.max(axis=1) - slopes.min(axis=1)
    lift = np.where(spread > 0, np.maximum(0, MIN_SLOPE_SHARE * spread - least), 0)
    lifted = slopes + lift[:, None]
    y = t if (lifted[:, -1] == 1).all() else emit.op("Mul", t, table.plain(lifted[:, -1]))
    at_knots = lifted[:, -1:] * knots
    for knot in reversed(range(knots.shape[1])):
        ratio, place = lifted[:, knot] / lifted[:, knot + 1], at_knots[:, knot]
        moved = at_knots - place[:, None]
        at_knots = np.where(moved < 0, ratio[:, None] * moved, moved)
        if emit.fused and not table.per_channel:
            y = _bent(emit, y, float(place[0]), float(ratio[0]))
            at_knots += place[:, None]
            continue
        y = emit.op("Sub", y, table.plain(place))
        y = _prelu(emit, y, ratio) if table.per_channel else emit.op("LeakyRelu", y, alpha=float(ratio[0]))
    return emit.op("Sub", y, emit.op("Mul", t, table.plain(lift))) if lift.any() else y


def _prelu(emit: Emitter, x: ir.Value, slope: NDArray[np.float64]) -> ir.Value:
    """Insert max(x, 0) + slope min(x, 0) with a slope per channel: OpenVINO takes the axis of PRelu's slope for another."""
    if not emit.fused:
        return emit.op("PRelu", x, slope)
    return emit.op("Add", emit.op("Relu", x), emit.op("Mul", emit.op("Min", x, 0.0), slope))


def _bent(emit: Emitter, y: ir.Value, place: float, ratio: float) -> ir.Value:
    """6. Insert y to the right of the place, and to its left the line through it with this slope."""
    line = emit.op("Add", emit.op("Mul", y, ratio), place * (1 - ratio))
    return emit.op("Max" if ratio < 1 else "Min", line, y)


def _growth(emit: Emitter, x: ir.Value, table: _Table, inside: slice) -> ir.Value:
    """7. The result is right up to a constant."""
    total = None
    for i in range(inside.start, inside.stop):
        low, high = table.bounds(i)
        if low <= 0 <= high:  # exact at zero
            term = _piece(emit, emit.op("Clip", x, low, high), table, i)
        else:
            middle, reach = (low + high) / 2, (high - low) / 2
            origin, coefficients = table.origins[0, i], table.pieces[0, i]
            moved = np.asarray(Polynomial(coefficients)(Polynomial([middle - origin, 1.0])).coef, dtype=np.float64)
            moved[0] -= polynomial.polyval(-reach if low > 0 else reach, moved)  # grows from the end nearer to zero
            term = _horner(emit, emit.op("Clip", emit.op("Sub", x, middle), -reach, reach), moved)
        total = term if total is None else emit.op("Add", total, term)
    assert total is not None
    return total


def _clip(emit: Emitter, x: ir.Value, table: _Table, inside: slice) -> ir.Value:
    """Keep x within the pieces; Clip takes scalar bounds only."""
    high = table.plain(table.knots[:, inside.stop - 1])
    if inside.start == 0:
        return emit.op("Min", x, high)
    low = table.plain(table.knots[:, inside.start - 1])
    return emit.op("Min", emit.op("Max", x, low), high) if table.per_channel else emit.op("Clip", x, low, high)


class _Tails:
    """The linear tails ``a_0 Min(x, low)`` and ``a_m Max(x, high)``, and the constant that makes s right at one place.

    That place is zero where s(0) = 0, else the first knot.
    """

    def __init__(self, table: _Table, bounds: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        self._table = table
        self._bounds = bounds

    def add(self, emit: Emitter, x: ir.Value, inner: ir.Value | None) -> ir.Value:
        table = self._table
        terms = [] if inner is None else [inner]
        for op_type, bound, slope in zip(("Min", "Max"), self._bounds, table.tail_slopes(), strict=True):
            if slope.any():
                at_zero = op_type == "Max" and not bound.any()
                limit = np.broadcast_to(bound, slope.shape)
                term = emit.op("Relu", x) if at_zero else emit.op(op_type, x, table.plain(limit))
                terms.append(term if (slope == 1).all() else emit.op("Mul", term, table.plain(slope)))
        total = terms[0] if terms else emit.op("Mul", x, 0.0)  # constant on both sides
        for term in terms[1:]:
            total = emit.op("Add", total, term)
        offset = self._offset(emit, x)
        return emit.op("Add", total, table.plain(offset)) if offset.any() else total

    def _offset(self, emit: Emitter, x: ir.Value) -> NDArray[np.float64]:
        table = self._table
        zero = table.at_zero() == 0
        values = np.where(zero, 0.0, table.at_knots(0)[:, 0])
        offset = values - emit.evaluate(x, np.where(zero, 0.0, table.knots[:, 0]))
        return np.where(~zero & (np.abs(offset) <= CONTINUITY * (1 + np.abs(values))), 0.0, offset)


_AT_ZERO = (np.zeros(1), np.zeros(1))


def _selected_pieces(emit: Emitter, x: ir.Value, table: _Table) -> ir.Value:
    """4."""
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
    """Insert piece i; one that is zero at zero stays so in any precision."""
    origin, coefficients = table.origins[:, i], table.pieces[:, i]
    low, high = table.bounds(i)
    if table.per_channel or not np.isfinite(high - low) or not _cancels(origin[0], coefficients[0], low, high):
        return _about(emit, x, table.plain(origin), table.plain(coefficients))
    plain = Polynomial(coefficients[0])(Polynomial([-origin[0], 1.0])).coef
    through_zero = plain[0] == 0
    middle = (low + high) / 2
    moved = Polynomial(plain[1:] if through_zero else plain)(Polynomial([middle, 1.0])).coef
    y = _about(emit, x, middle, np.asarray(moved, dtype=np.float64))
    return emit.op("Mul", y, x) if through_zero else y


def _cancels(origin: float, coefficients: NDArray[np.float64], low: float, high: float) -> bool:
    """Tell whether the powers cancel in float32, as those of degree 12 about the end of their piece do."""
    moved = Polynomial(coefficients)(Polynomial([(low + high) / 2 - origin, 1.0])).coef
    reach = max(abs(low - origin), abs(high - origin))
    lost = np.abs(coefficients) @ reach ** np.arange(len(coefficients))
    return bool(lost > CANCELLATION * (np.abs(moved) @ ((high - low) / 2) ** np.arange(len(moved))))


def _about(
    emit: Emitter, x: ir.Value, origin: float | NDArray[np.float64], coefficients: NDArray[np.float64]
) -> ir.Value:
    return _horner(emit, emit.op("Sub", x, origin) if np.any(origin) else x, coefficients)


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
