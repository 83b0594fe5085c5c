"""Every rule of a jet holds the function's values and derivatives at every point of its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

from actx.exporter.certificate.jet import ARITHMETIC, FUNCTIONS, LOGIC, Jet, Truth, operand, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

UNARY = [ufunc for ufunc in ARITHMETIC if ufunc.nin == 1]
BINARY = [ufunc for ufunc in ARITHMETIC if ufunc.nin == 2]
# Where finite differences of float64 say something about a derivative: (f(x + h) - f(x - h)) / 2h.
STEP = 1e-3
ends = st.floats(-30, 30, width=32) | st.floats(-1, 1, width=32) | st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with ctx.workprec(80):
        yield


def over(low: float, high: float) -> Jet:
    return Jet.variable(union(arb(low), arb(high)))


def holds(ball: arb, value: float, tolerance: float = 1e-11) -> bool:
    """Tell whether the ball contains a float64 result, apart from that result's own rounding."""
    if not ball.is_finite():
        return True
    slack = tolerance * (1 + abs(value))
    return float(ball.lower()) - slack <= value <= float(ball.upper()) + slack


def assert_holds(function: Callable[[Any], Any], low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    found = function(over(low, high))
    x = np.unique(np.concatenate([np.linspace(low, high, 9), [low, high]]))
    with np.errstate(all="ignore"):
        values = np.broadcast_to(function(x), x.shape)
        beside = np.array([[function(p - STEP), function(p + STEP)] for p in x]).astype(float)
        wider = np.array([[function(p - 2 * STEP), function(p + 2 * STEP)] for p in x]).astype(float)
    if isinstance(found, Truth):
        assert found.value is None or (values == found.value).all()
        return
    jet = operand(found)
    assert isinstance(jet, Jet)
    if jet.fraction is not None and jet.value.is_finite():
        assert_jet_holds(Jet.of_fraction(jet.fraction, union(arb(low), arb(high))), x, values, beside, wider)
    assert_jet_holds(jet, x, values, beside, wider)


def assert_jet_holds(jet: Jet, x: Array, values: Array, beside: Array, wider: Array) -> None:
    """Beside: the values at a step from x to either side; wider: at two steps."""
    low, high = x[0], x[-1]
    middles = values.astype(float)
    for i in range(len(x)):
        if not np.isfinite(middles[i]):  # float64 overflows, or the function is not defined
            continue
        assert holds(jet.value, middles[i])
    defined = np.isfinite(middles) & np.isfinite(beside).all(axis=1) & np.isfinite(wider).all(axis=1)
    inside = (x - 2 * STEP > low) & (x + 2 * STEP < high) & (np.abs(middles) < 1e100)
    for i in np.flatnonzero(inside & defined):
        left, right = beside[i]
        first, second = (right - left) / (2 * STEP), (right - 2 * middles[i] + left) / STEP**2
        third = (wider[i, 1] - 2 * right + 2 * left - wider[i, 0]) / (2 * STEP**3)
        # By the mean value theorem each difference is a derivative somewhere between the points.
        for ball, difference, rounding in (
            (jet.first, first, 1e-12),
            (jet.second, second, 1e-8),
            (jet.third, third, 1e-4),
        ):
            assert holds(ball, difference, rounding * (1 + abs(middles[i])))


@pytest.mark.parametrize("ufunc", UNARY, ids=lambda ufunc: ufunc.__name__)
@given(low=ends, high=ends)
def test_functions_of_one_argument(ufunc: np.ufunc, low: float, high: float) -> None:
    assert_holds(ufunc, low, high)


@pytest.mark.parametrize("ufunc", UNARY, ids=lambda ufunc: ufunc.__name__)
@given(low=ends, high=ends)
def test_the_chain_rule(ufunc: np.ufunc, low: float, high: float) -> None:
    assert_holds(lambda x: ufunc(0.75 * x * x - x), max(low, -4), min(high, 4))


@pytest.mark.parametrize("ufunc", BINARY, ids=lambda ufunc: ufunc.__name__)
@given(low=ends, high=ends, constant=st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 7.0]))
def test_functions_of_two_arguments(ufunc: np.ufunc, low: float, high: float, constant: float) -> None:
    assert_holds(lambda x: ufunc(x, constant), low, high)
    assert_holds(lambda x: ufunc(constant, x), low, high)
    assert_holds(lambda x: ufunc(np.exp(0.1 * x), x), low, high)


@given(low=ends, high=ends)
def test_conditions(low: float, high: float) -> None:
    for function in (
        lambda x: np.where(np.logical_and(x > 0, x < 2), x, -x * x),
        lambda x: np.where(np.logical_or(x < -1, np.logical_not(x <= 1)), 1.0, np.sin(x)),
        lambda x: np.where(np.logical_xor(x > 0, x > 1), np.exp(x), 0.0),
        lambda x: np.where(np.equal(x, 0), 1.0, x),
        lambda x: np.where(np.not_equal(np.floor(x), 0), 1.0, x),
        lambda x: np.multiply(np.greater(x, 0), x),
        lambda x: np.clip(x, -1, 1) + np.clip(x, None, 0.5) - np.round(x),
        lambda x: np.where(np.isnan(x), 0.0, np.where(np.isinf(x), 1.0, x)),
    ):
        assert_holds(function, low, high)


