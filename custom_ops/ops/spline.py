"""`actx::Spline`: a piecewise polynomial of X, times U where U is given.

1. Definition: Y = s(X), or s(X) * U, with the table of `actx.custom_ops.Spline` held in attributes.
2. Shape rule: X, U and Y have one shape; a table per channel has as many channels as X along its axis.
3. Contract: `rounding.spline_error`, the product with U, and the rounding to the element type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.ops.op import (
    FLOATS,
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    check_channels,
    same_shape,
)
from actx.custom_ops.ops.rounding import product_error, rounded, spline_error
from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

TABLE_ATTRIBUTES = (
    Attribute("degree", AttributeKind.INT, "degree of the pieces", required=True),
    Attribute("knots", AttributeKind.FLOATS, "[C,] n - 1 ascending knots", required=True),
    Attribute("coefficients", AttributeKind.FLOATS, "[C,] n, degree + 1 ascending powers", required=True),
    Attribute("origins", AttributeKind.FLOATS, "[C,] n origins of the powers", required=True),
)


@dataclass(frozen=True)
class SplineOp(Op):
    """A node.

    Attributes:
        spline: the table.
    """

    spline: Spline

    NAME = "Spline"
    TORCH_NAME = "spline"
    DOC = "A piecewise polynomial of X, times U where U is given."
    INPUTS = (
        Parameter("X", "T", "input"),
        Parameter("U", "T", "multiplier of the shape of X", optional=True),
    )
    OUTPUT = Parameter("Y", "T", "s(X), or s(X) * U")
    TYPES = {"T": FLOATS}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        *TABLE_ATTRIBUTES,
        Attribute("axis", AttributeKind.INT, "channel axis of a per-channel table", required=False),
        Attribute("channels", AttributeKind.INT, "number of channels C of such a table", required=False),
    )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> SplineOp:
        """Check the attributes of a node."""
        return cls(Spline.from_attributes(attributes, cls.NAME))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        return self.spline.attributes()

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        x, u = inputs
        assert x is not None
        shape = x.shape if u is None else same_shape(self.NAME, "X and U", x.shape, u.shape)
        axis = self.spline.axis
        check_channels(self.NAME, shape, axis, None if axis is None else len(self.spline.origins))
        return TensorType(x.dtype, shape)

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        x, u = inputs
        assert x is not None
        values = self.spline(x)
        return values if u is None else values * u.astype(np.float64)

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3."""
        x, u = inputs
        assert x is not None
        values, error = self.spline(x), spline_error(self.spline, x)
        if u is not None:
            multiplier = u.astype(np.float64)
            error = product_error(values, error, multiplier, np.zeros_like(multiplier))
            values = values * multiplier
        return rounded(values, error, x.dtype)
