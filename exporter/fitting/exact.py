"""Recognising a function that is a piecewise polynomial already: relu2, hardtanh, leaky_relu, polyrelu.

1. Between two breaks (see `sampling`) a polynomial is fitted through points near the end nearer to zero.
2. Knots are the breaks, sharpened to where the neighbouring polynomials meet, or, at a jump, to the float32 number at
   which f changes sides.
3. The result is taken only if it agrees with f everywhere to rounding.
4. A smooth join beside a constant (relu(x)^2 + 1) is hidden by rounding, and its break found some way off or not at all:
   failing 3., knots may lie further from their breaks, and 0 counts as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from actx.exporter.fitting.chain import Chain, Piece

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.fitting.problem import Function, Problem

_RESIDUAL = 1e-11  # of a polynomial between two breaks, relative to the largest value there
_SAFETY = 16  # on the rounding of f
_AGREEMENT = 1e-9  # of the whole with f, relative
_NEAR = 1e-5  # how far a sharpened knot may lie from its break, relative
_HIDDEN = 0.4  # the same in 4., relative to 1 + |x|
_POINTS = 65  # between places where two polynomials may meet


def recognise(problem: Problem, degree: int, segments: int, *, continuous: bool) -> Chain | None:
    """Return f as a chain of at most `segments` pieces of at most `degree`, or None where it is not one."""
    breaks = problem.cells.breaks
    if len(breaks) >= segments:
        return None
    chains = (_chain(problem, degree, continuous=continuous, hidden=hidden) for hidden in (False, True))
    fitting = (chain for chain in chains if chain is not None and len(chain.pieces) <= segments)
    return next((chain for chain in fitting if _agrees(problem, chain)), None)


def _chain(problem: Problem, degree: int, *, continuous: bool, hidden: bool) -> Chain | None:
    """1. and 2., or 4.: then the polynomials are fitted at a distance from the breaks."""
    breaks = _with_zero(problem) if hidden else problem.cells.breaks
    edges = np.concatenate([[problem.low], breaks.mean(axis=1), [problem.high]])
    away = _HIDDEN * (1 + np.abs(edges)) if hidden else np.zeros_like(edges)
    away[[0, -1]] = 0.0
    stretches = zip(edges[:-1] + away[:-1], edges[1:] - away[1:], strict=True)
    pieces = []
    for i, (low, high) in enumerate(stretches):
        tail = not problem.bounded and i in (0, len(edges) - 2)
        piece = _polynomial(problem, low, high, degree, tail=tail) if low < high else None
        if piece is None:
            return None
        pieces.append(piece)
    return _joined(problem, pieces, breaks, continuous=continuous, hidden=hidden)


def _with_zero(problem: Problem) -> NDArray[np.float64]:
    breaks = problem.cells.breaks.reshape(-1, 2)
    if not problem.low < 0 < problem.high or (np.abs(breaks) < _HIDDEN).any():
        return breaks
    return np.sort(np.vstack([breaks, np.zeros((1, 2))]), axis=0)


def _polynomial(problem: Problem, low: float, high: float, degree: int, *, tail: bool) -> Piece | None:
    """Polynomial of the lowest degree that f is on (low, high), about zero."""
    if low < 0 < high:
        a, b = max(low, -4.0), min(high, 4.0)
    elif low >= 0:
        a, b = low, min(high, low + 2 * max(1.0, low))
    else:
        a, b = max(low, high - 2 * max(1.0, -high)), high
    x = (a + b) / 2 + (b - a) / 2 * 0.999 * np.cos(np.pi * (np.arange(6 * degree + 6) + 0.5) / (6 * degree + 6))
    y = problem.function(x)
    size, scale = float(np.abs(x).max()), float(np.abs(y).max())
    rounding = max(_RESIDUAL * scale, _SAFETY * float(problem.cells.rounding.within(x, x, y[:, None]).max()))
    for order in range(degree + 1):
        matrix = (x / size)[:, None] ** np.arange(order + 1)
        coefficients, *_ = np.linalg.lstsq(matrix, y, rcond=None)
        if np.abs(matrix @ coefficients - y).max() <= rounding:
            coefficients = np.where(np.abs(coefficients) <= rounding, 0.0, coefficients)
            return Piece(coefficients / size ** np.arange(order + 1), 0.0, tail)
    return None


def _joined(
    problem: Problem, pieces: list[Piece], breaks: NDArray[np.float64], *, continuous: bool, hidden: bool
) -> Chain | None:
    """Sharpen the knots and merge neighbours that are one polynomial."""
    kept, knots = [pieces[0]], []
    for piece, (low, high) in zip(pieces[1:], breaks, strict=True):
        difference = _difference(kept[-1], piece)
        middle = (low + high) / 2
        if np.abs(difference).max() <= _AGREEMENT * np.abs(piece.coefficients).max():
            kept[-1] = Piece(kept[-1].coefficients, 0.0, kept[-1].tail or piece.tail)
            continue
        within = _HIDDEN * (1 + abs(middle)) if hidden else max(_NEAR * abs(middle), 4 * (high - low))
        touching = hidden or _touches(difference, middle)
        knot = _meeting(problem.function, kept[-1], piece, middle, within) if touching else None
        if knot is None and continuous:
            return None
        knots.append(_switch(problem.function, kept[-1], piece, low, high) if knot is None else knot)
        kept.append(piece)
    return Chain(np.array(knots), tuple(kept))


def _difference(left: Piece, right: Piece) -> NDArray[np.float64]:
    return np.asarray(polynomial.polysub(right.coefficients, left.coefficients), dtype=np.float64)


def _size(coefficients: NDArray[np.float64], x: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Sum of the absolute values of a polynomial's terms: what its roundings are relative to."""
    return np.asarray(polynomial.polyval(np.abs(x), np.abs(coefficients)))


