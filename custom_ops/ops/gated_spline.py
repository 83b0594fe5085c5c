"""`actx::GatedSpline`: the activation of a gated FFN whose two matrices are packed into one.

1. Definition: X holds two halves of width H along `axis`, either one after the other (`split`) or in turn (`interleaved`);
   `gate` says which of them is the gate. Y = s(gate) * h(other), with h the identity where no second table is given.
2. Shape rule: Y has the shape of X but for H along the axis; a table per channel has H channels.
3. Contract: `rounding.spline_error` of both factors, their product, and the rounding to the element type.
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
    dim_of,
    integer,
    is_known,
    with_default,
)
from actx.custom_ops.ops.rounding import product_error, rounded, spline_error
from actx.custom_ops.ops.spline import TABLE_ATTRIBUTES
from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

LAYOUTS = ("split", "interleaved")
TABLE = ("degree", "knots", "coefficients", "origins")


@dataclass(frozen=True)
class GatedSplineOp(Op):
    """A node.

    Attributes:
        spline: s; where it differs per channel, along `axis`.
        other: h, one table, or None for the identity.
        axis: the axis of both halves.
        layout: ``split`` or ``interleaved``.
        gate: which half is the gate, 0 or 1.
    """

    spline: Spline
    other: Spline | None = None
    axis: int = -1
    layout: str = "split"
    gate: int = 0

    NAME = "GatedSpline"
    TORCH_NAME = "gated_spline"
    DOC = "A piecewise polynomial of one half of X, times the other half or a piecewise polynomial of it."
    INPUTS = (Parameter("X", "T", "both halves: width 2H along the axis"),)
    OUTPUT = Parameter("Y", "T", "s(gate) * h(other), width H along the axis")
    TYPES = {"T": FLOATS}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        *TABLE_ATTRIBUTES,
        with_default("axis", -1, "the axis of both halves, and of the channels"),
        with_default("layout", "split", "split: one half after the other; interleaved: in turn"),
        with_default("gate", 0, "which half is the gate"),
        Attribute("channels", AttributeKind.INT, "H, where the gate has a table per channel", required=False),
        Attribute("other_degree", AttributeKind.INT, "as degree, for the other half", required=False),
        Attribute("other_knots", AttributeKind.FLOATS, "as knots", required=False),
        Attribute("other_coefficients", AttributeKind.FLOATS, "as coefficients", required=False),
        Attribute("other_origins", AttributeKind.FLOATS, "as origins", required=False),
    )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> GatedSplineOp:
        """Check the attributes of a node."""
        axis = integer(cls.NAME, attributes, "axis", -1)
        layout = attributes.get("layout") or LAYOUTS[0]
        if layout not in LAYOUTS:
            msg = f"actx::{cls.NAME} attribute layout must be {' or '.join(LAYOUTS)}, got {layout}"
            raise ValueError(msg)
        channels = attributes.get("channels")
        table = {**attributes, "axis": None if channels is None else axis}
        has_other = any(attributes.get(f"other_{name}") is not None for name in TABLE)
        return cls(
            Spline.from_attributes(table, cls.NAME),
            Spline.from_attributes(attributes, cls.NAME, "other_") if has_other else None,
            axis,
            layout,
            integer(cls.NAME, attributes, "gate", 0, range(2)),
        )

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        found = {**self.spline.attributes(), "axis": self.axis, "layout": self.layout, "gate": self.gate}
        if self.other is not None:
            found |= {f"other_{name}": value for name, value in self.other.attributes().items()}
        return found

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        (x,) = inputs
        assert x is not None
        if x.shape is None:
            return x
        width = dim_of(self.NAME, x.shape, self.axis)
        if is_known(width) and width % 2:
            msg = f"actx::{self.NAME} needs an even size along axis {self.axis}, got {x.shape}"
            raise ValueError(msg)
        shape = list(x.shape)
        shape[self.axis] = width // 2 if is_known(width) else None
        channels = None if self.spline.axis is None else len(self.spline.origins)
        check_channels(self.NAME, tuple(shape), self.axis, channels)
        return TensorType(x.dtype, tuple(shape))

    def halves(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the gate and the other half."""
        rows = np.moveaxis(x, self.axis, 0)
        width = len(rows) // 2
        pair = (rows[:width], rows[width:]) if self.layout == "split" else (rows[0::2], rows[1::2])
        first, second = (np.moveaxis(half, 0, self.axis) for half in pair)
        return (second, first) if self.gate else (first, second)

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        (x,) = inputs
        assert x is not None
        gate, other = self.halves(x)
        return self.spline(gate) * (other.astype(np.float64) if self.other is None else self.other(other))

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3."""
        (x,) = inputs
        assert x is not None
        gate, other = self.halves(x)
        factor = other.astype(np.float64) if self.other is None else self.other(other)
        factor_error = np.zeros_like(factor) if self.other is None else spline_error(self.other, other)
        values = self.spline(gate)
        error = product_error(values, spline_error(self.spline, gate), factor, factor_error)
        return rounded(values * factor, error, x.dtype)
