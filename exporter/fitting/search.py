"""The smallest error at which a construction reaches its goal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 60
_BELOW_GUESS = 1e-6
_PRECISION = 5e-4  # of E, relative
_FIRST_STEP = 1.3
_SMALLEST = 1e-12  # of E, relative to the range of f


def smallest_error(reached: Callable[[float], float], scale: float, guess: float) -> float:
    """Return the smallest E > 0 with ``reached(E) >= 0``; reached grows with E.

    Regula falsi on log E (Illinois variant), with a bisection step every third time.

    Args:
        reached: how far beyond the goal the construction comes with error E.
        scale: range of f where it bends.
        guess: about the result, such as the free-knot law's value.

    """
    low, gap_low, high, gap_high = _bracket(reached, scale, guess)
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


def _bracket(reached: Callable[[float], float], scale: float, guess: float) -> tuple[float, float, float, float]:
    """Errors (too small, large enough) and what they reach; both the same where even the smallest is large enough."""
    smallest = _SMALLEST * scale if guess <= 0 else min(_SMALLEST * scale, _BELOW_GUESS * guess)
    error = max(guess, smallest)
    gap, factor = reached(error), _FIRST_STEP
    if gap < 0:
        while gap < 0 and error < 1e6 * max(scale, guess):
            low, gap_low = error, gap
            error, factor = error * factor, factor**2 if factor < 100 else factor
            gap = reached(error)
        return low, gap_low, error, gap
    while gap >= 0:
        high, gap_high = error, gap
        if error < smallest:
            return high, gap_high, high, gap_high
        error, factor = error / factor, factor**2 if factor < 100 else factor
        gap = reached(error)
    return error, gap, high, gap_high
