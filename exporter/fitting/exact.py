"""Recognising a function that is a piecewise polynomial already: relu2, hardtanh, leaky_relu, polyrelu.

1. Between two breaks (see `sampling`) a polynomial is fitted through points near the end nearer to zero.
2. Knots are the breaks, sharpened to where the neighbouring polynomials meet, or, at a jump, to the float32 number at
   which f changes sides.
3. The result is taken only if it agrees with f everywhere to rounding.
"""

from __future__ import annotations

from itertools import pairwise
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


def recognise(problem: Problem, degree: int, segments: int, *, continuous: bool) -> Chain | None:
    """Return f as a chain of at most `segments` pieces of at most `degree`, or None where it is not one."""
    breaks = problem.cells.breaks
    if len(breaks) >= segments:
        return None
    edges = np.concatenate([[problem.low], breaks.mean(axis=1), [problem.high]])
    pieces = []
    for i, (low, high) in enumerate(pairwise(edges)):
        tail = not problem.bounded and i in (0, len(edges) - 2)
        piece = _polynomial(problem, low, high, degree, tail=tail)
        if piece is None:
            return None
        pieces.append(piece)
    chain = _joined(problem, pieces, continuous=continuous)
    return chain if chain is not None and _agrees(problem, chain) else None


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


def _joined(problem: Problem, pieces: list[Piece], *, continuous: bool) -> Chain | None:
    """Sharpen the knots and merge neighbours that are one polynomial."""
    kept, knots = [pieces[0]], []
    for piece, (low, high) in zip(pieces[1:], problem.cells.breaks, strict=True):
        difference = np.asarray(polynomial.polysub(piece.coefficients, kept[-1].coefficients), dtype=np.float64)
        middle = (low + high) / 2
        if np.abs(difference).max() <= _AGREEMENT * np.abs(piece.coefficients).max():
            kept[-1] = Piece(kept[-1].coefficients, 0.0, kept[-1].tail or piece.tail)
            continue
        knot = _meeting(difference, middle, max(_NEAR * abs(middle), 4 * (high - low)))
        if knot is None and continuous:
            return None
        knots.append(_switch(problem.function, kept[-1], piece, low, high) if knot is None else knot)
        kept.append(piece)
    return Chain(np.array(knots), tuple(kept))


def _meeting(difference: NDArray[np.float64], near: float, within: float) -> float | None:
    """Where two polynomials meet near a break: a root of their difference, or for a smooth join of its derivative."""
    within = max(within, 1e-7)
    size = np.abs(difference) @ np.abs(near) ** np.arange(len(difference))
    if abs(polynomial.polyval(near, difference)) > 1e-4 * max(size, np.abs(difference).max() * 1e-3):
        return None
    candidates = []
    for order in range(len(difference) - 1):
        derivative = polynomial.polyder(difference, order)
        top = np.flatnonzero(np.abs(derivative) > 1e-11 * np.abs(derivative).max())[-1]
        roots = polynomial.polyroots(derivative[: top + 1]) if top > 0 else np.empty(0)
        candidates += [float(r.real) for r in roots if abs(r - near) <= max(within, 1e-3 * abs(near) * order)]
    if not candidates:
        return None
    # Of candidates as good as another, the derivative's is the more precise one (a multiple root scatters).
    values = [abs(polynomial.polyval(c, difference)) for c in candidates]
    best = [c for c, v in zip(candidates, values, strict=True) if v <= min(values) + 1e-15 * max(size, 1e-30)]
    return 0.0 if abs(best[-1]) < 1e-9 else best[-1]


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
    size = np.abs(y) + np.abs(x) * 1e-3
    return bool((np.abs(s - y) <= _AGREEMENT * np.maximum(size, np.abs(y).max() * 1e-6)).all())
