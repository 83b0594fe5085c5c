"""Move magnitude from the channels of a layer's input into its weight, so that 8-bit codes suit both (SmoothQuant).

1. A layer x W is also (x / s) (s W), with one factor s per channel of x. One scale must fit all channels of x / s, and one each
   column of s W: a channel twenty times as large as the others leaves them a twentieth of the codes.
2. As in G. Xiao et al., SmoothQuant (ICML 2023, arXiv 2211.10438), s = peak(x)^a / peak(W)^(1 - a), per channel. The a is the
   one with the least noise at the layer's output, as far as rounding is even: a step d adds d^2 / 12 to every number, so that
   x / s adds d_x^2 / 12 * sum (s W)^2, and the column j of s W adds d_j^2 / 12 * sum mean(x^2) / s^2.
3. It may cost a multiplication of x, so that it is done where it takes a good part of the noise away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.quantize.params import LEVELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actx.exporter.quantize.ranges import Channels

# Exponents that are tried (2).
EXPONENTS = np.linspace(0.3, 1.0, 15)
# The noise must fall to this part of what it was, in power.
WORTH_A_PRODUCT = 0.7
_CODES = 255
_TINY = 1e-12


@dataclass(frozen=True)
class Migration:
    """The factors of one value.

    Attributes:
        factors: float64 (C,); the value is divided by them.
        noise: modelled power of the noise at the layers' outputs, relative to that without factors.
    """

    factors: NDArray[np.float64]
    noise: float


def migration(observed: Channels, weights: Sequence[NDArray[np.float64]], *, symmetric: bool) -> Migration | None:
    """Return the factors that take the most noise away, None where it is not worth it (2, 3).

    Args:
        observed: of the value that the layers read.
        weights: of every layer, float64 [C, outputs].
        symmetric: whether the value's codes are.
    """
    peaks = np.maximum(np.maximum(-observed.low, observed.high), _TINY)
    rows = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), _TINY)
    plain = _noise(observed, weights, np.ones_like(peaks), symmetric=symmetric)
    best = None
    for exponent in EXPONENTS:
        factors = peaks**exponent / rows ** (1 - exponent)
        factors = _moderate(factors / np.exp(np.log(factors).mean()))
        noise = _noise(observed, weights, factors, symmetric=symmetric) / max(plain, _TINY**4)
        if best is None or noise < best.noise:
            best = Migration(factors, noise)
    return best if best is not None and best.noise < WORTH_A_PRODUCT else None


def _moderate(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keep a channel that is always zero, or a weight of zeros, from an absurd factor."""
    clipped: NDArray[np.float64] = np.clip(factors, 2.0**-10, 2.0**10)
    return clipped


def _noise(
    observed: Channels, weights: Sequence[NDArray[np.float64]], factors: NDArray[np.float64], *, symmetric: bool
) -> float:
    """2."""
    low, high = min(float((observed.low / factors).min()), 0.0), max(float((observed.high / factors).max()), 0.0)
    step = max(-low, high) / LEVELS if symmetric else (high - low) / _CODES
    power = observed.power / np.square(factors)
    noise = 0.0
    for weight in weights:
        scaled = weight * factors[:, None]
        columns = np.abs(scaled).max(axis=0) / LEVELS
        noise += step**2 * float(np.square(scaled).sum()) + float(np.square(columns).sum()) * float(power.sum())
    return noise
