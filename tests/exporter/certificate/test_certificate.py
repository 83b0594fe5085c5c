"""What a certificate says holds: at a million points, at every fp16 number, for known functions, graphs and random ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actx.custom_ops import ACTIVATIONS, Spline
from actx.exporter import Form, fit
from actx.exporter.certificate import SLACK, Certificate, certify
from actx.exporter.errors import ActxError
from actx.exporter.lift import ScalarFunction, lift
from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.function import Constant, Step
from actx.exporter.load.prepare import prepare
from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from actx.exporter.fitting import Fit

FP16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FP16 = FP16[np.isfinite(FP16)].astype(np.float64)
FINITE_FP16 = (-65504.0, 65504.0)
POINTS = 1_000_000
NARROW = (-8.0, 8.0)
# What evaluating f and s in float64 may add, of their size.
ROUNDING = 64 * 2.0**-53


def fitted(function: Callable[[Any], Any], form: str) -> Fit:
    """Fit on all of R, or on an interval where that is out of reach."""
    try:
        return fit(function, Form.parse(form))
    except ActxError:
        return fit(function, Form.parse(form), interval=NARROW)


def assert_bounds(certificate: Certificate, function: Callable[[Any], Any], spline: Spline) -> None:
    low, high = certificate.interval
    spread = np.linspace(low, high, POINTS // 2)
    near = np.linspace(max(low, -12), min(high, 12), POINTS // 2)
    x = np.concatenate([spread, near, FP16[(low <= FP16) & (high >= FP16)]]).astype(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        f, s = function(x), spline(x)
    error = np.abs(f - s) - ROUNDING * (np.abs(f) + np.abs(s) + np.abs(x))
    defined = np.isfinite(f)  # float64 may overflow where real numbers do not
    assert (error[defined] <= certificate.error).all()


@pytest.mark.parametrize(
    "form", ["pwl:16", "spline:16x3", *(pytest.param(form, marks=pytest.mark.slow) for form in ("poly:8", "hardswish"))]
)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_catalogue(name: str, form: str) -> None:
    found = fitted(ACTIVATIONS[name], form)
    if math.isinf(found.max_error):
        assert found.certificate is None
        return
    assert found.certificate is not None
    assert found.certificate.interval == (FINITE_FP16 if math.isinf(found.interval[0]) else NARROW)
    assert_bounds(found.certificate, ACTIVATIONS[name], found.spline)
    assert found.certificate.error <= found.max_error * (1 + 2 * SLACK) + 1e-9


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_graphs_of_regions(name: str) -> None:
    graph = ir.from_proto(SPELLINGS[name].model())
    prepare(graph)
    for site in lift(graph).sites:
        function = site.function if site.axis is None else site.function.channel(1)
        found = fitted(function, "pwl:8")
        assert found.certificate is not None
        assert_bounds(found.certificate, function, found.spline)
        assert found.certificate.error <= found.max_error * (1 + 2 * SLACK) + 1e-9


def test_functions_without_asymptotes_on_their_interval() -> None:
    for function in (lambda x: np.sqrt(np.logaddexp(0, x)), np.exp, lambda x: x**3 - x):
        found = fit(function, Form.parse("pwl:16"), interval=(-3.5, 4.25))
        assert found.certificate is not None
        assert found.certificate.interval == (-3.5, 4.25)
        assert_bounds(found.certificate, function, found.spline)


# --- random functions ---

_UNARY = ["Abs", "Neg", "Exp", "Tanh", "Sigmoid", "Erf", "Sin", "Cos", "Atan", "Softplus", "Softsign", "Relu", "Elu",
          "LeakyRelu", "HardSwish", "Gelu", "Mish", "Floor", "Round", "Sign", "Sinh", "Asinh", "Identity"]  # fmt: skip
_BINARY = ["Add", "Sub", "Mul", "Max", "Min", "Div"]


@st.composite
def programs(draw: st.DrawFn) -> ScalarFunction:
    """Draw a function of up to eight elementwise ops."""
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(_UNARY + _BINARY))
        operands: list[int | Constant | None] = [draw(st.integers(0, i))]
        if name in _BINARY:
            number = Constant(np.float64(draw(st.sampled_from([-2.0, -0.75, 0.1, 0.5, 1.0, 3.0]))))
            operands.append(draw(st.sampled_from([number, draw(st.integers(0, i))])))
        steps.append(Step(("", name), {}, tuple(operands)))
    return ScalarFunction(tuple(steps))


@settings(max_examples=60, deadline=None)
@given(function=programs(), form=st.sampled_from(["pwl:4", "spline:4x3", "poly:4"]))
def test_random_compositions(function: ScalarFunction, form: str) -> None:
    try:
        found = fit(function, Form.parse(form), interval=(-3.0, 3.0))
    except ActxError:
        assume(False)
    if found.certificate is not None:
        assert_bounds(found.certificate, function, found.spline)


@pytest.mark.parametrize("op", sorted(ELEMENTWISE, key=str))
def test_every_op_has_rules(op: tuple[str, str]) -> None:
    """Each op, with parameters that keep it defined, against a table that is far off everywhere."""
    table = Spline.of([0.0], [[50.0], [60.0]])
    attributes: dict[str, Any] = {"to": 1} if op[1] == "Cast" else {}
    if op == ("actx", "Spline"):
        attributes = Spline.of([0.3, 0.5], [[1, 1], [2, -0.5], [0, 3]], [0, 0.25, 0.5]).attributes()
    shift = Step(("", "Add"), {}, (0, Constant(np.float64(1.5 if op[1] == "Acosh" else 0.0))))
    condition = Step(("", "Greater"), {}, (1, Constant(np.float64(0.25))))
    half, logical = Constant(np.float64(0.5)), op[1] in {"And", "Or", "Xor", "Not"}
    first = 2 if logical or op[1] == "Where" else 1
    count = {"Where": 3, "Not": 1, "And": 2, "Or": 2, "Xor": 2}.get(op[1])
    if count is None:
        count = 2 if op[1] in {"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Greater", "PRelu",
                               "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "CastLike"} else 1  # fmt: skip
    rest = [2] * (count - 1) if logical else [half, 1][: count - 1]
    function = ScalarFunction((shift, condition, Step(op, attributes, (first, *rest))))
    certificate = certify(function, table, (0.1, 0.9), expected=70.0)
    if certificate is None:  # a condition is no number
        assert function(np.array([0.5])).shape == (1,)
        assert op[1] in {"And", "Or", "Xor", "Not", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "IsNaN",
                         "IsInf"}  # fmt: skip
        return
    assert 30 < certificate.error < 100
    assert_bounds(certificate, function, table)


def test_a_quotient_of_polynomials_takes_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far out the error is a small difference of large numbers, in any of which nothing of it is seen."""
    monkeypatch.setattr("actx.exporter.certificate.MAX_PARTS", 2000)
    for name in ("rational_a", "rational_b", "rational_c"):
        found = fit(ACTIVATIONS[name], Form.parse("spline:16x3"))
        assert found.certificate is not None
        assert found.certificate.error <= found.max_error * (1 + 2 * SLACK)


