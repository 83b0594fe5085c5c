"""Families find the parameters of their own members again, and leave other functions alone."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.custom_ops import ACTIVATIONS, FAMILIES

if TYPE_CHECKING:
    from actx.custom_ops import Family

X = np.concatenate([np.linspace(-12, 12, 2401), [-6e4, -100.0, 100.0, 6e4]])
FLOAT32 = 4 * 2.0**-24
coefficients = st.floats(-4, 4).filter(lambda v: abs(v) > 1e-3)


def found(family: Family, parameters: dict[str, float], tolerance: float = FLOAT32) -> dict[str, float]:
    with np.errstate(all="ignore"):
        inferred = family.infer(lambda x: family.formula(x, **parameters), tolerance)
    assert inferred is not None
    return dict(inferred)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_defaults_are_found_again(name: str) -> None:
    family = FAMILIES[name]
    assert found(family, dict(family.defaults)) == pytest.approx(family.defaults, rel=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_member_is_an_activation(name: str) -> None:
    entry = FAMILIES[name].default
    assert ACTIVATIONS[name].parameters == entry.parameters
    np.testing.assert_array_equal(entry(X), FAMILIES[name].formula(X, **FAMILIES[name].defaults))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from("abc"),
    st.lists(coefficients, min_size=1, max_size=8),
    st.lists(coefficients, min_size=2, max_size=6),
)
def test_rationals_of_any_degree(version: str, above: list[float], below: list[float]) -> None:
    first = 0 if version == "c" else 1
    parameters = {f"a{i}": c for i, c in enumerate(above)} | {f"b{i}": c for i, c in enumerate(below, first)}
    inferred = found(FAMILIES[f"rational_{version}"], parameters)
    if version == "a":  # the signs below are no part of the function
        inferred, parameters = ({k: abs(v) if k[0] == "b" else v for k, v in p.items()} for p in (inferred, parameters))
    assert inferred == pytest.approx(parameters, rel=1e-12)
    others = [FAMILIES[f"rational_{v}"] for v in "abc" if v != version]
    own = FAMILIES[f"rational_{version}"]
    assert [other.infer(lambda x: own.formula(x, **parameters), FLOAT32) for other in others] == [None, None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-48, 48), coefficients), min_size=1, max_size=8, unique_by=lambda h: h[0]))
def test_hinges_of_any_number(hinges: list[tuple[int, float]]) -> None:
    ordered = sorted(hinges)
    parameters = {f"a{i}": a for i, (_, a) in enumerate(ordered, 1)}
    parameters |= {f"b{i}": b / 8 for i, (b, _) in enumerate(ordered, 1)}
    assert found(FAMILIES["apl"], parameters) == pytest.approx(parameters, rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(set(FAMILIES["la"].defaults) | {"relu2", "mish"})), coefficients, min_size=2)
)
def test_weights_of_any_part_of_the_dictionary(weights: dict[str, float]) -> None:
    assert found(FAMILIES["la"], weights) == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: 1 / (x - 2),  # a pole: no denominator of any version
        lambda x: x / (1 - np.abs(x)),
        lambda x: np.abs(x) / (1 + x * x),  # no polynomial above
        lambda x: x * x + x,  # no denominator
        lambda x: x / (1 + np.abs(x * x - 1) + np.abs(x + 1)),
        lambda x: np.where(x > 1, x, 0.5),  # a jump
        lambda x: np.maximum(x, 0) + 1e-3,  # the right tail is not x
        lambda x: np.maximum(x, 0) ** 2 + 0.25,
        lambda x: x * np.tanh(x),
        np.sin,
        lambda x: np.full_like(x, np.nan) if isinstance(x, np.ndarray) else x * np.nan,
    ],
)
def test_other_functions_are_in_no_family(formula: Any) -> None:
    with np.errstate(all="ignore"):
        assert [family.infer(formula, FLOAT32) for family in FAMILIES.values()] == [None] * len(FAMILIES)


ODD = [
    np.abs,
    np.square,
    np.tanh,
    np.exp,
    lambda x: np.power(x, 0.5),
    lambda x: np.power(x, 60),
    lambda x: np.maximum(x, 1),
]


@pytest.mark.parametrize(("first", "second"), list(product(ODD, ODD)))
def test_what_a_quotient_cannot_say_is_no_error(first: Any, second: Any) -> None:
    for family in FAMILIES.values():
        with np.errstate(all="ignore"):
            inferred = family.infer(lambda x: second(first(x)) / (1 + first(second(x))), FLOAT32)
            if inferred is None:
                continue
            expected = second(first(X)) / (1 + first(second(X)))
            np.testing.assert_allclose(family.formula(X, **inferred), expected, rtol=1e-6, atol=1e-6)
