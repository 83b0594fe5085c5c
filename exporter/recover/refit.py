"""Fit the weight and bias of a linear layer anew, in closed form: ridge regression towards what they are.

1. The layer reads A (rows of places) and is to give what it gives and R more. D, the change of the weight, minimises
   |R - A D - d|^2 + strength * sum_i p_i |D_i|^2; d, the change of the bias, is free.
2. The penalty p_i of an input channel is the geometric mean of its own power and that of all: between ridge regression on A as
   it is, which leaves weak channels alone, and on A with equal powers. A channel that is constant has next to no power once its
   mean is taken out, and what is left of it is rounding.
3. The strength is the one with the least error on held-out rows, found downhill, of decades first and then between them.
4. Only sums over rows are held, in float64: two Gram matrices, of the rows to fit on and of those held out, and one factor.

Reference: A. E. Hoerl and R. W. Kennard, Ridge Regression, Technometrics 12, 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from scipy.linalg import blas

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_FIRST, _LEAST, _MOST = 1.0, 1e-5, 1e4
_BETWEEN = 10.0**0.5
# Of the mean power: a channel's own is not counted as less.
_WEAK = 1e-6
# Of the power before the mean was taken out: less is rounding.
_ROUNDING = 1e-12


class Moments:
    """Sums over rows of what a layer reads and of what it lacks.

    Attributes:
        rows: how many.
        gram: A' A, float64 [inputs, inputs], of which only the upper triangle is computed.
        cross: A' R, float64 [inputs, outputs].
        sum_a, sum_r: sums of the rows.
        power: sum of the squares of R.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.gram: NDArray[np.float64] = np.zeros((inputs, inputs), order="F")
        self.cross: NDArray[np.float64] = np.zeros((inputs, outputs), order="F")
        self.sum_a: NDArray[np.float64] = np.zeros(inputs)
        self.sum_r: NDArray[np.float64] = np.zeros(outputs)
        self.power = 0.0

    def update(self, a: NDArray[Any], r: NDArray[np.float64]) -> None:
        """Add rows [n, inputs] and [n, outputs]; those that are not finite are left out."""
        known = np.isfinite(a).all(axis=1) & np.isfinite(r).all(axis=1)
        exact, r = a[known].astype(np.float64), r[known]
        if not len(exact):
            return
        self.rows += len(exact)
        # In place: a product of its own would be a third Gram matrix.
        self.gram = blas.dsyrk(1.0, exact.T, beta=1.0, c=self.gram, overwrite_c=True)
        self.cross = blas.dgemm(1.0, exact.T, r.T, trans_b=True, beta=1.0, c=self.cross, overwrite_c=True)
        self.sum_a += exact.sum(axis=0)
        self.sum_r += r.sum(axis=0)
        self.power += float(np.square(r).sum())

    def centre(self) -> None:
        """Take the means out of Gram and cross matrix, in place."""
        self.gram = blas.dsyr(-1 / self.rows, self.sum_a, a=self.gram, overwrite_a=True)
        self.cross = blas.dger(-1 / self.rows, self.sum_a, self.sum_r, a=self.cross, overwrite_a=True)

    def error(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
        """Return |R - A D - d|^2 of a change D, float64 [inputs, outputs], and d [outputs], from sums that are not centred."""
        explained = np.vdot(weight, blas.dsymm(1.0, self.gram, weight) - 2 * self.cross)
        shifted = bias @ (self.rows * bias - 2 * self.sum_r) + 2 * (self.sum_a @ weight) @ bias
        return max(float(self.power + explained + shifted), 0.0)


@dataclass(frozen=True)
class Refit:
    """A change of a layer.

    Attributes:
        weight: D, float64 [inputs, outputs].
        bias: d, float64 [outputs].
        strength: of the ridge.
        before: held-out error without the change, as a sum of squares.
        after: with it.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float
    before: float
    after: float


def refit(fitted: Moments, held: Moments, *, bias: bool) -> Refit | None:
    """Return the change that helps held-out rows most; None where none does.

    Args:
        fitted: of the rows to fit on; centred afterwards where there is a bias.
        held: of the rows to judge on.
        bias: whether the layer has one.
    """
    if not fitted.rows or not held.rows:
        return None
    mean_a, mean_r = fitted.sum_a / fitted.rows, fitted.sum_r / fitted.rows
    floor = _ROUNDING * float(np.diag(fitted.gram).mean())
    if bias:
        fitted.centre()
    penalty = _penalty(np.diag(fitted.gram), floor)

    def attempt(strength: float) -> Refit:
        weight = _solve(fitted.gram, strength * penalty, fitted.cross)
        change = mean_r - mean_a @ weight if bias else np.zeros_like(mean_r)
        return Refit(weight, change, strength, held.power, held.error(weight, change))

    best = _descend(attempt)
    return best if best.after < best.before else None


def _descend(attempt: Callable[[float], Refit]) -> Refit:
    """3."""
    best = attempt(_FIRST)
    for factor in (10.0, 0.1):
        while _LEAST <= best.strength * factor <= _MOST:
            following = attempt(best.strength * factor)
            if not following.after < best.after:
                break
            best = following
        if best.strength != _FIRST:  # what lies on the other side is worse
            break
    middle = best.strength
    return min((best, *(attempt(middle * factor) for factor in (1 / _BETWEEN, _BETWEEN))), key=lambda one: one.after)


def _penalty(power: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """2."""
    mean = max(float(power.mean()), floor)
    penalty: NDArray[np.float64] = np.sqrt(np.maximum(power, _WEAK * mean) * mean)
    return penalty


def _solve(gram: NDArray[np.float64], ridge: NDArray[np.float64], cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve (G + diag(ridge)) D = C: by Cholesky, or where rounding made the sum indefinite by its eigenvalues.

    Args:
        gram: the upper triangle of G, float64 [n, n].
        ridge: not negative, [n].
        cross: C, [n, m].
    """
    try:
        factor = scipy.linalg.cho_factor(_sum(gram, ridge), overwrite_a=True, check_finite=False)
        solution: NDArray[np.float64] = scipy.linalg.cho_solve(factor, cross, check_finite=False)
    except scipy.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(_sum(gram, ridge), lower=False, overwrite_a=True, check_finite=False)
        large = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        basis = vectors[:, large]
        solution = basis @ ((basis.T @ cross) / values[large, None])
    return solution


def _sum(gram: NDArray[np.float64], ridge: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = gram.copy(order="F")
    matrix[np.diag_indices_from(matrix)] += ridge
    return matrix
