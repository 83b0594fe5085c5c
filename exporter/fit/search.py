"""The smallest error at which a construction reaches its goal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from actx.exporter.fit.problem import Span

_ROUNDS = 60
_PRECISION = 1e-4  # of E, relative
_SMALLEST = 1e-12  # of E, relative to the range of f


def smallest_error(reached: Callable[[float], float], span: Span) -> float:
    """Return the smallest E > 0 with ``reached(E) >= 0``; reached grows with E.

    Regula falsi on log E (Illinois variant), with a bisection step whenever it stalls.
    """
    scale = float(np.ptp(span.y)) or 1.0
    high, gap_high = _feasible(reached, scale)
    low, gap_low = high, gap_high
    while gap_low >= 0:
        if low < _SMALLEST * scale:
            return low
        high, gap_high = low, gap_low
        low /= 8
        gap_low = reached(low)
    for turn in range(_ROUNDS):
        if high <= low * (1 + _PRECISION):
            break
        share = gap_low / (gap_low - gap_high) if gap_high > gap_low and gap_high < 1 and turn % 3 != 2 else 0.5
        middle = float(low * (high / low) ** min(max(share, 0.02), 0.98))
        gap = reached(middle)
        if gap >= 0:
            high, gap_high, gap_low = middle, gap, gap_low / 2
        else:
            low, gap_low, gap_high = middle, gap, gap_high / 2
    return high


def _feasible(reached: Callable[[float], float], scale: float) -> tuple[float, float]:
    error = 1e-3 * scale
    for _ in range(40):
        gap = reached(error)
        if gap >= 0:
            return error, gap
        error *= 4
    return error, gap
