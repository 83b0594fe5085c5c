"""The elementwise ops of ONNX (opsets 13 to 25) as mathematics, in numpy's ufuncs.

An op of this table maps each element of its inputs to the element at the same place in its output, so that a connected
region of such ops with one non-constant input is a scalar function. Formulas follow the ONNX operator specification. They
are evaluated in float64, and on anything else that numpy's ufuncs take: nothing may turn its argument into an array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray
from scipy.special import erf, expit

from actx.custom_ops.activations import ACTIVATIONS
from actx.custom_ops.ops import DOMAIN
from actx.custom_ops.spline import Spline

Array: TypeAlias = NDArray[Any]
Attributes: TypeAlias = Mapping[str, Any]
Evaluate: TypeAlias = Callable[..., Array]

SPLINE = (DOMAIN, "Spline")
# A constant with more elements is a weight, not a parameter of an activation.
MAX_CONSTANT = 1 << 16


def _gelu(a: Attributes, x: Array) -> Array:
    return ACTIVATIONS["gelu_tanh" if a.get("approximate") == "tanh" else "gelu"].formula(x)


def _hard_sigmoid(a: Attributes, x: Array) -> Array:
    y: Array = np.clip(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1)
    return y


def _elu(a: Attributes, x: Array) -> Array:
    return np.where(x > 0, x, a.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))


def _celu(a: Attributes, x: Array) -> Array:
    return ACTIVATIONS["celu"].formula(x, a.get("alpha", 1.0))


def _selu(a: Attributes, x: Array) -> Array:
    alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    return np.multiply(gamma, np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _leaky_relu(a: Attributes, x: Array) -> Array:
    return np.where(x < 0, a.get("alpha", 0.01) * x, x)


def _thresholded_relu(a: Attributes, x: Array) -> Array:
    return np.where(x > a.get("alpha", 1.0), x, 0.0)


def _shrink(a: Attributes, x: Array) -> Array:
    limit, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0.0))


def _clip(_: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    floor = x if low is None else np.maximum(x, low)
    return floor if high is None else np.minimum(floor, high)


def _prelu(_: Attributes, x: Array, slope: Array) -> Array:
    return np.where(x < 0, slope * x, x)


def _swish(a: Attributes, x: Array) -> Array:
    y: Array = x * expit(a.get("alpha", 1.0) * x)
    return y


def _spline(a: Attributes, x: Array, *u: Array) -> Array:
    """Evaluate on an array, whose first dimension is that of the channels where there are any, or piece by piece."""
    spline = Spline.from_attributes(a)
    if isinstance(x, NDArrayOperatorsMixin):
        return reduce(np.multiply, u, _by_pieces(spline, x))
    wide = x if spline.axis is None else np.broadcast_to(x, (len(spline.origins), *x.shape[1:]))
    return reduce(np.multiply, u, spline(wide))


def _by_pieces(spline: Spline, x: Any) -> Any:
    knots = [float(knot) for knot in spline.knots]
    inside = [np.less(x, knots[0])] if knots else []
    inside += [np.logical_and(np.greater_equal(x, a), np.less(x, b)) for a, b in pairwise(knots)]

    def piece(i: int) -> Callable[[Any], Any]:
        origin, (*lower, lead) = float(spline.origins[i]), spline.coefficients[i].tolist()

        def horner(x: Any) -> Any:
            y = np.multiply(x, 0.0) + lead
            for coefficient in reversed(lower):
                y = y * (x - origin) + coefficient
            return y

        return horner

    return np.piecewise(x, inside, [piece(i) for i in range(spline.segments)])


def _mod(a: Attributes, x: Array, y: Array) -> Array:
    return np.fmod(x, y) if a.get("fmod") else np.mod(x, y)


def _identity(_: Attributes, x: Array, *_ignored: Array) -> Array:
    """Return x; the ratio of a Dropout that drops nothing has no effect."""
    return x


def _is_inf(a: Attributes, x: Array) -> Array:
    low, high = a.get("detect_negative", 1) != 0, a.get("detect_positive", 1) != 0
    y: Array = np.logical_and(np.isinf(x), np.where(x < 0, low, high))
    return y


def _cast(a: Attributes, x: Array) -> Array:
    """Cast to a float type or to bool; integers never are part of a region."""
    return np.not_equal(x, 0) if a["to"] == ir.DataType.BOOL else np.multiply(x, 1.0)


def _cast_like(_: Attributes, x: Array, like: Array) -> Array:
    return np.not_equal(x, 0) if np.result_type(like).kind == "b" else np.multiply(x, 1.0)


def _with_bias(name: str) -> Evaluate:
    """Return an activation that takes an optional bias."""
    formula = ACTIVATIONS[name].formula
    return lambda _, x, bias=0.0: formula(x + bias)


def _mean(_: Attributes, *xs: Array) -> Array:
    return reduce(np.add, xs) / len(xs)


def _plain(function: Callable[..., Array]) -> Evaluate:
    """Return a formula without attributes."""
    return lambda _, *xs: function(*xs)


def _fold(function: Callable[..., Array]) -> Evaluate:
    """Return a formula over any number of inputs."""
    return lambda _, *xs: reduce(function, xs)


def _catalogue(name: str) -> Evaluate:
    formula = ACTIVATIONS[name].formula
    return lambda _, x: formula(x)


_STANDARD: Mapping[str, Evaluate] = {
        "Abs": _plain(np.abs), "Neg": _plain(np.negative), "Sign": _plain(np.sign), "Reciprocal": _plain(np.reciprocal),
        "Floor": _plain(np.floor), "Ceil": _plain(np.ceil), "Round": _plain(np.round),
        "Exp": _plain(np.exp), "Log": _plain(np.log), "Sqrt": _plain(np.sqrt), "Erf": _plain(erf),
        "Sin": _plain(np.sin), "Cos": _plain(np.cos), "Tan": _plain(np.tan),
        "Sinh": _plain(np.sinh), "Cosh": _plain(np.cosh), "Tanh": _plain(np.tanh),
        "Asin": _plain(np.arcsin), "Acos": _plain(np.arccos), "Atan": _plain(np.arctan),
        "Asinh": _plain(np.arcsinh), "Acosh": _plain(np.arccosh), "Atanh": _plain(np.arctanh),
        "Relu": _catalogue("relu"), "Sigmoid": _catalogue("sigmoid"), "Softplus": _catalogue("softplus"),
        "Softsign": _catalogue("softsign"), "Mish": _catalogue("mish"), "HardSwish": _catalogue("hardswish"),
        "Gelu": _gelu, "Swish": _swish, "HardSigmoid": _hard_sigmoid, "Elu": _elu, "Celu": _celu, "Selu": _selu,
        "LeakyRelu": _leaky_relu, "PRelu": _prelu, "ThresholdedRelu": _thresholded_relu, "Shrink": _shrink, "Clip": _clip,
        "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _plain(np.divide),
        "Pow": _plain(np.power), "Mod": _mod,
        "Max": _fold(np.maximum), "Min": _fold(np.minimum), "Sum": _fold(np.add), "Mean": _mean,
        "Greater": _plain(np.greater), "GreaterOrEqual": _plain(np.greater_equal), "Less": _plain(np.less),
        "LessOrEqual": _plain(np.less_equal), "Equal": _plain(np.equal), "And": _plain(np.logical_and),
        "Or": _plain(np.logical_or), "Xor": _plain(np.logical_xor), "Not": _plain(np.logical_not), "IsNaN": _plain(np.isnan),
        "IsInf": _is_inf, "Where": _plain(np.where),
        "Identity": _identity, "Cast": _cast, "CastLike": _cast_like,
}  # fmt: skip
ELEMENTWISE: Mapping[tuple[str, str], Evaluate] = {
    **{("", name): evaluate for name, evaluate in _STANDARD.items()},
    ("com.microsoft", "Gelu"): _catalogue("gelu"),
    ("com.microsoft", "FastGelu"): _with_bias("gelu_tanh"),
    ("com.microsoft", "QuickGelu"): lambda a, x: x * expit(a.get("alpha", 1.702) * x),
    SPLINE: _spline,
}


def _unsqueeze(_: Attributes, x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(axes.reshape(-1).tolist()))


def _squeeze(_: Attributes, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(axes.reshape(-1).tolist()))


def _constant_of_shape(a: Attributes, shape: Array) -> Array:
    value = a["value"].numpy().reshape(()) if "value" in a else np.float32(0)
    return np.full(_small(shape), value)


def _expand(_: Attributes, x: Array, shape: Array) -> Array:
    whole = np.broadcast_shapes(x.shape, tuple(shape.reshape(-1).tolist()))
    return np.broadcast_to(x, _small(np.array(whole, np.int64))).copy()


def _gather(a: Attributes, x: Array, places: Array) -> Array:
    axis = a.get("axis", 0)
    _small(np.array([*np.delete(x.shape, axis), places.size]))
    return np.take(x, places.astype(np.int64), axis=axis)


def _slice(
    _: Attributes, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    given = (
        np.arange(starts.size) if axes is None else axes,
        starts,
        ends,
        np.ones_like(starts) if steps is None else steps,
    )
    for axis, start, end, step in zip(*(array.reshape(-1).tolist() for array in given), strict=True):
        x = np.moveaxis(np.moveaxis(x, axis, 0)[start : None if end < -x.shape[axis] else end : step], 0, axis)
    return x


def _concat(a: Attributes, *xs: Array) -> Array:
    return np.concatenate(xs, axis=a["axis"])


def _small(shape: Array) -> list[int]:
    """Refuse to make a constant larger than a parameter of an activation can be."""
    sizes = [int(size) for size in shape.reshape(-1)]
    if math.prod(sizes) > MAX_CONSTANT:
        msg = f"a constant of shape {sizes} is no parameter"
        raise ValueError(msg)
    return sizes


# Not elementwise, but on constants they only lay out what an elementwise op then takes as its parameter.
CONSTANT_LAYOUT: Mapping[tuple[str, str], Evaluate] = {
    ("", "Reshape"): lambda _, x, shape: x.reshape(shape.tolist()),
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Squeeze"): _squeeze,
    ("", "Expand"): _expand,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Gather"): _gather,
    ("", "Slice"): _slice,
    ("", "Concat"): _concat,
}
