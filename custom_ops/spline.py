"""The piecewise polynomial that every scalar activation is rewritten to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

_Values: TypeAlias = "NDArray[np.float64]"
_Table: TypeAlias = "NDArray[np.float32]"
_Numbers: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"

MAX_SEGMENTS = 32
MAX_DEGREE = 3
# A polynomial form trades segments for degree: at most 4 segments of degree at most 16.
MAX_SEGMENTS_HIGH_DEGREE = 4
MAX_HIGH_DEGREE = 16


@dataclass(frozen=True, eq=False)
class Spline:
    """A piecewise polynomial s(x) with float32 coefficients.

    Segment i covers ``knots[i-1] <= x < knots[i]`` (the first and last segments reach to infinity) and is
    ``sum_j coefficients[i, j] * (x - origins[i]) ** j``. A per-channel spline has a leading channel dimension on
    all three arrays and the ``axis`` of the input that the channel dimension runs along.

    Attributes:
        knots: float32, shape ``([C,] n - 1)``, strictly ascending.
        coefficients: float32, shape ``([C,] n, degree + 1)``, ascending powers.
        origins: float32, shape ``([C,] n)``. Zero where x is near zero or the segment is a linear tail, so that
            s(0) and the asymptotes are exact in any precision; elsewhere a point of the segment, so that nothing cancels.
        axis: the channel axis of the input, or None where one table serves all elements.

    Raises:
        ValueError: the shapes do not fit together, a number is not finite, the knots do not ascend, or there are more
            segments or degrees than the kernels have (32 of degree 3, or 4 of degree 16).
    """

    knots: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    origins: NDArray[np.float32]
    axis: int | None = None

    def __post_init__(self) -> None:
        """Store the arrays as read-only float32 and check them."""
        for name in ("knots", "coefficients", "origins"):
            with np.errstate(over="ignore"):  # what overflows is refused
                array = np.array(getattr(self, name), dtype=np.float32)
            if not np.isfinite(array).all():
                msg = f"spline {name} must be finite, got {array[~np.isfinite(array)][0]}"
                raise ValueError(msg)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        self._check()

    def _check(self) -> None:
        rank = 2 if self.axis is None else 3
        if self.coefficients.ndim != rank:
            msg = f"spline coefficients must have rank {rank}, got shape {self.coefficients.shape}"
            raise ValueError(msg)
        *channels, segments, width = self.coefficients.shape
        expected = ((*channels, segments - 1), (*channels, segments))
        if (self.knots.shape, self.origins.shape) != expected:
            msg = f"spline knots and origins must have shapes {expected}, got {self.knots.shape}, {self.origins.shape}"
            raise ValueError(msg)
        if not (np.diff(self.knots, axis=-1) > 0).all():
            msg = "spline knots must ascend strictly"
            raise ValueError(msg)
        low = segments <= MAX_SEGMENTS and width - 1 <= MAX_DEGREE
        high = segments <= MAX_SEGMENTS_HIGH_DEGREE and width - 1 <= MAX_HIGH_DEGREE
        if segments < 1 or width < 1 or not (low or high):
            msg = (
                f"a spline has at most {MAX_SEGMENTS} segments of degree {MAX_DEGREE} or {MAX_SEGMENTS_HIGH_DEGREE} of "
                f"degree {MAX_HIGH_DEGREE}, got {segments} of degree {width - 1}"
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, knots: ArrayLike, coefficients: ArrayLike, origins: ArrayLike | None = None) -> Spline:
        """Build a single-table spline from anything array-like; origins default to zero."""
        table = np.asarray(coefficients, dtype=np.float64)
        zeros = np.zeros(table.shape[0])
        with np.errstate(over="ignore"):  # what overflows is refused
            return cls(
                np.asarray(knots, dtype=np.float32).reshape(-1),
                table.astype(np.float32),
                np.asarray(zeros if origins is None else origins, dtype=np.float32),
            )

    @property
    def segments(self) -> int:
        """Number of polynomial pieces, tails included."""
        return int(self.coefficients.shape[-2])

    @property
    def degree(self) -> int:
        """Degree of the pieces."""
        return int(self.coefficients.shape[-1]) - 1

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Evaluate in float64 with the stored coefficients.

        NaN gives NaN; an infinity follows its tail: the constant where the tail is constant, an infinity elsewhere.

        Args:
            x: any shape; a per-channel spline needs ``x.shape[axis] == C``.
        """
        return self._per_table(evaluate, np.asarray(x, dtype=np.float64))

    def magnitude(self, x: ArrayLike, extra: float = 0.0) -> NDArray[np.float64]:
        """Return ``sum_j (|c_j| + extra) |x - origin|^j`` of the segment that x is in, what rounding errors are relative to.

        Where x is infinite or NaN, x - origin counts as 0.

        Args:
            x: as of a call.
            extra: added to the magnitude of every coefficient.
        """
        return self._per_table(partial(magnitude, extra=extra), np.asarray(x, dtype=np.float64))

    def derivative(self) -> Spline:
        """Return s', piece by piece; at a knot it is that of the segment to the right."""
        powers = np.arange(1, self.degree + 1, dtype=np.float32)
        slopes = self.coefficients[..., 1:] * powers if self.degree else np.zeros_like(self.coefficients)
        return Spline(self.knots, slopes, self.origins, self.axis)

    def _per_table(self, function: Callable[..., _Values], x: _Values) -> _Values:
        """Apply a function of x, knots, coefficients and origins, channel by channel where there are channels."""
        if self.axis is None:
            return function(x, self.knots, self.coefficients, self.origins)
        if x.shape[self.axis] != self.coefficients.shape[0]:
            msg = f"axis {self.axis} has {x.shape[self.axis]} elements, the spline has {len(self.knots)} channels"
            raise ValueError(msg)
        rows = np.moveaxis(x, self.axis, 0)
        tables = zip(rows, self.knots, self.coefficients, self.origins, strict=True)
        return np.moveaxis(np.array([function(*row) for row in tables]).reshape(rows.shape), 0, self.axis)

    def scaled(self, input_scale: float, output_scale: float) -> Spline:
        """Return t(x) = output_scale * s(input_scale * x), for input_scale > 0."""
        if not input_scale > 0:
            msg = f"input_scale must be positive, got {input_scale}"
            raise ValueError(msg)
        powers = output_scale * np.power(input_scale, np.arange(self.degree + 1, dtype=np.float64))
        return Spline(
            (self.knots.astype(np.float64) / input_scale).astype(np.float32),
            (self.coefficients.astype(np.float64) * powers).astype(np.float32),
            (self.origins.astype(np.float64) / input_scale).astype(np.float32),
            self.axis,
        )

    def per_channel(self, channels: int, axis: int) -> Spline:
        """Repeat a single table for every channel."""
        tables = (self.knots, self.coefficients, self.origins)
        knots, coefficients, origins = (np.broadcast_to(table, (channels, *table.shape)) for table in tables)
        return Spline(knots, coefficients, origins, axis)

    def channel(self, index: int) -> Spline:
        """Return the table of one channel."""
        return Spline(self.knots[index], self.coefficients[index], self.origins[index])

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the `actx::Spline` node."""
        attributes: dict[str, Any] = {
            "degree": self.degree,
            "knots": self.knots.reshape(-1).tolist(),
            "coefficients": self.coefficients.reshape(-1).tolist(),
            "origins": self.origins.reshape(-1).tolist(),
        }
        return attributes if self.axis is None else {**attributes, "axis": self.axis, "channels": len(self.knots)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], op: str = "Spline", prefix: str = "") -> Spline:
        """Rebuild the spline of a node.

        Args:
            attributes: of the node.
            op: its op type, for errors.
            prefix: what the names of the attributes begin with.

        Raises:
            ValueError: an attribute is missing or the lengths do not fit together.
        """
        given = {name: attributes.get(f"{prefix}{name}") for name in ("axis", "channels")}
        needed = ("degree", "knots", "coefficients", "origins", *(() if given["axis"] is None else ("channels",)))
        missing = [f"{prefix}{name}" for name in needed if attributes.get(f"{prefix}{name}") is None]
        if missing:
            msg = f"actx::{op} needs the attribute {missing[0]}"
            raise ValueError(msg)
        degree, knots, coefficients, origins = (attributes[f"{prefix}{name}"] for name in needed[:4])
        try:
            lead: Sequence[int] = () if given["axis"] is None else (_count(given["channels"]),)
            segments = np.size(origins) // math.prod(lead)
            return cls(
                np.asarray(knots, dtype=np.float32).reshape(*lead, segments - 1),
                np.asarray(coefficients, dtype=np.float32).reshape(*lead, segments, int(degree) + 1),
                np.asarray(origins, dtype=np.float32).reshape(*lead, segments),
                None if given["axis"] is None else int(given["axis"]),
            )
        except ValueError as error:
            msg = f"actx::{op} attributes do not fit together: {error}"
            raise ValueError(msg) from error


def _count(channels: Any) -> int:
    if int(channels) < 1:
        msg = f"channels must be at least 1, got {channels}"
        raise ValueError(msg)
    return int(channels)


def evaluate(x: _Values, knots: _Table, coefficients: _Numbers, origins: _Table) -> _Values:
    """Evaluate one table, (n, degree + 1), in float64; what it is at infinity and NaN is said in `Spline`."""
    t, segment = _locate(x, knots, origins)
    table = coefficients.astype(np.float64)
    return np.where(np.isfinite(x), _horner(t, table[segment]), _limit(x, table[0], table[-1]))


def magnitude(x: _Values, knots: _Table, coefficients: _Numbers, origins: _Table, extra: float) -> _Values:
    """Return the sum of magnitudes of one table (see `Spline.magnitude`)."""
    t, segment = _locate(x, knots, origins)
    return _horner(np.abs(t), np.abs(coefficients.astype(np.float64))[segment] + extra)


def _locate(x: _Values, knots: _Table, origins: _Table) -> tuple[_Values, NDArray[np.intp]]:
    """Return x - origin, 0 where x is not finite, and the segments."""
    segment = np.searchsorted(knots.astype(np.float64), x, side="right").clip(0, len(origins) - 1)
    return np.where(np.isfinite(x), x - origins.astype(np.float64)[segment], 0.0), segment


def _horner(t: _Values, coefficients: _Values) -> _Values:
    """Evaluate with the coefficients of each element along the last axis."""
    result: _Values = coefficients[..., -1]
    for power in range(coefficients.shape[-1] - 2, -1, -1):
        result = result * t + coefficients[..., power]
    return result


def _limit(x: _Values, left: _Values, right: _Values) -> _Values:
    """Value of the tails at infinity: apart from Horner's rule, which would compute 0 * inf."""

    def at_infinity(tail: NDArray[np.float64], sign: float) -> float:
        order = int(np.flatnonzero(tail)[-1]) if tail.any() else 0
        return float(tail[0]) if order == 0 else float(np.inf * tail[order] * sign**order)

    limits = np.where(x < 0, at_infinity(left, -1.0), at_infinity(right, 1.0))
    return np.where(np.isnan(x), np.nan, limits)
