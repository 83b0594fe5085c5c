"""Name a scalar function from the catalogue of activations by its values, whatever way it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.custom_ops.activations import ACTIVATIONS, Activation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actx.exporter.lift.function import ScalarFunction

UNNAMED = "scalar"
# An entry fits where f is nearer to it than half a rounding of f's own type: what the constants of a graph lose when they
# are rounded to that type is less. Some constants of the ONNX operators are float32 whatever the graph's type.
ROUNDINGS = 0.25
FLOAT32_ROUNDINGS = 8 * 2.0**-24
# Of entries that fit, one without parameters comes before one with, if its error is a rounding of one constant.
NEARLY = 1 / 32
_NEAR = np.linspace(-12.0, 12.0, 241)
_FAR = np.geomspace(12.5, 6e4, 40)  # a clamp far out makes another function
_GRID = np.concatenate([_NEAR, -_FAR, _FAR])
# What the name is confirmed on: every finite fp16 number, so that no kink between two points of the grid is overlooked.
_DENSE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
_DENSE = _DENSE[np.isfinite(_DENSE)]
_DENSE_VALUES = 1 << 22  # of a per-channel function in all: with many channels every so many numbers must do


def recognise(function: ScalarFunction, unit: float) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """Return the catalogue's name of f and its parameters, or ``("scalar", {})``.

    Where several entries fit (swish with beta 1 is silu), the first one of the catalogue whose error is nearly the
    smallest wins.

    Args:
        function: f, per channel or not.
        unit: the rounding unit of the graph's float type (2**-24 for float32, 2**-11 for float16, 2**-8 for bfloat16).

    Returns:
        The name, and per parameter its value: shape ``()``, or ``(C,)`` where it differs per channel.
    """
    values = np.atleast_2d(function(np.broadcast_to(_GRID, (function.channels or 1, _GRID.size))))
    if not np.isfinite(values[:, : _NEAR.size]).all():
        return UNNAMED, {}
    known = [(entry, _parameters(entry, function)) for entry in ACTIVATIONS.values()]
    found = [(_mismatch(entry, parameters, _GRID, values), entry, parameters) for entry, parameters in known]
    tolerance = max(ROUNDINGS * unit, FLOAT32_ROUNDINGS)
    fitting = [row for row in found if row[0] <= tolerance]
    if not fitting:
        return UNNAMED, {}
    best = min(row[0] for row in fitting)
    _, entry, parameters = next(row for row in fitting if row[0] <= max(4 * best, NEARLY * unit))
    dense = _DENSE[:: 1 + (function.channels or 1) * _DENSE.size // _DENSE_VALUES]
    values = np.atleast_2d(function(np.broadcast_to(dense, (function.channels or 1, dense.size))))
    if _mismatch(entry, parameters, dense, values) > tolerance:
        return UNNAMED, {}
    return entry.name, dict(zip(entry.parameters, parameters, strict=True))


def _mismatch(
    entry: Activation, parameters: list[NDArray[np.float64]], x: NDArray[np.float64], values: NDArray[np.float64]
) -> float:
    """Return the largest error relative to 1 + |x| + |f(x)|.

    Far out, where the graph's own way to compute f overflows, the entry may say what it would.
    """
    if not all(np.isfinite(p).all() for p in parameters):
        return np.inf
    with np.errstate(all="ignore"):
        expected = entry.formula(x[None, :], *(np.reshape(p, (-1, 1)) for p in parameters))
        error = np.abs(values - expected) / (1 + np.abs(x) + np.abs(values))
    error = np.where(np.isfinite(values), error, 0.0)
    return float(error.max()) if np.isfinite(error).all() else np.inf


def _parameters(entry: Activation, function: ScalarFunction) -> list[NDArray[np.float64]]:
    """Return the parameters, float64 of shape () or (C,)."""
    if entry.infer is None:
        return []
    infer = entry.infer
    members = [function] if function.channels is None else [function.channel(i) for i in range(function.channels)]
    rows = np.array([infer(_pointwise(member)) for member in members], dtype=np.float64)
    return [column if function.channels is not None else column[0] for column in rows.T]


def _pointwise(function: ScalarFunction) -> Callable[[float], float]:
    return lambda x: float(function(x))
