"""Matrices in blocks: consecutive numbers of a row share a scale and a zero point.

1. Code q of a block with scale s and zero point z stands for (q - z) * s.
2. Scales and zero points are those of the least squared error among the range of a block and what a clipped range gives.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CLIPPED = np.linspace(1, 0.6, 9)
_CHUNK = 2**18  # weights: of fewer, the calls take most of the time; of more, the arrays leave the caches
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
        error: the squared distance from the matrix.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    columns: int
    error: float

    @property
    def symmetric(self) -> bool:
        """Whether zero is in the middle of the codes everywhere."""
        return bool((self.zero_points == 2 ** (self.bits - 1)).all())

    def numbers(self) -> NDArray[np.float64]:
        """Return what the codes stand for, [rows, columns] (1)."""
        exact = (self.codes.astype(np.float64) - self.zero_points[..., None]) * self.scales[..., None]
        return exact.reshape(len(exact), -1)[:, : self.columns]


def encode(matrix: NDArray[np.float32], block: int, *, bits: int, symmetric: bool = False) -> Blocks:
    """Return the codes of a matrix [rows, columns] with blocks of columns (2). Rows are searched on all cores.

    Raises:
        ActxError: a weight is not finite.
    """
    rows, columns = matrix.shape
    count = -(-columns // block)
    step = max(1, _CHUNK // (count * block))
    codes = np.zeros((rows, count, block), np.uint8)
    scales, points = np.ones((rows, count), np.float32), np.zeros((rows, count), np.uint8)
    errors = np.zeros(-(-rows // step))

    def search(number: int) -> bool:
        part = slice(number * step, (number + 1) * step)
        weights = np.pad(matrix[part], ((0, 0), (0, count * block - columns)))
        if not np.isfinite(weights).all():
            return False
        across = np.ascontiguousarray(weights.reshape(-1, block).T)
        scale, point, errors[number] = _best(across, bits, symmetric=symmetric)
        found = np.rint(across / scale) + point
        codes[part] = np.clip(found, 0, 2**bits - 1, out=found).T.reshape(-1, count, block)
        scales[part], points[part] = scale.reshape(-1, count), point.reshape(-1, count)
        return True

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        if not all(pool.map(search, range(len(errors)))):
            raise ActxError("a weight is not finite", remedy="Check the model with actx inspect.")
    return Blocks(codes, scales, points, bits, columns, float(errors.sum()))


def _best(
    weights: NDArray[np.float32], bits: int, *, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return scales and zero points of blocks [block, blocks] of the least squared error (2), and that error.

    The error of a block is summed in steps of its scale, which none leaves float32 in.
    """
    least = np.full(weights.shape[1], np.inf)
    scales, points = np.ones(weights.shape[1:], np.float32), np.zeros(weights.shape[1:], np.float32)
    steps, rounded = np.empty_like(weights), np.empty_like(weights)
    for scale, point in _candidates(weights, bits, symmetric=symmetric):
        np.divide(weights, scale, out=steps)
        np.rint(steps, out=rounded)
        np.maximum(rounded, -point, out=rounded)
        np.minimum(rounded, 2**bits - 1 - point, out=rounded)
        np.subtract(rounded, steps, out=steps)
        moved = np.einsum("kb,kb->b", steps, steps) * scale.astype(np.float64) ** 2
        better = moved < least
        for kept, new in ((least, moved), (scales, scale), (points, point)):
            np.copyto(kept, new, where=better)
    return scales, points, float(least.sum())


def _candidates(
    weights: NDArray[np.float32], bits: int, *, symmetric: bool
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield scales and zero points of blocks [block, blocks]; zero is always a code."""
    low, high = (ends.astype(np.float64) for ends in (weights.min(axis=0), weights.max(axis=0)))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    middle, last = 2 ** (bits - 1), 2**bits - 1
    full = np.maximum(-low / middle, high / (middle - 1)) if symmetric else (high - low) / last
    for clipped in _CLIPPED:
        scale = np.maximum(np.where(full > 0, full * clipped, 1), _SMALLEST).astype(np.float32)
        point = np.full(low.shape, float(middle)) if symmetric else np.rint((last - (high + low) / scale) / 2)
        yield scale, np.clip(point, 0, last).astype(np.float32)