def _touches(difference: NDArray[np.float64], near: float) -> bool:
    """Tell whether the polynomials are as good as equal at a break."""
    least = 1e-4 * max(float(_size(difference, near)), float(np.abs(difference).max()) * 1e-3)
    return bool(abs(polynomial.polyval(near, difference)) <= least)


def _meeting(function: Function, left: Piece, right: Piece, near: float, within: float) -> float | None:
    """Where two polynomials meet near a break: a root of their difference, or for a smooth join of its derivatives.

    Of several, the one at which f changes over.
    """
    within, difference = max(within, 1e-7), _difference(left, right)
    candidates = []
    for order in range(len(difference) - 1):
        derivative = polynomial.polyder(difference, order)
        top = np.flatnonzero(np.abs(derivative) > 1e-11 * np.abs(derivative).max())[-1]
        roots = polynomial.polyroots(derivative[: top + 1]) if top > 0 else np.empty(0)
        candidates += [float(r.real) for r in roots if abs(r - near) <= max(within, 1e-3 * abs(near) * order)]
    if not candidates:
        return None
    x = np.linspace(min(candidates), max(candidates), _POINTS)
    y, before, behind = function(x), left(x), right(x)
    errors = [float(np.abs(y - np.where(x < c, before, behind)).max()) for c in candidates]
    # Of candidates as good as another, the derivative's is the more precise one (a multiple root scatters).
    as_good = min(errors) + 4 * np.finfo(np.float64).eps * float(np.abs(y).max())
    best = [c for c, error in zip(candidates, errors, strict=True) if error <= as_good][-1]
    return 0.0 if abs(best) < 1e-9 else best


def _switch(function: Function, left: Piece, right: Piece, low: float, high: float) -> float:
    """First float32 number at which f follows the right piece."""
    a, b = np.float32(low), np.float32(high)
    a = np.nextafter(a, np.float32(-np.inf)) if a >= low else a
    b = np.nextafter(b, np.float32(np.inf)) if b <= high else b
    for _ in range(200):
        middle = _halfway(a, b)
        if middle in (a, b):
            break
        x = np.array([float(middle)])
        nearer_right = abs(function(x) - right(x)) <= abs(function(x) - left(x))
        a, b = (a, middle) if nearer_right[0] else (middle, b)
    return float(b)


def _halfway(a: np.float32, b: np.float32) -> np.float32:
    """Halve the way between two float32 in their order, not in their value: that reaches denormals in few steps."""
    low, high = (int(v.view(np.int32)) for v in (a, b))
    low, high = (v if v >= 0 else -(v & 0x7FFFFFFF) for v in (low, high))
    middle = (low + high) // 2
    return np.float32(np.copysign(np.int32(abs(middle)).view(np.float32), middle))


def _agrees(problem: Problem, chain: Chain) -> bool:
    x = problem.span.x.astype(np.float32).astype(np.float64)
    y = problem.function(x)
    index = np.searchsorted(chain.knots, x, side="right")
    s = np.choose(index, [piece(x) for piece in chain.pieces]) if len(chain.pieces) <= 32 else np.full_like(x, np.nan)
    size = np.max([_size(piece.coefficients, x) for piece in chain.pieces], axis=0)
    return bool((np.abs(s - y) <= _AGREEMENT * size).all())
