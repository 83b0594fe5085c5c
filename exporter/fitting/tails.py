"""Where the asymptotes of a sampled function take over from its pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.fitting.problem import Span


_ROUNDING = 2.0**-48


def tail_value(tail: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value of an asymptote, float64, the shape of x."""
    return np.asarray(polynomial.polyval(x, tail), dtype=np.float64)


def tail_error(span: Span, tail: NDArray[np.float64]) -> NDArray[np.float64]:
    """|y - asymptote| / width on the span, less what float64 rounding alone makes of numbers as large as y.

    At the pin it is infinite unless the asymptote meets f there: s(0) = f(0) whatever the error.
    """
    error: NDArray[np.float64] = np.abs(span.y - tail_value(tail, span.x)) - _ROUNDING * np.abs(span.y)
    error = np.maximum(error, 0) / span.width
    if span.pin is not None and error[span.pin] > 0:
        error[span.pin] = np.inf
    return error


def last_outside(span: Span, error: float) -> int:
    """Index of the last point that the right tail misses by more than `error`; -1 where there is none."""
    assert span.right is not None
    outside = np.flatnonzero(tail_error(span, span.right) > error)
    return int(outside[-1]) if len(outside) else -1
