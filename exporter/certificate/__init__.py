"""Prove how far a table is from its function: a bound on ``|f - s|`` over every float32 number of an interval.

f is evaluated by its own formula, or by the graph of the region it came from, in balls; s has its stored coefficients. The
interval is split at the knots and at zero; over each part the error e = f - s lies in

    e(I),   e(m) + e'(I) (I - m)   and   e(m) + e'(m) (I - m) + e''(m) (I - m)^2 / 2 + e'''(I) (I - m)^3 / 6,

and the part with the largest bound is split again until no bound is much larger than the error that was found by sampling.
A part of two neighbouring float32 numbers is only these two: no other input lies between them. So kinks and jumps cost
some forty splits each, and neither needs a case of its own.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flint import arb, arb_poly, ctx

from actx.exporter.certificate.jet import Jet, operand, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actx.custom_ops import Spline

__all__ = ["Certificate", "certify"]

PRECISION = 80  # bits
# The bound may exceed the sampled error by this share before the search stops, or by this much of the largest |x|.
SLACK = 1 / 256
FLOOR = 2.0**-50
MAX_PARTS = 12_000


@dataclass(frozen=True)
class Certificate:
    """What was proved.

    Attributes:
        error: ``|f(x) - s(x)| <= error`` for every float32 number x of the interval, s with its stored coefficients and
            exact arithmetic.
        interval: both ends belong to it.
    """

    error: float
    interval: tuple[float, float]


def certify(
    function: Callable[[Any], Any], spline: Spline, interval: tuple[float, float], *, expected: float
) -> Certificate | None:
    """Bound the largest difference between a function and a table that is not per channel.

    Args:
        function: f, a formula of numpy's ufuncs.
        spline: s.
        interval: finite; its ends are rounded to float32, outwards.
        expected: the error found by sampling. The search stops when the bound is within `SLACK` of it, or after
            `MAX_PARTS` parts: the bound then holds all the same, but is larger.

    Returns:
        None where f is no such formula, has an operation without a rule in `jet`, or no bound was found.
    """
    with ctx.workprec(PRECISION):
        try:
            return _certify(_Error(function, spline), interval, expected)
        except (TypeError, AttributeError, ValueError):
            return None


class _Error:
    """e = f - s on parts that lie in one piece of s each."""

    def __init__(self, function: Callable[[Any], Any], spline: Spline) -> None:
        self._function = function
        self.knots = spline.knots
        self._origins = [arb(float(origin)) for origin in spline.origins]
        self._pieces = [arb_poly([arb(float(c)) for c in row]) for row in spline.coefficients]
        self._shifted = [
            piece(arb_poly([-origin, 1])) for piece, origin in zip(self._pieces, self._origins, strict=True)
        ]
        self._firsts = [piece.derivative() for piece in self._pieces]
        self._seconds = [piece.derivative() for piece in self._firsts]
        self._thirds = [piece.derivative() for piece in self._seconds]

    def jet(self, x: arb, piece: int) -> Jet:
        f = operand(self._function(Jet.variable(x)))
        if not isinstance(f, Jet):
            msg = f"f gives a {type(f).__name__}"
            raise TypeError(msg)
        t = x - self._origins[piece]
        error = Jet(
            f.value - self._pieces[piece](t),
            f.first - self._firsts[piece](t),
            f.second - self._seconds[piece](t),
            f.third - self._thirds[piece](t),
        )
        if f.fraction is None or not f.value.is_finite():
            return error
        # Far out f and s are large and near each other: what is left of their difference is seen in the polynomials alone.
        p, q = f.fraction
        return error.intersection(Jet.of_fraction((p - self._shifted[piece] * q, q), x))

    def bound(self, low: float, high: float, piece: int) -> float:
        """Bound |e| over the float32 numbers from low to high, which belong to one piece."""
        if high <= _next(low):
            return max(_upper(self.jet(arb(end), piece).value) for end in (low, high))
        whole = union(arb(low), arb(high))
        middle = arb((low + high) / 2)
        over = self.jet(whole, piece)
        if not (over.first.is_finite() or over.third.is_finite()):  # nothing follows from what e is in the middle
            return _upper(over.value)
        at = self.jet(middle, piece)
        reach = (whole - middle).abs_upper()
        cubic = abs(over.third) * reach**3 / 6
        return min(
            _upper(over.value),
            _upper(abs(at.value) + abs(over.first) * reach),
            max(_upper(abs(extreme) + cubic) for extreme in _parabola(at, reach)),
        )


def _parabola(at: Jet, reach: arb) -> list[arb]:
    """Return the extremes of e + e' t + e'' t^2 / 2 for |t| <= reach: at both ends and at its vertex."""
    linear, square = at.first * reach, at.second * reach**2 / 2
    values = [at.value + square + linear, at.value + square - linear]
    if not abs(linear) > 2 * abs(square):
        vertex = at.value - linear**2 / (4 * square)
        values.append(vertex if vertex.is_finite() else abs(at.value) + abs(linear) + abs(square))
    return values


def _upper(ball: arb) -> float:
    """Return a float that |ball| does not exceed."""
    value = float(ball.abs_upper())
    return math.nextafter(value, math.inf) if math.isfinite(value) else math.inf


def _certify(error: _Error, interval: tuple[float, float], expected: float) -> Certificate | None:
    low, high = _outwards(*interval)
    enough = expected * (1 + SLACK) + FLOOR * max(abs(low), abs(high))
    queue = [(-error.bound(*part), part) for part in _parts(error.knots, low, high)]
    heapq.heapify(queue)
    while len(queue) < MAX_PARTS:
        worst, (a, b, piece) = queue[0]
        if -worst <= enough or b <= _next(a):
            break
        middle = _split(a, b)
        left, right = (a, middle, piece), (_next(middle), b, piece)
        heapq.heapreplace(queue, (-error.bound(*left), left))
        heapq.heappush(queue, (-error.bound(*right), right))
    proved = -queue[0][0]
    return Certificate(proved, (low, high)) if math.isfinite(proved) else None


def _parts(knots: NDArray[np.float32], low: float, high: float) -> Iterator[tuple[float, float, int]]:
    """Yield the parts between knots and zero, each from its first float32 number to its last."""
    starts = sorted({low, *(float(k) for k in (*knots, np.float32(0)) if low < k <= high)})
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        end = high if after is None else _previous(after)
        yield start, end, int(np.searchsorted(knots, np.float32(start), side="right"))


def _split(low: float, high: float) -> float:
    """Return a float32 number from low to the one before high; over many octaves the middle one of them."""
    near, far = sorted((abs(low), abs(high)))
    if 4 * near < far:
        sign = math.copysign(1.0, low if abs(low) == far else high)
        middle = sign * (math.sqrt(near * far) if near > 0 else far / 256)
    else:
        middle = (low + high) / 2
    return min(max(float(np.float32(middle)), low), _previous(high))


def _outwards(low: float, high: float) -> tuple[float, float]:
    a, b = float(np.float32(low)), float(np.float32(high))
    return (a if a <= low else _previous(a)), (b if b >= high else _next(b))


def _next(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


def _previous(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(-np.inf)))