# --- what must not be certified ---


def test_a_wrong_coefficient_is_found() -> None:
    rng = np.random.default_rng(0)
    for form in ("pwl:16", "spline:16x3", "poly:8"):
        found = fit(ACTIVATIONS["gelu"], Form.parse(form))
        for _ in range(10):
            coefficients = found.spline.coefficients.astype(np.float64)
            piece = rng.integers(1, found.spline.segments - 1)
            coefficients[piece, 0] += rng.choice([-3, 3]) * found.max_error
            wrong = Spline(found.spline.knots, coefficients.astype(np.float32), found.spline.origins)
            certificate = certify(ACTIVATIONS["gelu"], wrong, FINITE_FP16, expected=found.max_error)
            assert certificate is None or certificate.error > 1.5 * found.max_error


def test_a_needle_between_samples_is_found() -> None:
    """A bump a thousandth wide at a place that no sample need hit."""
    found = fit(np.tanh, Form.parse("pwl:8"))

    def needle(x: Any) -> Any:
        return np.tanh(x) + np.exp(-np.square((x - 1.23456789) * 4000))

    certificate = certify(needle, found.spline, FINITE_FP16, expected=found.max_error)
    assert certificate is not None
    assert certificate.error > 0.9
    assert_bounds(certificate, needle, found.spline)


def test_jumps_and_kinks_cost_no_accuracy() -> None:
    for function in (
        lambda x: np.where(x > 0.05, x, 0.0),
        lambda x: np.where(np.abs(x) >= np.float32(0.3), x, 0.0),
        lambda x: np.minimum(np.maximum(x, -1 / 3), 0.1),
    ):
        found = fit(function, Form.parse("spline:8x1"))
        assert found.certificate is not None
        assert_bounds(found.certificate, function, found.spline)
        assert found.certificate.error <= found.max_error * (1 + 2 * SLACK) + 1e-9


def test_poles_and_holes_are_not_certified() -> None:
    table = Spline.of([0.0], [[0.0, 1.0], [0.0, 1.0]])
    for function in (
        lambda x: 1 / x,
        np.log,
        np.sqrt,
        lambda x: x * x / x,
        lambda x: 1 / (1 / x),
        lambda x: (x - 1) / (x - 1),
    ):
        assert certify(function, table, (-2.0, 2.0), expected=1.0) is None


def test_formulas_that_numpy_does_not_see_through_are_not_certified() -> None:
    def branching(x: Any) -> Any:
        return x if x > 0 else 0 * x

    def converting(x: Any) -> Any:
        return np.maximum(np.asarray(x, dtype=np.float64), 0)

    table = Spline.of([0.0], [[0.0, 0.0], [0.0, 1.0]])
    for function in (branching, converting, math.exp, np.cbrt, lambda _: "x"):
        assert certify(function, table, (-1.0, 1.0), expected=1.0) is None


def test_the_interval_is_rounded_outwards() -> None:
    certificate = certify(np.tanh, Spline.of([], [[0.0]]), (-0.1, 0.1), expected=0.1)
    assert certificate is not None
    low, high = certificate.interval
    assert low <= -0.1
    assert high >= 0.1
    assert (low, high) == (np.float32(low), np.float32(high))
