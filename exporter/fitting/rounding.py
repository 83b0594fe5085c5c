"""How much of a function's value is rounding: measured, because what cancelled inside f does not show in its value.

1 - (x + 1) near zero and a sum of hinges far out are made of numbers far larger than f, and a graph may round to
float32 inside.

1. Over a stretch that is short beside |x| a smooth f is a parabola to far below float64's rounding; what is left of it
   there is rounding.
2. Rounding of terms c x shows in 1. only if it differs between neighbours. It is all alike where x + k is rounded as x
   is, so such terms are taken to be present: |x| times the steepest slope of f nearer to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_STRETCH = 1e-6  # half width relative to |x|: some float32 numbers wide
_NEAREST = 1e-9  # closer to zero than any feature of an activation
_POINTS = 24
_PER_OCTAVE = 3
_INSIDE = 31  # places over the interval, for one far from zero
_NEIGHBOURS = 2  # places on each side that are asked too: rounding may be absent at one by chance
_EPSILON = 2.0**-52


@dataclass(frozen=True)
class Rounding:
    """The rounding of f over an interval.

    Attributes:
        places: float64 (m,), ascending, none of them 0.
        levels: float64 (m,), absolute, the largest around each place.

    """

    places: NDArray[np.float64]
    levels: NDArray[np.float64]

    @staticmethod
    def of(function: Callable[[NDArray[np.float64]], NDArray[np.float64]], low: float, high: float) -> Rounding:
        """Measure f on [low, high]."""
        farthest = max(abs(low), abs(high), 2 * _NEAREST)
        octaves = np.geomspace(_NEAREST, 0.987 * farthest, int(_PER_OCTAVE * np.log2(farthest / _NEAREST)) + 2)
        inside = low + (high - low) * np.linspace(0.0123, 0.9871, _INSIDE)
        places = np.unique(np.concatenate([-octaves, octaves, inside]))
        reach = _STRETCH * np.abs(places)
        places = places[(places - reach >= low) & (places + reach <= high) & (reach > 0)]
        if len(places) == 0:
            return Rounding(np.array([low]), np.zeros(1))
        t = np.linspace(-1, 1, _POINTS)
        y = function(places[:, None] * (1 + _STRETCH * t))
        return Rounding(places, np.maximum(_uneven(y, t), _EPSILON * _linear_terms(places, y[:, 0])))

    def at(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rounding of f at x, but for that of its own value; float64, the shape of x."""
        return np.asarray(np.interp(x, self.places, self.levels), dtype=np.float64)

    def within(
        self, left: NDArray[np.float64], right: NDArray[np.float64], y: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the rounding, float64 (m,), of values y of f, float64 (m, n), in cells [left, right], float64 (m,)."""
        own: NDArray[np.float64] = _EPSILON * np.abs(y).max(axis=1)
        return np.maximum(own, np.maximum(self.at(left), self.at(right)))


def _uneven(y: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest distance from a parabola around each place (1.)."""
    basis, _ = np.linalg.qr(t[:, None] ** np.arange(3))
    y = y - y[:, :1]
    left = np.pad(np.abs(y - y @ basis @ basis.T).max(axis=1), _NEIGHBOURS)
    result: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(left, 2 * _NEIGHBOURS + 1).max(axis=1)
    return result


def _linear_terms(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Size of terms c x that f may be made of (2.)."""
    slope = np.abs(np.diff(y) / np.diff(x))
    slope[x[:-1] * x[1:] < 0] = 0  # a step at zero is no slope
    slope = np.maximum(np.append(slope, 0.0), np.append(0.0, slope))
    sort = np.argsort(np.abs(x), kind="stable")
    steepest = np.empty_like(slope)
    steepest[sort] = np.maximum.accumulate(slope[sort])
    size: NDArray[np.float64] = steepest * np.abs(x)
    return size
