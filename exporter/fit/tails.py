"""Where the asymptotes of a sampled function take over from its pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.fit.problem import Span


_ROUNDING = 2.0**-48


def tail_value(tail: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value of an asymptote, float64, the shape of x."""
    return np.asarray(polynomial.polyval(x, tail), dtype=np.float64)


def tail_error(tail: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """|y - asymptote|, float64, less what float64 rounding alone makes of numbers as large as y."""
    result: NDArray[np.float64] = np.maximum(np.abs(y - tail_value(tail, x)) - _ROUNDING * np.abs(y), 0)
    return result


def last_outside(span: Span, error: float) -> int:
    """Index of the last point that the right tail misses by more than `error`; -1 where there is none."""
    assert span.right is not None
    outside = np.flatnonzero(tail_error(span.right, span.x, span.y) > error)
    return int(outside[-1]) if len(outside) else -1
