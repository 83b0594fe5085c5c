"""Fit the weight and bias of a linear layer anew, in closed form: ridge regression towards what they are.

1. The layer reads A (rows of places) and is to give what it gives and R more. D, the change of the weight, minimises
   |R - A D - d|^2 + strength * sum_i p_i |D_i|^2; d, the change of the bias, is free.
2. The penalty p_i of an input channel is the geometric mean of its own power and that of all: between ridge regression on A as
   it is, which leaves weak channels alone, and on A with equal powers.
3. The strength is the one with the least error on held-out rows, of decades first and then between them.
4. Only sums over rows are held, in float64: two Gram matrices, of the rows to fit on and of those held out.

Reference: A. E. Hoerl and R. W. Kennard, Ridge Regression, Technometrics 12, 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DECADES = tuple(10.0**k for k in range(-5, 5))
_BETWEEN = 10.0**0.5


class Moments:
    """Sums over rows of what a layer reads and of what it lacks.

    Attributes:
        rows: how many.
        gram: A' A, float64 [inputs, inputs].
        cross: A' R, float64 [inputs, outputs].
        sum_a, sum_r: sums of the rows.
        power: sum of the squares of R.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.gram: NDArray[np.float64] = np.zeros((inputs, inputs))
        self.cross: NDArray[np.float64] = np.zeros((inputs, outputs))
        self.sum_a: NDArray[np.float64] = np.zeros(inputs)
        self.sum_r: NDArray[np.float64] = np.zeros(outputs)
        self.power = 0.0

    def update(self, a: NDArray[Any], r: NDArray[np.float64]) -> None:
        """Add rows [n, inputs] and [n, outputs]; those that are not finite are left out."""
        known = np.isfinite(a).all(axis=1) & np.isfinite(r).all(axis=1)
        if not known.all():
            a, r = a[known], r[known]
        exact = a.astype(np.float64)
        self.rows += len(exact)
        self.gram += exact.T @ exact
        self.cross += exact.T @ r
        self.sum_a += exact.sum(axis=0)
        self.sum_r += r.sum(axis=0)
        self.power += float(np.square(r).sum())

    def centre(self) -> None:
        """Take the means out of Gram and cross matrix, in place."""
        self.gram -= np.outer(self.sum_a, self.sum_a / self.rows)
        self.cross -= np.outer(self.sum_a, self.sum_r / self.rows)

    def error(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
        """Return |R - A D - d|^2, of sums that are not centred."""
        explained = np.sum(weight * (self.gram @ weight)) - 2 * np.sum(weight * self.cross)
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
    if bias:
        fitted.centre()
    penalty = _penalty(fitted.gram)

    def attempt(strength: float) -> Refit:
        weight = _solve(fitted.gram, strength * penalty, fitted.cross)
        change = mean_r - mean_a @ weight if bias else np.zeros_like(mean_r)
        return Refit(weight, change, strength, held.power, held.error(weight, change))

    best = attempt(_DECADES[0])
    for strength in _DECADES[1:]:
        best = min(best, attempt(strength), key=lambda change: change.after)
    middle = best.strength
    for strength in (middle / _BETWEEN, middle * _BETWEEN):
        best = min(best, attempt(strength), key=lambda change: change.after)
    return best if best.after < best.before else None


def _penalty(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """2."""
    power = np.diag(gram)
    mean = max(float(power.mean()), np.finfo(np.float64).tiny)
    penalty: NDArray[np.float64] = np.sqrt(np.maximum(power, 1e-6 * mean) * mean)
    return penalty


def _solve(gram: NDArray[np.float64], ridge: NDArray[np.float64], cross: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve (G + diag(ridge)) D = C: by Cholesky, or where rounding made the sum indefinite by its eigenvalues."""
    matrix = gram.copy()
    matrix[np.diag_indices_from(matrix)] += ridge
    try:
        factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
        solution: NDArray[np.float64] = scipy.linalg.cho_solve(factor, cross, check_finite=False)
    except scipy.linalg.LinAlgError:
        matrix = gram.copy()
        matrix[np.diag_indices_from(matrix)] += ridge
        values, vectors = scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False)
        large = values > values[-1] * len(values) * np.finfo(np.float64).eps
        basis = vectors[:, large]
        solution = basis @ ((basis.T @ cross) / values[large, None])
    return solution
