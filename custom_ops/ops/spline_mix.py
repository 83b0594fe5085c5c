"""`actx::SplineMix`: a mixture of piecewise polynomials with the same knots, mixed anew for every token.

1. Definition: X is [..., H], G is [..., E] with the same leading dimensions. Per token the E tables are mixed,
   c = sum_e G[..., e] c_e, and Y = s(X), or s(X) * U, with s the piecewise polynomial of the mixed table: the cost per
   element does not depend on E. Where G or X is not finite, what counts is the mixed table, not the sum of E values.
2. Shape rule: X, U and Y have one shape.
3. Contract: E roundings of the mixed table more than `rounding.spline_error`, relative to the sum of all magnitudes; then
   the product with U and the rounding to the element type. Open where G is not finite, and at an infinity of X where the
   mixed slope may cancel to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from actx.custom_ops.ops.op import (
    FLOATS,
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    integer,
    required,
    same_shape,
)
from actx.custom_ops.ops.rounding import LARGEST, SUBNORMAL, UNIT, opened, product_error, rounded, terms
from actx.custom_ops.spline import Spline, evaluate, magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_Values: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class SplineMixOp(Op):
    """A node.

    Attributes:
        entries: E splines, none per channel, with the same knots and origins.
    """

    entries: tuple[Spline, ...]

    NAME = "SplineMix"
    TORCH_NAME = "spline_mix"
    DOC = "A mixture of piecewise polynomials of X, weighted per token by G, times U where U is given."
    INPUTS = (
        Parameter("X", "T", "input, [..., H]"),
        Parameter("G", "T", "weights of the entries, [..., E]"),
        Parameter("U", "T", "multiplier of the shape of X", optional=True),
    )
    OUTPUT = Parameter("Y", "T", "sum_e G[..., e] s_e(X), or that times U")
    TYPES = {"T": FLOATS}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        Attribute("entries", AttributeKind.INT, "number of entries E", required=True),
        Attribute("degree", AttributeKind.INT, "degree of the pieces", required=True),
        Attribute("knots", AttributeKind.FLOATS, "n - 1 ascending knots of all entries", required=True),
        Attribute("coefficients", AttributeKind.FLOATS, "E, n, degree + 1 ascending powers", required=True),
        Attribute("origins", AttributeKind.FLOATS, "n origins of the powers of all entries", required=True),
    )

    def __post_init__(self) -> None:
        """Check that the entries go together."""
        first, *others = self.entries
        for entry in others:
            shared = np.array_equal(entry.knots, first.knots) and np.array_equal(entry.origins, first.origins)
            if not shared or entry.coefficients.shape != first.coefficients.shape:
                msg = f"actx::{self.NAME} needs entries with the same knots, origins and degree"
                raise ValueError(msg)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> SplineMixOp:
        """Check the attributes of a node."""
        required(cls.NAME, attributes, "entries")
        entries = integer(cls.NAME, attributes, "entries", 0)
        tables = required(cls.NAME, attributes, "coefficients")
        if entries < 1 or len(tables) % entries:
            msg = f"actx::{cls.NAME} has {len(tables)} coefficients, which {entries} entries cannot share"
            raise ValueError(msg)
        rows = np.asarray(tables).reshape(entries, -1)
        names = ("degree", "knots", "origins")
        shared = {name: attributes.get(name) for name in names}
        return cls(tuple(Spline.from_attributes({**shared, "coefficients": row}, cls.NAME) for row in rows))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        rows = [entry.attributes() for entry in self.entries]
        coefficients = [number for row in rows for number in row["coefficients"]]
        return {**rows[0], "entries": len(self.entries), "coefficients": coefficients}

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        x, g, u = inputs
        assert x is not None
        shape = x.shape if u is None else same_shape(self.NAME, "X and U", x.shape, u.shape)
        if shape is not None and not shape:
            msg = f"actx::{self.NAME} needs X of rank 1 or more, got a scalar"
            raise ValueError(msg)
        if g is None or g.shape is None or shape is None:
            return TensorType(x.dtype, shape)
        lead = same_shape(self.NAME, "X and G but for the last axis", (*shape[:-1], None), (*g.shape[:-1], None))
        assert lead is not None
        same_shape(self.NAME, "G and the table of weights", g.shape[-1:], (len(self.entries),))
        return TensorType(x.dtype, (*lead[:-1], shape[-1]))

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        x, g, u = inputs
        assert x is not None
        assert g is not None
        values = self._by_token(x, self._mixed(g), evaluate)
        return values if u is None else values * u.astype(np.float64)

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3."""
        x, g, u = inputs
        assert x is not None
        assert g is not None
        values = self._by_token(x, self._mixed(g), evaluate)
        error = self._error(x, g)
        if u is not None:
            multiplier = u.astype(np.float64)
            error = product_error(values, error, multiplier, np.zeros_like(multiplier))
            values = values * multiplier
        return rounded(values, error, x.dtype)

    def _error(self, x: NDArray[Any], g: NDArray[Any]) -> NDArray[np.float64]:
        """Bound what is lost of s(x); infinite where it is open."""
        entries, mixed, sizes = len(self.entries), self._mixed(g), self._mixed(g, np.abs)
        total = self._by_token(x, sizes, partial(magnitude, extra=2 * SUBNORMAL / UNIT))
        error = opened((terms(self.entries[0].degree) + entries) * UNIT * total, total)
        vanishing = (np.abs(mixed) <= entries * (UNIT * sizes + SUBNORMAL)) & (sizes > 0)
        slopes_vanish = vanishing[:, [0, -1], 1:].any(axis=(1, 2)).reshape(*g.shape[:-1], 1)
        overflows = (sizes >= LARGEST).any(axis=(1, 2)).reshape(*g.shape[:-1], 1)
        return np.where(overflows | (slopes_vanish & np.isinf(x.astype(np.float64))), np.inf, error)

    def _mixed(self, g: NDArray[Any], of: Callable[[_Values], _Values] = np.positive) -> _Values:
        """Return the mixed tables, (tokens, n, degree + 1), of the weights and tables or of their magnitudes."""
        tables = np.stack([entry.coefficients.astype(np.float64) for entry in self.entries])
        weights = g.astype(np.float64).reshape(math.prod(g.shape[:-1]), len(tables))
        return np.asarray(np.einsum("te,end->tnd", of(weights), of(tables)))

    def _by_token(self, x: NDArray[Any], tables: _Values, function: Callable[..., _Values]) -> _Values:
        """Apply a function of a token's inputs, knots, table and origins."""
        first = self.entries[0]
        rows = x.astype(np.float64).reshape(len(tables), x.shape[-1])
        results = [function(row, first.knots, table, first.origins) for row, table in zip(rows, tables, strict=True)]
        return np.array(results).reshape(x.shape)
