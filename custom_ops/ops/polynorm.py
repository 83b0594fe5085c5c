"""`actx::PolyNorm`: a polynomial of X whose powers are normalised row by row (PolyCom, arXiv 2411.03884).

1. Definition: N(z) = z / sqrt(mean(z^2) + epsilon) with the mean over the last axis. For K weights
   Y = sum_i W[i] N(X^(K - i)) + B, or that times U: the first weight is that of the highest power.
2. Shape rule: X, U and Y have one shape [..., D]; W is [K] with K from 1 to 4, B is [1].
3. Contract: relative to sum_i |W[i] N(X^(K - i))| + |B|, see `PolyNormOp.tolerance`. Open in rows where the sum of
   x^(2K) leaves float32 and where a weight is infinite, and where terms of both signs may: an infinity of one may meet
   that of another, or of the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.ops.op import FLOATS, Op, Parameter, TensorType, is_known, same_shape, with_default
from actx.custom_ops.ops.rounding import LARGEST, SUBNORMAL, UNIT, opened, product_error, rounded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_ORDER = 4
# A kernel keeps this many partial sums of a row or more, so that a sum of D numbers takes ceil(D / 64) + 64 roundings at most.
PARTIAL_SUMS = 64


@dataclass(frozen=True)
class PolyNormOp(Op):
    """A node.

    Attributes:
        epsilon: what is added to the mean of squares.
    """

    epsilon: float = 1e-6

    NAME = "PolyNorm"
    TORCH_NAME = "polynorm"
    DOC = "A polynomial of the normalised powers of X, row by row, times U where U is given."
    INPUTS = (
        Parameter("X", "T", "input, [..., D]"),
        Parameter("W", "T", "weights [K] from the highest power, K from 1 to 4"),
        Parameter("B", "T", "bias [1]"),
        Parameter("U", "T", "multiplier of the shape of X", optional=True),
    )
    OUTPUT = Parameter("Y", "T", "sum_i W[i] N(X^(K - i)) + B, or that times U")
    TYPES = {"T": FLOATS}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (with_default("epsilon", 1e-6, "added to the mean of squares"),)

    def __post_init__(self) -> None:
        """Store the value as the float32 number that the node holds, and check it."""
        object.__setattr__(self, "epsilon", float(np.float32(self.epsilon)))
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            msg = f"actx::{self.NAME} attribute epsilon must be positive and finite, got {self.epsilon}"
            raise ValueError(msg)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> PolyNormOp:
        """Check the attributes of a node."""
        epsilon = attributes.get("epsilon")
        return cls(1e-6 if epsilon is None else float(epsilon))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        return {"epsilon": self.epsilon}

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        x, w, b, u = inputs
        assert x is not None
        shape = x.shape if u is None else same_shape(self.NAME, "X and U", x.shape, u.shape)
        if shape is not None and not shape:
            msg = f"actx::{self.NAME} needs X of rank 1 or more, got a scalar"
            raise ValueError(msg)
        if w is not None and w.shape is not None:
            order = w.shape[0] if len(w.shape) == 1 else 0
            if is_known(order) and not 1 <= order <= MAX_ORDER:
                msg = f"actx::{self.NAME} needs W of 1 to {MAX_ORDER} weights, got the shape {w.shape}"
                raise ValueError(msg)
        same_shape(self.NAME, "B and [1]", None if b is None else b.shape, (1,))
        return TensorType(x.dtype, shape)

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        terms, bias, u = self._terms(inputs)
        values = sum(terms, start=np.zeros_like(terms[0])) + bias
        return values if u is None else values * u

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3. How many roundings the term of power p takes in a row of D numbers, with n = ceil(D / 64) + 64.

        - its mean of squares: 2p - 1 of the power, n of the sum, 2 of division and epsilon; half of them after the root;
        - root, reciprocal and product with the weight: 4, as one Newton step from an estimate may leave 2 instead of 1;
        - Horner's rule over the powers of x: 2K.

        Together (n + 1) / 2 + p + 4 + 2K, and p is at most K. The bias takes one.
        """
        x, w, *_ = inputs
        assert x is not None
        assert w is not None
        terms, bias, u = self._terms(inputs)
        values = sum(terms, start=np.zeros_like(terms[0])) + bias
        summands = -(-x.shape[-1] // PARTIAL_SUMS) + PARTIAL_SUMS
        size = sum((np.abs(term) for term in terms), start=np.abs(bias) + np.zeros_like(terms[0]))
        roundings = (summands + 1) / 2 + 3 * len(terms) + 4
        error = opened(roundings * UNIT * np.where(np.isfinite(size), size, 0.0), np.where(np.isinf(size), 0.0, size))
        finite = sum((np.where(np.isfinite(term), np.abs(term), 0.0) for term in terms), start=np.zeros_like(terms[0]))
        signs = [np.sign(part) for part in (*terms, bias + np.zeros_like(terms[0]))]
        mixed = (np.max(signs, axis=0) > 0) & (np.min(signs, axis=0) < 0)
        error = np.where(
            self._overflows(x, w) | (mixed & (finite >= LARGEST / 2)), np.inf, error + self._underflow(x, w)
        )
        if u is not None:
            error = product_error(values, error, u, np.zeros_like(u))
            values = values * u
        return rounded(values, error, x.dtype)

    def _terms(
        self, inputs: Sequence[NDArray[Any] | None]
    ) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64] | None]:
        """Return W[i] N(X^(K - i)), B and U in float64."""
        x, w, b, u = (None if array is None else array.astype(np.float64) for array in inputs)
        assert x is not None
        assert w is not None
        assert b is not None
        terms = [weight * self._normalised(x ** (len(w) - i)) for i, weight in enumerate(w)]
        return terms, b, u

    def _normalised(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        return z / np.sqrt(self._mean_square(z) + self.epsilon)

    @staticmethod
    def _mean_square(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.square(z).sum(axis=-1, keepdims=True) / max(z.shape[-1], 1))

    def _overflows(self, x: NDArray[Any], w: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell for each row whether a sum of finite numbers, or a weight over its root, may leave float32."""
        values, weights = x.astype(np.float64), np.abs(w.astype(np.float64))
        means = [self._mean_square(values ** (len(w) - i)) for i in range(len(w))]
        finite = np.isfinite(values).all(axis=-1, keepdims=True)
        found = finite & (means[0] * max(x.shape[-1], 1) >= LARGEST / 2)
        for weight, mean in zip(weights, means, strict=True):
            found |= (weight >= LARGEST / 2 * np.sqrt(mean + self.epsilon)) | np.isinf(weight)
        return np.asarray(found)

    def _underflow(self, x: NDArray[Any], w: NDArray[Any]) -> NDArray[np.float64]:
        """Bound what is lost below the normal numbers: of the means, of the coefficients, and in Horner's rule."""
        values, weights = x.astype(np.float64), np.abs(w.astype(np.float64))
        sizes = np.where(np.isfinite(values), np.abs(values), 0.0)
        lost = np.full(values.shape, SUBNORMAL)
        for i, weight in enumerate(weights):
            power = sizes ** (len(weights) - i)
            mean = self._mean_square(power) + self.epsilon
            lost += SUBNORMAL * power + 4 * SUBNORMAL / mean * weight * power / np.sqrt(mean)
        return np.where(np.isfinite(lost), lost, 0.0)
