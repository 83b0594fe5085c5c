"""`actx::GatedLut`: the quantized activation of a gated FFN, the gate as a table of all 256 codes.

1. Definition: Y = saturate(round_half_even(float32(table[x]) * float32(u - u_zero_point)) + y_zero_point), the product in
   float32, entry i of the table for the i-th smallest code of X. The scales of X, U and Y are in the table.
2. Shape rule: X, U and Y have one shape; Y has the type of X or the one that `to` names.
3. Contract: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from actx.custom_ops.ops.lut import CODE_COUNT, TO, check_entries, output_code, places
from actx.custom_ops.ops.op import (
    CODES,
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    integer,
    required,
    same_shape,
    with_default,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ZERO_POINTS = range(-128, 256)


@dataclass(frozen=True)
class GatedLutOp(Op):
    """A node.

    Attributes:
        table: 256 finite float32 numbers.
        u_zero_point: zero point of U.
        y_zero_point: zero point of the output.
        to: number of the element type of the output, or None for that of X.
    """

    table: tuple[float, ...]
    u_zero_point: int = 0
    y_zero_point: int = 0
    to: int | None = None

    NAME = "GatedLut"
    TORCH_NAME = "gated_lut"
    DOC = "A table of all 256 codes of X, times U, as codes."
    INPUTS = (
        Parameter("X", "T", "codes of the gate"),
        Parameter("U", "T2", "codes of the multiplier, of the shape of X"),
    )
    OUTPUT = Parameter("Y", "T3", "codes of the product")
    TYPES = {"T": CODES, "T2": CODES, "T3": CODES}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        Attribute("table", AttributeKind.FLOATS, "256 numbers, for the codes of X in ascending order", required=True),
        with_default("u_zero_point", 0, "zero point of U"),
        with_default("y_zero_point", 0, "zero point of Y"),
        TO,
    )

    def __post_init__(self) -> None:
        """Store the table as the float32 numbers that the node holds, and check it."""
        with np.errstate(over="ignore"):  # what overflows is refused
            table = np.asarray(self.table, np.float32)
        object.__setattr__(self, "table", tuple(table.tolist()))
        if table.shape != (CODE_COUNT,) or not np.isfinite(table).all():
            msg = f"actx::{self.NAME} needs a table of {CODE_COUNT} finite numbers, got {table.size}"
            raise ValueError(msg)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> GatedLutOp:
        """Check the attributes of a node."""
        to = output_code(cls.NAME, attributes)
        u_zero = integer(cls.NAME, attributes, "u_zero_point", 0, ZERO_POINTS)
        y_zero = integer(cls.NAME, attributes, "y_zero_point", 0, ZERO_POINTS)
        check_entries(cls.NAME, [y_zero], to)
        return cls(tuple(required(cls.NAME, attributes, "table")), u_zero, y_zero, to)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        found = {"table": list(self.table), "u_zero_point": self.u_zero_point, "y_zero_point": self.y_zero_point}
        return found if self.to is None else {**found, "to": self.to}

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        x, u = inputs
        assert x is not None
        assert u is not None
        dtype = x.dtype if self.to is None else np.dtype(helper.tensor_dtype_to_np_dtype(self.to))
        check_entries(self.NAME, [self.y_zero_point], helper.np_dtype_to_tensor_dtype(dtype))
        check_entries(self.NAME, [self.u_zero_point], helper.np_dtype_to_tensor_dtype(u.dtype))
        return TensorType(dtype, same_shape(self.NAME, "X and U", x.shape, u.shape))

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        x, u = inputs
        assert x is not None
        assert u is not None
        to = self.output([TensorType.of(x), TensorType.of(u)]).dtype
        gate = np.array(self.table, np.float32)[places(x)]
        with np.errstate(over="ignore"):  # what overflows saturates
            product = gate * (u.astype(np.int32) - self.u_zero_point).astype(np.float32)
        codes = np.rint(product).astype(np.float64) + self.y_zero_point
        return np.clip(codes, np.iinfo(to).min, np.iinfo(to).max)

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3."""
        x, _ = inputs
        assert x is not None
        return np.zeros(x.shape)
