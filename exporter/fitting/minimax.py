"""Best weighted uniform approximation by a polynomial on a finite set of points (Remez' exchange).

Reference: E. W. Cheney, Introduction to Approximation Theory, chapter 3. A condition p(z) = f(z) is met by
approximating ``(f - polynomial through the conditions) / w`` with weight ``w = |product of (x - z)|``, whose products
with polynomials still form a Haar system away from the z; so one algorithm serves the free and the pinned fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import chebyshev, polynomial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ITERATIONS = 30


@dataclass(frozen=True)
class Approximation:
    """A polynomial and its largest error on the points.

    Attributes:
        error: largest absolute error on the points, by the widths there; where the search ended at a limit, a lower bound of
            every polynomial's, above the limit.
        free: Chebyshev coefficients of the free factor on [low, high].
        pins: the conditions met exactly, as pairs (x, value).

    """

    error: float
    free: NDArray[np.float64]
    low: float
    high: float
    pins: tuple[tuple[float, float], ...]

    def powers(self, origin: float) -> NDArray[np.float64]:
        """Coefficients of ascending powers of (x - origin), float64."""
        # In t = (x - origin) / half: small numbers whatever the scale of the interval.
        half = (self.high - self.low) / 2 or 1.0
        middle = ((self.high + self.low) / 2 - origin) / half
        shifted = _compose(np.asarray(chebyshev.cheb2poly(self.free), dtype=np.float64), np.array([-middle, 1.0]))
        for x, _ in self.pins:
            shifted = polynomial.polymul(shifted, np.array([(origin - x) / half, 1.0]))
        result = polynomial.polyadd(shifted, _line(self.pins, origin, half))
        powers: NDArray[np.float64] = result / half ** np.arange(len(result))
        return powers


def approximate(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    degree: int,
    pins: Sequence[tuple[float, float]] = (),
    *,
    width: NDArray[np.float64] | None = None,
    tolerance: float = 1e-3,
    limit: float = np.inf,
) -> Approximation:
    """Fit y on the ascending points x by a polynomial of at most the given degree that meets the pins.

    Args:
        x: float64 (m,), ascending.
        y: float64 (m,).
        degree: at least the number of pins.
        pins: conditions (x, value) at different x.
        width: float64 (m,) > 0, what errors are divided by; None for 1.
        tolerance: how far the result may be from the best, relative to its error.
        limit: of the error; where it must be above, any polynomial will do.

    """
    pins = tuple(pins)
    low, high = float(x[0]), float(x[-1])
    high = high if high > low else low + max(abs(low), 1.0)  # a single point
    half = (high - low) / 2
    weight = np.ones_like(x)
    for z, _ in pins:
        weight = weight * ((x - z) / half)
    away = weight != 0
    x, y, weight = x[away], y[away], weight[away]
    scale = np.abs(weight) if width is None else np.abs(weight) / width[away]
    offset = _value(_line(pins, 0.0, half), x / half)
    t = (x - (low + high) / 2) / half
    free, error = _exchange(t, (y - offset) / weight, scale, degree - len(pins), tolerance, limit)
    return Approximation(error, free, low, high, pins)


def _exchange(
    t: NDArray[np.float64],
    y: NDArray[np.float64],
    weight: NDArray[np.float64],
    degree: int,
    tolerance: float,
    limit: float,
) -> tuple[NDArray[np.float64], float]:
    count = degree + 2
    if len(t) < count:
        return _interpolate(t, np.where(np.abs(y) < 1e100, y, 0.0), degree), 0.0
    matrix = _chebyshev_matrix(t, degree)
    extrema, signs = _extrema(count)
    reference = _start(t, extrema)
    best: NDArray[np.float64] = np.zeros(degree + 1)
    least = np.inf
    system = np.empty((count, count))
    for _ in range(_ITERATIONS):
        system[:, :-1] = matrix[reference]
        system[:, -1] = signs / weight[reference]
        try:
            solution = np.linalg.solve(system, y[reference])
        except np.linalg.LinAlgError:
            break
        free, level = solution[:-1], abs(float(solution[-1]))
        if level > limit:  # errors that alternate are a lower bound (de la Vallee Poussin)
            return np.asarray(free, dtype=np.float64), level
        error: NDArray[np.float64] = weight * (y - matrix @ free)
        largest = float(np.abs(error).max())
        if largest < least:
            best, least = np.asarray(free, dtype=np.float64), largest
        if largest <= level * (1 + tolerance):
            break
        reference = _alternation(error, reference, count)
    return best, least


def _interpolate(t: NDArray[np.float64], y: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    free, *_ = np.linalg.lstsq(_chebyshev_matrix(t, degree), y, rcond=None)
    return np.asarray(free, dtype=np.float64)


@cache
def _extrema(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Extrema of the Chebyshev polynomial on [-1, 1] and alternating signs."""
    extrema: NDArray[np.float64] = -np.cos(np.pi * np.arange(count) / (count - 1))
    return extrema, np.where(np.arange(count) % 2 == 0, 1.0, -1.0)


