"""`poly:N`: linear tails and one or two polynomials of degree N between them, continuous everywhere.

1. With a piece [a, b] between two tails, the error inside grows with the piece and the error of the tails falls: the
   best piece about balances them. The polynomial meets the tails at its knots (pins of `minimax`).
2. Candidates: two pieces joined at x = 0, each balanced by itself; one piece over both. Where f has a symmetry, the
   two pieces mirror each other: for f(x) - f(-x) = x this is x/2 + E(|x|).
3. Coefficients about zero are large and cancel, so they are rounded from the highest power down, and what each
   rounding does to the polynomial is mended by the powers below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Chain, Piece
from actx.exporter.fitting.family import Family, Parameter, Solution
from actx.exporter.fitting.minimax import Approximation, approximate
from actx.exporter.fitting.tails import tail_error, tail_value

if TYPE_CHECKING:
    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem, Span

_POINTS = 400  # of a piece
_BALANCED = 1.001  # inner error over the tail's: the precision of the minimax fit
_NEIGHBOURHOOD = 0.2  # of the balanced knot, relative
_SCANS = 3
_OVERFLOW = 1e38
_NARROWEST = 1e-6  # knot nearest to zero


def solve(problem: Problem, form: Form) -> Solution:
    """Fit the candidates of 2. and take the best; of equals the symmetric one, which comes first.

    The degree is lowered where the coefficients of a very narrow piece would overflow float32.
    """
    for degree in range(form.degree, 0, -1):
        chains = [chain for chain in _candidates(problem, degree) if _fits_table(chain, form.degree)]
        if chains:
            splines = [_mended(chain, form.degree) for chain in chains]
            return Solution(splines[int(np.argmin([problem.error(s) for s in splines]))])
    raise ActxError(
        f"{form} cannot follow the function",
        note="its coefficients overflow float32",
        remedy="Use a spline, or give an interval: calibration data or --range.",
    )


def _candidates(problem: Problem, degree: int) -> list[Chain]:
    span, chains = problem.span, []
    if span.pin is not None and 0 < span.pin < len(span.x) - 1:
        right = _half(span.right_half(), degree)
        if problem.symmetry is not None:
            chains.append(right.mirrored(problem.symmetry))
        else:
            chains.append(_join(_half(span.left_half_mirrored(), degree), right))
    return [*chains, _single(span, degree)]


def _fits_table(chain: Chain, degree: int) -> bool:
    """Tell whether a table of float32 and of the degree can hold it: as many pins as one piece has may ask for more."""
    sizes = [np.abs(np.trim_zeros(piece.coefficients, "b")) for piece in chain.pieces]
    return all(len(size) <= degree + 1 and bool((size < _OVERFLOW).all()) for size in sizes)


def _half(span: Span, degree: int) -> Chain:
    """Fit x >= 0: a piece from the pin at 0 to the balanced knot, then the tail."""
    start = (float(span.x[0]), float(span.y[0]))
    if span.right is None:
        found = _piece(span, 0, len(span.x) - 1, degree, [start])
        return Chain(np.empty(0), (Piece(found.powers(0.0)),))
    error = _suffix_error(span)

    def attempt(knot: float) -> tuple[float, float, Approximation]:
        knot = float(np.float32(knot))
        last = int(np.searchsorted(span.x, knot))
        end = (knot, float(tail_value(span.right, np.array([knot]))[0])) if span.right is not None else start
        found = _piece(span, 0, max(last - 1, 1), degree, [start, end])
        return max(found.error, float(error[min(last, len(error) - 1)])), knot, found

    low, high = max(int(np.searchsorted(span.x, _NARROWEST)), 1), len(span.x) - 1
    while high - low > 1:
        middle = (low + high) // 2
        inside = attempt(float(span.x[middle]))[2].error
        # The pin costs the tail's error at the knot itself, so the inner error is hardly below that.
        low, high = (middle, high) if inside <= error[middle] * _BALANCED else (low, middle)
    # The pin makes the inner error fall a little beyond the balance for some degrees, so the neighbourhood is scanned.
    best, width = attempt(float(span.x[high])), _NEIGHBOURHOOD
    for _ in range(_SCANS):
        tried = [attempt(best[1] * (1 + step)) for step in np.linspace(-width, width, 17)]
        best, width = min([best, *tried], key=lambda result: result[0]), width / 6
    _, knot, found = best
    return Chain(np.array([knot]), (Piece(found.powers(0.0)), Piece(span.right, tail=True)))


def _single(span: Span, degree: int) -> Chain:
    """Fit one piece between the tails: the smallest E for which the piece between their exits has error E."""
    left, right = _prefix_error(span), _suffix_error(span)
    both = np.concatenate([left, right])
    low, high = -1e-300, float(both[np.isfinite(both)].max(initial=0.0))  # infinite where the pin forbids a tail
    found, first, last = _between(span, left, right, high, degree)
    for _ in range(40 if span.left is not None or span.right is not None else 0):
        middle = (max(low, 0.0) + high) / 2
        tried = _between(span, left, right, middle, degree)
        if tried[0].error <= middle * _BALANCED:
            high, (found, first, last) = middle, tried
        else:
            low = middle
        if high - max(low, 0.0) < 1e-4 * high:
            break
    origin = 0.0 if span.x[first] <= 0 <= span.x[last] else min(found.low, found.high, key=abs)
    pieces, knots = [Piece(found.powers(origin), origin)], []
    if span.left is not None:
        pieces, knots = [Piece(span.left, tail=True), *pieces], [span.x[first]]
    if span.right is not None:
        pieces, knots = [*pieces, Piece(span.right, tail=True)], [*knots, span.x[last]]
    return Chain(np.array(knots), tuple(pieces))


def _between(
    span: Span,
    left: np.ndarray[tuple[int], np.dtype[np.float64]],
    right: np.ndarray[tuple[int], np.dtype[np.float64]],
    error: float,
    degree: int,
) -> tuple[Approximation, int, int]:
    stop = len(span.x) - 1
    first = 0 if span.left is None else min(max(int(np.searchsorted(left, error, side="right")) - 1, 0), stop - 2)
    last = stop if span.right is None else int(np.searchsorted(-right, -error))
    last = min(max(last, first + 2), stop)
    pins = []
    if span.left is not None:
        pins.append((float(span.x[first]), float(tail_value(span.left, span.x[first : first + 1])[0])))
    if span.right is not None:
        pins.append(_on_tail(span, last))
    if span.pin is not None and first < span.pin < last:
        pins.append((0.0, float(span.y[span.pin])))
    return _piece(span, first, last, degree, pins), first, last


def _on_tail(span: Span, i: int) -> tuple[float, float]:
    assert span.right is not None
    # The knot will be a float32; the pin stands exactly there, so that rounding the knot tears nothing.
    knot = float(np.float32(span.x[i]))
    return knot, float(tail_value(span.right, np.array([knot]))[0])


def _piece(span: Span, first: int, last: int, degree: int, pins: list[tuple[float, float]]) -> Approximation:
    chosen = np.unique(np.linspace(first, last, min(last - first + 1, _POINTS)).round().astype(np.intp))
    x, y, width = span.x[chosen], span.y[chosen], span.width[chosen]
    return approximate(x, y, max(degree, len(pins)), pins, width=width, tolerance=1e-4)


def _suffix_error(span: Span) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Largest error of the right tail from each point on."""
    if span.right is None:
        return np.zeros(len(span.x))
    error = tail_error(span, span.right)
    return np.maximum.accumulate(error[::-1])[::-1]


