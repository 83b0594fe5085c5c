"""Quantization parameters: which real number each 8-bit code stands for.

1. Code q stands for (q - zero_point) * scale, the scale a float32 number, as QuantizeLinear and DequantizeLinear have it (ONNX
   operators, opset 13). Zero has a code of its own, so that padding and what a relu cuts stay exact.
2. A number becomes the code nearest to it; of two equally near ones the even one, and the last one beyond the range.
3. Asymmetric parameters spread all codes over [low, high]; symmetric ones have zero_point 0 and leave -128 out, so that
   negation loses nothing, and two products of symmetric codes fit into 16 bits.
4. Weights are symmetric with one scale per output: largest magnitude / 127, or more, so that the codes of no two weights that
   a CPU multiplies together add up to more than 128. x86 without VNNI multiplies uint8 codes by int8 ones in pairs and adds the
   two products in 16 bits, which saturate (VPMADDUBSW; Intel, Intrinsics Guide): 255 * 128 still fits. So sums are exact on
   every machine. A pair are the weights of inputs 2i and 2i + 1, of a convolution any two. For `actx::QLinear` they are
   narrow (`custom_ops.ops.qlinear`): the same of four weights, those of one sign together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.custom_ops.ops.qlinear import largest_fours
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# The largest code of symmetric parameters: -128 is not used.
LEVELS = 127
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of one tensor.

    Attributes:
        scale: a positive float32 number.
        zero_point: the code of zero.
        dtype: UINT8 or INT8.
    """

    scale: float
    zero_point: int = 0
    dtype: ir.DataType = ir.DataType.INT8

    @classmethod
    def asymmetric(cls, low: float, high: float, dtype: ir.DataType = ir.DataType.UINT8) -> QuantParams:
        """Return what spreads all codes over a range, widened to hold zero (3).

        Raises:
            ActxError: the range is not finite.
        """
        _check(low, high)
        low, high = min(low, 0.0), max(high, 0.0)
        smallest, largest = _limits(dtype)
        scale = _float32((high - low) / (largest - smallest))
        return cls(scale, int(np.clip(np.rint(smallest - low / scale), smallest, largest)), dtype)

    @classmethod
    def symmetric(cls, peak: float) -> QuantParams:
        """Return what spreads -127 to 127 over [-peak, peak] (3).

        Raises:
            ActxError: the peak is not finite.
        """
        _check(-peak, peak)
        return cls(_float32(abs(peak) / LEVELS))

    @property
    def codes(self) -> NDArray[np.int64]:
        """All 256 codes in ascending order."""
        smallest, largest = _limits(self.dtype)
        return np.arange(smallest, largest + 1)

    @property
    def numbers(self) -> NDArray[np.float64]:
        """What they stand for (1)."""
        return self.dequantize(self.codes)

    def dequantize(self, codes: ArrayLike) -> NDArray[np.float64]:
        """Return what codes stand for, in float64 and without rounding (1)."""
        return (np.asarray(codes, np.float64) - self.zero_point) * self.scale

    def quantize(self, numbers: ArrayLike) -> NDArray[np.int64]:
        """Return the codes of float64 numbers, of any shape (2). An infinity takes the last code.

        Raises:
            ActxError: one is NaN, which no code stands for.
        """
        given = np.asarray(numbers, np.float64)
        if np.isnan(given).any():
            raise ActxError("NaN has no 8-bit code", remedy="Leave what gives it in floating point.")
        codes = np.rint(given / self.scale) + self.zero_point
        found: NDArray[np.int64] = np.clip(codes, *_limits(self.dtype)).astype(np.int64)
        return found

    def constants(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return scale and zero point as scalars of the types that QuantizeLinear takes."""
        return np.array(self.scale, np.float32), np.array(self.zero_point, self.dtype.numpy())


@dataclass(frozen=True)
class WeightCodes:
    """A weight as symmetric codes (4).

    Attributes:
        codes: int8, in the weight's shape.
        scales: float32, one per output, positive.
        axis: the axis that runs over the outputs.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    @classmethod
    def of(
        cls, weight: NDArray[np.floating[Any]], axis: int, *, narrow: bool = False, least: ArrayLike = 0.0
    ) -> WeightCodes:
        """Return the codes of a matrix, or of a convolution's weight. An output of zeros has any scale.

        Args:
            weight: any shape.
            axis: the axis that runs over the outputs.
            narrow: whether a matrix's codes are to be narrow (4).
            least: the smallest scale, of all outputs or of each.
        """
        most = _largest_four(weight, axis) if narrow else _largest_pair(weight, axis)
        peaks = np.maximum(_largest(weight, axis), most)
        scales = np.maximum(np.where(peaks > 0, np.maximum(peaks / LEVELS, _SMALLEST), 0.0), least)
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        empty = cls(np.zeros(0, np.int8), scales, axis)
        # Not the float32 quotient, which may round to another tie than the numbers' own.
        codes = np.rint(weight / empty._steps(weight.ndim))
        return cls(np.clip(codes, -LEVELS, LEVELS).astype(np.int8), scales, axis)

    @property
    def numbers(self) -> NDArray[np.float64]:
        """What the codes stand for."""
        return self.codes * self._steps(self.codes.ndim)

    def _steps(self, rank: int) -> NDArray[np.float64]:
        """Return the scales along the axis."""
        return self.scales.astype(np.float64).reshape([-1 if i == self.axis else 1 for i in range(rank)])


def _largest(weight: NDArray[np.floating[Any]], axis: int) -> NDArray[np.floating[Any]]:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest: NDArray[np.floating[Any]] = np.maximum(weight.max(axis=others), -weight.min(axis=others))
    return largest


def _largest_pair(weight: NDArray[np.floating[Any]], axis: int) -> NDArray[np.floating[Any]]:
    """4. Return the largest magnitude of the sum of a pair, or a bound on it, per output."""
    if weight.ndim != 2:
        return 2 * _largest(weight, axis)
    rows = weight if axis == 0 else weight.T
    even, odd = rows[:, 0 : rows.shape[1] - 1 : 2], rows[:, 1::2]
    return _largest(even + odd, 0) if odd.size else np.zeros(len(rows))


def _largest_four(weight: NDArray[np.floating[Any]], axis: int) -> NDArray[np.floating[Any]]:
    """4. Return the largest sum of weights of one sign among four, per output; two codes are left for what rounding adds."""
    found: NDArray[np.floating[Any]] = largest_fours(weight.T if axis == 0 else weight) * (LEVELS / (LEVELS - 1))
    return found


def _limits(dtype: ir.DataType) -> tuple[int, int]:
    info = np.iinfo(dtype.numpy())
    return int(info.min), int(info.max)


def _float32(scale: float) -> float:
    """Round to a float32 number; what is all zero may have any scale."""
    return max(float(np.float32(scale)), _SMALLEST) if scale > 0 else 1.0


def _check(low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        what = "a range to quantize is not finite"
        raise ActxError(what, note=f"got [{low}, {high}]", remedy="Check the data with actx inspect.")