def _chebyshev_matrix(t: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Values of the Chebyshev polynomials 0..degree, one column each."""
    columns = np.ones((degree + 1, len(t)))
    if degree:
        columns[1] = t
    for j in range(2, degree + 1):
        columns[j] = 2 * t * columns[j - 1] - columns[j - 2]
    return columns.T


def _value(coefficients: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's rule; polynomial.polyval costs as much as the whole exchange for arrays this short."""
    result = np.full_like(t, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * t + c
    return result


def _start(t: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """Distinct indices near the wanted points."""
    count = len(wanted)
    index = np.searchsorted(t, wanted).clip(0, len(t) - 1)
    index = np.maximum.accumulate(index - np.arange(count)) + np.arange(count)
    room = len(t) - count + np.arange(count)
    result: NDArray[np.intp] = np.minimum(index, room)
    return result


def _alternation(error: NDArray[np.float64], reference: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return indices of `count` errors of alternating sign, the largest among them."""
    magnitude = np.abs(error)
    ends = np.flatnonzero(np.diff(np.signbit(error))) + 1
    bounds = [0, *ends.tolist(), len(error)]
    peaks = [a + int(magnitude[a:b].argmax()) for a, b in pairwise(bounds)]
    if len(peaks) < count:
        return _single_exchange(error, reference)
    sizes = magnitude[peaks].tolist()
    while len(peaks) > count:
        # The smallest leaves with the smaller of its neighbours, so that the signs keep alternating; at an end it leaves alone.
        least = min((0, -1), key=sizes.__getitem__) if len(peaks) == count + 1 else sizes.index(min(sizes))
        if 0 < least < len(peaks) - 1:
            least -= sizes[least - 1] < sizes[least + 1]
            del peaks[least], sizes[least]
        del peaks[least], sizes[least]
    return np.array(peaks)


def _single_exchange(error: NDArray[np.float64], reference: NDArray[np.intp]) -> NDArray[np.intp]:
    """Bring the point of largest error into the reference in place of a neighbour of the same sign."""
    worst = int(np.abs(error).argmax())
    if worst in reference:
        return reference
    sign = np.signbit(error[worst])
    place = int(np.searchsorted(reference, worst))
    neighbours = [k for k in (place - 1, place) if 0 <= k < len(reference)]
    same = [k for k in neighbours if np.signbit(error[reference[k]]) == sign]
    result = reference.copy()
    if same:
        result[same[0]] = worst
    elif place == 0:
        result = np.concatenate([[worst], reference[:-1]])
    elif place == len(reference):
        result = np.concatenate([reference[1:], [worst]])
    return result


def _line(pins: Sequence[tuple[float, float]], origin: float, half: float) -> NDArray[np.float64]:
    """Coefficients in (x - origin) / half of the polynomial of least degree through the pins (Newton's form)."""
    if not pins:
        return np.zeros(1)
    if len(pins) == 1:
        return np.array([pins[0][1]])
    t = [(x - origin) / half for x, _ in pins]
    result: NDArray[np.float64] = np.zeros(1)
    basis: NDArray[np.float64] = np.ones(1)
    for (_, y), z in zip(pins, t, strict=True):
        lead = (y - polynomial.polyval(z, result)) / polynomial.polyval(z, basis)
        result = np.asarray(polynomial.polyadd(result, lead * basis), dtype=np.float64)
        basis = np.asarray(polynomial.polymul(basis, np.array([-z, 1.0])), dtype=np.float64)
    return result


def _compose(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.zeros(1)
    for c in outer[::-1]:
        result = polynomial.polyadd(polynomial.polymul(result, inner), np.array([c]))
    return result
