"""Sampling a function where it bends: the grid that every solver works on, and the free-knot law.

1. The line is cut into cells. A cell weighs ``|difference of order d + 1|^(1/(d+1))``, which tends to the integral of
   ``|f^(d+1)|^(1/(d+1))`` over the cell: the share of a segment that the cell asks for in the free-knot law.
2. A cell that weighs too much is split, until all weigh about the same. A cell that still does at the smallest width
   is a break: f, or a derivative of it, jumps there.
3. The grid has points at equal steps of the summed weight, so that every optimal segment gets about as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, factorial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actx.exporter.fitting.rounding import Rounding

FP16_MAX = 65504.0
_DOWN, _UP = np.float32(-np.inf), np.float32(np.inf)
# A split point off the middle, and edges off round numbers: a break at a round number must fall INSIDE a cell.
_SPLIT = 0.48713
_OFFSET = 0.0123713
_SMALLEST = 1e-10  # smallest cell relative to |x|
_NARROW = 1e-4  # a cell this narrow whose bend rounding hides holds a break; a wider one may be smooth
_SHARE = 1 / 500  # largest share of a cell in the whole weight
_LEVELS = 192  # a faint kink waits until the steeper ones are found
_BLUR = 1e-6  # distance of breaks that are one, relative
_EVEN_SHARE = 0.1  # of the grid's points, spread over the cells whatever they weigh
_SAFETY = 4  # on rounding
_PARTS = 5  # an odd number, so that no break at a round fraction falls on an edge
_MAX_ACTIVE = 4000  # cells split per level: bounds the work where f is noise


@dataclass(frozen=True)
class Cells:
    """A partition of an interval and what f weighs in each cell.

    Attributes:
        edges: float64 (m + 1,), ascending.
        weights: float64 (m,), see 1. above; 0 where f is a polynomial of the degree, to rounding.
        breaks: float64 (k, 2), the ends of the tiny cells that hold a break.
        rounding: of f.

    """

    edges: NDArray[np.float64]
    weights: NDArray[np.float64]
    breaks: NDArray[np.float64]
    rounding: Rounding


def cells(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    low: float,
    high: float,
    degree: int,
    rounding: Rounding,
) -> Cells:
    """Cut [low, high] into cells that weigh about the same for segments of the given degree."""
    edges = _first_edges(low, high, degree + 1)
    weigh = _Scales(function, degree + 1, rounding)
    left, right, weights = _first_cells(weigh, edges)
    done = np.zeros(len(left), dtype=bool)
    for _ in range(_LEVELS):
        active = _too_heavy(left, right, weights, done)
        if not active.any():
            break
        a, b = left[active], right[active]
        middle = a + _SPLIT * (b - a)
        children = np.stack([np.concatenate([a, middle]), np.concatenate([middle, b])])
        found = weigh(children[0], children[1])
        # Both halves light where the whole was heavy: rounding hides what is inside, so the whole is kept.
        sunk = (found[: len(a)] == 0) & (found[len(a) :] == 0)
        new = np.concatenate([~sunk, ~sunk])
        done[np.flatnonzero(active)[sunk]] = True
        stay = ~active | done
        left = np.concatenate([left[stay], children[0][new]])
        right = np.concatenate([right[stay], children[1][new]])
        weights = np.concatenate([weights[stay], found[new]])
        done = np.concatenate([done[stay], np.zeros(int(new.sum()), dtype=bool)])
    sort = np.argsort(left)
    left, right, weights, done = left[sort], right[sort], weights[sort], done[sort]
    narrow = right - left <= np.where(done, _NARROW / _SMALLEST, 1.0) * _smallest(left, right)
    broken = narrow & (done | (weights > _limit(left, right, weights, done)))
    breaks = _merge(left[broken], right[broken])
    return Cells(np.append(left, right[-1]), np.where(broken, 0.0, weights), breaks, rounding)


def law(cells_: Cells, degree: int, segments: int) -> float:
    """Asymptotic error of the best free-knot fit with `segments` pieces of `degree` (numerics.md, de Boor 1973).

    ``(integral |f^(d+1)|^(1/(d+1)))^(d+1) / (2^(2d+1) (d+1)! n^(d+1))``
    """
    order = degree + 1
    return float((cells_.weights.sum() / segments) ** order / (2 ** (2 * degree + 1) * factorial(order)))


def grid(cells_: Cells, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return about `points` ascending points with 0 and the ends among them, and the summed weight at each (0 to 1).

    They are float32 numbers: x is never anything finer, and a function that rounds to float32 inside is exact there.
    Some follow the cells alone, so that no stretch is left unseen where f seems flat.
    """
    count = len(cells_.weights)
    weight = cells_.weights / (cells_.weights.sum() or 1.0) + _EVEN_SHARE / count
    summed = np.concatenate([[0.0], np.cumsum(weight)])
    summed /= summed[-1]
    x = np.interp(np.linspace(0, 1, points), summed, cells_.edges)
    x = np.concatenate([x, cells_.edges, [0.0]])
    x = x.astype(np.float32)
    around = cells_.breaks.astype(np.float32)
    x = np.concatenate([x, np.nextafter(around[:, 0], _DOWN), np.nextafter(around[:, 1], _UP)]).astype(np.float64)
    x = np.unique(x[(x >= cells_.edges[0]) & (x <= cells_.edges[-1])] + 0.0)
    return x, np.interp(x, cells_.edges, summed)


