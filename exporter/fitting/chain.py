"""A fitted piecewise polynomial in float64, before its coefficients are rounded to the table's float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        return rounded_together([self], degree)[0]


def rounded_together(chains: Sequence[Chain], degree: int) -> tuple[Spline, ...]:
    """Round chains of the same knots to tables of the same knots and origins (see `Chain.rounded`)."""
    first = chains[0]
    knots = first.knots.astype(np.float32).astype(np.float64)
    edges = np.concatenate([[-np.inf], knots, [np.inf]])
    kept = [i for i in range(len(first.pieces)) if edges[i] < edges[i + 1]]
    rows = [_table_rows([chain.pieces[i] for chain in chains], edges[i], edges[i + 1]) for i in kept]
    tables = np.zeros((len(chains), len(kept), degree + 1))
    for i, row in enumerate(rows):
        for table, piece in zip(tables, row, strict=True):
            used = np.trim_zeros(piece.coefficients, "b")
            table[i, : len(used)] = used
    origins = [row[0].origin for row in rows]
    return tuple(Spline.of([edges[i] for i in kept[1:]], table, origins) for table in tables)


def _table_rows(pieces: Sequence[Piece], low: float, high: float) -> list[Piece]:
    if low <= 0 <= high or all(piece.tail or len(piece.coefficients) <= 2 for piece in pieces):
        return [piece.at(0.0) for piece in pieces]
    return _best_origin(pieces, low, high)


def _best_origin(pieces: Sequence[Piece], low: float, high: float) -> list[Piece]:
    """Among the points of the half nearer to zero, take the origin whose coefficients round with the least effect."""
    near, far = (low, high) if low > 0 else (high, low)
    if not np.isfinite(far):  # the outer piece on an interval
        far = 2 * near
    width = abs(far - near)
    places = np.unique((near + (far - near) * np.linspace(0, 0.5, _ORIGINS)).astype(np.float32).astype(np.float64))
    candidates = [[piece.at(float(place)) for piece in pieces] for place in places]
    losses = [max(_rounding_loss(piece.coefficients, width) for piece in candidate) for candidate in candidates]
    return candidates[int(np.argmin(losses))]


def _rounding_loss(coefficients: NDArray[np.float64], width: float) -> float:
    powers = width ** np.arange(len(coefficients))
    return float(np.abs((coefficients - coefficients.astype(np.float32)) * powers).sum())