def test_decided_conditions_are_decided() -> None:
    x = over(1.0, 2.0)
    assert (x > 0).value is True
    assert (x <= 0.5).value is False
    assert (x > 1.5).value is None
    assert np.equal(over(3.0, 3.0), 3.0).value is True
    assert np.not_equal(x, 0.0).value is True
    assert np.logical_and(x > 1.5, x < 0).value is False
    assert np.logical_or(x > 1.5, x > 0).value is True


def test_a_smooth_function_is_bounded_tightly() -> None:
    for function in (np.tanh, np.exp, np.sin, lambda x: x * x * x * x, lambda x: 1 / (1 + np.exp(-x))):
        wide, narrow = (function(over(0.7 - r, 0.7 + r)) for r in (1e-2, 1e-4))
        assert float(wide.value.rad()) < 0.03
        assert float(narrow.third.rad()) < 2e-2 * float(wide.third.rad())


OF_EXPONENTIALS = {
    "1 / (1 + e)": lambda e: 1 / (1 + e), "e + 1": lambda e: np.reciprocal(e + 1), "power": lambda e: (1 + e) ** -1,
    "1 / e": lambda e: 1 / e, "log": lambda e: np.log(1 + e), "log1p": np.log1p, "of log1p": lambda e: np.log1p(1 + e),
    "of log": np.log, "2 + e": lambda e: 1 / (2 + e), "twice": lambda e: 1 / (1 + (1 + e)),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_EXPONENTIALS)
@given(low=ends, high=ends)
def test_functions_of_an_exponential(name: str, low: float, high: float) -> None:
    assert_holds(lambda x: OF_EXPONENTIALS[name](np.exp(x)), low, high)
    assert_holds(lambda x: OF_EXPONENTIALS[name](np.exp(0.3 * x * x - x)), max(low, -4), min(high, 4))


def test_what_is_made_of_exponentials_is_known_where_they_grow_by_any_factor() -> None:
    for function in (
        lambda x: x / (1 + np.exp(-x)),
        lambda x: np.log(1 + np.exp(x)),
        lambda x: np.tanh(np.log1p(np.exp(x))),
    ):
        assert float(function(over(-65504, -20)).value.abs_upper()) < 1e-3
        assert function(over(-65504, -20)).third.is_finite()


QUOTIENTS: dict[str, Callable[[Any], Any]] = {
    "polynomial": lambda x: (0.1 * x - 2) * x * x + 3 - x,
    "powers": lambda x: x**3 / (1 + np.square(x) ** 2),
    "horner": lambda x: ((0.5 * x + 1) * x - 2) / ((x + 1) * x + 4),
    "absolute": lambda x: (x + 2) / (1 + np.abs(x) + np.abs(0.25 * x * x - x)),
    "sum": lambda x: 1 / (2 + x * x) - x / (3 + np.abs(x)) + np.reciprocal(1 + np.square(x)),
    "nested": lambda x: 1 / (1 + 1 / (1 + 2 / (3 + x * x))),
    "selected": lambda x: np.maximum(x / (1 + np.abs(x)), -x),
    "negative": lambda x: -(x - 1) / -(x * x + 1) - np.minimum(x, 0.5),
}


@pytest.mark.parametrize("name", QUOTIENTS)
@given(low=ends, high=ends)
def test_quotients_of_polynomials(name: str, low: float, high: float) -> None:
    assert_holds(QUOTIENTS[name], low, high)


def test_far_out_a_quotient_is_told_from_its_asymptote() -> None:
    x = over(1e3, 2e3)
    rest = (x * x * x + x) / (2 + x * x) - x
    assert rest.fraction is not None
    assert float(rest.value.abs_upper()) > 100
    tight = rest.intersection(Jet.of_fraction(rest.fraction, x.value))
    assert float(tight.value.abs_upper()) < 1e-2
    assert float(tight.first.abs_upper()) < 1e-4
    for other in (np.exp(x), np.tanh(x) * x, x**0.5, over(-1, 1) + np.abs(over(-1, 1)), x**65):
        assert other.fraction is None


def test_where_a_function_is_undefined_nothing_is_claimed() -> None:
    for jet in (np.log(over(-1, 1)), np.sqrt(over(-2, -1)), 1 / over(-1, 1), np.arcsin(over(0, 2)), over(-1, 1) ** 0.3):
        assert not math.isfinite(float(jet.value.abs_upper()))


def test_what_has_no_rule_is_a_type_error() -> None:
    x = over(0, 1)
    for formula in (np.cbrt, np.heaviside, lambda x: np.add(x, 1, dtype=np.float32), lambda x: x if x > 0.5 else -x):
        with pytest.raises(TypeError):
            np.asarray(formula(x, 1) if formula is np.heaviside else formula(x))
    with pytest.raises(TypeError):
        operand("x")


def test_every_table_is_used() -> None:
    assert not set(ARITHMETIC) & set(LOGIC)
    assert all(isinstance(ufunc, np.ufunc) for ufunc in (*ARITHMETIC, *LOGIC))
    assert set(FUNCTIONS) >= {np.where, np.clip, np.round}
