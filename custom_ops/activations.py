"""The catalogue of named activations: one line of mathematics each.

A formula takes float64 numpy arrays and, after x, the activation's parameters. An entry with parameters has an `infer`
that recovers them from values of the function itself, so that a region of a graph can be named whatever way its
mathematics was written. Tests, documentation and the naming of sites loop over `ACTIVATIONS`; to add an activation, add a
line. Sources: the ONNX operator specification and torch.nn.functional where no paper is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit, log_expit, ndtr

Array: TypeAlias = NDArray[np.float64]
Function: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True)
class Activation:
    """A named scalar activation.

    Attributes:
        name: the field's standard term.
        formula: ``formula(x, *parameters)`` in float64, elementwise.
        parameters: names of the formula's parameters after x.
        defaults: the values that the parameters have in the literature, one per parameter.
        infer: recovers the parameters from the function, or None where there are none.
    """

    name: str
    formula: Callable[..., Array]
    parameters: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()
    infer: Callable[[Callable[[float], float]], tuple[float, ...]] | None = None

    def __call__(self, x: Array) -> Array:
        """Evaluate with the default parameters."""
        return self.formula(x, *self.defaults)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _gelu_tanh(x: Array) -> Array:
    y: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def _xielu(x: Array, ap: float, an: float, b: float) -> Array:
    negative = an * (np.expm1(np.minimum(x, -1e-6)) - x) + b * x
    return np.where(x > 0, ap * x * x + b * x, negative)


def _polyrelu(x: Array, w0: float, w1: float, w2: float, b: float) -> Array:
    u = np.maximum(x, 0)
    return ((w0 * u + w1) * u + w2) * u + b


def _infer_polyrelu(f: Callable[[float], float]) -> tuple[float, ...]:
    powers = np.array([[u**3, u**2, u] for u in (1.0, 2.0, 3.0)])
    w = np.linalg.solve(powers, np.array([f(u) - f(-1.0) for u in (1.0, 2.0, 3.0)]))
    return (*(float(v) for v in w), f(-1.0))


def _infer_xielu(f: Callable[[float], float]) -> tuple[float, ...]:
    ap, b = (float(v) for v in np.linalg.solve([[1.0, 1.0], [4.0, 2.0]], [f(1.0), f(2.0)]))
    return ap, (f(-2.0) + 2 * b) / (np.expm1(-2.0) + 2.0), b


def _logit(p: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.log(p) - np.log1p(-p)) if 0 < p < 1 else float("nan")


_CATALOGUE = (
    Activation("relu", lambda x: np.maximum(x, 0)),
    Activation("relu6", lambda x: np.clip(x, 0, 6)),
    Activation("relu2", lambda x: np.maximum(x, 0) ** 2),
    Activation("gelu", lambda x: x * ndtr(x)),
    Activation("gelu_tanh", _gelu_tanh),
    Activation("quick_gelu", lambda x: x * expit(1.702 * x)),
    Activation("silu", lambda x: x * expit(x)),
    Activation("mish", lambda x: x * np.tanh(_softplus(x))),
    Activation("hardswish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    Activation("tanh", np.tanh),
    Activation("sigmoid", expit),
    Activation("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    Activation("softplus", _softplus),
    Activation("softsign", lambda x: x / (1 + np.abs(x))),
    Activation(
        "selu", lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    Activation("logsigmoid", log_expit),
    Activation("tanhshrink", lambda x: x - np.tanh(x)),
    Activation("gelu_10", lambda x: np.clip(x * ndtr(x), -10, 10)),
    Activation("laplace", lambda x: 0.5 * (1 + erf((x - 0.707107) / (0.282095 * np.sqrt(2))))),
    Activation("sqrt_softplus", lambda x: np.sqrt(_softplus(x))),
    Activation("erf", erf),
    Activation("exp", np.exp),
    Activation(
        "leaky_relu", lambda x, slope: np.where(x > 0, x, slope * x), ("slope",), (0.01,), lambda f: (-f(-1.0),)
    ),
    Activation(
        "elu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        ("alpha",),
        (1.0,),
        lambda f: (-f(-40.0),),
    ),
    Activation(
        "celu",
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)),
        ("alpha",),
        (0.5,),
        lambda f: (-f(-400.0),),
    ),
    Activation("swish", lambda x, beta: x * expit(beta * x), ("beta",), (1.5,), lambda f: (_logit(f(1.0)),)),
    Activation(
        "hardtanh",
        np.clip,
        ("low", "high"),
        (-1.0, 1.0),
        lambda f: (f(-1e4), f(1e4)),
    ),
    Activation(
        "polyrelu", _polyrelu, ("w0", "w1", "w2", "b"), (1 / 3, 1 / 3, 1 / 3, 0.0), _infer_polyrelu
    ),  # arXiv 2411.03884
    Activation("xielu", _xielu, ("ap", "an", "b"), (0.8, 0.8, 0.5), _infer_xielu),  # arXiv 2411.13010
)

ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _CATALOGUE}
