"""Activations that are piecewise polynomials become exact tables, whatever their parameters; the error is rounding alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from actx.custom_ops import ACTIVATIONS, FAMILIES
from actx.exporter.choose import choose
from actx.exporter.fitting import Fit, Form, fit
from actx.exporter.lift import lift
from actx.exporter.load.prepare import prepare
from actx.exporter.targets import TARGETS
from tests.networks import HIDDEN, Graph, onnx_mlp

if TYPE_CHECKING:
    from collections.abc import Callable

CUBIC, LINEAR = Form.parse("spline:16x3"), Form.parse("pwl:16")
X = np.concatenate([np.linspace(-12, 12, 4001), [-6e4, -300.0, 300.0, 6e4]])
PHASES = (Phase.explicit, Phase.generate)  # a failing fit is slow to shrink
# A table has coefficients of float32: each is off by a rounding, relative to its own term.
ROUNDINGS = 4 * 2.0**-24


def number(low: float, high: float) -> st.SearchStrategy[float]:
    """Return float32 numbers, as a model stores them; none so small that it is lost beside the others."""
    return st.floats(low, high, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)


def assert_exact(found: Fit, function: Callable[[Any], Any], size: Callable[[Any], Any]) -> None:
    """Assert that f is the table but for rounding: of terms as large as `size` says."""
    assert found.exact
    assert (np.abs(function(X) - found.spline(X)) <= ROUNDINGS * size(X)).all()
    assert found.certificate is not None
    assert found.certificate.error <= ROUNDINGS * float(size(np.array([-65504.0, 65504.0])).max())


slopes = number(-2, 2)
LINES = {
    "leaky_relu": (ACTIVATIONS["leaky_relu"].formula, (slopes,)),
    "hardtanh": (np.clip, (number(-9, -0.015625), number(0.015625, 9))),
    "hard_sigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (number(0.03125, 2), number(-1, 1))),
}
CURVES = {
    "relu2": (lambda x, a: a * np.maximum(x, 0) ** 2, (number(0.125, 3),)),
    "hardswish": (lambda x, a, b: x * np.clip(a * x + b, 0, 1), (number(0.03125, 2), number(-1, 1))),
    "polyrelu": (ACTIVATIONS["polyrelu"].formula, (slopes, slopes, slopes, slopes)),
}


@settings(max_examples=25, deadline=None, derandomize=True, phases=PHASES)
@given(st.sampled_from(sorted(LINES)), st.data())
def test_piecewise_linear(name: str, data: st.DataObject) -> None:
    formula, ranges = LINES[name]
    parameters = [data.draw(of) for of in ranges]
    for form in (LINEAR, CUBIC):
        found = fit(lambda x: formula(x, *parameters), form)
        assert_exact(found, lambda x: formula(x, *parameters), lambda x: 10 + 3 * np.abs(x))


@settings(max_examples=25, deadline=None, derandomize=True, phases=PHASES)
@given(st.sampled_from(sorted(CURVES)), st.data())
def test_piecewise_polynomial(name: str, data: st.DataObject) -> None:
    formula, ranges = CURVES[name]
    parameters = [data.draw(of) for of in ranges]
    degree = 3 if name == "polyrelu" and parameters[0] else 2
    found = fit(lambda x: formula(x, *parameters), CUBIC)
    assert_exact(found, lambda x: formula(x, *parameters), lambda x: 10 + 4 * np.abs(x) + 4 * np.abs(x) ** degree)


@settings(max_examples=25, deadline=None, derandomize=True, phases=PHASES)
@given(st.lists(st.tuples(st.integers(-128, 128), slopes), min_size=1, max_size=13, unique_by=lambda hinge: hinge[0]))
def test_apl(hinges: list[tuple[int, float]]) -> None:
    parameters = {f"a{i}": a for i, (_, a) in enumerate(hinges, 1)}
    parameters |= {f"b{i}": b / 32 for i, (b, _) in enumerate(hinges, 1)}

    def function(x: Any) -> Any:
        return FAMILIES["apl"].formula(x, **parameters)

    for form in (LINEAR, CUBIC):
        assert_exact(fit(function, form), function, lambda x: 10 + 27 * (4 + np.abs(x)))


@pytest.mark.parametrize("parameters", [(0, 1, 0, 1), (1, 0, 0, 1), (-0.375, 1.625, 0, 1.25), (0, 0.0012, 0, 2)])
def test_a_smooth_join_beside_a_constant(parameters: tuple[float, ...]) -> None:
    """Rounding of the constant hides where the curve begins."""
    found = fit(lambda x: ACTIVATIONS["polyrelu"].formula(x, *parameters), CUBIC)
    assert (found.exact, found.spline.segments) == (True, 2)
    assert abs(float(found.spline.knots[0])) <= 1e-5  # the curve is below a rounding of the constant there


def test_xielu_and_rationals_are_fitted() -> None:
    for name in ("xielu", "rational_a"):
        found = fit(ACTIVATIONS[name], CUBIC, interval=(-8.0, 8.0))
        assert not found.exact
        assert found.certificate is not None
        assert found.certificate.error <= 3e-3


# --- per channel ---


def _random(low: float, high: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, HIDDEN).astype(np.float32)


def _apl(g: Graph, x: str) -> str:
    terms = [
        g.op("Mul", g.op("Relu", g.op("Sub", _random(-3, 3, 2 * i), x)), _random(-1, 1, 2 * i + 1)) for i in range(3)
    ]
    return g.op("Sum", g.op("Relu", x), *terms)


def _polyrelu(g: Graph, x: str) -> str:
    value = g.op("Relu", x)
    powers = [g.op("Mul", g.op("Pow", value, float(power)), _random(-1, 1, power)) for power in (1, 2, 3)]
    return g.op("Sum", *powers)


@pytest.mark.parametrize(
    ("write", "kind", "form"),
    [
        (lambda g, x: g.op("PRelu", x, _random(-1, 1, 0)), "prelu", LINEAR),
        (lambda g, x: g.op("PRelu", x, _random(-1, 1, 0)), "prelu", CUBIC),
        (_apl, "apl", LINEAR),
        (_apl, "apl", CUBIC),
        (_polyrelu, "polyrelu", CUBIC),
    ],
)
def test_per_channel(write: Callable[[Graph, str], str], kind: str, form: Form) -> None:
    model = ir.from_proto(onnx_mlp(write))
    prepare(model)
    (site,) = lift(model).sites
    assert (site.kind, site.function.channels) == (kind, HIDDEN)
    (choice,) = choose((site,), TARGETS["ort-cpu"], form=form)
    assert choice.fit is not None, choice.reason
    assert choice.fit.exact
    x = np.broadcast_to(np.linspace(-6, 6, 301)[:, None], (301, HIDDEN))
    rows = np.stack([choice.fit.spline.channel(i)(x[:, i]) for i in range(HIDDEN)], axis=1)
    assert np.abs(rows - site.evaluate(x)).max() <= ROUNDINGS * (10 + 4 * 6.0**3)
