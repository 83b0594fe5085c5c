"""`actx::QLinear` and `actx::QLinearToFloat`: a linear layer of 8-bit codes, whose output is codes or numbers.

1. Definition: s = float32(sum_k X[..., k] * w[k, n] + B[n]) * S[n], the sum of integers modulo 2^32 and the product in float32.
   `QLinearToFloat` gives s; `QLinear` gives c = saturate(round_half_even(s) + zero_point) to uint8, or the entry of its table
   for c. The scales of X and w are in S, the zero point of X is in B.
2. W holds the matrix w [K, N] as kernels read it: int8 [ceil(N / 16), ceil(K / 8), 128], where element (n // 16, k // 8,
   64 * (k % 8 // 4) + 4 * (n % 16) + k % 4) is w[k, n] (`pack`), and zero beyond the matrix.
3. Shape rule: Y has the shape of X but for its last axis, whose size is that of B and S.
4. Contract: exact, where S is finite; the code of a NaN is open.
5. A matrix is narrow if in each output the positive ones of four weights sum to at most 128, and the negative ones to no less
   than -128: of the weights k, k + 1, k + 4 and k + 5, for each k that is a multiple of 8, or such a one plus 2. Then 16 bits
   hold the sum of four products by codes of uint8, and x86 without VNNI needs three multiplications where it otherwise needs
   four (VPMADDUBSW and VPMADDWD; Intel, Intrinsics Guide). Sums of other matrices are as exact, and slow there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from actx.custom_ops.ops.lut import CODE_COUNT
from actx.custom_ops.ops.op import (
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    integer,
    same_shape,
    with_default,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

PANEL, OCTET = 16, 8  # outputs and inputs of a block
_BLOCK = PANEL * OCTET
_CODES = range(256)
_UINT8, _FLOAT = np.dtype(np.uint8), np.dtype(np.float32)


def pack(matrix: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a matrix, int8 [K, N], as the layers take it (2)."""
    inputs, outputs = matrix.shape
    padded = np.pad(matrix, ((0, -inputs % OCTET), (0, -outputs % PANEL)))
    octets, panels = len(padded) // OCTET, padded.shape[1] // PANEL
    blocks = padded.reshape(octets, 2, OCTET // 2, panels, PANEL).transpose(3, 0, 1, 4, 2)
    return np.ascontiguousarray(blocks).reshape(panels, octets, _BLOCK)


def unpack(weights: NDArray[np.int8], inputs: int, outputs: int) -> NDArray[np.int8]:
    """Return the matrix, int8 [K, N], that `pack` gave."""
    panels, octets, _ = weights.shape
    blocks = weights.reshape(panels, octets, 2, PANEL, OCTET // 2).transpose(1, 2, 4, 0, 3)
    return np.ascontiguousarray(blocks.reshape(octets * OCTET, panels * PANEL)[:inputs, :outputs])


def largest_fours(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return for each output how far its weights, [K, N] of any type, sum up in a four (5): at most 128 in a narrow matrix."""
    inputs, outputs = matrix.shape
    padded = np.pad(matrix, ((0, -inputs % OCTET), (0, 0)))
    padded = padded.reshape(len(padded) // OCTET, 2, 2, 2, outputs)  # octet, half, pair, of a pair
    sums = [np.maximum(signed, 0).sum(axis=(1, 3)).max(axis=(0, 1), initial=0) for signed in (padded, -padded)]
    return np.asarray(np.maximum(*sums))


class _QLinear(Op):
    """What both have in common."""

    INPUTS = (
        Parameter("X", "T", "[..., K] codes"),
        Parameter("W", "T2", "the matrix [K, N] in blocks, [ceil(N / 16), ceil(K / 8), 128]"),
        Parameter("B", "T3", "[N], added to the sums"),
        Parameter("S", "T4", "[N] factors of the sums"),
    )
    ON_GPU = False

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """2, 3."""
        x, weights, bias, scales = inputs
        assert x is not None
        assert weights is not None
        assert bias is not None
        assert scales is not None
        found = same_shape(self.NAME, "B and S", bias.shape, scales.shape)
        if (found is not None and len(found) != 1) or x.shape == ():
            msg = f"actx::{self.NAME} needs an X with an axis of inputs and B with an axis of outputs, got {x.shape}, {found}"
            raise ValueError(msg)
        outputs = None if found is None else found[0]
        inner = None if x.shape is None else x.shape[-1]
        expected = (_count(outputs, PANEL), _count(inner, OCTET), _BLOCK)
        if weights.shape is not None and not _fits(weights.shape, expected):
            msg = f"actx::{self.NAME} needs W of shape {expected} for {inner} inputs and {outputs} outputs, got {weights.shape}"
            raise ValueError(msg)
        return TensorType(self._output_type(), None if x.shape is None else (*x.shape[:-1], outputs))

    def _output_type(self) -> np.dtype[Any]:
        return next(iter(self.TYPES[self.OUTPUT.type_name]))

    def _scaled(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float32]:
        """1. Return s."""
        x, weights, bias, scales = inputs
        assert x is not None
        assert weights is not None
        assert bias is not None
        assert scales is not None
        matrix = unpack(weights, x.shape[-1], len(bias))
        sums = x.astype(np.uint32) @ matrix.astype(np.uint32) + bias.astype(np.uint32)
        found: NDArray[np.float32] = sums.astype(np.int32).astype(np.float32) * scales
        return found

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """4."""
        x, _, bias, scales = inputs
        assert x is not None
        assert bias is not None
        assert scales is not None
        open_ = self._output_type() == _UINT8
        return np.broadcast_to(np.where(np.isnan(scales) & open_, np.inf, 0.0), (*x.shape[:-1], len(bias))).astype(
            np.float64
        )


@dataclass(frozen=True)
class QLinearOp(_QLinear):
    """A node.

    Attributes:
        zero_point: the code of 0, from 0 to 255.
        table: 256 codes of uint8, or None where the layer's codes stay as they are.
    """

    zero_point: int = 0
    table: tuple[int, ...] | None = None

    NAME = "QLinear"
    TORCH_NAME = "qlinear"
    DOC = "A linear layer of codes that gives codes, through a table where it has one."
    OUTPUT = Parameter("Y", "T", "[..., N] codes")
    TYPES = {  # noqa: RUF012 - a class variable of the base
        "T": (_UINT8,),
        "T2": (np.dtype(np.int8),),
        "T3": (np.dtype(np.int32),),
        "T4": (_FLOAT,),
    }
    ATTRIBUTES = (
        with_default("zero_point", 0, "code of 0 in front of the table"),
        Attribute(
            "table", AttributeKind.INTS, "256 codes of Y, for the layer's codes in ascending order", required=False
        ),
    )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """Check the attributes of a node."""
        table = attributes.get("table")
        if table is not None and (len(table) != CODE_COUNT or not all(entry in _CODES for entry in table)):
            msg = f"actx::{cls.NAME} needs a table of {CODE_COUNT} entries from 0 to 255"
            raise ValueError(msg)
        zero_point = integer(cls.NAME, attributes, "zero_point", 0, _CODES)
        return cls(zero_point, None if table is None else tuple(int(entry) for entry in table))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        found: dict[str, Any] = {"zero_point": self.zero_point}
        return found if self.table is None else {**found, "table": list(self.table)}

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        codes = np.clip(np.nan_to_num(np.rint(self._scaled(inputs)).astype(np.float64)) + self.zero_point, 0, 255)
        return codes if self.table is None else np.array(self.table, np.float64)[codes.astype(np.intp)]


@dataclass(frozen=True)
class QLinearToFloatOp(_QLinear):
    """A node; it has no attributes."""

    NAME = "QLinearToFloat"
    TORCH_NAME = "qlinear_to_float"
    DOC = "A linear layer of codes that gives numbers."
    OUTPUT = Parameter("Y", "T4", "[..., N] numbers")
    TYPES = QLinearOp.TYPES
    ATTRIBUTES = ()

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:  # noqa: ARG003 - there are none
        """Return the node."""
        return cls()

    def attributes(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        return self._scaled(inputs).astype(np.float64)


def _count(size: Any, each: int) -> Any:
    """Return how many blocks hold so many; None where the size is not a number."""
    return -(-size // each) if isinstance(size, int) else None


def _fits(shape: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Tell whether sizes are those that are expected, as far as both are known."""
    both = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(a == b for a, b in both if isinstance(a, int) and isinstance(b, int))
