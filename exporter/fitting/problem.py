"""What a solver is given: the function on a grid, its asymptotes, its symmetry, and how to judge a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Symmetry
from actx.exporter.fitting.sampling import Cells, grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.density import Density

Function: TypeAlias = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]
Tail: TypeAlias = "NDArray[np.float64] | None"

_LEAST_JUMP = 1e-6  # smaller steps are rounding inside f, relative
_SYMMETRIC = 1e-12  # how well a symmetry must hold, relative to the largest value near zero


@dataclass(frozen=True)
class Span:
    """A function on a stretch of the line, sampled.

    Solvers make the largest of ``|y - s(x)| / width`` small, and take points and widths from here and nowhere else.

    Attributes:
        x: float64 (m,), ascending; the points that a knot can be at.
        y: float64 (m,), f(x).
        width: float64 (m,), at least 1: how much larger an error may be here than where most of the inputs are.
        u: float64 (m,), ascending 0 to 1; equal steps deserve equally many knots.
        left: asymptote that the first piece must be, float64 (4,) ascending powers, or None: the first piece is free.
        right: the same for the last piece.
        pin: index of the point x = 0, where the fit must equal f; None where 0 is outside.
        breaks: indices i of cells (x[i], x[i + 1]) in which f jumps.

    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    width: NDArray[np.float64]
    u: NDArray[np.float64]
    left: Tail
    right: Tail
    pin: int | None
    breaks: frozenset[int]

    @property
    def scale(self) -> float:
        """Range of f where it bends, which is where most points are; far out it may be 1e5 times as large."""
        low, high = np.quantile(self.y, [0.2, 0.8])
        return float(high - low or np.ptp(self.y) or np.abs(self.y).max() or 1.0)

    def weighted(self, density: Density, degree: int) -> Span:
        """Return the span with the widths that a density asks for."""
        return replace(self, width=density.width(self.x, degree))

    def right_half(self) -> Span:
        """Return the part with x >= 0."""
        assert self.pin is not None
        start = self.pin
        jumps = frozenset(i - start for i in self.breaks if i >= start)
        return Span(self.x[start:], self.y[start:], self.width[start:], self.u[start:], None, self.right, 0, jumps)

    def left_half_mirrored(self) -> Span:
        """Return x -> f(-x) for x >= 0."""
        assert self.pin is not None
        stop = self.pin
        tail = None if self.left is None else self.left * (-1.0) ** np.arange(len(self.left))
        jumps = frozenset(stop - 1 - i for i in self.breaks if i < stop)
        u = self.u[stop] - self.u[stop::-1]
        return Span(-self.x[stop::-1], self.y[stop::-1], self.width[stop::-1], u, None, tail, 0, jumps)


@dataclass(frozen=True)
class Problem:
    """A function to fit.

    Attributes:
        function: f, float64 to float64, warnings off.
        low: left end of the stretch to fit and check.
        high: right end.
        bounded: the caller gave the interval; tails simply extend.
        span: f on a grid.
        symmetry: how the left half follows from the right one, or None.
        cells: the grid's cells, with the breaks.
        fold: a slope may be folded into the neighbouring layers.
        density: of the inputs, mirrored too where f has a symmetry; None where none is known.

    """

    function: Function
    low: float
    high: float
    bounded: bool
    span: Span
    symmetry: Symmetry | None
    cells: Cells
    fold: bool
    density: Density | None = None

    def error(self, spline: Spline) -> float:
        """Largest error on the grid by the widths there: what candidates are compared by."""
        return float((np.abs(self.span.y - spline(self.span.x)) / self.span.width).max())


def sample(function: Function, cells: Cells, points: int, left: Tail, right: Tail) -> Span:
    """Build the grid.

    Raises:
        ActxError: f is not finite somewhere in the interval.

    """
    x, u = grid(cells, points)
    return _span(function, cells, x, u, left, right)


def resampled(problem: Problem, x: NDArray[np.float64], u: NDArray[np.float64]) -> Span:
    """Return the span of a problem on other points, ascending, with their own u."""
    return _span(problem.function, problem.cells, x, u, problem.span.left, problem.span.right)


def _span(
    function: Function, cells: Cells, x: NDArray[np.float64], u: NDArray[np.float64], left: Tail, right: Tail
) -> Span:
    y = function(x)
    require_finite(x, y)
    zero = np.flatnonzero(x == 0)
    return Span(x, y, np.ones_like(x), u, left, right, int(zero[0]) if len(zero) else None, _jumps(x, y, cells))


def require_finite(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Raise an error that names the first point at which f is not finite."""
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise ActxError(
            f"the function is {y[bad[0]]} at x = {x[bad[0]]:.6g}",
            note=f"it must be finite on all of [{x.min():.6g}, {x.max():.6g}] to be fitted",
            remedy="Give an interval on which it is finite: calibration data or --range.",
        )


def symmetry_of(function: Function, low: float, high: float) -> Symmetry | None:
    """Find out whether f(x) - f(-x) is linear or f(x) + f(-x) constant."""
    if low != -high:
        return None
    x = np.concatenate([np.geomspace(1e-3, 1, 40) * min(high, 50.0), np.linspace(0.03, min(high, 12.0), 41)])
    right, left, centre = function(x), function(-x), float(function(np.zeros(1))[0])
    scale = _SYMMETRIC * np.abs(np.concatenate([left, right])).max()
    slope = float((right[40 - 1] - left[40 - 1]) / x[40 - 1])
    if np.abs(right + left - 2 * centre).max() <= scale:
        return Symmetry(-1.0, 0.0, 2 * centre)
    snapped = float(np.round(slope, 9))
    if np.abs(right - left - snapped * x).max() <= scale:
        return Symmetry(1.0, snapped, 0.0)
    return None


def _jumps(x: NDArray[np.float64], y: NDArray[np.float64], cells: Cells) -> frozenset[int]:
    """Cells in which f itself jumps, not only a derivative."""
    found: set[int] = set()
    scale = float(np.ptp(np.quantile(y, [0.2, 0.8])))
    for low, high in cells.breaks:
        first = max(int(np.searchsorted(x, low, side="right")) - 1, 0)
        last = min(int(np.searchsorted(x, high)), len(x) - 1)
        around = y[max(first - 4, 0) : last + 5]
        size = abs(y[last] - y[first])
        least = max(1e-3 * np.ptp(around), _LEAST_JUMP * (np.abs(around).max() + scale))
        if size > least and _steep(x, y, first, last):
            # The grid has a point at 0, which may lie inside the cell.
            found |= {i for i in range(first, last) if abs(y[i + 1] - y[i]) > 0.25 * size}
    return frozenset(found)


def _steep(x: NDArray[np.float64], y: NDArray[np.float64], first: int, last: int) -> bool:
    slope = abs(y[last] - y[first]) / (x[last] - x[first])
    return bool(slope > 1e4 * (1 + np.abs(y[first])) / (1 + abs(x[first])))
