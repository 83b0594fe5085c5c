"""The polynomial that a function tends to at infinity.

1. A polynomial of degree <= 3 that fits f to rounding far out (exponential approach: gelu, tanh).
2. Failing that, the polynomial part of a fit with inverse powers (algebraic approach: softsign, rational functions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.fitting.sampling import FP16_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actx.exporter.fitting.rounding import Rounding

MAX_TAIL_DEGREE = 3
_NEAREST = 2.0**13.5  # where "far out" begins; fp16 ends two and a half octaves later
_EXACT = 1e-10  # residual of 1., relative to the largest value: sums of hinges cancel
_ALGEBRAIC = 3e-11  # residual of 2.
_INVERSE_POWERS = 4
_SAFETY = 16  # on the rounding of f
_NOISE = 1e-12  # a coefficient whose part of f is smaller is a zero seen through rounding


def asymptote(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    side: float,
    rounding: Rounding,
    max_degree: int = MAX_TAIL_DEGREE,
) -> NDArray[np.float64] | None:
    """Return float64 (4,) ascending coefficients of the asymptote at side * infinity, or None where there is none."""
    # fp16 numbers: a function that rounds to float32 inside is still exact on them.
    x = side * np.geomspace(_NEAREST, FP16_MAX, 33).astype(np.float16).astype(np.float64)
    y = function(x)
    if not np.isfinite(y).all():
        return None
    scale = float(np.abs(y).max())
    blur = _SAFETY * float(rounding.at(x).max())
    for inverse, tolerance in ((0, _EXACT), (_INVERSE_POWERS, _ALGEBRAIC)):
        for degree in range(min(max_degree, 1 if inverse else max_degree) + 1):
            found = _fit(x, y, degree, inverse, max(tolerance * scale, blur), max(_NOISE * scale, blur))
            if found is not None:
                return found
    return None


def _fit(
    x: NDArray[np.float64], y: NDArray[np.float64], degree: int, inverse: int, tolerance: float, least: float
) -> NDArray[np.float64] | None:
    powers = np.arange(-inverse, degree + 1)
    matrix = (x[:, None] / FP16_MAX) ** powers
    norms = np.abs(matrix).max(axis=0)
    solution, *_ = np.linalg.lstsq(matrix / norms, y, rcond=None)
    if np.abs(matrix / norms @ solution - y).max() > tolerance:
        return None
    solution /= norms
    result = np.zeros(MAX_TAIL_DEGREE + 1)
    kept = np.where(np.abs(solution) <= least, 0.0, solution)[powers >= 0]
    result[: degree + 1] = kept / FP16_MAX ** np.arange(degree + 1)
    return _snap(result)


def _snap(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undo the rounding of the least-squares fit where a short decimal is that near."""
    short = np.array([float(f"{c:.9g}") for c in coefficients])
    return np.where(np.abs(short - coefficients) <= 1e-11 * np.abs(coefficients), short, coefficients)
