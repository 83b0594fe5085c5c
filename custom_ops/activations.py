"""The catalogue of named activations: one line of mathematics each.

A formula takes float64 numpy arrays and, after x, the activation's parameters. An entry with parameters has an `infer`
that recovers them from values of the function itself, so that a region of a graph can be named whatever way its
mathematics was written. What has no fixed number of parameters is a family (see `families`). Tests, documentation and the
naming of sites loop over `ACTIVATIONS`; to add an activation, add a line. Sources: the ONNX operator specification and
torch.nn.functional where no paper is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import erf, erfinv, expit, log_expit

from actx.custom_ops.definition import Activation, Array, Probe
from actx.custom_ops.families import FAMILIES
from actx.custom_ops.formulas import gelu, gelu_tanh, mish, silu, softplus

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a function that saturates is asked for its slope.
_STEPS = (1.0, 0.25, 4.0, 2.0**-4, 16.0, 2.0**-6, 64.0, 2.0**-10, 1024.0)


def _xielu(x: Array, ap: float, an: float, b: float) -> Array:
    negative = an * (np.expm1(np.minimum(x, -1e-6)) - x) + b * x
    return np.where(x > 0, ap * x * x + b * x, negative)


def _polyrelu(x: Array, w0: float, w1: float, w2: float, b: float) -> Array:
    u = np.maximum(x, 0)
    return ((w0 * u + w1) * u + w2) * u + b


def _infer_polyrelu(f: Probe) -> tuple[float, ...]:
    powers = np.array([[u**3, u**2, u] for u in (1.0, 2.0, 3.0)])
    w = np.linalg.solve(powers, np.array([f(u) - f(-1.0) for u in (1.0, 2.0, 3.0)]))
    return (*(float(v) for v in w), f(-1.0))


def _infer_xielu(f: Probe) -> tuple[float, ...]:
    ap, b = (float(v) for v in np.linalg.solve([[1.0, 1.0], [4.0, 2.0]], [f(1.0), f(2.0)]))
    return ap, (f(-2.0) + 2 * b) / (np.expm1(-2.0) + 2.0), b


def _acon_c(x: Array, p1: float, p2: float, beta: float) -> Array:
    y: Array = (p1 - p2) * x * expit(beta * (p1 - p2) * x) + p2 * x
    return y


def _infer_acon_c(f: Probe) -> tuple[float, ...]:
    """Take the slope on the right for p1: the function is the same with p1 and p2 exchanged.

    (f(x) + f(-x)) / x is (p1 - p2) t with t = tanh(beta (p1 - p2) x / 2), and at 2 x the double angle.
    """

    def even(x: float) -> float:
        return float(f(x) + f(-x)) / x

    angles = ((np.sqrt(2 * even(x) / even(2 * x) - 1) if even(2 * x) else np.nan, x) for x in _STEPS)
    t, x = min(((abs(t - 0.5), t, x) for t, x in angles if 0 < t < 1), default=(0.0, np.nan, 1.0))[1:]
    total, difference = float(f(x) - f(-x)) / x, even(x) / float(t)
    return (total + difference) / 2, (total - difference) / 2, 2 * float(np.arctanh(t)) / x / difference


def _slope(f: Probe, inverse: Callable[[float], float]) -> float:
    """Return the slope of inverse(f(x)), a line through 0, where f is neither flat nor nearly 0."""
    values = [(abs(abs(f(x)) - 0.5), float(f(x)), x) for x in _STEPS]
    _, value, x = min((v for v in values if np.isfinite(v[0])), default=(0.0, float("nan"), 1.0))
    return float(inverse(value)) / x if abs(value) < 1 else float("nan")


def _infer_derf(f: Probe) -> tuple[float, ...]:
    shift = float(erfinv(f(0.0))) if abs(f(0.0)) < 1 else float("nan")
    return _slope(f, lambda y: float(erfinv(y)) - shift), shift


def _logit(p: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.log(p) - np.log1p(-p)) if 0 < p < 1 else float("nan")


_TORCH, _ONNX = "torch.nn.functional", "ONNX"
_CATALOGUE = (
    Activation("relu", lambda x: np.maximum(x, 0), text="max(0, x)", source=_ONNX),
    Activation("relu6", lambda x: np.clip(x, 0, 6), text="min(max(0, x), 6)", source=_TORCH),
    Activation("relu2", lambda x: np.maximum(x, 0) ** 2, text="max(0, x)^2", source="arXiv 2109.08668"),
    Activation("gelu", gelu, text="x Phi(x), Phi(x) = (1 + erf(x / sqrt(2))) / 2", source="arXiv 1606.08415"),
    Activation(
        "gelu_tanh", gelu_tanh, text="x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2", source="arXiv 1606.08415"
    ),
    Activation("quick_gelu", lambda x: x * expit(1.702 * x), text="x sigmoid(1.702 x)", source="arXiv 1606.08415"),
    Activation("silu", silu, text="x sigmoid(x)", source="arXiv 1702.03118"),
    Activation("mish", mish, text="x tanh(softplus(x))", source="arXiv 1908.08681"),
    Activation(
        "hardswish",
        lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        text="x min(max(0, x / 6 + 1/2), 1)",
        source="arXiv 1905.02244",
    ),
    Activation("tanh", np.tanh, text="tanh(x)", source=_ONNX),
    Activation("sigmoid", expit, text="1 / (1 + e^-x)", source=_ONNX),
    Activation("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), text="min(max(0, x / 6 + 1/2), 1)", source=_TORCH),
    Activation("softplus", softplus, text="log(1 + e^x)", source=_ONNX),
    Activation("softsign", lambda x: x / (1 + np.abs(x)), text="x / (1 + abs(x))", source=_ONNX),
    Activation(
        "selu",
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
        text="1.0507 x for x > 0, else 1.0507 * 1.67326 (e^x - 1)",
        source="arXiv 1706.02515",
    ),
    Activation("logsigmoid", log_expit, text="-log(1 + e^-x)", source=_TORCH),
    Activation("tanhshrink", lambda x: x - np.tanh(x), text="x - tanh(x)", source=_TORCH),
    Activation(
        "gelu_10", lambda x: np.clip(gelu(x), -10, 10), text="min(max(-10, gelu(x)), 10)", source="transformers"
    ),
    Activation(
        "laplace",
        lambda x: 0.5 * (1 + erf((x - 0.707107) / (0.282095 * np.sqrt(2)))),
        text="(1 + erf((x - 0.707107) / (0.282095 sqrt(2)))) / 2",
        source="arXiv 2209.10655",
    ),
    Activation("sqrt_softplus", lambda x: np.sqrt(softplus(x)), text="sqrt(softplus(x))", source="transformers"),
    Activation("erf", erf, text="erf(x)", source=_ONNX),
    Activation("exp", np.exp, text="e^x", source=_ONNX),
    Activation(
        "leaky_relu",
        lambda x, slope: np.where(x > 0, x, slope * x),
        ("slope",),
        (0.01,),
        lambda f: (-f(-1.0),),
        text="x for x > 0, else slope x",
        source=_ONNX,
    ),
    Activation(
        "elu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        ("alpha",),
        (1.0,),
        lambda f: (-f(-40.0),),
        text="x for x > 0, else alpha (e^x - 1)",
        source="arXiv 1511.07289",
    ),
    Activation(
        "celu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)),
        ("alpha",),
        (0.5,),
        lambda f: (-f(-400.0),),
        text="x for x > 0, else alpha (e^(x / alpha) - 1)",
        source="arXiv 1704.07483",
    ),
    Activation(
        "swish",
        lambda x, beta: x * expit(beta * x),
        ("beta",),
        (1.5,),
        lambda f: (_logit(f(1.0)),),
        text="x sigmoid(beta x)",
        source="arXiv 1710.05941",
    ),
    Activation(
        "acon_c",
        _acon_c,
        ("p1", "p2", "beta"),
        (1.0, 0.25, 1.5),
        _infer_acon_c,
        text="(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x",
        source="arXiv 2009.04759",
    ),
    Activation(
        "dyt",
        lambda x, a: np.tanh(a * x),
        ("a",),
        (0.5,),
        lambda f: (_slope(f, np.arctanh),),
        text="tanh(a x); the weight and bias per channel around it are the layer's behind",
        source="arXiv 2503.10622",
    ),
    Activation(
        "derf",
        lambda x, a, s: erf(a * x + s),
        ("a", "s"),
        (0.5, 0.0),
        _infer_derf,
        text="erf(a x + s); weight and bias as of dyt",
        source="arXiv 2512.10938",
    ),
    Activation(
        "hardtanh",
        np.clip,
        ("low", "high"),
        (-1.0, 1.0),
        lambda f: (f(-1e4), f(1e4)),
        text="min(max(low, x), high)",
        source=_TORCH,
    ),
    Activation(
        "polyrelu",
        _polyrelu,
        ("w0", "w1", "w2", "b"),
        (1 / 3, 1 / 3, 1 / 3, 0.0),
        _infer_polyrelu,
        text="w0 u^3 + w1 u^2 + w2 u + b, u = max(0, x)",
        source="arXiv 2411.03884",
    ),
    Activation(
        "xielu",
        _xielu,
        ("ap", "an", "b"),
        (0.8, 0.8, 0.5),
        _infer_xielu,
        text="ap x^2 + b x for x > 0, else an (e^min(x, -1e-6) - 1 - x) + b x",
        source="arXiv 2411.13010",
    ),
)

ACTIVATIONS: dict[str, Activation] = {
    **{activation.name: activation for activation in _CATALOGUE},
    **{name: family.default for name, family in FAMILIES.items()},
}
