"""The largest error of a table, found by dense sampling and local refinement.

Points are float32 numbers, because x is never anything finer: at a jump of f, a knot at the first number behind it is
right for every x there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from actx.exporter.fitting.problem import require_finite
from actx.exporter.fitting.sampling import FP16_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.problem import Problem

_PER_SEGMENT = 192
_PEAKS = 48
_FINE = 17
_ROUNDS = 2


@dataclass(frozen=True)
class Error:
    """The largest error of a table.

    Attributes:
        largest: sup |f - s|.
        at: where; an infinity where a tail diverges.
        core: the same without what rounding the asymptotes to float32 costs in the tails.

    """

    largest: float
    at: float
    core: float


def measure(problem: Problem, spline: Spline) -> Error:
    """Find the largest error over the interval, or over all finite fp16 numbers where the fit is on all of R.

    Raises:
        ActxError: f is not finite at a point.

    """
    for side, tail, row in ((-np.inf, problem.span.left, 0), (np.inf, problem.span.right, -1)):
        if not problem.bounded and tail is not None and _diverges(tail, spline.coefficients[row]):
            return Error(float("inf"), side, float("inf"))
    x = _points(problem, spline)
    y = problem.function(x)
    require_finite(x, y)
    error = np.abs(y - spline(x))
    for _ in range(_ROUNDS):
        fine = _around_peaks(x, error)
        fine_error = np.abs(problem.function(fine) - spline(fine))
        x, first = np.unique(np.concatenate([x, fine]), return_index=True)
        error = np.concatenate([error, fine_error])[first]
    worst = int(np.argmax(error))
    core = float(np.maximum(error - _tail_rounding(problem, spline, x), 0).max())
    return Error(float(error[worst]), float(x[worst]), core)


def _tail_rounding(problem: Problem, spline: Spline, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """|asymptote - tail of s| where a tail is in force, 0 elsewhere."""
    result = np.zeros_like(x)
    knots = spline.knots if len(spline.knots) else np.array([np.inf])
    left, right = x < knots[0], x >= knots[-1]
    for tail, inside in ((problem.span.left, left), (problem.span.right, right)):
        if tail is not None:
            result[inside] = np.abs(polynomial.polyval(x[inside], tail) - spline(x[inside]))
    return result


def _diverges(tail: NDArray[np.float64], row: NDArray[np.float32]) -> bool:
    """Whether the tails part by more than rounding the asymptote's coefficients costs on all finite fp16 numbers."""
    powers = np.zeros(max(len(tail), len(row)))
    powers[: len(row)] = row
    powers[: len(tail)] -= tail
    size = FP16_MAX ** np.arange(1, len(powers))
    largest = float(np.max(np.abs(tail[1:]) * FP16_MAX ** np.arange(1, len(tail))))
    return bool((np.abs(powers[1:]) * size > 1e-6 * largest).any())


def _points(problem: Problem, spline: Spline) -> NDArray[np.float64]:
    knots = spline.knots.astype(np.float64)
    inner = np.concatenate([[problem.low], knots[(knots > problem.low) & (knots < problem.high)], [problem.high]])
    inner = np.clip(inner, -64.0, 64.0) if not problem.bounded else inner
    steps = (1 - np.cos(np.pi * np.arange(_PER_SEGMENT + 1) / _PER_SEGMENT)) / 2
    segments = (inner[:-1, None] + np.diff(inner)[:, None] * steps).ravel()
    before = np.nextafter(spline.knots, np.float32(-np.inf)).astype(np.float64)
    grid = problem.span.x
    x = np.concatenate([segments, before, knots, grid, (grid[:-1] + grid[1:]) / 2, _every_fp16()])
    x = np.unique(x.astype(np.float32)).astype(np.float64)
    return x[(x >= problem.low) & (x <= problem.high)]


def _every_fp16() -> NDArray[np.float64]:
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.concatenate([-positive, positive])


def _around_peaks(x: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points between the neighbours of the largest local maxima."""
    inner = np.flatnonzero((error[1:-1] >= error[:-2]) & (error[1:-1] >= error[2:])) + 1
    peaks = inner[np.argsort(error[inner], kind="stable")[-_PEAKS:]]
    fine = x[peaks - 1][:, None] + (x[peaks + 1] - x[peaks - 1])[:, None] * np.linspace(0, 1, _FINE)
    return np.unique(fine.astype(np.float32)).astype(np.float64)
