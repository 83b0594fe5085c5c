"""Functions that the user registers name the sites that compute them, and nothing else is taken for one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from actx.custom_ops import ACTIVATIONS, REGISTERED, activation

X = np.linspace(-9, 9, 91)


def snake(x: Any) -> Any:
    return x + np.sin(x) ** 2


def test_decorator_and_call_return_the_formula() -> None:
    @activation("hard_mish")
    def hard_mish(x: Any) -> Any:
        return x * np.clip(x / 2 + 1, 0, 1)

    assert activation("snake", snake) is snake
    assert list(REGISTERED) == ["hard_mish", "snake"]
    np.testing.assert_array_equal(REGISTERED["hard_mish"](X), hard_mish(X))
    np.testing.assert_array_equal(REGISTERED["snake"](X), snake(X))


def test_a_formula_of_torch_is_evaluated_in_float64() -> None:
    import torch  # noqa: PLC0415 - slow to import, and for this test only

    activation("serf", lambda x: x * torch.erf(torch.nn.functional.softplus(x)), torch=True)
    activation("twice_gelu", torch.nn.Sequential(torch.nn.GELU(), torch.nn.GELU()), torch=True)
    gelu = ACTIVATIONS["gelu"]
    np.testing.assert_allclose(REGISTERED["twice_gelu"](X), gelu(gelu(X)), rtol=1e-14, atol=1e-15)
    assert REGISTERED["serf"](X.reshape(7, 13)).dtype == np.float64


def test_torch_that_narrows_is_refused() -> None:
    with pytest.raises(TypeError, match="gives float32 for float64"):
        activation("narrow", lambda x: x.float().tanh(), torch=True)


def test_torch_is_not_imported_for_formulas_of_numpy() -> None:
    code = (
        "import sys, numpy as np; from actx.custom_ops import activation; "
        "activation('snake', lambda x: x + np.sin(x) ** 2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["gelu", "rational_a", "scalar", "prelu", "taken"])
def test_a_name_that_is_taken(name: str) -> None:
    activation("taken", snake)
    with pytest.raises(ValueError, match=f"activation '{name}' is .*: choose another name"):
        activation(name, snake)


@pytest.mark.parametrize("name", ["", "Snake", "my snake", "a:b", "1x", "snake\n"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of an activation"):
        activation(name, snake)


class _Counting:
    calls = 0.0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return x * self.calls


def _in_place(x: Any) -> Any:
    x *= 2
    return x


@pytest.mark.parametrize(
    ("formula", "error", "what"),
    [
        (lambda x: x.sum(), ValueError, "must keep it"),
        (lambda x: x - x.mean(), ValueError, "does not work element by element"),
        (np.cumsum, ValueError, "must keep it"),
        (np.sort, ValueError, "does not work element by element"),
        (_Counting(), ValueError, "a function of one number"),
        (_in_place, ValueError, "changes its input"),
        (lambda x: x.astype(np.float32), TypeError, "gives float32 for float64"),
        (lambda x: "relu", ValueError, "must keep it"),
        (lambda x: x * np.nan, ValueError, "is finite nowhere"),
        (lambda x, y: x, TypeError, "cannot be evaluated"),
        (lambda x: max(0, x), TypeError, "cannot be evaluated"),
        (3.0, TypeError, "is no formula"),
    ],
)
def test_what_is_no_scalar_function(formula: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        activation("mine", formula)
    assert "mine" not in REGISTERED
