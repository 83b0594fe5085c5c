"""A form is moved where that brings it closer to the function, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from actx.exporter.recover.alignment import BINS, GAINS, REACH, SHIFTS, SLOPES, Histogram, align

if TYPE_CHECKING:
    from numpy.typing import NDArray


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * ndtr(x)


def relu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(x, 0)


def histogram(rows: NDArray[Any]) -> Histogram:
    found = Histogram(rows.shape[1])
    found.update(rows)
    return found


def pair(seed: int, centres: list[float], spread: float = 1.0, count: int = 4000) -> tuple[Histogram, Histogram]:
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(centres, spread, (count, len(centres))) for _ in range(2))
    return histogram(first), histogram(second)


def test_every_input_is_counted_where_it_is() -> None:
    rows = np.array([[0.0, -3.0], [1.0, 1e9], [-np.inf, np.nan], [1.02, -1e9]], np.float32)
    found = histogram(rows)
    assert found.counts.sum(axis=1).tolist() == [3, 3]
    seen = [found.middles[found.counts[i] > 0] for i in range(2)]
    half = np.arcsinh(REACH) / BINS * (1 + 1e-5)  # of a bin, and float32's rounding
    np.testing.assert_allclose(np.arcsinh(seen[0]), np.arcsinh([0, 1, 1.02]), rtol=0, atol=half)
    np.testing.assert_allclose(np.arcsinh(seen[1]), np.arcsinh([-REACH, -3, REACH]), rtol=0, atol=half)


def test_batches_add_up() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float16)
    parts = histogram(rows[:30])
    parts.update(rows[30:])
    np.testing.assert_array_equal(parts.counts, histogram(rows).counts)


@pytest.mark.parametrize(
    ("slope", "shift", "gain", "offset"), [(0.8, 0.5, 1.1, 0.3), (1.25, -1.0, 0.7, -0.2), (1.0, 0.0, 1.3, 0.0)]
)
def test_a_known_move_is_followed(slope: float, shift: float, gain: float, offset: float) -> None:
    """The function is the form, moved. Slope and gain can stand in for each other, so what counts is what is left."""

    def function(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return gain * gelu(slope * x + shift) + offset

    fitted, held = pair(1, [0.0, 0.7], 2.0)
    found = align(function, gelu, fitted, held, offset=True)
    x, shares = held.middles, held.counts / held.counts.sum(axis=1, keepdims=True)
    moved = found.gain[:, None] * gelu(x * found.slope[:, None] + found.shift[:, None]) + found.offset[:, None]
    before, after = ((shares * np.square(function(x) - y)).sum(axis=1) for y in (gelu(x), moved))
    assert found.moved == 2
    assert (after < 0.05 * before).all()


def test_a_shift_and_a_gain_are_found() -> None:
    found = align(lambda x: 1.2 * relu(x + 0.5), relu, *pair(1, [0.0, 0.3], 2.0), offset=True)
    np.testing.assert_allclose(found.gain * found.slope, 1.2, rtol=0.02)
    # Shifts lie on a grid, and relu's slope is a gain: the nearest shift is half a step away, over the least slope.
    step = SHIFTS[1] - SHIFTS[0]
    np.testing.assert_allclose(found.shift / found.slope, 0.5, rtol=0, atol=step / 2 / min(SLOPES))


def test_a_form_that_is_the_function_stays() -> None:
    found = align(gelu, gelu, *pair(2, [-1.0, 0.0, 3.0]), offset=True)
    assert found.moved == 0
    assert found.slope.tolist() == found.gain.tolist() == [1.0] * 3
    assert found.shift.tolist() == found.offset.tolist() == [0.0] * 3


def test_without_an_offset_there_is_none() -> None:
    found = align(gelu, relu, *pair(3, [-0.5, 0.5]), offset=False)
    assert found.moved == 2
    assert not found.offset.any()


@given(
    seed=st.integers(0, 2**32 - 1),
    centre=st.floats(-6, 6),
    spread=st.floats(0.05, 4),
    offset=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_held_out_inputs_are_never_worse_off(seed: int, centre: float, spread: float, offset: bool) -> None:
    fitted, held = pair(seed, [centre, -centre], spread, 300)
    found = align(gelu, relu, fitted, held, offset=offset)
    shares = held.counts / held.counts.sum(axis=1, keepdims=True)
    x = held.middles
    moved = found.gain[:, None] * relu(x * found.slope[:, None] + found.shift[:, None]) + found.offset[:, None]
    before = (shares * np.square(gelu(x) - relu(x))).sum(axis=1)
    after = (shares * np.square(gelu(x) - moved)).sum(axis=1)
    assert (after <= before).all()
    assert ((found.gain >= GAINS[0]) & (found.gain <= GAINS[1])).all()


def test_a_channel_of_which_nothing_was_held_out_is_not_moved() -> None:
    fitted, held = pair(4, [0.0, 0.0])
    held.counts[1] = 0
    found = align(gelu, relu, fitted, held, offset=True)
    assert found.moved == 1
    assert found.slope[1] == found.gain[1] == 1


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0])
def test_a_channel_that_is_constant(value: float) -> None:
    rows = np.full((50, 1), value)
    found = align(gelu, relu, histogram(rows), histogram(rows), offset=True)
    x = histogram(rows).middles[histogram(rows).counts[0] > 0]
    moved = found.gain * relu(found.slope * x + found.shift) + found.offset
    assert abs(float((moved - gelu(x))[0])) <= abs(float((relu(x) - gelu(x))[0]))


def test_where_a_function_is_infinite_and_no_input_is_it_does_not_matter() -> None:
    def rises(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(np.square(x))

    fitted, held = pair(5, [0.0], 0.3)
    found = align(rises, lambda x: 1 + np.square(x), fitted, held, offset=True)
    assert np.isfinite([found.slope, found.shift, found.gain, found.offset]).all()
    assert found.moved == 1


def test_a_function_that_is_infinite_where_inputs_are_is_left_alone() -> None:
    def rises(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(np.square(x))

    found = align(rises, relu, *pair(6, [50.0]), offset=True)
    assert found.moved == 0
