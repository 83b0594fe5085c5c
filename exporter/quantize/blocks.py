"""Matrices in blocks: consecutive numbers of a row share a scale and a zero point.

1. Code q of a block with scale s and zero point z stands for (q - z) * s.
2. Scales and zero points are those of the least squared error among the range of a block and what a clipped range gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CLIPPED = np.linspace(1, 0.6, 9)
_CHUNK = 2**20  # weights: the search holds a few float64 copies
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class Blocks:
    """A matrix in codes.

    Attributes:
        codes: uint8 [rows, blocks, block].
        scales: float32 [rows, blocks], positive.
        zero_points: uint8 [rows, blocks].
        bits: of a code.
        columns: of the matrix: the last block is padded with codes of zero.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    columns: int

    @property
    def symmetric(self) -> bool:
        """Whether zero is in the middle of the codes everywhere."""
        return bool((self.zero_points == 2 ** (self.bits - 1)).all())

    def numbers(self) -> NDArray[np.float64]:
        """Return what the codes stand for, [rows, columns] (1)."""
        exact = (self.codes.astype(np.float64) - self.zero_points[..., None]) * self.scales[..., None]
        return exact.reshape(len(exact), -1)[:, : self.columns]


def encode(matrix: NDArray[np.float32], block: int, *, bits: int, symmetric: bool = False) -> Blocks:
    """Return the codes of a matrix [rows, columns] with blocks of columns (2).

    Raises:
        ActxError: a weight is not finite.
    """
    if not np.isfinite(matrix).all():
        raise ActxError("a weight is not finite", remedy="Check the model with actx inspect.")
    rows, columns = matrix.shape
    count = -(-columns // block)
    step = max(1, _CHUNK // (count * block))
    parts = []
    for first in range(0, rows, step):
        part = np.pad(matrix[first : first + step], ((0, 0), (0, count * block - columns)))
        parts.append(_best(part.reshape(-1, count, block).astype(np.float64), bits, symmetric=symmetric))
    codes, scales, points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Blocks(codes, scales, points, bits, columns)


def _best(
    weights: NDArray[np.float64], bits: int, *, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Return codes, scales and zero points of blocks [rows, blocks, block] of the least squared error (2)."""
    shape = weights.shape[:2]
    codes, error = np.zeros(weights.shape, np.uint8), np.full(shape, np.inf)
    scales, points = np.ones(shape, np.float32), np.zeros(shape, np.uint8)
    for scale, point in _candidates(weights, bits, symmetric=symmetric):
        found = np.clip(np.rint(weights / scale[..., None]) + point[..., None], 0, 2**bits - 1)
        moved = (((found - point[..., None]) * scale[..., None] - weights) ** 2).sum(axis=-1)
        better = moved < error
        error = np.where(better, moved, error)
        codes[better], scales[better], points[better] = found[better], scale[better], point[better]
    return codes, scales, points


def _candidates(
    weights: NDArray[np.float64], bits: int, *, symmetric: bool
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield scales, float32 numbers, and zero points [rows, blocks]; zero is always a code."""
    low, high = np.minimum(weights.min(axis=-1), 0), np.maximum(weights.max(axis=-1), 0)
    middle, last = 2 ** (bits - 1), 2**bits - 1
    full = np.maximum(-low / middle, high / (middle - 1)) if symmetric else (high - low) / last
    for clipped in _CLIPPED:
        scale = np.maximum(np.where(full > 0, full * clipped, 1), _SMALLEST).astype(np.float32).astype(np.float64)
        point = np.full(low.shape, float(middle)) if symmetric else np.rint((last - (high + low) / scale) / 2)
        yield scale, np.clip(point, 0, last)
