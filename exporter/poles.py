"""Find where a scalar function is not finite: a pole, the end of its domain, or a constant that is no number.

1. Enclosures over intervals (see `certificate.jet`) tell where the function surely is finite; an interval where they do not
   is halved, so that no pole hides between the points of a grid.
2. What is left is a few tiny intervals. Values in and around them decide: an enclosure may be infinite because it is wide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from flint import arb

from actx.exporter.certificate.jet import Jet, operand, union

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from actx.exporter.lift import ScalarFunction

_MAX_PARTS = 1500
_NARROW = 1e-10  # of 1 + |x|: halved no further
_AROUND = 1e4  # narrow intervals on either side, where the values are compared with
_GROWTH = 1e3  # of |f| from there to within, which a slope or a jump does not make
_OVER = 1e-3  # least |f| that counts as large
_MIDDLE = 0.4873  # where an interval is halved: a pole at a round number must not be an end
_SINGULAR = frozenset({"Div", "Reciprocal", "Log", "Sqrt", "Pow", "Tan", "Mod", "Asin", "Acos", "Acosh", "Atanh"})


def find_pole(function: ScalarFunction, low: float, high: float, *, domain: bool = True) -> float | None:
    """Return a number of the interval at or next to which f is not finite, or None.

    Args:
        function: f of one channel.
        low: where the interval begins, finite.
        high: where it ends, finite.
        domain: whether it counts that f is not finite at an end, or on a whole part of the interval, as of a logarithm.
    """
    grid = _grid(low, high)
    bad = np.flatnonzero(~np.isfinite(function(grid)))
    if domain and bad.size:
        return float(grid[bad[0]])
    if not any(step.op[1] in _SINGULAR for step in function.steps):
        return None
    suspects = _unbounded(function, low, high)
    return next((x for part in suspects if (x := _confirmed(function, *part, domain=domain)) is not None), None)


def _grid(low: float, high: float) -> NDArray[np.float64]:
    near = np.linspace(low, high, 513)
    decades = np.geomspace(1e-6, 7e4, 257)
    grid = np.concatenate([near, -decades, [0.0], decades])
    return np.unique(grid[(grid >= low) & (grid <= high)])


def _unbounded(function: Callable[[Any], Any], low: float, high: float) -> list[tuple[float, float]]:
    """1. Return the narrow intervals over which no enclosure of f is finite."""
    pending, found = [(low, high)], []
    for _ in range(_MAX_PARTS):
        if not pending:
            break
        a, b = pending.pop()
        if _is_enclosed(function, a, b):
            continue
        if b - a <= _NARROW * (1 + abs(a)):
            found.append((a, b))
            continue
        middle = a + _MIDDLE * (b - a)
        pending += [(middle, b), (a, middle)]
    return found


def _is_enclosed(function: Callable[[Any], Any], low: float, high: float) -> bool:
    try:
        value = operand(function(Jet.variable(union(arb(low), arb(high)))))
    except (TypeError, AttributeError, ValueError):  # an operation without a rule: the values of the grid must do
        return True
    return not isinstance(value, Jet) or bool(value.value.is_finite())


def _confirmed(function: ScalarFunction, low: float, high: float, *, domain: bool) -> float | None:
    """2. Return where f is not finite, or far larger than on both sides."""
    width = high - low
    inside = np.unique(np.concatenate([np.linspace(low, high, 65), np.round(np.linspace(low, high, 3), 6)]))
    sides = [np.abs(function(end + sign * width * _AROUND)) for sign, end in ((-1, low), (1, high))]
    if not all(map(math.isfinite, sides)):
        return low if domain else None
    values = np.abs(function(inside))
    worst = float(inside[np.argmax(np.where(np.isfinite(values), values, np.inf))])
    grown = not np.isfinite(values).all() or float(values.max()) > _GROWTH * (_OVER + max(map(float, sides)))
    return worst if grown else None
