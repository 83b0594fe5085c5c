"""Where the asymptotes of a sampled function take over from its pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.fit.problem import Span


def tail_value(tail: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value of an asymptote, float64, the shape of x."""
    result: NDArray[np.float64] = polynomial.polyval(x, tail)
    return result


def last_outside(span: Span, error: float) -> int:
    """Index of the last point that the right tail misses by more than `error`; -1 where there is none."""
    assert span.right is not None
    outside = np.flatnonzero(np.abs(span.y - tail_value(span.right, span.x)) > error)
    return int(outside[-1]) if len(outside) else -1
