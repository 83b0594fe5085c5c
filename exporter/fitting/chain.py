"""A fitted piecewise polynomial in float64, before its coefficients are rounded to the table's float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ORIGINS = 65  # places tried for the origin of a piece


@dataclass(frozen=True)
class Piece:
    """One polynomial.

    Attributes:
        coefficients: float64 ascending powers of (x - origin).
        origin: a point in or at the end of the piece.
        tail: the piece reaches to infinity and must be an asymptote exactly.

    """

    coefficients: NDArray[np.float64]
    origin: float = 0.0
    tail: bool = False

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate by Horner's rule."""
        return np.asarray(polynomial.polyval(x - self.origin, self.coefficients), dtype=np.float64)

    def at(self, origin: float) -> Piece:
        """Return the same polynomial about another origin."""
        if origin == self.origin:
            return self
        shifted = np.zeros(1)
        step = np.array([origin - self.origin, 1.0])
        for c in self.coefficients[::-1]:
            shifted = polynomial.polyadd(polynomial.polymul(shifted, step), np.array([c]))
        return Piece(np.pad(shifted, (0, len(self.coefficients) - len(shifted))), origin, self.tail)

    def mirrored(self, symmetry: Symmetry) -> Piece:
        """Return the polynomial that the symmetry puts on the other side of zero."""
        flipped = self.coefficients * (-1.0) ** np.arange(len(self.coefficients))
        flipped = np.pad(flipped, (0, max(2 - len(flipped), 0)))
        line = np.zeros_like(flipped)
        line[:2] = [symmetry.constant - symmetry.slope * self.origin, symmetry.slope]
        return Piece(symmetry.sign * flipped + line, -self.origin, self.tail)


@dataclass(frozen=True)
class Symmetry:
    """``f(-x) = sign * f(x) - slope * x + constant``: what one half of the line says about the other.

    gelu has sign 1 and slope 1, tanh sign -1, sigmoid sign -1 and constant 1.
    """

    sign: float
    slope: float
    constant: float


@dataclass(frozen=True)
class Chain:
    """Pieces from left to right and the knots between them, float64 (len(pieces) - 1,)."""

    knots: NDArray[np.float64]
    pieces: tuple[Piece, ...]

    def mirrored(self, symmetry: Symmetry) -> Chain:
        """Return the whole line's chain, given this one for x >= 0."""
        # The mirror image is written in x < 0, where f(x) = sign f(-x) - slope (-x) + constant, so its slope is +slope.
        left = tuple(piece.mirrored(symmetry) for piece in reversed(self.pieces))
        return Chain(np.concatenate([-self.knots[::-1], [0.0], self.knots]), left + self.pieces)

    def rounded(self, degree: int) -> Spline:
        """Round to a table of the given degree, choosing origins so that rounding matters least.

        Pieces that knots of equal float32 value enclose are empty and left out.
        """
        knots = self.knots.astype(np.float32).astype(np.float64)
        edges = np.concatenate([[-np.inf], knots, [np.inf]])
        kept = [i for i in range(len(self.pieces)) if edges[i] < edges[i + 1]]
        pieces = [_table_row(self.pieces[i], edges[i], edges[i + 1]) for i in kept]
        table = np.zeros((len(kept), degree + 1))
        for row, piece in zip(table, pieces, strict=True):
            used = np.trim_zeros(piece.coefficients, "b")
            row[: len(used)] = used
        return Spline.of([edges[i] for i in kept[1:]], table, [p.origin for p in pieces])


def _table_row(piece: Piece, low: float, high: float) -> Piece:
    if piece.tail or len(piece.coefficients) <= 2 or low <= 0 <= high:
        return piece.at(0.0)
    return _best_origin(piece, low, high)


def _best_origin(piece: Piece, low: float, high: float) -> Piece:
    """Among the points of the half nearer to zero, take the origin whose coefficients round with the least effect."""
    near, far = (low, high) if low > 0 else (high, low)
    if not np.isfinite(far):  # the outer piece on an interval
        far = 2 * near
    width = abs(far - near)
    places = np.unique((near + (far - near) * np.linspace(0, 0.5, _ORIGINS)).astype(np.float32).astype(np.float64))
    candidates = [piece.at(float(place)) for place in places]
    powers = width ** np.arange(len(piece.coefficients))
    losses = [np.abs((c.coefficients - c.coefficients.astype(np.float32)) * powers).sum() for c in candidates]
    return candidates[int(np.argmin(losses))]
