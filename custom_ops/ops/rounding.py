"""What float32 arithmetic may lose: the bounds that the accuracy contracts are made of.

All kernels compute in float32 and round once to the element type. u is the rounding unit of float32, 2^-24; a result below
the normal numbers is off by at most 2^-150 instead (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
sections 2.1 and 2.2). A bound is infinite where an intermediate result may leave float32: what comes out is open there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline

UNIT = 2.0**-24
SUBNORMAL = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)


def spline_error(spline: Spline, x: NDArray[Any]) -> NDArray[np.float64]:
    """Bound what Horner's rule loses of s(x).

    Each step may also lose a subnormal number, which the powers that follow magnify: as if every coefficient were larger by
    2^-125, the smallest subnormal number over u. A tail at infinity is exact.
    """
    magnitude = np.where(np.isfinite(x), spline.magnitude(x, SUBNORMAL / UNIT), 0.0)
    return opened(terms(spline.degree) * UNIT * magnitude, magnitude)


def terms(degree: int) -> int:
    """Return how many roundings a term of Horner's rule may take.

    The term of power j takes j products and j sums, fused or not, and the j-th power of x - origin, which was rounded once
    (Higham, section 5.1).
    """
    return 3 * degree + 1


def opened(error: NDArray[np.float64], magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bound, infinite where numbers of that magnitude may overflow."""
    return np.where(magnitude * (1 + 1e-3) < LARGEST, error, np.inf)


def product_error(
    a: NDArray[np.float64], a_error: NDArray[np.float64], b: NDArray[np.float64], b_error: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bound what is lost of a * b where both are off by their own errors and the product is rounded.

    Where one is infinite and the other may be rounded to zero, or both ways, the product is open.
    """
    largest = (np.abs(a) + a_error) * (np.abs(b) + b_error)
    error = np.where(np.isfinite(largest), largest - np.abs(a * b) + UNIT * largest + SUBNORMAL, 0.0)
    infinite = np.isinf(a) | np.isinf(b)
    open_ = np.isinf(a_error) | np.isinf(b_error)
    open_ |= infinite & ((np.abs(a) <= a_error) & (a_error > 0) | (np.abs(b) <= b_error) & (b_error > 0))
    return np.where(open_, np.inf, error)


def rounded(exact: NDArray[np.float64], error: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Add the rounding to the element type to the error of the float32 result; float32 itself is not rounded again."""
    if dtype == np.float32:
        return error
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    unit, subnormal = float(info.eps) / 2, float(info.smallest_subnormal)
    finite = np.where(np.isfinite(exact), exact, 0.0)
    return error + unit * (np.abs(finite) + error) + subnormal / 2


def overflow_threshold(dtype: np.dtype[Any]) -> float:
    """Return the smallest magnitude that rounds to infinity; infinity for integers."""
    if dtype.kind in "iu":
        return np.inf
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.max) * (1 + float(info.eps) / 4)
