"""The spline: what is refused, its values everywhere, and its attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.custom_ops import Spline

UNIT = 2.0**-24


def example() -> Spline:
    """0 left of -1, x^2 - 1 about origin 0 up to 2, then 3 + 4 (x - 2)."""
    return Spline.of([-1, 2], [[0, 0, 0], [-1, 0, 1], [3, 4, 0]], [0, 0, 2])


def test_values() -> None:
    x = np.array([-5, -1.5, -1, 0, 1.5, 2, 10])
    np.testing.assert_array_equal(example()(x), [0, 0, 0, -1, 1.25, 3, 35])
    assert example()(0.0).shape == ()
    assert example()(np.zeros((0, 3))).shape == (0, 3)
    assert example()(x).dtype == np.float64


def test_knots_belong_to_the_right() -> None:
    step = Spline.of([0.5], [[1], [2]])
    np.testing.assert_array_equal(step([np.nextafter(0.5, 0), 0.5]), [1, 2])


@pytest.mark.parametrize(
    ("tail", "at_minus", "at_plus"),
    [
        ([3, 0, 0, 0], 3, 3),
        ([0, 2, 0, 0], -np.inf, np.inf),
        ([0, -2, 0, 0], np.inf, -np.inf),
        ([1, 5, -1, 0], -np.inf, -np.inf),
        ([1, 5, -1, 2], -np.inf, np.inf),
        ([0, 0, 0, 0], 0, 0),
    ],
)
def test_infinities_follow_their_tail_and_nan_stays(tail: list[float], at_minus: float, at_plus: float) -> None:
    spline = Spline.of([0.0], [tail, tail], [-3, 3])
    np.testing.assert_array_equal(spline([-np.inf, np.inf, np.nan]), [at_minus, at_plus, np.nan])


@pytest.mark.parametrize(
    ("knots", "coefficients", "origins", "message"),
    [
        ([0, 0], [[1], [2], [3]], [0, 0, 0], "ascend strictly"),
        ([1, 0], [[1], [2], [3]], [0, 0, 0], "ascend strictly"),
        ([0], [[1], [2], [3]], [0, 0, 0], "must have shapes"),
        ([0, 1], [[1], [2], [3]], [0, 0], "must have shapes"),
        ([np.nan], [[1], [2]], [0, 0], "knots must be finite"),
        ([0], [[1], [np.inf]], [0, 0], "coefficients must be finite, got inf"),
        ([0], [[1], [1e39]], [0, 0], "coefficients must be finite, got inf"),
        ([0], [[1], [2]], [0, -np.inf], "origins must be finite"),
        (range(32), [[1, 2]] * 33, [0] * 33, "at most 32 segments"),
        (range(4), [[0] * 5] * 5, [0] * 5, "at most 32 segments of degree 3 or 4 of degree 16, got 5 of degree 4"),
        ([0], [[0] * 18] * 2, [0] * 2, "got 2 of degree 17"),
        ([0], [1, 2], [0, 0], "rank 2"),
    ],
)
def test_refused(knots: Any, coefficients: Any, origins: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spline.of(knots, coefficients, origins)


def test_largest_tables() -> None:
    assert Spline.of(range(31), [[0, 0, 0, 1]] * 32).segments == 32
    assert Spline.of(range(3), [[0] * 16 + [1]] * 4).degree == 16
    assert Spline.of([], [[2, 1]])(3.0) == 5


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        example().knots[0] = 7


# --- per channel ---


def test_per_channel() -> None:
    first, second = example(), Spline.of([-3, 0], [[0, 1, 0], [1, 0, 1], [0, 0, 2]], [0, 1, 0])
    both = Spline(
        np.stack([first.knots, second.knots]),
        np.stack([first.coefficients, second.coefficients]),
        np.stack([first.origins, second.origins]),
        axis=-2,
    )
    x = np.random.default_rng(0).uniform(-5, 5, (4, 2, 7))
    np.testing.assert_array_equal(both(x), np.stack([first(x[:, 0]), second(x[:, 1])], axis=1))
    assert (both.segments, both.degree) == (3, 2)
    with pytest.raises(ValueError, match="axis -2 has 3 elements, the spline has 2 channels"):
        both(x[:, [0, 1, 1]])


def test_repeated_for_every_channel() -> None:
    x = np.random.default_rng(0).uniform(-5, 5, (4, 3))
    np.testing.assert_array_equal(example().per_channel(3, 1)(x), example()(x))


# --- scaled, attributes ---


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize(("inner", "outer"), [(2.0, 0.5), (0.25, -3.0), (1.7, 1 / 1.7), (1.0, 0.0)])
def test_scaled(inner: float, outer: float, channels: int | None) -> None:
    spline = example() if channels is None else example().per_channel(channels, 0)
    x = np.random.default_rng(0).uniform(-5, 5, (3, 100))
    expected = outer * spline(inner * x)
    # Every coefficient and origin is rounded once.
    assert np.abs(spline.scaled(inner, outer)(x) - expected).max() <= 8 * UNIT * (1 + np.abs(expected).max())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_input_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        example().scaled(scale, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 32), st.integers(0, 3), st.none() | st.integers(1, 4))
def test_attributes_round_trip(data: st.DataObject, segments: int, degree: int, channels: int | None) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lead = () if channels is None else (channels,)
    spline = Spline(
        np.cumsum(rng.uniform(0.01, 2, (*lead, segments - 1)), axis=-1) - 9,
        rng.standard_normal((*lead, segments, degree + 1)),
        rng.uniform(-2, 2, (*lead, segments)),
        None if channels is None else -1,
    )
    again = Spline.from_attributes(spline.attributes())
    for name in ("knots", "coefficients", "origins"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spline, name))
    assert again.axis == spline.axis


def test_attributes_that_do_not_fit() -> None:
    whole = example().per_channel(2, -1).attributes()
    for name in set(whole) - {"axis"}:
        with pytest.raises(ValueError, match=f"needs the attribute {name}"):
            Spline.from_attributes({key: value for key, value in whole.items() if key != name})
    for name, value in (
        ("degree", 1),
        ("knots", [0.0]),
        ("coefficients", [1.0, 2.0]),
        ("channels", 5),
        ("origins", []),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            Spline.from_attributes({**whole, name: value})
