"""Every module against its formula in float64 numpy, with parameters that are not the first ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
import torch
from scipy.special import erf, expit, ndtr, softmax
from torch import nn

from actx.custom_ops import ACTIVATIONS as CATALOGUE
from actx.models.activations import (
    ACTIVATIONS,
    APL,
    DICTIONARY,
    IMAGE_CHANNELS,
    ContextAwareMixture,
    MixtureOfActivations,
    make_activation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Parameters: TypeAlias = "Mapping[str, Array]"

FEATURES = 6
TOKENS = (2, 5, FEATURES)
IMAGE = (2, FEATURES, 3, 4)
# The modules run in float64; torch's softplus is the identity above 20, which is 2e-9 off.
MAX_ABS = 1e-8
# The op has no float64. Relative to the sum of the magnitudes of the terms, which is below 10 here.
POLYNORM_MAX_ABS = 1e-5
OF_ROWS = ("polynorm", "polynorm_bounded")
FIXED = [name for name, make in ACTIVATIONS.items() if not list(make(FEATURES).parameters())]


# --- formulas ---


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _normalised(z: Array) -> Array:
    return z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-6)


def _polynorm(x: Array, w: Array, b: Array) -> Array:
    return w[0] * _normalised(x**3) + w[1] * _normalised(x**2) + w[2] * _normalised(x) + b


def _powers(x: Array, first: int, coefficients: Array) -> list[Array]:
    return [c * x ** (first + i) for i, c in enumerate(coefficients)]


def _rational(x: Array, p: Parameters, version: str) -> Array:
    first = 0 if version == "C" else 1
    terms = _powers(x, first, p["denominator"])
    inner = sum(map(np.abs, terms)) if version == "A" else np.abs(sum(terms))
    return np.asarray(sum(_powers(x, 0, p["numerator"])) / ((0.1 if version == "C" else 1.0) + inner))


ENTRIES: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": _relu,
    "relu2": lambda x: _relu(x) ** 2,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * ndtr(x),
    "silu": lambda x: x * expit(x),
    "tanh": np.tanh,
}


def _acon(x: Array, p: Parameters, beta: Array) -> Array:
    d = (p["p1"] - p["p2"]) * x
    return d * expit(beta * d) + p["p2"] * x


def _two_layers(x: Array, p: Parameters, inner: Callable[[Array], Array]) -> Array:
    """The two linear layers of the mean over pixels or tokens: [batch, outputs]."""
    mean = x.mean((2, 3)) if x.ndim == len(IMAGE) else x.mean(1)
    hidden = inner(mean @ p["squeeze.weight"].T + p["squeeze.bias"])
    return np.asarray(hidden @ p["expand.weight"].T + p["expand.bias"])


def _spread(y: Array, x: Array) -> Array:
    return y[:, :, None, None] if x.ndim == len(IMAGE) else y[:, None]


def _dy_relu(x: Array, p: Parameters) -> Array:
    theta = 2 * expit(_two_layers(x, p, _relu)) - 1
    a, c, b, d = (_spread(part, x) for part in np.split(theta, 4, axis=1))
    return np.maximum((1 + a) * x + b / 2, c * x + d / 2)


def _apl(x: Array, p: Parameters) -> Array:
    hinges = zip(p["slopes"], p["offsets"], strict=True)
    return np.asarray(_relu(x) + sum(a * _relu(b - x) for a, b in hinges))


def _xielu(x: Array, p: Parameters) -> Array:
    ap, an = _softplus(p["alpha_p"]), 0.5 + _softplus(p["alpha_n"])
    return np.where(x > 0, ap * x * x + 0.5 * x, an * (np.expm1(np.minimum(x, -1e-6)) - x) + 0.5 * x)


WITH_PARAMETERS: Mapping[str, Callable[[Array, Parameters], Array]] = {
    "swish": lambda x, p: x * expit(p["beta"] * x),
    "swish_per_channel": lambda x, p: x * expit(p["beta"] * x),
    "prelu": lambda x, p: _relu(x) + p["weight"] * np.minimum(x, 0),
    "prelu_per_channel": lambda x, p: _relu(x) + p["weight"] * np.minimum(x, 0),
    "rational_a": lambda x, p: _rational(x, p, "A"),
    "rational_b": lambda x, p: _rational(x, p, "B"),
    "rational_c": lambda x, p: _rational(x, p, "C"),
    "rational_d": lambda x, p: _rational(x, p, "D"),
    "apl": _apl,
    "polyrelu": lambda x, p: CATALOGUE["polyrelu"].formula(x, *p["weight"], p["bias"]),
    "xielu": _xielu,
    "dyt": lambda x, p: p["weight"] * np.tanh(p["alpha"] * x) + p["bias"],
    "derf": lambda x, p: p["weight"] * erf(p["alpha"] * x + p["shift"]) + p["bias"],
    "la": lambda x, p: np.asarray(sum(a * ENTRIES[n](x) for a, n in zip(p["coefficients"], DICTIONARY, strict=True))),
    "polynorm": lambda x, p: _polynorm(x, p["weight"], p["bias"]),
    "polynorm_bounded": lambda x, p: _polynorm(x, expit(p["weight"]), np.clip(p["bias"], -0.5, 0.5)) / 2,
    "dy_relu": _dy_relu,
    "acon_c": lambda x, p: _acon(x, p, p["beta"]),
    "meta_acon": lambda x, p: _acon(x, p, _spread(expit(_two_layers(x, p, lambda h: h)), x)),
}


# --- modules ---


def _made(name: str, axis: int = -1) -> nn.Module:
    torch.manual_seed(0)
    module = ACTIVATIONS[name](FEATURES, axis).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def _parameters(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def _input(shape: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(1)
    x = 3 * torch.randn(shape, dtype=torch.float64)
    x.view(-1)[:4] = torch.tensor([0.0, -25.0, 25.0, -1e-7])
    return x


def _values(module: nn.Module, x: torch.Tensor) -> Array:
    with torch.no_grad():
        y: torch.Tensor = module(x)
    return y.double().numpy()


@pytest.mark.parametrize("name", FIXED)
def test_formula(name: str) -> None:
    x = _input(TOKENS)
    np.testing.assert_allclose(_values(_made(name).double(), x), CATALOGUE[name](x.numpy()), rtol=0, atol=MAX_ABS)


@pytest.mark.parametrize(("axis", "shape"), [(-1, TOKENS), (IMAGE_CHANNELS, IMAGE)])
@pytest.mark.parametrize("name", [name for name in WITH_PARAMETERS if name not in OF_ROWS])
def test_formula_with_parameters(name: str, axis: int, shape: tuple[int, ...]) -> None:
    module, x = _made(name, axis).double(), _input(shape)
    expected = WITH_PARAMETERS[name](x.numpy(), _parameters(module))
    np.testing.assert_allclose(_values(module, x), expected, rtol=1e-10, atol=MAX_ABS)


@pytest.mark.parametrize("name", OF_ROWS)
def test_formula_of_rows(name: str) -> None:
    module, x = _made(name), _input(TOKENS).clamp(-6, 6).float()
    expected = WITH_PARAMETERS[name](x.double().numpy(), _parameters(module))
    np.testing.assert_allclose(_values(module, x), expected, rtol=0, atol=POLYNORM_MAX_ABS)


def test_every_activation_is_tested() -> None:
    assert set(FIXED) | set(WITH_PARAMETERS) == set(ACTIVATIONS)
    assert set(FIXED) <= set(CATALOGUE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    module, x = _made(name).train(), _input(TOKENS).float().requires_grad_()
    torch.autograd.backward(module(x).square().sum())
    for gradient in (x.grad, *(parameter.grad for parameter in module.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


# --- shapes and first values ---

SHAPES: Mapping[str, dict[str, tuple[int, ...]]] = {
    "swish": {"beta": (1,)},
    "swish_per_channel": {"beta": (FEATURES,)},
    "prelu": {"weight": (1,)},
    "prelu_per_channel": {"weight": (FEATURES,)},
    "rational_a": {"numerator": (6,), "denominator": (4,)},
    "rational_b": {"numerator": (6,), "denominator": (4,)},
    "rational_c": {"numerator": (6,), "denominator": (5,)},
    "rational_d": {"numerator": (6,), "denominator": (4,)},
    "apl": {"slopes": (2, FEATURES), "offsets": (2, FEATURES)},
    "polyrelu": {"weight": (3,), "bias": (1,)},
    "xielu": {"alpha_p": (1,), "alpha_n": (1,)},
    "dyt": {"alpha": (1,), "weight": (FEATURES,), "bias": (FEATURES,)},
    "derf": {"alpha": (1,), "shift": (1,), "weight": (FEATURES,), "bias": (FEATURES,)},
    "la": {"coefficients": (7,)},
    "polynorm": {"weight": (3,), "bias": (1,)},
    "polynorm_bounded": {"weight": (3,), "bias": (1,)},
    "acon_c": {"p1": (FEATURES,), "p2": (FEATURES,), "beta": (FEATURES,)},
}
FIRST: Mapping[str, dict[str, float]] = {
    "swish": {"beta": 1},
    "prelu_per_channel": {"weight": 0.25},
    "polyrelu": {"weight": 1 / 3, "bias": 0},
    "xielu": {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3))},
    "dyt": {"alpha": 0.5, "weight": 1, "bias": 0},
    "derf": {"alpha": 0.5, "shift": 0, "weight": 1, "bias": 0},
    "la": {"coefficients": 1},
    "polynorm": {"weight": 1 / 3, "bias": 0},
    "acon_c": {"beta": 1},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_parameters(name: str) -> None:
    found = {parameter: tuple(value.shape) for parameter, value in ACTIVATIONS[name](FEATURES).named_parameters()}
    assert found == SHAPES[name]


def test_parameters_of_images_broadcast_as_they_are_stored() -> None:
    assert [tuple(p.shape) for p in ACTIVATIONS["prelu_per_channel"](FEATURES, IMAGE_CHANNELS).parameters()] == [
        (FEATURES, 1, 1)
    ]
    assert APL(FEATURES, IMAGE_CHANNELS, hinges=3).slopes.shape == (3, FEATURES, 1, 1)


@pytest.mark.parametrize("name", FIRST)
def test_first_values(name: str) -> None:
    parameters = _parameters(ACTIVATIONS[name](FEATURES))
    for parameter, value in FIRST[name].items():
        np.testing.assert_allclose(parameters[parameter], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("version", "bound"), [("a", 3.4e-3), ("b", 9.3e-4), ("c", 1.6e-3), ("d", 9.3e-4)])
def test_rationals_are_gelus_at_first(version: str, bound: float) -> None:
    x = torch.linspace(-3, 3, 2001)
    values = _values(ACTIVATIONS[f"rational_{version}"](1).eval(), x)
    assert np.abs(values - ENTRIES["gelu"](x.double().numpy())).max() < bound


def test_rational_d_is_noisy_while_training() -> None:
    module, x = ACTIVATIONS["rational_d"](1), torch.linspace(-3, 3, 21)
    torch.manual_seed(0)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


# --- mixtures ---

GATES: Mapping[Any, Callable[[Array], Array]] = {
    "sigmoid": expit,
    "tanh": np.tanh,
    "softmax": lambda z: np.asarray(softmax(z, axis=-1)),
}


def _mixed(gates: Array, h: Array, entries: tuple[str, ...]) -> Array:
    return np.asarray(sum(gates[..., k, None] * ENTRIES[name](h) for k, name in enumerate(entries)))


@pytest.mark.parametrize("gate", GATES)
def test_mixture_of_activations(gate: Any) -> None:
    torch.manual_seed(0)
    module = MixtureOfActivations(4, gate=gate).double()
    h, source = _input(TOKENS), torch.randn(*TOKENS[:-1], 4, dtype=torch.float64)
    gates = GATES[gate](source.numpy() @ _parameters(module)["router.weight"].T)
    with torch.no_grad():
        found = module(h, source).numpy()
    np.testing.assert_allclose(found, _mixed(gates, h.numpy(), DICTIONARY), rtol=0, atol=MAX_ABS)


def test_context_aware_mixture() -> None:
    torch.manual_seed(0)
    entries = ("relu", "tanh")
    module = ContextAwareMixture(3, entries).double()
    h, kind = _input(TOKENS), torch.randint(3, TOKENS[:-1])
    gates = GATES["softmax"](_parameters(module)["embedding.weight"][kind.numpy()])
    with torch.no_grad():
        found = module(h, kind).numpy()
    np.testing.assert_allclose(found, _mixed(gates, h.numpy(), entries), rtol=0, atol=MAX_ABS)


# --- errors ---


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no activation is called 'glu'; there are relu, "):
        make_activation("glu", 4)


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_cannot_be_the_channels_of_images(name: str) -> None:
    with pytest.raises(ValueError, match="normalises over the last axis"):
        make_activation(name, 4, IMAGE_CHANNELS)
