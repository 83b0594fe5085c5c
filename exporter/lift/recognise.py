"""Name a scalar function from the catalogue of activations by its values, whatever way it was written.

1. A single activation of the catalogue.
2. One that the user registered.
3. A member of a family: many parameters meet many functions, so special cases come first.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from actx.custom_ops import ACTIVATIONS, FAMILIES, REGISTERED, Activation, Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from actx.exporter.lift.function import ScalarFunction

# An entry and its parameters: float64 of shape () or, per channel, (C,).
Candidate: TypeAlias = "tuple[Activation, list[NDArray[np.float64]]]"

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
    values = _values(function, _GRID)
    if not np.isfinite(values[:, : _NEAR.size]).all():
        return UNNAMED, {}
    tolerance = max(ROUNDINGS * unit, FLOAT32_ROUNDINGS)
    dense = _DENSE[:: 1 + (function.channels or 1) * _DENSE.size // _DENSE_VALUES]
    dense_values = _values(function, dense)
    for candidates in _stages(function, tolerance):
        found = _best(candidates, values, tolerance, NEARLY * unit)
        if found is not None and _mismatch(found, dense, dense_values) <= tolerance:
            entry, parameters = found
            return entry.name, dict(zip(entry.parameters, parameters, strict=True))
    return UNNAMED, {}


def _values(function: ScalarFunction, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.atleast_2d(function(np.broadcast_to(x, (function.channels or 1, x.size))))


def _stages(function: ScalarFunction, tolerance: float) -> Iterator[Iterable[Candidate]]:
    singles = [entry for entry in ACTIVATIONS.values() if entry.name not in FAMILIES]
    yield ((entry, _parameters(entry, function)) for entry in singles)
    yield ((entry, []) for entry in tuple(REGISTERED.values()))
    for family in FAMILIES.values():
        member = _member(family, function, tolerance)
        yield () if member is None else (member,)


def _best(
    candidates: Iterable[Candidate], values: NDArray[np.float64], tolerance: float, nearly: float
) -> Candidate | None:
    """Return the first candidate whose error is nearly the smallest, None where none fits."""
    found = [(_mismatch(candidate, _GRID, values), candidate) for candidate in candidates]
    fitting = [row for row in found if row[0] <= tolerance]
    if not fitting:
        return None
    smallest = min(error for error, _ in fitting)
    return next(candidate for error, candidate in fitting if error <= max(4 * smallest, nearly))


def _mismatch(candidate: Candidate, x: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the largest error relative to 1 + |x| + |f(x)|.

    Far out, where the graph's own way to compute f overflows, the entry may say what it would.
    """
    entry, parameters = candidate
    if not all(np.isfinite(p).all() for p in parameters):
        return np.inf
    with np.errstate(all="ignore"):
        expected = entry.formula(x[None, :], *(np.reshape(p, (-1, 1)) for p in parameters))
        error = np.abs(values - expected) / (1 + np.abs(x) + np.abs(values))
    error = np.where(np.isfinite(values), error, 0.0)
    return float(error.max()) if np.isfinite(error).all() else np.inf


def _members(function: ScalarFunction) -> Iterator[ScalarFunction]:
    """Yield the function of every channel."""
    if function.channels is None:
        yield function
    else:
        yield from map(function.channel, range(function.channels))


def _parameters(entry: Activation, function: ScalarFunction) -> list[NDArray[np.float64]]:
    if entry.infer is None:
        return []
    infer: Callable[[ScalarFunction], tuple[float, ...]] = entry.infer
    with np.errstate(all="ignore"):
        return _columns([infer(member) for member in _members(function)], function)


def _columns(rows: list[tuple[float, ...]], function: ScalarFunction) -> list[NDArray[np.float64]]:
    columns = np.array(rows, dtype=np.float64).T
    return [column if function.channels is not None else column[0] for column in columns]


def _member(family: Family, function: ScalarFunction, tolerance: float) -> Candidate | None:
    """Return the member of a family that has the parameters of every channel; 0 where a channel has fewer."""
    if function.channels is not None and not family.per_channel:
        return None
    rows: list[Mapping[str, float]] = []
    for member in _members(function):
        parameters = family.infer(member, tolerance)
        if parameters is None:
            return None
        rows.append(parameters)
    longest_first = sorted(rows, key=lambda row: -len(row))
    names = tuple(dict.fromkeys(chain.from_iterable(longest_first)))
    return family.member(names), _columns([tuple(row.get(name, 0.0) for name in names) for row in rows], function)
