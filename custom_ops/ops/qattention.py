"""`actx::QAttention`: the attention of 8-bit codes, in one op between the layers of Q, K and V and that of its output.

1. Definition, for each head, query i and key j; the products and sums of integers modulo 2^32, the rest in float32:
   z_ij = scale * sum_d (Q_id - q_zero_point) (K_jd - k_zero_point) + M_ij, a finite number: clipped to the largest ones, and
   the lowest for NaN. w_ij = round_half_even(255 exp(z_ij - max_k z_ik)), from 0 to 255.
   Y_ie = saturate(round_half_even(output_scale / sum_j w_ij * sum_j w_ij (V_je - v_zero_point)) + y_zero_point) to uint8.
   The scales of Q, K, V and Y, and 1 / sqrt(size), are in `scale` and `output_scale`. The code of 0 where there are no keys.
2. The weights are codes whose largest is 255 in every row, and they are divided by their own sum: no scale is calibrated for
   them, and they sum to 1.
3. exp(z) is 2^(z log2 e), a polynomial of degree 4 behind the point, within 3e-6: `_weights` has the steps, products and sums
   fused, which are part of the definition. Sums over keys are of 32768 at a time.
4. A head has neighbouring columns, as of ONNX's Attention (opset 23) with inputs of rank 3. M broadcasts to the scores.
5. Contract: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from actx.custom_ops.ops.op import (
    Attribute,
    AttributeKind,
    Op,
    Parameter,
    TensorType,
    integer,
    is_known,
    required,
    with_default,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actx.custom_ops.ops.op import Dim, Shape

_CODES = range(256)
_ZERO_POINTS = ("q_zero_point", "k_zero_point", "v_zero_point", "y_zero_point")
_FACTORS = ("scale", "output_scale")
_RANK, _SCORES_RANK = 3, 4
_LARGEST = float(np.finfo(np.float32).max)
KEYS_AT_ONCE = 32768
# 255 * 2^f for f from -1/2 to 1/2, ascending powers; and the lowest exponent that is told from others.
EXPONENTIAL = tuple(float(np.float32(c)) for c in (255, 176.74599, 61.256153, 14.259521, 2.4688873))
LARGEST_FACTOR = 2.0e38  # a float32 number also times log2(e)
LOG2_E, LEAST_EXPONENT = float(np.float32(1.44269504)), -28.0


@dataclass(frozen=True)
class QAttentionOp(Op):
    """A node.

    Attributes:
        heads: how many, 1 or more.
        scale: of the sums of Q and K; a float32 number of at most 2e38 in magnitude, as is the next.
        output_scale: of the weighted mean of V.
        q_zero_point: the code of 0, from 0 to 255, as are the next.
        k_zero_point: of K.
        v_zero_point: of V.
        y_zero_point: of Y.
    """

    heads: int
    scale: float = 1.0
    output_scale: float = 1.0
    q_zero_point: int = 0
    k_zero_point: int = 0
    v_zero_point: int = 0
    y_zero_point: int = 0

    NAME = "QAttention"
    TORCH_NAME = "qattention"
    DOC = "Attention of codes that gives codes."
    INPUTS = (
        Parameter("Q", "T", "[B, S, heads * D] codes"),
        Parameter("K", "T", "[B, L, heads * D] codes"),
        Parameter("V", "T", "[B, L, heads * E] codes"),
        Parameter("M", "T2", "added to the scores, to whose shape [B, heads, S, L] it broadcasts", optional=True),
    )
    OUTPUT = Parameter("Y", "T", "[B, S, heads * E] codes")
    TYPES = {"T": (np.dtype(np.uint8),), "T2": (np.dtype(np.float32),)}  # noqa: RUF012 - a class variable of the base
    ATTRIBUTES = (
        Attribute("heads", AttributeKind.INT, "number of heads"),
        with_default("scale", 1.0, "factor of the products of Q and K"),
        with_default("output_scale", 1.0, "factor of the weighted means of V"),
        *(with_default(name, 0, f"code of 0 in {name[0].upper()}") for name in _ZERO_POINTS),
    )
    ON_GPU = False

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """Check the attributes of a node."""
        heads = int(required(cls.NAME, attributes, "heads"))
        if heads < 1:
            msg = f"actx::{cls.NAME} attribute heads must be 1 or more, got {heads}"
            raise ValueError(msg)
        given = {name: attributes.get(name) for name in _FACTORS}
        factors = {name: 1.0 if value is None else float(value) for name, value in given.items()}
        for name, value in factors.items():
            if not abs(value) <= LARGEST_FACTOR:
                msg = f"actx::{cls.NAME} attribute {name} must be at most 2e38 in magnitude, got {value}"
                raise ValueError(msg)
        zero_points = {name: integer(cls.NAME, attributes, name, 0, _CODES) for name in _ZERO_POINTS}
        q, k, v, y = zero_points.values()
        scale, output_scale = factors.values()
        return cls(heads, scale, output_scale, q, k, v, y)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""
        return {name: getattr(self, name) for name in ("heads", *_FACTORS, *_ZERO_POINTS)}

    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """4."""
        q, k, v = (None if tensor is None else tensor.shape for tensor in inputs[:3])
        shapes = [_of_rank_3(shape) for shape in (q, k, v)]
        fits = all(shape is None or len(shape) == _RANK for shape in (q, k, v))
        batch, size, keys = (
            _one([shape[axis] for shape in found]) for axis, found in ((0, shapes), (2, shapes[:2]), (1, shapes[1:]))
        )
        outputs = shapes[2][2]
        divided = all(not is_known(dim) or dim % self.heads == 0 for dim in (size, outputs))
        if not fits or _DIFFER in (batch, size, keys) or not divided:
            msg = (
                f"actx::{self.NAME} needs Q, K and V of [B, S, heads * D], [B, L, heads * D] and [B, L, heads * E] for "
                f"{self.heads} heads, got {q}, {k} and {v}"
            )
            raise ValueError(msg)
        mask = inputs[3]
        scores = (batch, self.heads, shapes[0][1], keys)
        if mask is not None and mask.shape is not None and not _broadcasts(mask.shape, scores):
            msg = f"actx::{self.NAME} needs a mask for scores of shape {scores}, got {mask.shape}"
            raise ValueError(msg)
        return TensorType(np.dtype(np.uint8), (batch, shapes[0][1], outputs))

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """1."""
        q, k, v, mask = inputs
        assert q is not None
        assert k is not None
        assert v is not None
        zero = float(self.y_zero_point)
        if k.shape[1] == 0:
            return np.full((*q.shape[:2], v.shape[2]), zero)
        queries, keys, values = (
            self._heads_of(codes, zero_point)
            for codes, zero_point in ((q, self.q_zero_point), (k, self.k_zero_point), (v, self.v_zero_point))
        )
        weights = self._weights(queries, keys, mask)
        means = np.zeros((*weights.shape[:3], values.shape[-1]), np.float32)
        for first in range(0, k.shape[1], KEYS_AT_ONCE):
            part = slice(first, first + KEYS_AT_ONCE)
            means += (weights[..., part] @ values[:, :, part]).astype(np.float32)
        means *= np.float32(self.output_scale) / weights.sum(axis=-1, keepdims=True).astype(np.float32)
        codes = np.rint(np.clip(means, -zero, 255 - zero)).astype(np.float64) + zero
        return np.ascontiguousarray(codes.swapaxes(1, 2)).reshape(*q.shape[:2], v.shape[2])

    def _heads_of(self, codes: NDArray[Any], zero_point: int) -> NDArray[np.int64]:
        """Return integers [B, heads, rows, size]."""
        batch, rows, columns = codes.shape
        split = codes.astype(np.int64).reshape(batch, rows, self.heads, columns // self.heads)
        return split.swapaxes(1, 2) - zero_point

    def _weights(
        self, queries: NDArray[np.int64], keys: NDArray[np.int64], mask: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """Return w: 3."""
        sums = (queries @ keys.swapaxes(2, 3)).astype(np.int32).astype(np.float32)
        log2_e = np.float32(LOG2_E)
        added = np.float32(0) if mask is None else np.asarray(mask, np.float32) * log2_e
        scores = _fused(sums, np.float32(self.scale) * log2_e, added)
        scores = np.clip(np.where(np.isnan(scores), np.float32(-_LARGEST), scores), -_LARGEST, _LARGEST)
        exponent = np.maximum(scores - scores.max(axis=-1, keepdims=True), np.float32(LEAST_EXPONENT))
        whole = np.rint(exponent)
        part = exponent - whole
        value = np.full_like(part, EXPONENTIAL[-1])
        for coefficient in EXPONENTIAL[-2::-1]:
            value = _fused(value, part, np.float32(coefficient))
        found: NDArray[np.int64] = np.rint(np.ldexp(value, whole.astype(np.int32))).astype(np.int64)
        return found

    def tolerance(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[np.float64]:
        """5."""
        q, _, v, _ = inputs
        assert q is not None
        assert v is not None
        return np.zeros((*q.shape[:2], v.shape[2]))


_DIFFER = object()


def _fused(
    a: NDArray[np.float32], b: NDArray[np.float32] | np.float32, c: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """Return a * b + c of float32, rounded once: but for one in 2^29, where the sum in float64 is halfway."""
    found: NDArray[np.float32] = (a.astype(np.float64) * b + c).astype(np.float32)
    return found


def _of_rank_3(shape: Shape | None) -> Shape:
    return (None,) * _RANK if shape is None or len(shape) != _RANK else shape


def _one(dims: Sequence[Dim]) -> Dim:
    """Return what is known of a size from all that are equal; `_DIFFER` where they are not."""
    sizes = [dim for dim in dims if is_known(dim)]
    if not sizes:
        return next((dim for dim in dims if dim is not None), None)
    return sizes[0] if all(size == sizes[0] for size in sizes) else _DIFFER


def _broadcasts(mask: Shape, scores: Shape) -> bool:
    pairs = zip(reversed(mask), reversed(scores), strict=False)
    known = ((a, b) for a, b in pairs if is_known(a) and is_known(b))
    return len(mask) <= _SCORES_RANK and all(a in (1, b) for a, b in known)