def _prefix_error(span: Span) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Largest error of the left tail up to each point."""
    if span.left is None:
        return np.zeros(len(span.x))
    return np.maximum.accumulate(tail_error(span, span.left))


def _join(left: Chain, right: Chain) -> Chain:
    """Put the mirrored left half beside the right one."""
    flipped = [Piece(p.coefficients * (-1.0) ** np.arange(len(p.coefficients)), -p.origin, p.tail) for p in left.pieces]
    return Chain(np.concatenate([-left.knots[::-1], [0.0], right.knots]), (*reversed(flipped), *right.pieces))


def _mended(chain: Chain, degree: int) -> Spline:
    """Round the coefficients so that the loss is spread (3.)."""
    edges = np.concatenate([[-np.inf], chain.knots, [np.inf]])
    pieces = []
    for piece, low, high in zip(chain.pieces, edges, edges[1:], strict=False):
        finite = np.isfinite([low, high]).all()
        pieces.append(_round_down(piece, low, high) if finite and not piece.tail and piece.origin == 0 else piece)
    return Chain(chain.knots, tuple(pieces)).rounded(degree)


def _round_down(piece: Piece, low: float, high: float) -> Piece:
    """Round each power and let the lower ones make up for it; the constant, which is s(0), is left alone."""
    size = max(abs(low), abs(high))
    t = np.cos(np.linspace(0, np.pi, 129)) * (high - low) / 2 / size + (high + low) / 2 / size
    powers = t[:, None] ** np.arange(len(piece.coefficients))
    # The ends weigh much more: there the piece must meet its neighbours.
    weight = np.where(np.arange(129) % 128 == 0, 1e4, 1.0)
    scale = size ** np.arange(len(piece.coefficients), dtype=np.float64)
    c = piece.coefficients.copy()
    for j in range(len(c) - 1, 1, -1):
        rounded = float(np.float32(c[j]))
        lost = (c[j] - rounded) * scale[j]
        c[j] = rounded
        columns = powers[:, 1:j]
        mend, *_ = np.linalg.lstsq(columns * weight[:, None], lost * powers[:, j] * weight, rcond=None)
        c[1:j] += mend / scale[1:j]
    return Piece(c, 0.0)


FAMILY = Family("poly", (Parameter("N", 2, 16),), shape=lambda p: (4, p[0]), solve=solve, tail_degree=lambda _: 1)
