"""Tables: a site between two quantized tensors, worked out for each of the 256 codes of its input.

1. The entry of a code is the code of f(x), x the number that the code stands for and f in float64: one rounding, half to
   even, to the scale of what comes next, and saturation. Nothing is requantized behind it.
2. A gated site f(g) * u has factors: f(g) * (scale of u) / (scale of y), in float32, which `actx::GatedLut` multiplies with the
   code of u.
3. No code stands for NaN: a function without a value at a code is an error. An infinite entry saturates; a factor is finite.
4. What a site can give at all follows from its function: silu never gives less than -0.2785, whatever was observed.
5. The function is what the portable graph computes at the site: the source's own, or the spline of its form, with the slope
   that was folded into the layers around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actx.custom_ops import Spline
from actx.custom_ops.ops.gated_lut import GatedLutOp
from actx.custom_ops.ops.lut import LutOp
from actx.exporter.errors import ActxError
from actx.exporter.lift import ScalarFunction

if TYPE_CHECKING:
    from actx.exporter.choose import Choice
    from actx.exporter.lower import Placement
    from actx.exporter.quantize.params import QuantParams

# f of a float64 array, elementwise. A `ScalarFunction` and a `Spline` may differ per channel.
Function: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def site_function(choice: Choice, placement: Placement) -> ScalarFunction | Spline | None:
    """Return what the portable graph computes at a site (5); None for one that is no function of single elements.

    Args:
        choice: the site and its form.
        placement: where it is in the portable graph.
    """
    function = choice.site.function
    if not isinstance(function, ScalarFunction):
        return None
    if choice.fit is None or placement.own:
        return function
    slope = placement.scale
    return choice.fit.spline if slope == 1 else choice.fit.spline.scaled(1 / slope, slope)


def output_range(function: Function, x: QuantParams) -> tuple[float, float]:
    """Return the least and the greatest number that f gives for the codes of x (4); one may be infinite.

    Raises:
        ActxError: f has no value at a code.
    """
    values = _values(function, x)
    return float(values.min()), float(values.max())


def site_table(function: Function, x: QuantParams, y: QuantParams, axis: int | None = None) -> LutOp:
    """Return f between two quantized tensors as a table of codes (1).

    Args:
        function: f; a table per channel where it differs per channel.
        x: of the input.
        y: of the output.
        axis: the channel axis of the input, for a `ScalarFunction` per channel; a `Spline` has its own.

    Raises:
        ActxError: f has no value at a code (3).
        ValueError: f differs per channel, along an axis that is not given.
    """
    values = _values(function, x)
    with np.errstate(over="ignore"):  # what overflows saturates
        codes = y.quantize(values)
    if values.ndim > 1 and isinstance(function, Spline):
        axis = function.axis
    if values.ndim > 1 and axis is None:
        msg = "a function per channel needs the axis of its channels"
        raise ValueError(msg)
    return LutOp(tuple(codes.reshape(-1).tolist()), _to(x, y), axis if values.ndim > 1 else None)


def gated_table(function: Function, x: QuantParams, u: QuantParams, y: QuantParams) -> GatedLutOp:
    """Return f(x) * u between quantized tensors as a table of factors (2).

    Args:
        function: f, the same for all channels.
        x: of the gate, f's input.
        u: of what is gated.
        y: of the product.

    Raises:
        ActxError: f differs per channel, or a factor is not finite (3).
    """
    values = _values(function, x)
    if values.ndim > 1:
        raise ActxError("a gate that differs per channel has no table", remedy="Leave it in floating point.")
    with np.errstate(over="ignore", under="ignore"):
        factors = (values * u.scale / y.scale).astype(np.float32)
    _require(np.isfinite(factors), factors, x)
    return GatedLutOp(tuple(factors.tolist()), u.zero_point, y.zero_point, _to(x, y))


def _to(x: QuantParams, y: QuantParams) -> int | None:
    """Return the attribute `to`, which is left out where the types are one."""
    return None if x.dtype == y.dtype else int(y.dtype)


def _values(function: Function, x: QuantParams) -> NDArray[np.float64]:
    """Return f of what the codes stand for, float64 (256,), or (C, 256) where f differs per channel (3)."""
    numbers = x.numbers
    if isinstance(function, Spline) and function.axis is not None:
        numbers, function = np.tile(numbers, (len(function.knots), 1)), replace(function, axis=0)
    elif isinstance(function, ScalarFunction) and function.channels is not None:
        numbers = np.tile(numbers, (function.channels, 1))
    with np.errstate(all="ignore"):
        values = np.asarray(function(numbers), np.float64)
    _require(~np.isnan(values), values, x)
    return values


def _require(good: NDArray[np.bool_], values: NDArray[np.float64] | NDArray[np.float32], x: QuantParams) -> None:
    """3."""
    if good.all():
        return
    place = tuple(np.argwhere(~good)[0])
    raise ActxError(
        "a site cannot be a table of 8-bit codes",
        note=f"it gives {values[place]} at {x.numbers[place[-1]]:g}, which code {x.codes[place[-1]]} stands for",
        remedy="Leave it in floating point, or give data of a smaller range.",
    )
