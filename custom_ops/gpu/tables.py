"""The numbers that a kernel reads beside its inputs, packed once per op into one array.

1. A spline of n segments and degree d is, with S numbers per row: the knots (infinity behind the last), the origins, then the
   coefficients of each power, the lowest first; then HEADER numbers, of which the first are the bounds and the scale; then
   BUCKETS words. Behind the last segment it is repeated. With S = 32 or fewer no row straddles a cache line of 128 bytes.
2. With channels each of these numbers is one per channel, side by side.
3. Bucket i holds the x between the bounds whose float32 sum x * scale + ROUNDER ends in the bits of i. The scale is a power of
   two, so the product is exact, and what the sum rounds is what the device rounds, fused or not. No bucket holds two knots. Its
   word is the number of knots below it; for 16-bit types that is in the free bits of the next knot, which is rounded up to the
   type: x of that type reaches the one where it reaches the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline

Search: TypeAlias = Literal["select", "buckets", "count"]

BUCKETS = 128
HEADER = 32
ROUNDER = 1.5 * 2**23
MAX_SELECTED = 4
# Degrees that kernels have: one between is filled up with zeros.
DEGREES = (1, 2, 3, 8, 16)
# Bounds of what a bucket's number and a rounded knot can hold.
_LARGEST_BUCKET = 2**20
_LARGEST_KNOT = 2.0**15
_SMALLEST_SCALE, _LARGEST_SCALE = -10, 20


@dataclass(frozen=True)
class Table:
    """A packed spline.

    Attributes:
        search: how its segments are found.
        degree, segments: of the kernel, at least those of the spline.
        curved: whether a tail has degree 2 or more.
        origins: whether an origin is not zero.
        numbers: float32, [rows of numbers, channels] flattened.
    """

    search: Search
    degree: int
    segments: int
    curved: bool
    origins: bool
    numbers: NDArray[np.float32]

    def constexprs(self, prefix: str = "") -> dict[str, Any]:
        """Return what a kernel is specialised by."""
        found = {
            "SEARCH": self.search, "DEGREE": self.degree, "SEGMENTS": self.segments, "CURVED": self.curved,
            "ORIGINS": self.origins,
        }  # fmt: skip
        return {f"{prefix}{name}": value for name, value in found.items()}


def pack(spline: Spline, dtype: np.dtype[Any], search: Search | None = None) -> Table:
    """Pack a spline for inputs of an element type.

    Args:
        spline: one table, or one per channel.
        dtype: float32, float16 or bfloat16.
        search: how to find segments, None for the cheapest that the knots allow.

    Raises:
        ValueError: the knots do not allow the search that was asked for.
    """
    single = spline.axis is None
    knots, coefficients, origins = (
        array[None] if single else array for array in (spline.knots, spline.coefficients, spline.origins)
    )
    buckets = place(knots[0], dtype) if single and search in {None, "buckets"} else None
    chosen = search or _cheapest(spline.segments, buckets)
    if chosen == "buckets" and buckets is None:
        msg = (
            f"no {BUCKETS} buckets part these knots: a table per channel, or knots too far apart or too close together"
        )
        raise ValueError(msg)
    width = spline.segments if chosen == "select" else max(2 ** (spline.segments - 1).bit_length(), 2)
    degree = next(d for d in DEGREES if d >= spline.degree)
    numbers = _packed(knots, coefficients, origins, width, degree, buckets if chosen == "buckets" else None)
    curved = bool((coefficients[:, [0, -1], 2:] != 0).any())
    return Table(chosen, degree, width, curved, bool(origins.any()), numbers.T.reshape(-1))


def rows_of_coefficients(spline: Spline, width: int, degree: int) -> NDArray[np.float32]:
    """Return the coefficients of one table, [degree + 1, width]."""
    rows = np.zeros((degree + 1, width), np.float32)
    rows[: spline.degree + 1] = _widened(spline.coefficients.T, width)
    return rows


@dataclass(frozen=True)
class _Buckets:
    low: float
    high: float
    scale: float
    words: NDArray[np.float32]


def _cheapest(segments: int, buckets: _Buckets | None) -> Search:
    if segments <= MAX_SELECTED:
        return "select"
    return "count" if buckets is None else "buckets"


def _widened(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Repeat the last segment."""
    return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, width - rows.shape[-1])], mode="edge")


def _packed(
    knots: NDArray[np.float32], coefficients: NDArray[np.float32], origins: NDArray[np.float32],
    width: int, degree: int, buckets: _Buckets | None,
) -> NDArray[np.float32]:  # fmt: skip
    """1, for each channel: [channels, numbers]."""
    channels = len(origins)
    rows = np.zeros((channels, degree + 3, width), np.float32)
    rows[:, 0] = np.inf
    rows[:, 0, : knots.shape[1]] = knots
    rows[:, 1] = _widened(origins, width)
    rows[:, 2 : 2 + coefficients.shape[2]] = _widened(coefficients.swapaxes(1, 2), width)
    header = np.zeros((channels, HEADER), np.float32)
    if buckets is None:
        header[:, :2] = knots[:, [0, -1]] if knots.shape[1] else (-1.0, 1.0)
        header[:, 2] = 1.0
    else:
        header[:, :3] = buckets.low, buckets.high, buckets.scale
    words = [] if buckets is None else [buckets.words[None]]  # of one channel
    return np.concatenate([rows.reshape(channels, -1), header, *words], axis=1)


def place(knots: NDArray[np.float32], dtype: np.dtype[Any]) -> _Buckets | None:
    """3. Return the widest buckets that hold one knot at most, or None."""
    if not len(knots) or np.abs(knots).max() >= _LARGEST_KNOT:
        return None
    for exponent in range(_SMALLEST_SCALE, _LARGEST_SCALE + 1):
        scale = np.float32(2.0**exponent)
        numbers = _numbers(knots, scale)
        if numbers[-1] - numbers[0] > BUCKETS - 3 or np.abs(numbers).max() > _LARGEST_BUCKET:
            return None
        if (np.diff(numbers) > 0).all():
            return _filled(knots, numbers, float(scale), dtype)
    return None


def _numbers(x: NDArray[np.float32], scale: np.float32) -> NDArray[np.int64]:
    rounder = np.float32(ROUNDER)
    return np.asarray((x * scale + rounder).view(np.int32).astype(np.int64) - int(rounder.view(np.int32)))


def _filled(knots: NDArray[np.float32], numbers: NDArray[np.int64], scale: float, dtype: np.dtype[Any]) -> _Buckets:
    first, last = int(numbers[0]) - 1, int(numbers[-1]) + 1
    words = np.zeros(BUCKETS, np.int32)
    bits = np.append(_rounded_up(knots, dtype), np.float32(np.inf)).view(np.int32)
    for number in range(first, last + 1):
        below = int((numbers < number).sum())
        words[number % BUCKETS] = below if dtype == np.float32 else bits[below] | below
    return _Buckets(first / scale, last / scale, scale, words.view(np.float32))


def _rounded_up(knots: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Return the smallest numbers of the type that are not below, as float32."""
    near = knots.astype(dtype)
    above = np.nextafter(near, np.array(np.inf, dtype))
    return np.where(near.astype(np.float32) < knots, above, near).astype(np.float32)
