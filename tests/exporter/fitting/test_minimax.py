"""Behaviour of `fitting.minimax`, against linear programming on the same points."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import chebyshev
from scipy.optimize import linprog

from actx.exporter.fitting.minimax import approximate


def least_error(x: np.ndarray, y: np.ndarray, degree: int, width: np.ndarray) -> float:
    """Minimize e under |y - p(x)| <= e * width."""
    matrix = chebyshev.chebvander((2 * x - x[0] - x[-1]) / (x[-1] - x[0]), degree)
    rows = np.vstack([np.column_stack([matrix, -width]), np.column_stack([-matrix, -width])])
    found = linprog(np.eye(degree + 2)[-1], rows, np.concatenate([y, -y]), bounds=[(None, None)] * (degree + 2))
    return float(found.x[-1])


@pytest.mark.parametrize("degree", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_least_error_of_values_that_jump_about(degree: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(-3, 5, 48))
    y, width = rng.normal(size=48), rng.uniform(0.5, 2, 48)
    found = approximate(x, y, degree, width=width, tolerance=1e-4)
    least = least_error(x, y, degree, width)
    assert least * (1 - 1e-9) <= found.error <= least * (1 + 1e-4)
    values = np.polynomial.polynomial.polyval(x - 1.0, found.powers(1.0))
    assert (np.abs(values - y) / width).max() == pytest.approx(found.error, rel=1e-9)


def test_tells_that_the_error_is_above_a_limit() -> None:
    x = np.linspace(-1, 1, 48)
    y = np.sin(40 * x)
    least = least_error(x, y, 3, np.ones(48))
    above = approximate(x, y, 3, limit=0.5 * least).error
    assert 0.5 * least < above <= least * (1 + 1e-9)
    assert approximate(x, y, 3, limit=1.01 * least, tolerance=1e-4).error == pytest.approx(least, rel=1e-4)
