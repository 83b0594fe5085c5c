"""`actx::Lut`: a function of 8-bit codes as a table of all 256 of them.

1. Definition: entry i belongs to the i-th smallest code, so that code x takes entry x of uint8 and entry x + 128 of int8.
2. Shape rule: Y has the shape of X, and the type of X or the one that `to` names; a table per channel has as many
   channels as X along its axis.
3. Contract: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from actx.custom_ops.ops.op import (
    CODES,
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    check_channels,
    integer,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

CODE_COUNT = 256
# Numbers of the 8-bit types, and what they hold.
RANGES: Mapping[int, tuple[int, int]] = {int(TensorProto.UINT8): (0, 255), int(TensorProto.INT8): (-128, 127)}
ANY_RANGE = (-128, 255)
TO = Attribute(
    "to", AttributeKind.INT, "element type of Y: 2 for uint8, 3 for int8; that of X where absent", required=False
)


@dataclass(frozen=True)
class LutOp(Op):
    """A node.

    Attributes:
        table: 256 codes, or that many for each channel in turn.
        to: number of the element type of the output, or None for that of the input.
        axis: the channel axis of a per-channel table, or None.
    """

    table: tuple[int, ...]
    to: int | None = None
    axis: int | None = None

    NAME = "Lut"
    TORCH_NAME = "lut"
    DOC = "A table of all 256 codes of X."
    INPUTS = (Parameter("X", "T", "codes"),)
    OUTPUT = Parameter("Y", "T2", "the table's entries")
    TYPES = {"T": CODES, "T2": CODES}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        Attribute(
            "table", AttributeKind.INTS, "[C,] 256 codes of Y, for the codes of X in ascending order", required=True
        ),
        TO,
        Attribute("axis", AttributeKind.INT, "channel axis of a per-channel table", required=False),
        Attribute("channels", AttributeKind.INT, "number of channels C of such a table", required=False),
    )

    @property
    def channels(self) -> int:
        """Number of tables."""
        return len(self.table) // CODE_COUNT

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> LutOp:
        """Check the attributes of a node."""
        axis = attributes.get("axis")
        if axis is not None:
            required(cls.NAME, attributes, "channels")
        table = tuple(int(entry) for entry in required(cls.NAME, attributes, "table"))
        channels = 1 if axis is None else integer(cls.NAME, attributes, "channels", 0)
        if channels < 1 or len(table) != channels * CODE_COUNT:
            msg = f"actx::{cls.NAME} needs a table of {CODE_COUNT} entries for each of {channels} channels, got {len(table)}"
            raise ValueError(msg)
        to = output_code(cls.NAME, attributes)
        check_entries(cls.NAME, table, to)
        return cls(table, to, None if axis is None else int(axis))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        found: dict[str, Any] = {"table": list(self.table)}
        if self.to is not None:
            found["to"] = self.to
        return found if self.axis is None else {**found, "axis": self.axis, "channels": self.channels}

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2."""
        (x,) = inputs
        assert x is not None
        dtype = x.dtype if self.to is None else np.dtype(helper.tensor_dtype_to_np_dtype(self.to))
        check_entries(self.NAME, self.table, helper.np_dtype_to_tensor_dtype(dtype))
        check_channels(self.NAME, x.shape, self.axis, None if self.axis is None else self.channels)
        return TensorType(dtype, x.shape)

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        (x,) = inputs
        assert x is not None
        tables = np.array(self.table, np.float64).reshape(-1, CODE_COUNT)
        if self.axis is None:
            return np.asarray(tables[0][places(x)])
        rows = np.moveaxis(places(x), self.axis, 0)
        found = np.array([table[row] for table, row in zip(tables, rows, strict=True)])
        return np.moveaxis(found.reshape(rows.shape), 0, self.axis)

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """3."""
        (x,) = inputs
        assert x is not None
        return np.zeros(x.shape)


def places(x: NDArray[Any]) -> NDArray[np.intp]:
    """Return the place of each code in a table of all codes of its type in ascending order."""
    return x.astype(np.intp) - np.iinfo(x.dtype).min


def output_code(op: str, attributes: Mapping[str, Any]) -> int | None:
    """Return the attribute `to`.

    Raises:
        ValueError: it names no 8-bit type.
    """
    to = attributes.get("to")
    if to is not None and int(to) not in RANGES:
        msg = f"actx::{op} attribute to must be {' or '.join(map(str, RANGES))}, got {to}"
        raise ValueError(msg)
    return None if to is None else int(to)


def check_entries(op: str, entries: Sequence[int], to: int | None) -> None:
    """Check that the entries fit the output's type, or one of the 8-bit types where it is not known yet.

    Raises:
        ValueError: one does not.
    """
    low, high = ANY_RANGE if to is None else RANGES[to]
    outside = [entry for entry in entries if not low <= entry <= high]
    if outside:
        msg = f"actx::{op} has the entry {outside[0]}, which its output type does not hold: {low} to {high}"
        raise ValueError(msg)
