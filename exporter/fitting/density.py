"""Where the inputs of a site are, and how much larger an error may be elsewhere.

1. Inputs are counted in bins of equal width in arsinh(x): narrow about zero, and as narrow relative to x far out.
2. The segments of a free-knot fit of degree d that makes the mean square error under a density rho small have errors in
   proportion to rho^-(d+1)/(2d+3) (the law of `sampling` for the 2-norm with a weight). So a tube, or a weighted minimax
   fit, of this width has the knots of the mean square fit.
3. The width lies between 1 and `CAP`. The best fit without a density is one of the candidates, so that the largest error is
   at most CAP times its error.

Reference: C. de Boor, Good approximation by splines with variable knots, 1973.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CAP = 2.0
_BINS = 2048
_REACH = float(np.arcsinh(65504.0))  # fp16
_STEP = 2 * _REACH / _BINS
_EDGES: NDArray[np.float64] = np.sinh(np.linspace(-_REACH, _REACH, _BINS + 1))
_MIDDLES: NDArray[np.float64] = np.sinh(_STEP * (np.arange(_BINS) + 0.5) - _REACH)
_BLUR = 8.0  # bins: what is finer is chance


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(_BINS, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Density:
    """How often inputs are where.

    Attributes:
        counts: int64 (2048,), per bin.
    """

    counts: NDArray[np.int64] = field(default_factory=_no_counts)

    @classmethod
    def of(cls, x: NDArray[np.floating]) -> Density:
        """Count finite numbers of any shape; those beyond fp16 count in the outermost bins."""
        places = (np.arcsinh(x.ravel(), dtype=np.float32) + np.float32(_REACH)) * np.float32(1 / _STEP)
        bins = np.clip(places, 0, _BINS - 1).astype(np.intp)
        return cls(np.bincount(bins, minlength=_BINS))

    def __add__(self, other: Density) -> Density:
        return Density(self.counts + other.counts)

    def mirrored(self) -> Density:
        """Return the density of -x."""
        return Density(self.counts[::-1])

    @cached_property
    def key(self) -> bytes:
        """Equal for equal densities."""
        return self.counts.tobytes()

    def rms(self, error: NDArray[np.float64]) -> float:
        """Return the root mean square of an error that is given at `places`."""
        return float(np.sqrt(np.average(np.square(error), weights=self.mass)))

    def shares(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return which share of the inputs lies between each two neighbours of ascending edges, evenly within bins."""
        below = np.concatenate([[0], np.cumsum(self.counts)]) / self.counts.sum()
        shares: NDArray[np.float64] = np.diff(np.interp(edges, _EDGES, below))
        return shares

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """Middles of the bins that hold any input, float64 ascending."""
        return _MIDDLES[self.counts > 0]

    @cached_property
    def mass(self) -> NDArray[np.int64]:
        """How many inputs are at each of `places`."""
        return self.counts[self.counts > 0]

    def width(self, x: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
        """Return how much larger the error of segments of this degree may be at x than where inputs are densest (2., 3.)."""
        reach = int(3 * _BLUR)
        kernel = np.exp(-np.square(np.arange(-reach, reach + 1) / _BLUR) / 2)
        height = np.convolve(self.counts, kernel, mode="same") / np.diff(_EDGES)
        relative = np.interp(np.arcsinh(x), np.arcsinh(_MIDDLES), height / height.max())
        exponent = (degree + 1) / (2 * degree + 3)
        result: NDArray[np.float64] = np.minimum(np.maximum(relative, 1e-12) ** -exponent, CAP)
        return result