def _first_edges(low: float, high: float, order: int) -> NDArray[np.float64]:
    """Cells at every scale around zero, and cells of equal width over the interval and over [-16, 16]."""
    # Few near zero, where a high difference over a narrow cell would drown in rounding.
    octaves = 1.0037 * np.exp2(np.concatenate([np.arange(-24, -4), np.arange(4, 16.01, 1 / 8)]))
    core = np.arange(-16, 16, order / 8) + _OFFSET
    # Not mirrored: the fourth difference of relu(x)^2 vanishes on a cell with zero in its middle.
    edges = np.concatenate([-0.9713 * octaves, octaves, core, np.linspace(low, high, 65) + _OFFSET * (high - low) / 64])
    inside = edges[(edges > low) & (edges < high)]
    return np.unique(np.concatenate([[low], inside, [high]]))


def _first_cells(
    weigh: _Scales, edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Wide cells, whose differences stand well above rounding, but narrow ones where those show more than they do."""
    left, right = edges[:-1], edges[1:]
    weights = weigh(left, right)
    parts = left[:, None] + (right - left)[:, None] * np.linspace(0, 1, _PARTS + 1)
    fine = weigh(parts[:, :-1].ravel(), parts[:, 1:].ravel()).reshape(-1, _PARTS)
    split = fine.sum(axis=1) > 1.5 * weights
    return (
        np.concatenate([left[~split], parts[split, :-1].ravel()]),
        np.concatenate([right[~split], parts[split, 1:].ravel()]),
        np.concatenate([weights[~split], fine[split].ravel()]),
    )


@dataclass(frozen=True)
class _Scales:
    """Weighs cells (1.), telling a difference from rounding."""

    function: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    order: int
    rounding: Rounding

    def __call__(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        order = self.order
        y = self.function(left[:, None] + (right - left)[:, None] * np.linspace(0, 1, order + 1))
        difference = np.abs(y @ [(-1.0) ** k * comb(order, k) for k in range(order + 1)])
        difference[difference <= 2**order * _SAFETY * self.rounding.within(left, right, y)] = 0
        result: NDArray[np.float64] = order * difference ** (1 / order)
        return result


def _smallest(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = _SMALLEST * np.maximum(np.maximum(np.abs(left), np.abs(right)), 1e-4)
    return result


def _limit(
    left: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.float64], done: NDArray[np.bool_]
) -> float:
    """Weight that is too much. Breaks found do not count: beside a steep kink a faint one would never be too heavy."""
    open_ = ~done & (right - left > _smallest(left, right))
    return _SHARE * float(weights[open_].sum())


def _too_heavy(
    left: NDArray[np.float64], right: NDArray[np.float64], weights: NDArray[np.float64], done: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    heavy: NDArray[np.bool_] = (weights > _limit(left, right, weights, done)) & ~done
    heavy &= right - left > _smallest(left, right)
    if heavy.sum() > _MAX_ACTIVE:
        heavy &= weights >= np.partition(weights[heavy], -_MAX_ACTIVE)[-_MAX_ACTIVE]
    return heavy


def _merge(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join broken cells that touch or nearly do: rounding blurs one break into several."""
    if len(left) == 0:
        return np.empty((0, 2))
    apart = left[1:] - right[:-1] > _BLUR * np.maximum(np.abs(left[1:]), 1e-2)
    first = np.concatenate([[True], apart])
    last = np.concatenate([first[1:], [True]])
    return np.stack([left[first], right[last]], axis=1)
