"""Every entry of the catalogue: its formula, its parameters found again, and its values against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.custom_ops import ACTIVATIONS

X = np.linspace(-100, 100, 20_001)
NEAR = np.linspace(-12, 12, 2401)
WITH_PARAMETERS = sorted(name for name, entry in ACTIVATIONS.items() if entry.infer)
# Ranges of the literature, in which a value of f tells the parameter apart from rounding.
RANGES = {
    "leaky_relu": [(-0.9, 0.9)],
    "elu": [(0.05, 3)],
    "celu": [(0.05, 3)],
    "swish": [(0.1, 5)],
    "acon_c": [(0.6, 3), (-2, 0.5), (0.2, 4)],
    "dyt": [(0.05, 6)],
    "derf": [(0.05, 6), (-1.5, 1.5)],
    "hardtanh": [(-8, -0.1), (0.1, 8)],
    "polyrelu": [(-2, 2)] * 4,
    "xielu": [(0.1, 2)] * 3,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formula(name: str) -> None:
    entry = ACTIVATIONS[name]
    assert (entry.name, len(entry.parameters)) == (name, len(entry.defaults))
    y = entry(X)
    assert (y.shape, y.dtype) == (X.shape, np.float64)
    assert np.isfinite(y).all()
    assert np.ptp(np.diff(y)) > 1e-6  # not affine
    assert float(entry(np.array(0.5))) == entry(np.array([0.5]))[0]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_defaults_are_found_again(name: str) -> None:
    entry = ACTIVATIONS[name]
    assert entry.infer is not None
    found = entry.infer(lambda x: float(entry(np.array(x))))
    np.testing.assert_allclose(found, entry.defaults, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(WITH_PARAMETERS), st.data())
def test_any_parameters_are_found_again(name: str, data: st.DataObject) -> None:
    entry = ACTIVATIONS[name]
    stored = tuple(data.draw(st.floats(low, high)) for low, high in RANGES[name])
    assert entry.infer is not None
    found = entry.infer(lambda x: float(entry.formula(np.array(x), *stored)))
    np.testing.assert_allclose(entry.formula(NEAR, *found), entry.formula(NEAR, *stored), rtol=1e-9, atol=1e-9)


def test_inference_says_nan_rather_than_fails() -> None:
    """`infer` is tried on every function there is."""
    for name in WITH_PARAMETERS:
        infer = ACTIVATIONS[name].infer
        assert infer is not None
        for other in ACTIVATIONS.values():
            with np.errstate(all="ignore"):
                found = infer(lambda x, other=other: float(other(np.array(x))))  # type: ignore[misc]
            assert len(found) == len(ACTIVATIONS[name].parameters)
        assert len(infer(lambda _: float("nan"))) == len(ACTIVATIONS[name].parameters)


def _torch_functions() -> dict[str, Any]:
    import torch  # noqa: PLC0415 - slow to import, and for this test only
    from torch.nn import functional as f  # noqa: PLC0415

    return {
        "relu": f.relu, "relu6": f.relu6, "gelu": f.gelu, "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
        "silu": f.silu, "mish": f.mish, "hardswish": f.hardswish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
        "hard_sigmoid": f.hardsigmoid, "softplus": f.softplus, "softsign": f.softsign, "selu": f.selu,
        "logsigmoid": f.logsigmoid, "tanhshrink": f.tanhshrink, "erf": torch.erf, "exp": torch.exp,
        "leaky_relu": f.leaky_relu, "elu": f.elu, "celu": lambda x: f.celu(x, 0.5), "hardtanh": f.hardtanh,
    }  # fmt: skip


def test_formulas_are_those_of_torch() -> None:
    import torch  # noqa: PLC0415

    x = torch.from_numpy(NEAR)
    for name, function in _torch_functions().items():
        # float64 on both sides; torch's softplus is the identity above 20, and its derived ops round more often.
        np.testing.assert_allclose(ACTIVATIONS[name](NEAR), function(x).numpy(), rtol=1e-12, atol=1e-14, err_msg=name)
