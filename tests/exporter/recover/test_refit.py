"""The ridge regression against numpy's least squares, and what it does where there is next to nothing to fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.exporter.recover import refit as module
from actx.exporter.recover.refit import Moments, Refit, refit

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS, OUTPUTS = 6, 3
SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, count: int, noise: float = 0.1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a layer reads, with means and unequal powers, and what it lacks: a linear map of that, an offset and noise."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(seed // 2).standard_normal((INPUTS, OUTPUTS))
    a = rng.standard_normal((count, INPUTS)) * np.geomspace(0.1, 3, INPUTS) + np.linspace(-2, 2, INPUTS)
    return a, a @ truth + 0.5 + noise * rng.standard_normal((count, OUTPUTS))


def moments(a: NDArray[np.float64], r: NDArray[np.float64], batches: int = 3) -> Moments:
    found = Moments(a.shape[1], r.shape[1])
    for part in np.array_split(np.arange(len(a)), batches):
        found.update(a[part], r[part])
    return found


def pair(seed: int, fitted: int = 40, held: int = 20, noise: float = 0.1) -> tuple[Moments, Moments]:
    a, r = rows(seed, fitted + held, noise)
    return moments(a[:fitted], r[:fitted]), moments(a[fitted:], r[fitted:])


@given(seed=SEEDS, bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_is_the_least_squares_of_the_augmented_system(seed: int, bias: bool) -> None:
    """Ridge regression is least squares with one more row per input, which asks for a change of 0."""
    a, r = rows(seed, 60)
    found = refit(moments(a[:40], r[:40]), moments(a[40:], r[40:]), bias=bias)
    assert found is not None
    mean_a, mean_r = (x[:40].mean(axis=0) if bias else np.zeros(x.shape[1]) for x in (a, r))
    centred = a[:40] - mean_a
    power = np.square(centred).sum(axis=0)
    ridge = np.diag(np.sqrt(found.strength * np.sqrt(power * power.mean())))
    target = np.concatenate([r[:40] - mean_r, np.zeros((INPUTS, OUTPUTS))])
    expected = np.linalg.lstsq(np.concatenate([centred, ridge]), target)[0]
    np.testing.assert_allclose(found.weight, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.bias, mean_r - mean_a @ expected if bias else 0, rtol=1e-7, atol=1e-9)


@given(seed=SEEDS, size=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_error_is_that_of_the_rows(seed: int, size: float) -> None:
    a, r = rows(seed, 50)
    rng = np.random.default_rng(seed)
    weight, bias = size * rng.standard_normal((INPUTS, OUTPUTS)), size * rng.standard_normal(OUTPUTS)
    expected = np.square(r - a @ weight - bias).sum()
    assert moments(a, r).error(weight, bias) == pytest.approx(expected, rel=1e-9)


def test_sums_do_not_depend_on_the_batches() -> None:
    a, r = rows(1, 50)
    whole, parts = moments(a, r, 1), moments(a, r, 7)
    np.testing.assert_allclose(np.triu(whole.gram), np.triu(a.T @ a), rtol=1e-12)
    for name in ("cross", "sum_a", "sum_r", "power"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12)
    assert whole.rows == parts.rows == 50


def test_means_are_taken_out_in_place() -> None:
    a, r = rows(2, 50)
    found = moments(a, r)
    gram, cross = found.gram, found.cross
    found.centre()
    assert found.gram is gram
    assert found.cross is cross
    np.testing.assert_allclose(np.triu(gram), np.triu((a - a.mean(0)).T @ (a - a.mean(0))), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(cross, (a - a.mean(0)).T @ (r - r.mean(0)), rtol=1e-9, atol=1e-9)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_held_out_rows_lack_less_or_nothing_is_changed(seed: int) -> None:
    """Targets that have nothing to do with what is read."""
    rng = np.random.default_rng(seed)
    a, r = rng.standard_normal((30, INPUTS)), rng.standard_normal((30, OUTPUTS))
    fitted, held = moments(a[:8], r[:8]), moments(a[8:], r[8:])
    found = refit(fitted, held, bias=True)
    if found is not None:
        assert found.after < found.before == held.power
        assert found.after == pytest.approx(np.square(r[8:] - a[8:] @ found.weight - found.bias).sum())


def test_more_noise_asks_for_a_stronger_ridge() -> None:
    strengths = []
    for noise in (0.0, 30.0):
        found = refit(*pair(3, noise=noise), bias=True)
        assert found is not None
        strengths.append(found.strength)
    assert strengths[0] == pytest.approx(1e-5 / 10**0.5)
    assert strengths[1] > 1e-2


@pytest.mark.parametrize("least", [1e-5, 1e-2, 1.0, 30.0, 1e4])
def test_the_strength_is_found_downhill(least: float) -> None:
    seen: list[float] = []

    def attempt(strength: float) -> Refit:
        seen.append(strength)
        return Refit(np.zeros(0), np.zeros(0), strength, 1.0, np.log(strength / least) ** 2)

    best = module._descend(attempt)
    assert best.strength == pytest.approx(least, rel=10**0.26 - 1)
    assert len(set(seen)) == len(seen) <= 9


@pytest.mark.parametrize("bias", [False, True])
def test_rows_that_are_not_finite_are_left_out(bias: bool) -> None:
    a, r = rows(4, 60)
    expected = refit(moments(a[:40], r[:40]), moments(a[40:], r[40:]), bias=bias)
    worse_a, worse_r = np.insert(a, 5, np.nan, axis=0), np.insert(r, 5, 0.0, axis=0)
    worse_a, worse_r = np.insert(worse_a, 9, 1.0, axis=0), np.insert(worse_r, 9, -np.inf, axis=0)
    found = refit(moments(worse_a[:42], worse_r[:42]), moments(a[40:], r[40:]), bias=bias)
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-9)


def test_without_any_rows_there_is_nothing_to_fit() -> None:
    a, r = rows(5, 10)
    nothing = moments(np.full_like(a, np.nan), r)
    assert nothing.rows == 0
    assert refit(moments(a, r), nothing, bias=True) is None
    assert refit(nothing, moments(a, r), bias=True) is None


@pytest.mark.parametrize("value", [0.0, 1e-3, 1e3])
def test_a_channel_that_is_constant_is_left_alone(value: float) -> None:
    """With a bias it explains nothing, however large: what is left of it is rounding."""
    a, r = rows(6, 60)
    a[:, 2] = value
    found = refit(moments(a[:40], r[:40]), moments(a[40:], r[40:]), bias=True)
    assert found is not None
    assert np.abs(found.weight[2] * value).max() < 1e-3


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_fewer_rows_than_inputs(count: int, bias: bool) -> None:
    fitted, held = pair(7, fitted=count)
    found = refit(fitted, held, bias=bias)
    assert found is None or (np.isfinite(found.weight).all() and found.after < found.before)


def test_every_channel_constant_leaves_the_bias_alone_to_change() -> None:
    a, r = np.full((30, INPUTS), 3.0), np.full((30, OUTPUTS), 2.0)
    found = refit(moments(a[:20], r[:20]), moments(a[20:], r[20:]), bias=True)
    assert found is not None
    np.testing.assert_allclose(3.0 * found.weight.sum(axis=0) + found.bias, 2.0, rtol=1e-6)
    assert found.after < 1e-6 * found.before


def test_a_sum_that_is_not_positive_definite_is_solved_by_its_eigenvalues() -> None:
    rng = np.random.default_rng(8)
    thin = rng.standard_normal((2, INPUTS))
    gram = thin.T @ thin - 1e-14 * np.eye(INPUTS)  # of rank 2, and below zero as by rounding
    cross = thin.T @ rng.standard_normal((2, OUTPUTS))
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(gram)
    found = module._solve(np.triu(gram), np.zeros(INPUTS), cross)
    np.testing.assert_allclose(found, np.linalg.pinv(gram, rcond=1e-10) @ cross, rtol=1e-6, atol=1e-9)
    assert not module._solve(np.zeros((2, 2)), np.zeros(2), np.zeros((2, 1))).any()
